"""Leaves that the families share: attention, rotary positions, norms, residual branches."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .schedule import Scale, ScaleSchedule

if TYPE_CHECKING:
    from .context import ScaleContext

MAX_LOG_SCALE = math.log(100.0)
PART = 2**20  # elements of the tokens that a CPU computes at once, see in_parts


class Site(NamedTuple):
    """A region of the network whose tokens may be reduced: blocks ``layers`` of a scale.

    ``part``: 'blocks' for whole blocks, else the residual branch of the one block. ``half``: where the rows
    of guidance run in turn, 0 for the conditional and 1 for the unconditional ones; None: all rows together.
    """

    scale: Scale
    layers: range
    part: str
    half: int | None = None


@dataclass(frozen=True)
class TokenMap:
    """How the r tokens of a region come from all L: gathered at ``keep`` or mixed by ``matrix``.

    ``keep``: (rows, r), the tokens they stand for when the region is restored. ``matrix``: (rows, L, r), the
    mixture ``matrix^T x``; None gathers. ``at``: (rows, r), whose rotary positions they get; None: ``keep``.
    """

    keep: Tensor
    matrix: Tensor | None = None
    at: Tensor | None = None

    @property
    def count(self) -> int:
        return self.keep.shape[1]

    def apply(self, x: Tensor) -> Tensor:
        """(rows, L, C) to (rows, r, C)."""
        if self.matrix is None:
            return gather_tokens(x, self.keep)
        return (self.matrix.to(x.dtype).mT @ x).to(x.dtype)

    def positions(self, angles: Tensor | None) -> Tensor | None:
        """Rotary angles (2, rows, r, D / 2) of the r tokens from all, (2, L, D / 2); None stays None."""
        return None if angles is None else angles[:, self.keep if self.at is None else self.at]


class TokenReduction(Protocol):
    """Runs regions on fewer tokens; created for one run, may remember between scales.

    ``spans``: ranges of blocks, together all of them in order, each reduced at its start and restored at its
    end; one span is a whole scale. Empty: every residual branch is a region of its own.
    """

    spans: tuple[range, ...]

    def reduce(self, x: Tensor, site: Site) -> TokenMap | None:
        """The tokens of a region with the input ``x`` (rows, L, C); None runs all. No token skips it."""

    def restore(self, x: Tensor, y: Tensor, tokens: TokenMap | None, site: Site) -> Tensor:
        """The region's output (rows, L, C) from ``y``, that on the reduced tokens, and its input ``x``."""

    def code_weights(self) -> Tensor | None:
        """Factors (B, L) of the codes of this scale, known after its blocks; None is one everywhere."""


