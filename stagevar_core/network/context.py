"""What the loop over scales hands to a model's blocks."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..costs import Work
from ..schedule import Scale, ScaleSchedule
from .attention import Attend, AttentionFn
from .cache import KVCache
from .local import LocalWindow, WindowTable, local_attention
from .tokens import Site, TokenMap, TokenReduction, added, in_parts

Branch = Callable[[Tensor, Tensor | None], Tensor]
"""A residual branch: tokens (rows, L, C) and their rotary positions to what is added, (rows, L, C).

Cross-attention has no positions; it gets what the tokens see of the text, (rows, 1, L, T).
"""


class Turn(NamedTuple):
    """Rows that run on their own: what they are conditioned on, and their keys and values."""

    conditioned: Any
    cache: KVCache


@dataclass
class ScaleContext:
    """What a model's blocks may use at one scale; made for one call, holds no state of its own.

    ``store``: whether later scales see the keys and values of this one. ``kv_budget``: keys per row and layer
    that stay after this scale. ``work``: tokens per kind of branch and pairs of queries and keys, counted as
    they run, over all rows and blocks. ``tables``: what local attention worked out, the same in all blocks.

    ``turns``: the conditional and the unconditional rows, where every block runs the one after the other;
    empty: all rows together. ``half``: which of them this is, None is all rows. ``images``: rows of one kind.
    ``per_image``: branches that run for the conditional rows alone and serve both, on the same tokens;
    through ``given`` and ``kept`` where rows run in turn. ``sight``: what is added to the scores where the
    tokens of these rows or images do not see the same of the text, (rows, 1, L, T). ``fresh``: what a branch
    of the block that runs left, which the next branch may overwrite.
    """

    scale: Scale
    schedule: ScaleSchedule
    positions: Tensor | None  # whatever the family's positions() returns for this scale
    conditioned: Any  # the family's own state of the conditioning
    dtype: torch.dtype
    attention: AttentionFn
    cache: KVCache | None  # None where rows run in turn, or nothing is stored
    reduction: TokenReduction | None = None
    window: LocalWindow | None = None
    store: bool = True
    kv_budget: int | None = None
    after_block: Callable[[int, Tensor], Tensor] = field(default=lambda layer, x: x)
    work: Work = field(default_factory=lambda: defaultdict(float))
    tables: dict[tuple[Scale, ...], WindowTable] = field(default_factory=dict)
    turns: Sequence[Turn] = ()
    half: int | None = None
    images: int = 1
    per_image: tuple[str, ...] = ()
    sight: Tensor | None = None
    given: dict[str, Tensor] = field(default_factory=dict)
    kept: dict[str, TokenMap | None] = field(default_factory=dict)
    fresh: Tensor | None = field(default=None, init=False)

    @property
    def parts(self) -> Sequence[Scale]:
        """The scales whose tokens these are, in order."""
        return (self.scale,)

    def run(self, blocks: Sequence[nn.Module], x: Tensor) -> Tensor:
        """All blocks in order, (rows, L, C); spans of them on fewer tokens where the plan says so."""
        if self.reduction is None or not self.reduction.spans:
            return self._blocks(blocks, range(len(blocks)), x)
        for span in self.reduction.spans:

            def compute(h: Tensor, tokens: TokenMap | None, span: range = span) -> Tensor:
                along = {"positions": self._positions(tokens), "sight": self._sight(tokens)}
                return replace(self, **along, reduction=None)._blocks(blocks, span, h)

            x = self._reduced(x, compute, Site(self.scale, span, "blocks"))
        return x

    def residual(
        self,
        x: Tensor,
        branch: Branch,
        layer: int,
        part: str,
        gate: Tensor | None = None,
    ) -> Tensor:
        """``x + gate * branch(x, positions)``; a block knows acceleration only here.

        A branch that computes the rows of the images alone, (images, L, C), adds its output to both of each.
        All branches but 'self' look at every token alone. 'cross' gets what its tokens see of the text in
        place of their positions.
        """

        def compute(h: Tensor, tokens: TokenMap | None) -> Tensor:
            y = self.given.pop(part, None) if self.half == 1 else None
            if y is None:
                along = self._sight(tokens) if part == "cross" else self._positions(tokens)
                y = branch(h, along) if part == "self" else in_parts(branch, h, along)
                self.work[part] += y.shape[0] * y.shape[1]
                if self.half == 0 and part in self.per_image:
                    self.given[part] = y
            if y.shape[0] != h.shape[0]:
                y = y.repeat(h.shape[0] // y.shape[0], 1, 1)
            return added(h, y, gate, into=h if h is self.fresh else None)

        found = self._reduced(x, compute, Site(self.scale, range(layer, layer + 1), part, self.half))
        self.fresh = found if self.reduction is None else None  # a reduction may remember it
        return found

    def attending(self, layer: int) -> Attend:
        """:meth:`attend` of one block."""
        return partial(self.attend, layer)

    def attend(self, layer: int, q: Tensor, kv: Tensor) -> Tensor:
        """Attention of the new tokens to all tokens so far; the cache keeps the new ones."""
        whole = kv.shape[3] == self.scale.tokens
        cache = self.cache
        if cache is None:
            raise RuntimeError("rows that run in turn have a cache each; this context is of all rows")
        k, v = cache.append(layer, kv, self.scale, keep=self.store)
        segments = cache.segments(layer, self.scale) if self.window is not None and whole else None
        if segments is not None and self.window is not None:
            segments = segments if self.store else [*segments, self.scale]
            y, pairs = local_attention(q, k, v, segments, self.window, self.attention, self.tables)
        else:
            y, pairs = self.attention(q, k, v, scale=1.0), q.shape[2] * k.shape[2]
        self.work["pairs"] += q.shape[0] * pairs
        if self.kv_budget is not None and self.store:
            cache.compress(layer, q, self.kv_budget)
        return y

    def attend_text(
        self, q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Cross-attention to the conditioning."""
        self.work["text pairs"] += q.shape[0] * q.shape[2] * k.shape[2]
        return self.attention(q, k, v, scale=scale, mask=mask)

    def levels(self, table: Tensor) -> Tensor:
        """The level embedding of this scale from ``table`` (levels, C), (1, C)."""
        return table[self.scale.index : self.scale.index + 1]

    def learned(self, table: Tensor) -> Tensor:
        """The rows of this scale from a ``table`` (tokens of the whole schedule, C), (L, C)."""
        start = sum(scale.tokens for scale in self.schedule.scales[: self.scale.index])
        return table[start : start + self.scale.tokens]

    def _blocks(self, blocks: Sequence[nn.Module], span: range, x: Tensor) -> Tensor:
        halves = self._halves()
        for layer in span:
            if halves:
                parts = zip(x.chunk(2), halves, strict=True)
                y = torch.cat([half._block(blocks[layer], layer, part) for part, half in parts])
            else:
                y = self._block(blocks[layer], layer, x)
            x = self.after_block(layer, y)
        return x

    def _block(self, block: nn.Module, layer: int, x: Tensor) -> Tensor:
        """One block; its output is no longer ours to overwrite, as others may keep it."""
        y = block(x, self, layer)
        self.fresh = None
        return y

    def _halves(self) -> list["ScaleContext"]:
        """This context for the rows of every turn; none where all rows run together."""
        halves = []
        for index, turn in enumerate(self.turns):
            positions = self.positions
            if positions is not None and positions.dim() > 3:  # of reduced tokens, which are those of a row
                positions = positions.chunk(2, dim=1)[index]
            sight = self.sight
            if sight is not None and len(sight) > self.images:
                sight = sight.chunk(2)[index]
            halves.append(
                replace(
                    self,
                    conditioned=turn.conditioned,
                    cache=turn.cache,
                    positions=positions,
                    sight=sight,
                    half=index,
                    turns=(),
                )
            )
        return halves

    def _positions(self, tokens: TokenMap | None) -> Tensor | None:
        """Those of the tokens that a reduction leaves."""
        return self.positions if tokens is None else tokens.positions(self.positions)

    def _sight(self, tokens: TokenMap | None) -> Tensor | None:
        """What the tokens that a reduction leaves see of the text."""
        return self.sight if tokens is None else tokens.sight(self.sight)

    def _reduced(self, x: Tensor, compute: Callable[[Tensor, TokenMap | None], Tensor], site: Site) -> Tensor:
        """``compute(x, tokens)`` on the tokens that the reduction leaves, restored to all of them."""
        reduction = self.reduction
        if reduction is None:
            return compute(x, None)
        tokens = self._tokens(reduction, x, site)
        if tokens is None:
            y = compute(x, None)
        elif tokens.count == 0:
            y = x[:, :0]
        else:
            if tokens.matrix is not None:
                self.work["reduction"] += 2 * tokens.matrix.numel() * x.shape[-1]
            y = compute(tokens.apply(x), tokens)
        return reduction.restore(x, y, tokens, site)

    def _tokens(self, reduction: TokenReduction, x: Tensor, site: Site) -> TokenMap | None:
        """The tokens of a region; rows that share a branch keep those of the conditional one."""
        if site.part not in self.per_image:
            return reduction.reduce(x, site)
        if site.half == 1 and site.part in self.kept:
            return self.kept.pop(site.part)
        tokens = reduction.reduce(x, site)
        if tokens is not None and len(x) > self.images:
            tokens = tokens.shared(self.images, len(x) // self.images)
        if site.half == 0:
            self.kept[site.part] = tokens
        return tokens
