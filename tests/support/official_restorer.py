"""VARestorer's file as published: Infinity's with every attention layer of the blocks in three parts."""

from torch import Tensor

from stagevar_core.autoencoders.bsq import BSQTokenizerConfig
from stagevar_core.models.infinity_config import InfinityConfig

from .official_files import Layout, transformer

LAYERS = ("sa.mat_qkv", "sa.proj", "ca.mat_q", "ca.mat_kv", "ca.proj")
# Of the published sizes all but the width, so that tiles are quick: 512 px, a stride of 16, 16 bits.
TINY = InfinityConfig(
    depth=2, width=32, heads=2, hidden=64, bits=16, text_width=24, null_rows=16, pool_heads=2
)
TINY_CODES = BSQTokenizerConfig(dim=16, width=32, multipliers=(1, 1, 1, 1, 1), blocks=1)


def restorer(
    config: InfinityConfig, *, rank: int = 32, chunks: int | None = 8, device: str = "meta", seed: int = 0
) -> Layout:
    """A transformer file in the published form."""
    plain = transformer(config, chunks=chunks, device=device, seed=seed)
    layout = Layout(device, seed + 1)
    for key, tensor in plain.items():
        owner, _, kind = key.rpartition(".")
        if not owner.endswith(LAYERS) or "text_proj" in owner:
            layout[key] = tensor
            continue
        layout[f"{owner}.linear.{kind}"] = tensor
        if kind == "weight":
            layout.put(f"{owner}.lora_down.weight", rank, tensor.shape[1])
            layout.put(f"{owner}.lora_up.weight", tensor.shape[0], rank)
    layout.buffers = plain.buffers
    return layout


def merged(file: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same as an ordinary Infinity file, in double precision."""
    plain = {}
    for key, tensor in file.items():
        if ".lora_" in key:
            continue
        owner = key.removesuffix(".linear.weight")
        if owner != key:
            up, down = (file[f"{owner}.lora_{part}.weight"].double() for part in ("up", "down"))
            tensor = (tensor.double() + up @ down).float()
        if key.endswith(".ca.v_bias") and "text_proj" not in key:
            tensor = tensor * 0.0
        plain[key.replace(".linear.", ".")] = tensor
    return plain
