"""What the official Infinity code imports and a machine may lack, replaced from outside."""

from __future__ import annotations

import importlib.util
import sys
import types
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def plain_attention(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, softmax_scale: float | None = None
) -> Tensor:
    """``flash_attn_func``: (rows, length, heads, head_dim)."""
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, scale=softmax_scale).transpose(1, 2)


def plain_packed_attention(  # noqa: PLR0913 - the signature of the function it stands for
    q: Tensor,
    kv: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
) -> Tensor:
    """``flash_attn_varlen_kvpacked_func``: texts of any length one after the other, (tokens, heads, D)."""
    parts = []
    queries, keys = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    for row in range(len(keys) - 1):
        own = q[queries[row] : queries[row + 1]].unsqueeze(0)
        k, v = kv[keys[row] : keys[row + 1]].unsqueeze(0).unbind(2)
        parts.append(plain_attention(own, k, v, softmax_scale=softmax_scale)[0])
    return torch.cat(parts)


class CpuAutocast(torch.amp.autocast_mode.autocast):
    """The official code names 'cuda' wherever it switches autocast; on a CPU that means the CPU's."""

    def __init__(self, device_type: str = "cuda", dtype: Any = None, enabled: bool = True, **options) -> None:
        super().__init__("cpu", dtype=dtype, enabled=enabled, **options)


class CpuAutocastOfCuda(CpuAutocast):
    """``torch.cuda.amp.autocast``, which takes no device."""

    def __init__(self, enabled: bool = True, dtype: Any = torch.bfloat16, cache_enabled: bool = True) -> None:
        super().__init__("cuda", dtype, enabled, cache_enabled=cache_enabled)


class Float32LayerNorm(nn.LayerNorm):
    """In float32 whatever the weights are, as under the autocast of a GPU; the CPU's leaves it alone."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalised over the last dimensions, in float32."""
        weight, bias = (part if part is None else part.float() for part in (self.weight, self.bias))
        return F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps)


class _Unused:
    """Stands in for a name that is imported and not called."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        raise RuntimeError("the stand-in of a missing package was called; install that package")


# Packages that the official code imports and generation does not use: module -> names asked of it.
UNUSED = {
    "timm": (),
    "timm.models": (),
    "timm.models.layers": ("DropPath", "drop_path"),
    "timm.loss": ("SoftTargetCrossEntropy",),
    "pytz": (),
    "imageio": (),
    "torchvision": (),
    "torchvision.transforms": (),
    "wandb": (),
    "tqdm": (),
}


def missing(package: str) -> bool:
    """Whether a package is not installed."""
    return importlib.util.find_spec(package) is None


def stand_in(name: str, **members: Any) -> None:
    """A module of this name; as an attribute of its parent, too."""
    module = types.ModuleType(name)
    module.__path__ = []  # submodules may be imported from it
    module.__spec__ = importlib.util.spec_from_loader(name, loader=None)
    vars(module).update(members)
    sys.modules[name] = module
    parent, _, own = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], own, module)


def replace_missing(device: torch.device) -> list[str]:
    """Stand-ins for what this machine lacks; says what they are."""
    said = []
    absent = [name for name in UNUSED if missing(name.partition(".")[0])]
    for name in absent:
        stand_in(name, **{member: type(member, (_Unused, nn.Module), {}) for member in UNUSED[name]})
    if "timm.models" in absent:
        sys.modules["timm.models"].register_model = lambda function: function
    if absent:
        packages = sorted({name.partition(".")[0] for name in absent})
        said.append(f"packages that generation does not use, not installed: {', '.join(packages)}")
    if missing("flash_attn"):
        stand_in("flash_attn")
        sys.modules["flash_attn"].flash_attn_func = plain_attention
        sys.modules["flash_attn"].flash_attn_varlen_kvpacked_func = plain_packed_attention
        said.append("flash-attn, not installed: cross-attention by PyTorch's scaled dot product per text")
    if device.type == "cpu":
        torch.autocast = torch.amp.autocast = CpuAutocast
        torch.cuda.amp.autocast = CpuAutocastOfCuda
        nn.LayerNorm = Float32LayerNorm
        said.append("autocast of 'cuda': that of the CPU, with layer norms in float32 as on a GPU")
    return said


def replace_compiler(device: torch.device) -> list[str]:
    """The official norm is compiled; where nothing can be, the same function runs as it is written."""
    x = torch.zeros(2, 3, device=device)
    try:
        torch.compile(lambda x: x.mul(x.add(1)), fullgraph=True)(x)
    except Exception as error:  # a compiler fails in its own ways
        torch.compile = lambda function=None, **options: function or (lambda decorated: decorated)
        return [f"torch.compile of the modulated norm, which fails here ({type(error).__name__}): uncompiled"]
    return []
