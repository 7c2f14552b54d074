"""Counted work and memory of a generation; a multiply and an add are two FLOPs.

Only matrix products count. Norms, rotary positions and sampling are memory-bound and below 1% of the FLOPs.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

from .schedule import Prefix, Scale, ScaleSchedule

TextTokens = int | Sequence[int]
"""Tokens of the text that a token of the picture attends to: the same at all scales, or one per scale."""

RowCount = int | Sequence[int]
"""Rows in the batch: as many at all scales, or one number per scale."""

Work = defaultdict[str, float]
"""Counted units: tokens of every branch, 'pairs', 'text pairs', 'head'; FLOPs of 'reduction' and 'refine'."""


@dataclass(frozen=True)
class Flops:
    """FLOPs of one scale, all rows together.

    ``linear``: projections and feed-forward of all blocks. ``attention``: self-attention over the cache.
    ``text``: cross-attention. ``head``: logits; the word embedding, less than that, is left out.
    ``reduction``: mixing tokens where a method does. ``refine``: passes of a network that draws the codes.
    """

    linear: float = 0.0
    attention: float = 0.0
    text: float = 0.0
    head: float = 0.0
    reduction: float = 0.0
    refine: float = 0.0

    @property
    def total(self) -> float:
        """FLOPs of all kinds."""
        return sum(getattr(self, f.name) for f in fields(self))

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True)
class UnitCosts:
    """FLOPs of one unit of every kind of work in a family's blocks.

    ``branches``: kind of residual branch -> FLOPs per token, without attention. ``pair``: per query-key pair
    of self-attention, all heads together; ``text_pair`` of cross-attention. ``head``: per token.
    ``per_image``: branches that run once per image, for both of its rows; cross-attention goes with them.
    ``refine``: per row of every scale, of a network that draws its codes; empty without one. ``history``:
    tokens see the scales before theirs; without it a scale sees itself alone and nothing is cached.
    ``narrows``: the unconditional rows stop once nothing is guided any more; else they run to the end.
    """

    depth: int
    branches: Mapping[str, float]
    pair: float
    text_pair: float
    head: float
    per_image: tuple[str, ...] = ()
    refine: tuple[float, ...] = ()
    history: bool = True
    narrows: bool = False

    def refining(self, scale: Scale, rows: int) -> Flops:
        """What the network costs that draws the codes of a scale, where there is one."""
        return Flops(refine=rows * self.refine[scale.index] if self.refine else 0.0)


def counted(units: UnitCosts, work: Work) -> Flops:
    """FLOPs of the work that a scale's context counted, see ``network/context.py``."""
    return Flops(
        linear=sum(work[part] * cost for part, cost in units.branches.items()),
        attention=work["pairs"] * units.pair,
        text=work["text pairs"] * units.text_pair,
        head=work["head"] * units.head,
        reduction=float(work["reduction"]),
        refine=float(work["refine"]),
    )


def scale_flops(
    units: UnitCosts,
    tokens: float,
    visible: float,
    *,
    rows: int = 2,
    text_tokens: int = 64,
    images: int | None = None,
    before: int = 0,
) -> Flops:
    """One scale of ``tokens`` new tokens that attend to ``visible`` ones, themselves included.

    For Infinity per token and layer ``12 C^2 + 4 C F`` for the matrices (28 C^2 when F = 4 C) and
    ``4 visible C`` for scores and mixing; ``rows`` is 2 per image with guidance. ``images``: in these rows,
    for what runs once per image; None counts that for every row. ``before``: keys that precede the scales and
    that a token sees as well, in all blocks together.
    """
    every, single = (tokens * units.depth * count for count in (rows, rows if images is None else images))
    work: Work = defaultdict(float)
    for part in units.branches:
        work[part] = single if part in units.per_image else every
    work["pairs"] = every * visible + rows * tokens * before
    work["text pairs"] = (single if units.per_image else every) * text_tokens
    work["head"] = rows * tokens
    return counted(units, work)


def rows_at(rows: RowCount, scale: Scale) -> int:
    """Rows of one scale; what precedes the scales has those of the first."""
    if isinstance(rows, int):
        return rows
    return rows[0 if isinstance(scale, Prefix) else scale.index]


def texts_at(text_tokens: TextTokens, scale: Scale) -> int:
    """Those of one scale; what precedes the scales reads what the first one does."""
    if isinstance(text_tokens, int):
        return text_tokens
    return text_tokens[0 if isinstance(scale, Prefix) else scale.index]


def schedule_flops(
    units: UnitCosts,
    schedule: ScaleSchedule,
    *,
    rows: RowCount = 2,
    text_tokens: TextTokens = 64,
    images: int | None = None,
    prefix: Prefix | None = None,
) -> list[Flops]:
    """The dense cost of every scale of ``schedule``, for cost-weighted progress and achieved rates.

    That of the pass over a ``prefix`` itself is :func:`prefix_flops`.
    """
    costs, visible = [], 0
    for scale in schedule:
        entering = schedule.entering(scale, prefix)
        visible = visible + entering if units.history else entering
        before = 0 if prefix is None else prefix.keys(scale, units.depth)
        count = rows_at(rows, scale)
        every = {"rows": count, "text_tokens": texts_at(text_tokens, scale), "images": images}
        cost = scale_flops(units, entering, visible, **every, before=before)
        drawn = Flops(head=units.head * count * (scale.tokens - entering))
        costs.append(cost + drawn + units.refining(scale, count))
    return costs


def dense_flops(
    units: UnitCosts,
    schedule: ScaleSchedule,
    *,
    rows: RowCount,
    text_tokens: TextTokens,
    images: int,
    prefix: Prefix | None,
) -> dict[Scale, Flops]:
    """The dense cost of every pass through the blocks, that of a prefix among them."""
    ways: dict[str, Any] = {"rows": rows, "text_tokens": text_tokens, "images": images}
    costs: dict[Scale, Flops] = {}
    if prefix is not None:
        costs[prefix] = prefix_flops(units, prefix, **{**ways, "rows": rows_at(rows, prefix)})
    return costs | dict(zip(schedule, schedule_flops(units, schedule, **ways, prefix=prefix), strict=True))


def prefix_flops(
    units: UnitCosts,
    prefix: Prefix,
    *,
    rows: int = 2,
    text_tokens: TextTokens = 64,
    images: int | None = None,
) -> Flops:
    """The cost of the pass over what precedes the scales: it sees itself and has no logits."""
    seen = prefix.tokens
    texts = texts_at(text_tokens, prefix)
    cost = scale_flops(units, seen, seen, rows=rows, text_tokens=texts, images=images)
    return replace(cost, head=0.0)


class Sized(Protocol):
    """A number of blocks of a width in channels."""

    @property
    def depth(self) -> int: ...
    @property
    def width(self) -> int: ...


def kv_bytes(config: Sized, tokens: int, *, rows: int = 2, itemsize: int = 2) -> int:
    """Bytes of the KV cache that holds ``tokens`` tokens per row in every block."""
    return 2 * config.depth * rows * tokens * config.width * itemsize
