"""VARestorer's published form: the attention layers of every block as a base and two LoRA layers to be added.

The layers are those of cloneofsimo/lora with scale 1: ``X.linear.weight`` (out, in), ``X.lora_down.weight``
(rank, in) and ``X.lora_up.weight`` (out, rank) stand for ``X.weight`` = linear + up @ down.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from .errors import CheckpointError, listed

KEY = r"((?:block_chunks\.\d+\.module|blocks)\.\d+)\."
_LAYERS = ("sa.mat_qkv", "sa.proj", "ca.mat_q", "ca.mat_kv", "ca.proj")
_PARTS = ("linear", "lora_down", "lora_up")
_PART = re.compile(rf"{KEY}({'|'.join(map(re.escape, _LAYERS))})\.({'|'.join(_PARTS)})\.(weight|bias)")
_LEFT_OUT = re.compile(KEY + r"ca\.v_bias")


def merged_lora(tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The same model with plain layers under the names of Infinity; sums are made, and kept, in float32.

    With LoRA layers the official cross-attention leaves out the bias of its values, so that becomes zero.
    Raises :class:`CheckpointError` where a block lacks a part, or a layer has another rank than the others.
    """
    parts = {match[0]: match for key in tensors if (match := _PART.fullmatch(key))}
    blocks = dict.fromkeys(match[1] for key in tensors if (match := re.match(KEY, key)))
    layers = [f"{block}.{layer}" for block in blocks for layer in _LAYERS]
    missing = {f"{layer}.{part}.weight" for layer in layers for part in _PARTS} - tensors.keys()
    if missing:
        raise CheckpointError(
            f"{source}: {len(missing)} LoRA layers or their bases are missing ({listed(missing, 4)}); "
            f"expected {len(_LAYERS)} in each of the {len(blocks)} blocks. Get the whole file again"
        )
    plain = {key: tensor for key, tensor in tensors.items() if key not in parts}
    plain |= {key: torch.zeros_like(plain[key]) for key in plain if _LEFT_OUT.fullmatch(key)}
    plain |= {
        f"{match[1]}.{match[2]}.bias": tensors[key]
        for key, match in parts.items()
        if (match[3], match[4]) == ("linear", "bias")
    }
    rank = 0
    for layer in layers:
        base, down, up = (tensors[f"{layer}.{part}.weight"] for part in _PARTS)
        rank = rank or (down.shape[0] if down.dim() else 0)
        if base.dim() != 2 or (up.shape, down.shape) != ((base.shape[0], rank), (rank, base.shape[1])):
            raise CheckpointError(
                f"{source}: the LoRA layers of {layer} have the shapes {list(down.shape)} and "
                f"{list(up.shape)} beside a base of {list(base.shape)}; expected the rank {rank} of the "
                "first layers everywhere, and the sides of the base. Get the file again"
            )
        plain[f"{layer}.weight"] = torch.addmm(base.float(), up.float(), down.float())
    return plain