def gather_tokens(x: Tensor, keep: Tensor) -> Tensor:
    """Rows of tokens ``x`` (rows, L, C) at ``keep`` (rows, kept)."""
    return x.gather(1, keep.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def resize_tokens(x: Tensor, before: Scale, after: Scale, mode: str) -> Tensor:
    """Tokens (rows, L, C) of one grid on another; ``mode`` is 'area', 'bilinear' or 'nearest'."""
    if before.grid == after.grid:
        return x
    options = {"align_corners": False} if mode == "bilinear" else {}
    grid = x.transpose(1, 2).unflatten(2, before.grid)
    return F.interpolate(grid, size=after.grid, mode=mode, **options).flatten(2).transpose(1, 2)


def in_parts(compute: Callable[[Tensor, Tensor | None], Any], x: Tensor, angles: Tensor | None = None) -> Any:
    """``compute(x, angles)`` where that looks at every token of ``x`` (rows, L, C) alone, on a CPU in parts.

    What is made in between then stays in the caches. Of larger tensors the C library returns the memory at
    once and gets the next from the system page by page, which takes longer than the arithmetic
    (docs/performance.md). ``compute`` returns a tensor, or a tuple of them, with the tokens in dimension 1.
    """
    length, step = x.shape[1], max(1, PART // (x.shape[0] * x.shape[2]))
    if x.device.type != "cpu" or length <= step or torch.is_grad_enabled():
        return compute(x, angles)
    whole: tuple[Tensor, ...] = ()
    for start in range(0, length, step):
        part = slice(start, start + step)
        found = compute(x[:, part], None if angles is None else angles[..., part, :])
        several = isinstance(found, tuple)
        found = found if several else (found,)
        whole = whole or tuple(y.new_empty(y.shape[0], length, *y.shape[2:]) for y in found)
        for target, y in zip(whole, found, strict=True):
            target[:, part] = y
    return whole if several else whole[0]


def cast(parameter: Tensor, like: Tensor) -> Tensor:
    """A raw parameter with the device and dtype of ``like``; the host offloads parameters on its own."""
    return parameter.to(device=like.device, dtype=like.dtype)


def plain_norm(x: Tensor, eps: float = 1e-6) -> Tensor:
    """Layer norm without affine weights, in float32."""
    return F.layer_norm(x.float(), x.shape[-1:], eps=eps)


def modulated_norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-6) -> Tensor:
    """``LN(x) * (1 + scale) + shift`` without affine weights, in float32."""
    return torch.addcmul(shift, plain_norm(x, eps), 1.0 + scale)


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    """``x / sqrt(mean(x^2) + eps) * weight`` in float32, returned in the dtype of ``x``."""
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return (normed * weight.to(device=x.device, dtype=torch.float32)).to(x.dtype)


def unit(x: Tensor) -> Tensor:
    """Vectors of length 1 in float32."""
    return F.normalize(x.float(), dim=-1, eps=1e-12)


def scaled_unit(q: Tensor, log_scale: Tensor) -> Tensor:
    """Queries (rows, L, heads, head_dim) of the length that each head learned, in float32."""
    return unit(q) * head_lengths(log_scale, q)


def head_lengths(log_scale: Tensor, like: Tensor) -> Tensor:
    """The length of every head's queries from its learned logarithm, (heads, 1) in float32."""
    return log_scale.to(device=like.device, dtype=torch.float32).clamp(max=MAX_LOG_SCALE).exp().view(-1, 1)


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


def normalised_angles(scale: Scale, head_dim: int, norm: float, base: float, device=None) -> Tensor:
    """Cosines and sines of STAR's rotary embedding of one scale, (2, L, head_dim / 2), float32.

    Every scale spans 0 to ``norm`` in both axes. The first half of the pairs turns with the column, the
    second with the row.
    """
    if head_dim % 4:
        raise ValueError(f"2D rotary positions need a head size divisible by 4, got {head_dim}")
    frequencies = 1.0 / (base ** (torch.arange(0, head_dim, 4, dtype=torch.float32) / head_dim))

    def axis(count: int) -> Tensor:
        places = torch.arange(count, dtype=torch.float32)
        return torch.outer(places / (count - 1) * norm if count > 1 else places, frequencies)

    by_column = axis(scale.width)[None].expand(scale.height, -1, -1)
    by_row = axis(scale.height)[:, None].expand(-1, scale.width, -1)
    angles = torch.cat((by_column, by_row), dim=-1).reshape(scale.tokens, head_dim // 2)
    return torch.stack((angles.cos(), angles.sin())).to(device)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn adjacent pairs of ``x`` (rows, L, heads, D) by ``angles``, (2, [rows,] L, D / 2)."""
    angles = angles.unsqueeze(-2)
    if x.device.type in ("cpu", "cuda") and not torch.compiler.is_compiling():
        # One pass over memory instead of five; other backends and the compiler handle complex numbers badly.
        turned = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * torch.complex(angles[0], angles[1])
        return torch.view_as_real(turned).flatten(-2)
    a, b = x[..., 0::2], x[..., 1::2]
    cos, sin = angles[0], angles[1]
    return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2)


class CosineAttention(nn.Module):
    """Self-attention of unit queries and keys with a learned scale per head, the softmax scale is 1.

    ``log_scale``: one per head, at most ln 100. ``angles`` None: without rotary positions.
    """

    def __init__(self, width: int, heads: int, *, operations=nn, dtype=None, device=None) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = operations.Linear(width, 3 * width, dtype=dtype, device=device)
        self.proj = operations.Linear(width, width, dtype=dtype, device=device)
        self.log_scale = nn.Parameter(torch.empty(heads, dtype=torch.float32, device=device))

    def project(
        self, x: Tensor, angles: Tensor | None, norm: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (rows, heads, L, head_dim) of ``norm(x)``, ``x`` (rows, L, C)."""
        length = head_lengths(self.log_scale, x)
        lengths = torch.cat((length, torch.ones_like(length)))  # of queries, then of keys

        def compute(part: Tensor, at: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
            qkv = self.qkv(norm(part)).unflatten(-1, (3 * self.heads, -1))
            # Queries and keys at once: at coarse scales the number of operations is what takes time.
            both, v = qkv.split((2 * self.heads, self.heads), dim=2)
            both = unit(both) * lengths
            if at is not None:
                both = rotate(both, at)
            return *both.to(v.dtype).chunk(2, dim=2), v

        return tuple(part.transpose(1, 2) for part in in_parts(compute, x, angles))

    def forward(
        self,
        x: Tensor,
        ctx: "ScaleContext",
        layer: int,
        angles: Tensor | None,
        norm: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """Attention of ``norm(x)``, ``x`` (rows, L, C), over all tokens so far, (rows, L, C)."""
        return self.proj(merge_heads(ctx.attend(layer, *self.project(x, angles, norm))))


class FeedForward(nn.Module):
    """``fc2(gelu_tanh(fc1(x)))``."""

    def __init__(self, width: int, hidden: int, out: int, *, operations=nn, dtype=None, device=None) -> None:
        super().__init__()
        self.fc1 = operations.Linear(width, hidden, dtype=dtype, device=device)
        self.fc2 = operations.Linear(hidden, out, dtype=dtype, device=device)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
