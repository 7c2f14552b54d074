"""Tokens of a scale: regions that run on fewer of them, resampling between grids, parts for the caches."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..schedule import Scale

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
        """Tokens that run, r."""
        return self.keep.shape[1]

    def apply(self, x: Tensor) -> Tensor:
        """(rows, L, C) to (rows, r, C)."""
        if self.matrix is None:
            return gather_tokens(x, self.keep)
        return (self.matrix.to(x.dtype).mT @ x).to(x.dtype)

    def shared(self, rows: int, times: int) -> "TokenMap":
        """The map of the first ``rows`` for all of ``times`` as many rows."""

        def repeated(part: Tensor) -> Tensor:
            return part[:rows].repeat(times, *(1,) * (part.dim() - 1))

        rest = (None if part is None else repeated(part) for part in (self.matrix, self.at))
        return TokenMap(repeated(self.keep), *rest)

    def positions(self, angles: Tensor | None) -> Tensor | None:
        """Rotary angles (2, rows, r, D) of the r tokens from those of all; None stays None.

        ``angles``: (2, L, D), or (2, rows, L, D) where rows have their own.
        """
        places = self.keep if self.at is None else self.at
        if angles is None or angles.dim() == 3:
            return None if angles is None else angles.movedim(0, -1)[places].movedim(-1, 0)
        return angles.gather(2, places[None, :, :, None].expand(2, -1, -1, angles.shape[-1]))

    def sight(self, added: Tensor | None) -> Tensor | None:
        """What the r tokens see of the text, (rows, 1, r, T) from that of all, (rows, 1, L, T).

        A mixture sees what the token does that it stands for. ``added`` has the first rows alone where the
        rows of an image share a text.
        """
        if added is None:
            return None
        keep = self.keep[: len(added), None, :, None]
        return added.gather(2, keep.expand(-1, -1, -1, added.shape[-1]))


class TokenReduction(Protocol):
    """Runs regions on fewer tokens; created for one run, may remember between scales.

    ``spans``: ranges of blocks, together all of them in order, each reduced at its start and restored at its
    end; one span is a whole scale. Empty: every residual branch is a region of its own.
    """

    spans: tuple[range, ...]

    def reduce(self, x: Tensor, site: Site) -> TokenMap | None:
        """The tokens of a region with the input ``x`` (rows, L, C); None runs all. No token skips it."""
        ...

    def restore(self, x: Tensor, y: Tensor, tokens: TokenMap | None, site: Site) -> Tensor:
        """The region's output (rows, L, C) from ``y``, that on the reduced tokens, and its input ``x``."""
        ...

    def code_weights(self) -> Tensor | None:
        """Factors (B, L) of the codes of this scale, known after its blocks; None is one everywhere."""
        ...


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


def resize_keys(x: Tensor, before: tuple[int, int], after: tuple[int, int]) -> Tensor:
    """Keys or values (rows, heads, L, D) of one grid as area means on another; the same where that is."""
    if before == after:
        return x
    maps = x.flatten(0, 1).unflatten(1, before).movedim(-1, 1)
    resized = F.interpolate(maps, size=after, mode="area").flatten(2).mT
    return resized.unflatten(0, x.shape[:2])


def in_parts(compute: Callable[[Tensor, Tensor | None], Any], x: Tensor, angles: Tensor | None = None) -> Any:
    """``compute(x, angles)`` where that looks at every token of ``x`` (rows, L, C) alone, on a CPU in parts.

    What is made in between then stays in the caches. Of larger tensors the C library returns the memory at
    once and gets the next from the system page by page, which takes longer than the arithmetic
    (docs/performance.md). ``compute`` returns a tensor, or a tuple of them, with the tokens in dimension 1.
    """
    length, step = x.shape[1], max(1, PART // (x.shape[0] * x.shape[2]))
    if x.device.type != "cpu" or length <= step or torch.is_grad_enabled():
        return compute(x, angles)
    whole: list[Tensor] = []
    several = False
    for start in range(0, length, step):
        part = slice(start, start + step)
        found = compute(x[:, part], None if angles is None else angles[..., part, :])
        several = isinstance(found, tuple)
        found = found if several else (found,)
        whole = whole or [y.new_empty(y.shape[0], length, *y.shape[2:]) for y in found]
        for target, y in zip(whole, found, strict=True):
            target[:, part] = y
    return tuple(whole) if several else whole[0]


def added(x: Tensor, y: Tensor, gate: Tensor | None = None, *, into: Tensor | None = None) -> Tensor:
    """``x + y * gate`` of tokens (rows, L, C), on a CPU in parts for the reason of :func:`in_parts`.

    ``gate``: (rows, 1 or L, C). ``into``: where the sum goes, ``x`` itself where nothing else needs it.
    """
    if torch.is_grad_enabled():
        return x + y if gate is None else torch.addcmul(x, y, gate)
    sums = torch.empty_like(x) if into is None else into
    length = x.shape[1]
    step = max(1, PART // (x.shape[0] * x.shape[2])) if x.device.type == "cpu" else max(1, length)
    for start in range(0, length, step):
        part = slice(start, start + step)
        if gate is None:
            torch.add(x[:, part], y[:, part], out=sums[:, part])
        else:
            share = gate if gate.shape[1] == 1 else gate[:, part]
            torch.addcmul(x[:, part], y[:, part], share, out=sums[:, part])
    return sums
