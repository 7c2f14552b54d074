"""Self-attention to the coarsest scales and to a window around each tile of tokens; no special kernel.

After SparVAR's cross-scale local attention (arXiv 2602.04361), with three differences: its windows are sides
in tokens of one schedule and here they are shares of whatever grid there is; the tokens of a tile see the
same keys, so that plain attention on gathered keys does what takes a compiled block-sparse kernel there; and
there are no windows in the scales in between. What those drew is in the latent that a scale starts from, and
in 8 pictures of the embedded model as many keys were worth 1 to 2 dB PSNR more in the own and the coarsest
scales; on a trained full-size model that was not measured.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..checks import number
from ..schedule import Prefix, Scale

if TYPE_CHECKING:
    from .attention import AttentionFn

WORTH = 0.5  # share of the dense pairs above which it is not worth it: on a CPU a gathered pair costs double
GATHERED = 2**26  # elements of keys gathered at once

Span = tuple[int, int]


@dataclass(frozen=True)
class LocalWindow:
    """What a token sees.

    ``sinks``: scales of at most this share of the current grid's area are seen whole. ``tile``: side of the
    tiles whose tokens see the same; ``reach``: how far a window goes beyond its tile in every direction. Both
    are shares of a grid's side, for grids that are not square of the square of their area. Other scales are
    not seen; what precedes the scales always is.

    With the defaults the tokens of Infinity's last three 1024 px scales see a sixth of the keys.
    """

    sinks: float = 1 / 8
    tile: float = 1 / 4
    reach: float = 3 / 32

    def __post_init__(self) -> None:
        for name, low in (("sinks", 0.0), ("tile", 1 / 64), ("reach", 0.0)):
            number(name, getattr(self, name), low, 1.0, f"a share from {low:g} to 1")


@dataclass(frozen=True)
class WindowTable:
    """Which keys the queries of a scale see.

    ``groups``: tiles of the same shape, queries (tiles, t) and keys (tiles, n) as positions. ``order``: where
    the tokens in raster order are in the queries of all groups. ``pairs``: queries times their keys.
    """

    groups: tuple[tuple[Tensor, Tensor], ...]
    order: Tensor
    pairs: int


def local_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segments: Sequence[Scale],
    window: LocalWindow,
    attention: "AttentionFn",
    tables: dict[tuple[Scale, ...], WindowTable] | None = None,
) -> tuple[Tensor, int]:
    """Output (rows, heads, L, D) and the number of query-key pairs per row.

    ``segments``: the scales of the keys in order, each whole and in raster order, a prefix first where there
    is one; the queries are the last.
    ``tables`` remembers what was worked out for them. Dense attention where windows would hide too little.
    """
    table = None if tables is None else tables.get(tuple(segments))
    if table is None:
        table = window_table(segments, window, q.device)
        if tables is not None:
            tables[tuple(segments)] = table
    dense = q.shape[2] * k.shape[2]
    if table.pairs > WORTH * dense:
        return attention(q, k, v, scale=1.0), dense
    parts = []
    for queries, keys in table.groups:
        size = q.shape[0] * q.shape[1] * q.shape[3] * keys.shape[1]
        step = max(1, GATHERED // size)
        for seen in zip(queries.split(step), keys.split(step), strict=True):
            parts.append(_tiles(q, k, v, *seen, attention))
    return torch.cat(parts, dim=2).index_select(2, table.order), table.pairs


def _tiles(
    q: Tensor, k: Tensor, v: Tensor, queries: Tensor, keys: Tensor, attention: "AttentionFn"
) -> Tensor:
    """Attention of some tiles, (rows, heads, tiles * t, D); to the attention every tile is a head."""

    def pick(x: Tensor, index: Tensor) -> Tensor:
        return x.index_select(2, index.flatten()).unflatten(2, index.shape).flatten(1, 2)

    y = attention(pick(q, queries), pick(k, keys), pick(v, keys), scale=1.0)
    return y.unflatten(1, (q.shape[1], -1)).flatten(2, 3)


def window_table(segments: Sequence[Scale], window: LocalWindow, device: torch.device) -> WindowTable:
    """The keys of every tile of the last of ``segments``."""
    scale = segments[-1]
    rows, columns = (tiles(side, window.tile * math.sqrt(scale.tokens)) for side in scale.grid)
    shapes: dict[tuple[int, int], list[tuple[Span, Span]]] = {}
    for down in rows:
        for across in columns:
            shape = (down[1] - down[0], across[1] - across[0])
            shapes.setdefault(shape, []).append((down, across))
    groups, pairs = [], 0
    for found in shapes.values():
        queries = torch.stack([_rectangle(scale, *tile) for tile in found])
        keys = torch.stack([_visible(segments, tile, window) for tile in found])
        pairs += queries.numel() * keys.shape[1]
        groups.append((queries.to(device), keys.to(device)))
    order = torch.cat([queries.flatten() for queries, _ in groups]).argsort()
    return WindowTable(tuple(groups), order, pairs)


def tiles(side: int, wanted: float) -> list[Span]:
    """A side of a grid cut into parts of about ``wanted`` tokens, whose lengths differ by one at most."""
    count = max(1, min(side, round(side / wanted)))
    bounds = [side * i // count for i in range(count + 1)]
    return list(zip(bounds[:-1], bounds[1:], strict=True))


def _visible(segments: Sequence[Scale], tile: tuple[Span, Span], window: LocalWindow) -> Tensor:
    """Positions of the keys that a tile (rows, columns) of the last of ``segments`` sees, in order."""
    scale, start, found = segments[-1], 0, []
    for segment in segments:
        if isinstance(segment, Prefix) or segment.tokens <= window.sinks * scale.tokens:
            found.append(torch.arange(start, start + segment.tokens))
        elif segment is scale:
            margin = math.ceil(window.reach * math.sqrt(scale.tokens))
            spans = [_window(span, side, margin) for span, side in zip(tile, scale.grid, strict=True)]
            found.append(start + _rectangle(scale, *spans))
        start += segment.tokens
    return torch.cat(found)


def _window(span: Span, side: int, margin: int) -> Span:
    """``span`` of a side and ``margin`` tokens on both sides; what an edge cuts off is added on the other."""
    length = min(side, span[1] - span[0] + 2 * margin)
    first = min(max(0, span[0] - margin), side - length)
    return first, first + length


def _rectangle(scale: Scale, rows: Span, columns: Span) -> Tensor:
    """Positions of the tokens in rows and columns of a grid, in raster order."""
    return (torch.arange(*rows)[:, None] * scale.width + torch.arange(*columns)).flatten()
