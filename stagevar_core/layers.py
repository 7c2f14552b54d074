"""Leaves that the families share: attention, rotary positions, norms, residual branches."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .schedule import Scale, ScaleSchedule


class AttentionFn(Protocol):
    """Attention over (rows, heads, length, head_dim).

    ``scale`` multiplies the scores (None: ``head_dim ** -0.5``), ``mask`` is boolean, True = visible,
    broadcastable to (rows, heads, queries, keys).
    """

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, mask: Tensor | None = None
    ) -> Tensor: ...


def sdpa(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, mask: Tensor | None = None
) -> Tensor:
    """The default attention: PyTorch's scaled dot product."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


class Site(NamedTuple):
    """Where a residual branch runs: the scale, the block's index and the branch's name."""

    scale: Scale
    layer: int
    branch: str


class TokenPruning(Protocol):
    """Runs a residual branch on some of the tokens; created for one run, may remember between scales."""

    def select(self, x: Tensor, site: Site) -> Tensor | None:
        """Kept token indices (rows, kept) of ``x`` (rows, L, C), or None to run the branch densely."""

    def restore(self, y: Tensor, keep: Tensor | None, site: Site) -> Tensor:
        """The branch output for all tokens, (rows, L, C), from its output on the kept ones."""


def gather_tokens(x: Tensor, keep: Tensor) -> Tensor:
    """Rows of tokens ``x`` (rows, L, C) at ``keep`` (rows, kept)."""
    return x.gather(1, keep.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def residual(
    x: Tensor, branch: Callable[[Tensor, Tensor | None], Tensor], site: Site, pruning: TokenPruning | None
) -> Tensor:
    """``x + branch(x)``, on the tokens that ``pruning`` keeps; blocks know acceleration only here.

    ``branch`` receives the kept indices so that it can gather rotary positions the same way.
    """
    if pruning is None:
        return x + branch(x, None)
    keep = pruning.select(x, site)
    y = branch(x if keep is None else gather_tokens(x, keep), keep)
    return x + pruning.restore(y, keep, site)


def cast(parameter: Tensor, like: Tensor) -> Tensor:
    """A raw parameter with the device and dtype of ``like``; the host offloads parameters on its own."""
    return parameter.to(device=like.device, dtype=like.dtype)


def modulated_norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-6) -> Tensor:
    """``LN(x) * (1 + scale) + shift`` without affine weights, in float32."""
    return F.layer_norm(x.float(), x.shape[-1:], eps=eps) * (1.0 + scale) + shift


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    """``x / sqrt(mean(x^2) + eps) * weight`` in float32, returned in the dtype of ``x``."""
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return (normed * weight.to(device=x.device, dtype=torch.float32)).to(x.dtype)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(rows, L, C) to (rows, heads, L, C / heads)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """The inverse of :func:`split_heads`."""
    return x.transpose(1, 2).flatten(2)


def rotary_coordinates(scale: Scale, reference: tuple[int, int]) -> tuple[list[int], list[int]]:
    """Row and column coordinates of a scale, stretched to the reference grid.

    ``round(r * H / h)`` in float32 with halves to the even integer, as torch rounds
    (infinity/models/basic.py, rope2d_normalized_by_hw = 2).
    """
    rows = torch.arange(scale.height, dtype=torch.float32) * (reference[0] / scale.height)
    columns = torch.arange(scale.width, dtype=torch.float32) * (reference[1] / scale.width)
    return rows.round().int().tolist(), columns.round().int().tolist()


def rotary_angles(
    schedule: ScaleSchedule, scale: Scale, head_dim: int, base: float = 10000.0, device=None
) -> Tensor:
    """Cosines and sines of the 2D rotary embedding of one scale, (2, L, head_dim / 2), float32.

    The first half of the pairs turns with the row, the second with the column.
    """
    if head_dim % 4:
        raise ValueError(f"2D rotary positions need a head size divisible by 4, got {head_dim}")
    half = head_dim // 2
    frequencies = 1.0 / (base ** (torch.arange(0, half, 2, dtype=torch.float32) / half))
    rows, columns = (
        torch.tensor(axis, dtype=torch.float32) for axis in rotary_coordinates(scale, schedule.reference)
    )
    by_row = torch.outer(rows, frequencies)[:, None, :].expand(-1, scale.width, -1)
    by_column = torch.outer(columns, frequencies)[None, :, :].expand(scale.height, -1, -1)
    angles = torch.cat((by_row, by_column), dim=-1).reshape(scale.tokens, half)
    return torch.stack((angles.cos(), angles.sin())).to(device)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn adjacent pairs of ``x`` (rows, heads, L, D) by ``angles``, (2, [rows, 1,] L, D / 2)."""
    if x.device.type in ("cpu", "cuda") and not torch.compiler.is_compiling():
        # One pass over memory instead of five; other backends and the compiler handle complex numbers badly.
        turned = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * torch.complex(angles[0], angles[1])
        return torch.view_as_real(turned).flatten(-2)
    a, b = x[..., 0::2], x[..., 1::2]
    cos, sin = angles[0], angles[1]
    return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2)


def gather_angles(angles: Tensor, keep: Tensor | None) -> Tensor:
    """Rotary angles (2, L, D / 2) of the kept tokens (rows, kept), as :func:`rotate` takes them."""
    return angles if keep is None else angles[:, keep].unsqueeze(2)


class FeedForward(nn.Module):
    """``fc2(gelu_tanh(fc1(x)))``."""

    def __init__(self, width: int, hidden: int, out: int, *, operations=nn, dtype=None, device=None) -> None:
        super().__init__()
        self.fc1 = operations.Linear(width, hidden, dtype=dtype, device=device)
        self.fc2 = operations.Linear(hidden, out, dtype=dtype, device=device)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
