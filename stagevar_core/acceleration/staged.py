"""Stage-aware acceleration: everything up to a quarter of the area intact, the fidelity stage cut.

One set of choices serves our presets and the paper's; see :class:`~.settings.StageSettings`.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..network.tokens import Site, TokenMap
from ..schedule import Scale
from .changes import changed
from .policy import RunInfo, ScalePlan, Seen, Selection
from .reduction import Memory, Reduction, best, random_projection, watch
from .scores import History, evened, token_scores
from .settings import StageSettings, share_at
from .stages import ROUNDING

# From 32x32 tokens on budgets are multiples of 64, the rows that a GPU's matrix kernels take at once (tiles
# of 64 or 128 in cuBLAS and CUTLASS): tokens of a part-filled tile cost as much as those of a whole one. On
# smaller grids that would round away too much.
ROUND_FROM = 1024
ROUND_TO = 64
# Odd and 2^64 over the golden ratio (Knuth, TAOCP 3, 6.4; the step of SplitMix64): seeds that follow each
# other end up far apart. The second number only tells these draws from the sampling's: ASCII "Stage".
GOLDEN, STAGE = 0x9E3779B97F4A7C15, 0x5374616765


def chunks(depth: int, count: int) -> tuple[range, ...]:
    """``count`` ranges of blocks, as even as possible; fewer when there are fewer blocks."""
    count = min(count, depth)
    bounds = [depth * i // count for i in range(count + 1)]
    return tuple(range(a, b) for a, b in zip(bounds[:-1], bounds[1:], strict=True))


@dataclass(frozen=True)
class StagedPolicy:
    """:class:`StageSettings` under a name.

    ``uncorrected``: those of models that were not trained to correct themselves; None is the same for all.
    ``raster_positions``: mixtures of tokens have the rotary positions of the first tokens of the scale, as in
    StageVAR's public code for Infinity; else of those that they stand for, as in that for HART.
    """

    name: str
    settings: StageSettings
    raster_positions: bool = True
    uncorrected: StageSettings | None = None
    per_image = False

    def of(self, corrects: bool) -> StageSettings:
        """The settings of models that were trained to correct themselves, or of the others."""
        return self.settings if corrects or self.uncorrected is None else self.uncorrected

    def changed(self, name: str, changes: Mapping[str, object]) -> "StagedPolicy":
        """Another policy, with some values of all its settings replaced; see :func:`~.changes.changed`."""
        others = None if self.uncorrected is None else changed(self.uncorrected, **changes)
        return replace(self, name=name, settings=changed(self.settings, **changes), uncorrected=others)

    def start(self, info: RunInfo) -> "StagedRun":
        """Fresh state; every schedule can be run, one without a fidelity stage dense."""
        return StagedRun(self.of(info.corrects), info, raster_positions=self.raster_positions)


class StagedRun:
    """One generation: plans from the areas of the scales, and what the regions left for the next scale."""

    def __init__(self, settings: StageSettings, info: RunInfo, *, raster_positions: bool = True) -> None:
        self.settings, self.info, self.raster_positions = settings, info, raster_positions
        self.notes: list[str] = []
        self.memory, self.history = Memory(settings.tokens.resize), History()
        self.spans = chunks(info.depth, settings.tokens.spans)
        self.regions = len(self.spans)
        self._generators = [_seeded(seed) for seed in info.seeds]
        self._chosen: TokenMap | None = None
        if not self.fidelity():
            area = settings.boundaries.structure_end
            self.notes.append(f"no scale of this schedule has more than {area:g} of the area; all run dense")
        elif settings.guidance.mode == "unconditional" and not info.guided:
            self.notes.append("without guidance there are no unconditional rows; the conditional ones run on")
        elif settings.guidance.mode == "unconditional" and info.guides < len(info.schedule):
            self.notes.append(
                f"guidance is over after {info.guides} of {len(info.schedule)} scales; from there on the "
                "conditional rows run, not the unconditional ones"
            )
        if settings.tokens.mode == "dense" and settings.tokens.keep != 1.0:
            self.notes.append("keep has no effect: all tokens run with tokens 'dense'")

    def fidelity(self) -> list[Scale]:
        """The scales of the fidelity stage."""
        return [scale for scale in self.info.schedule if self.stage(scale) == "fidelity"]

    def stage(self, scale: Scale) -> str:
        """The name of a scale's stage."""
        return self.settings.boundaries.stage(self.info.schedule, scale)

    def skipped(self, scale: Scale) -> bool:
        """Whether a scale does not run: one of the last ``skip``, or without tokens whose codes count.

        The first fidelity scale always runs, unless the settings leave it no tokens.
        """
        fidelity = self.fidelity()
        first = max(1, len(fidelity) - self.settings.skip)
        if scale not in fidelity:
            return False
        return scale in fidelity[first:] or (
            self.settings.tokens.code_weight == 0.0 and not any(self.budgets(scale))
        )

    def guided(self, scale: Scale) -> bool:
        """Whether both rows run."""
        if self.settings.guidance.mode == "both":
            return True
        within = self.info.schedule.area_fraction(scale) <= self.settings.guidance.end * ROUNDING
        return self.stage(scale) != "fidelity" and (within or scale.index == 0)

    def plan(self, scale: Scale) -> ScalePlan:
        """All tokens before the fidelity stage, watched where it needs that; the settings' share in it."""
        stage, settings = self.stage(scale), self.settings
        if self.skipped(scale):
            return ScalePlan(run=False, stage=stage, note="skipped")
        rows, reuse = self._guidance(scale)
        if stage != "fidelity":
            return ScalePlan(rows=rows, reuse=reuse, reduction=self._watching(scale), stage=stage)
        budgets = self.budgets(scale)
        if self._reduces(scale):
            self._chosen = None
            reduction = self._reduction(dict(zip(self.spans, budgets, strict=True)), scale)
        else:
            reduction = self._watching(scale)
        return ScalePlan(
            rows=rows,
            reuse=reuse,
            reduction=reduction,
            window=settings.cache.window if settings.cache.attention == "local" else None,
            store=settings.cache.kv != "none",
            kv_budget=self._kv_budget(scale),
            stage=stage,
            budget=budgets,
        )

    def budgets(self, scale: Scale) -> tuple[int, ...]:
        """Tokens that run in every span of a fidelity scale."""
        settings, tokens = self.settings.tokens, scale.tokens
        if settings.mode == "dense":
            return (tokens,)
        area, depth, found = self.info.schedule.area_fraction(scale), self.info.depth, []
        for span in self.spans:
            wanted = tokens * share_at(settings.keep, area, (span.start + span.stop) / 2 / depth)
            if wanted >= tokens:
                found.append(tokens)
            elif settings.mode == "projection":
                found.append(min(tokens, int(wanted) + 1))
            elif tokens >= ROUND_FROM and wanted >= ROUND_TO:
                found.append(min(tokens, max(1, round(wanted / ROUND_TO)) * ROUND_TO))
            else:
                found.append(max(1, round(wanted)) if wanted else 0)
        return tuple(found)

    def room(self, scale: Scale) -> int:
        """The longest the cache gets before its rows change; the last scale is never stored."""
        narrowing = self.info.guided and self.guided(scale)
        length = start = longest = 0
        for other in self.info.schedule:
            if other.index == scale.index:
                start = longest = length
            if narrowing and other.index > scale.index and not self.guided(other) and not self.skipped(other):
                break
            if self.stage(other) != "fidelity":
                length += other.tokens
                longest = max(longest, length)
            elif self.settings.cache.kv != "none" and not self.skipped(other):
                budgets = self.budgets(other)
                length += 0 if other == self.info.schedule.final else max(budgets)
                longest = max(longest, length)
                if min(budgets):  # blocks without tokens do not attend, and what they store stays as it is
                    length = min(length, self._kv_budget(other) or length)
        return longest - start

    def observe(self, seen: Seen) -> None:
        """Remember what the scores need of a scale's outputs."""
        tokens = self.settings.tokens
        if tokens.mode == "gather" and tokens.score in ("entropy", "codes"):
            self.history.observe(seen)

    def narrow(self, rows: slice) -> None:
        """What is remembered loses its other rows together with the cache."""
        self.memory.narrow(rows)

    def selected(self, taken: Selection) -> "StagedRun":
        """The same for other images; one that keeps its seed goes on with its draws."""
        chosen, seeds = copy.copy(self), self.info.seeds
        chosen.info, chosen.notes = taken.info(self.info), list(self.notes)
        chosen.memory, chosen.history = self.memory.selected(taken), self.history.selected(taken)
        chosen._generators = [
            self._generators[image].clone_state() if seed == seeds[image] else _seeded(seed)
            for image, seed in zip(taken.images, taken.seeds, strict=True)
        ]
        chosen._chosen = None
        return chosen

    def _guidance(self, scale: Scale) -> tuple[str, float]:
        """The rows of a scale and the share of guidance that is reused."""
        if self.guided(scale):
            return "both", 0.0
        earlier = self.info.schedule.scales[: scale.index]
        nth = 1 + sum(not self.guided(s) and not self.skipped(s) for s in earlier)
        guidance = self.settings.guidance
        reusing = guidance.mode == "reuse"
        rows = "conditional" if reusing else guidance.mode
        return rows, guidance.reuse**nth if reusing else 0.0

    def scores(self, x: Tensor, site: Site) -> Tensor:
        """Scores (rows, L) of the tokens ``x`` (rows, L, C) that enter a region, the highest run."""
        settings = self.settings.tokens
        return token_scores(
            settings.score,
            x,
            site,
            delta=self.memory.get(site) if settings.restoration == "delta" else None,
            history=self.history,
            generators=self._generators,
        )

    def _reduces(self, scale: Scale) -> bool:
        """Whether a scale runs on fewer tokens."""
        return self.stage(scale) == "fidelity" and min(self.budgets(scale)) < scale.tokens

    def _restored_from(self, scale: Scale) -> bool:
        """Whether the next scale that runs needs what the regions do at this one."""
        following = self.info.schedule.scales[scale.index + 1 :]
        return next((self._reduces(later) for later in following if not self.skipped(later)), False)

    def _watching(self, scale: Scale) -> Reduction | None:
        """Remembers what the regions do at a scale that runs on all tokens."""
        if not self._restored_from(scale):
            return None
        return Reduction(self.spans, self.memory, watch, restoration=self.settings.tokens.restoration)

    def _reduction(self, budgets: dict[range, int], scale: Scale) -> Reduction:
        """Every span of blocks on its budget of tokens."""
        settings = self.settings.tokens

        def choose(x: Tensor, site: Site) -> TokenMap | None:
            budget = budgets[site.layers]
            if budget >= scale.tokens:
                return None
            if settings.mode == "projection":
                raster = self.raster_positions
                return random_projection(x, budget, self._generators, raster_positions=raster)
            # The same tokens in every span that runs as many: they then have a state of their own.
            if self._chosen is None or self._chosen.count != budget:
                scores = self.scores(x, site)
                if settings.evenness:
                    scores = evened(scores, scale, settings.evenness)
                self._chosen = TokenMap(best(scores, budget, self.info.batch))
            return self._chosen

        return Reduction(
            self.spans,
            self.memory,
            choose,
            restoration=settings.restoration,
            remember=self._restored_from(scale),
            code_weight=settings.code_weight,
            images=self.info.batch,
        )

    def _kv_budget(self, scale: Scale) -> int | None:
        """Keys that stay after a scale, a share of the tokens up to it."""
        share = self.settings.cache.kv
        if isinstance(share, str):
            return None
        seen = sum(s.tokens for s in self.info.schedule.scales[: scale.index + 1])
        return max(1, round(share * seen))


def _seeded(seed: int) -> torch.Generator:
    """A policy's own draws for the seed of an image, other ones than those of the sampling."""
    return torch.Generator().manual_seed((seed * GOLDEN + STAGE) % 2**64)
