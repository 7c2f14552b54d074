"""Stage-aware acceleration: everything up to a quarter of the area intact, the fidelity stage cut.

One set of choices serves our presets and the paper's; see ``StageSettings``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..network.local import LocalWindow
from ..network.tokens import Site, TokenMap
from ..schedule import Scale
from .policy import RunInfo, ScalePlan, Seen
from .reduction import RESTORATIONS, Memory, Reduction, best, random_projection, watch
from .scores import SCORES, History, evened, token_scores
from .stages import ROUNDING, StageBoundaries

GUIDANCE = ("both", "conditional", "unconditional", "reuse")
TOKENS = ("dense", "gather", "projection")
ATTENTION = ("dense", "local")
STORES = ("append", "none")
ROUND_FROM = 1024  # tokens of a scale from which budgets are multiples of ROUND_TO, whole tiles of a GPU
ROUND_TO = 64

Share = float | tuple[float, ...]


@dataclass(frozen=True)
class StageSettings:
    """What happens in the fidelity stage.

    ``guidance``: 'both' rows, the 'conditional' or the 'unconditional' one alone, or 'reuse': conditional
    plus ``reuse ** n`` of the last guidance at its n-th scale. ``guidance_end``: area fraction up to which
    both rows run; the first scale always has them, the fidelity stage never.
    ``tokens``: 'dense', 'gather' by ``score`` or random 'projection'. ``evenness``: 0 takes the best tokens,
    1 takes them evenly spread, in between by both. ``keep``: share of tokens that run, one
    number, or (area fraction, share) points between which it is interpolated; a share may be a tuple over
    the depth. ``spans``: chunks of blocks that reduce and restore on their own; 1 is the whole scale.
    ``restoration``, ``code_weight``: see :class:`Reduction`. ``resize``: of what is remembered.
    ``attention``: 'dense' or 'local' (``window``; only with dense tokens). ``kv``: 'append', 'none', or the
    share of the tokens so far that stays. ``skip``: last scales that do not run; one fidelity scale always
    does. A scale without tokens to run, whose codes would count 0, does not run either.
    """

    boundaries: StageBoundaries = field(default_factory=StageBoundaries)
    guidance: str = "conditional"
    guidance_end: float = 1.0
    reuse: float = 0.5
    tokens: str = "dense"
    keep: float | tuple[tuple[float, Share], ...] = 1.0
    score: str = "change"
    evenness: float = 0.0
    spans: int = 1
    restoration: str = "delta"
    code_weight: float = 1.0
    resize: str = "area"
    attention: str = "dense"
    window: LocalWindow = field(default_factory=LocalWindow)
    kv: str | float = "append"
    skip: int = 0

    def __post_init__(self) -> None:
        choices = {
            "guidance": GUIDANCE,
            "tokens": TOKENS,
            "score": SCORES,
            "restoration": RESTORATIONS,
            "resize": ("area", "bilinear", "nearest"),
            "attention": ATTENTION,
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected one of {list(known)}")
        points = self.keep if isinstance(self.keep, tuple) else ((1.0, self.keep),)
        areas = [area for area, _ in points]
        if not areas or areas != sorted(set(areas)) or () in [share for _, share in points]:
            raise ValueError(
                f"keep is {self.keep!r}; expected a share, or points (area fraction, share) by rising area"
            )
        shares = [
            ("reuse", self.reuse),
            ("guidance_end", self.guidance_end),
            ("evenness", self.evenness),
            ("code_weight", self.code_weight),
        ]
        shares += [("keep", share) for share in _numbers(self.keep)]
        if self.kv not in STORES:
            shares.append(("kv", self.kv))
        for name, share in shares:
            if not isinstance(share, int | float) or not 0.0 <= share <= 1.0:
                raise ValueError(f"{name} is {share!r}; expected a number from 0 to 1")
        if not isinstance(self.spans, int) or not 1 <= self.spans <= 256:
            raise ValueError(f"spans is {self.spans!r}; expected 1 to 256 chunks of blocks")
        if not isinstance(self.skip, int) or not 0 <= self.skip <= 64:
            raise ValueError(f"skip is {self.skip!r}; expected 0 to 64 scales")


def _numbers(keep: float | tuple) -> list[float]:
    """All shares in a ``keep``."""
    if not isinstance(keep, tuple):
        return [keep]
    shares = [share for _, share in keep]
    return [number for share in shares for number in (share if isinstance(share, tuple) else (share,))]


def interpolate(points: Sequence[tuple[float, float]], at: float) -> float:
    """Piecewise linear through (position, value) points, flat beyond the ends."""
    if at <= points[0][0]:
        return points[0][1]
    for (x0, y0), (x1, y1) in zip(points[:-1], points[1:], strict=True):
        if at <= x1:
            return y0 + (y1 - y0) * (at - x0) / (x1 - x0)
    return points[-1][1]


def share_at(keep: float | tuple[tuple[float, Share], ...], area: float, depth: float) -> float:
    """The share of tokens at an area fraction and at a relative depth of the blocks, both 0..1."""
    if not isinstance(keep, tuple):
        return float(keep)

    def value(share: Share) -> float:
        if not isinstance(share, tuple):
            return float(share)
        centres = [((i + 0.5) / len(share), number) for i, number in enumerate(share)]
        return interpolate(centres, depth)

    return interpolate([(fraction, value(share)) for fraction, share in keep], area)


def chunks(depth: int, count: int) -> tuple[range, ...]:
    """``count`` ranges of blocks, as even as possible; fewer when there are fewer blocks."""
    count = min(count, depth)
    bounds = [depth * i // count for i in range(count + 1)]
    return tuple(range(a, b) for a, b in zip(bounds[:-1], bounds[1:], strict=True))


@dataclass(frozen=True)
class StagedPolicy:
    """:class:`StageSettings` under a name."""

    name: str
    settings: StageSettings
    per_image = False

    def start(self, info: RunInfo) -> "StagedRun":
        return StagedRun(self.settings, info)


class StagedRun:
    """One generation."""

    def __init__(self, settings: StageSettings, info: RunInfo) -> None:
        self.settings, self.info = settings, info
        self.notes: list[str] = []
        self.memory, self.history = Memory(settings.resize), History()
        self.spans = chunks(info.depth, settings.spans)
        self.regions = len(self.spans)
        self._generators = [torch.Generator().manual_seed(_derived(seed)) for seed in info.seeds]
        self._chosen: TokenMap | None = None
        if not self.fidelity():
            area = settings.boundaries.structure_end
            self.notes.append(f"no scale of this schedule has more than {area:g} of the area; all run dense")
        elif settings.guidance == "unconditional" and not info.guided:
            self.notes.append("without guidance there are no unconditional rows; the conditional ones run on")

    def fidelity(self) -> list[Scale]:
        """The scales of the fidelity stage."""
        return [scale for scale in self.info.schedule if self.stage(scale) == "fidelity"]

    def stage(self, scale: Scale) -> str:
        return self.settings.boundaries.stage(self.info.schedule, scale)

    def skipped(self, scale: Scale) -> bool:
        """Whether a scale does not run."""
        fidelity = self.fidelity()
        first = max(1, len(fidelity) - self.settings.skip)
        if scale not in fidelity:
            return False
        return scale in fidelity[first:] or (
            self.settings.code_weight == 0.0 and not any(self.budgets(scale))
        )

    def guided(self, scale: Scale) -> bool:
        """Whether both rows run."""
        if self.settings.guidance == "both":
            return True
        within = self.info.schedule.area_fraction(scale) <= self.settings.guidance_end * ROUNDING
        return self.stage(scale) != "fidelity" and (within or scale.index == 0)

    def plan(self, scale: Scale) -> ScalePlan:
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
            window=settings.window if settings.attention == "local" else None,
            store=settings.kv != "none",
            kv_budget=self._kv_budget(scale),
            stage=stage,
            budget=budgets,
        )

    def budgets(self, scale: Scale) -> tuple[int, ...]:
        """Tokens that run in every span of a fidelity scale."""
        settings, tokens = self.settings, scale.tokens
        if settings.tokens == "dense":
            return (tokens,)
        area, depth, found = self.info.schedule.area_fraction(scale), self.info.depth, []
        for span in self.spans:
            wanted = tokens * share_at(settings.keep, area, (span.start + span.stop) / 2 / depth)
            if wanted >= tokens:
                found.append(tokens)
            elif settings.tokens == "projection":
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
            elif self.settings.kv != "none" and not self.skipped(other):
                length += 0 if other == self.info.schedule.final else max(self.budgets(other))
                longest = max(longest, length)
                length = min(length, self._kv_budget(other) or length)
        return longest - start

    def observe(self, seen: Seen) -> None:
        if self.settings.tokens == "gather" and self.settings.score in ("entropy", "codes"):
            self.history.observe(seen)

    def narrow(self, rows: slice) -> None:
        """What is remembered loses its other rows together with the cache."""
        self.memory.narrow(rows)

    def _guidance(self, scale: Scale) -> tuple[str, float]:
        """The rows of a scale and the share of guidance that is reused."""
        if self.guided(scale):
            return "both", 0.0
        earlier = self.info.schedule.scales[: scale.index]
        nth = 1 + sum(not self.guided(s) and not self.skipped(s) for s in earlier)
        reusing = self.settings.guidance == "reuse"
        rows = "conditional" if reusing else self.settings.guidance
        return rows, self.settings.reuse**nth if reusing else 0.0

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
        return Reduction(self.spans, self.memory, watch, restoration=self.settings.restoration)

    def _reduction(self, budgets: dict[range, int], scale: Scale) -> Reduction:
        settings = self.settings

        def choose(x: Tensor, site: Site) -> TokenMap | None:
            budget = budgets[site.layers]
            if budget >= scale.tokens:
                return None
            if settings.tokens == "projection":
                return random_projection(x, budget, self._generators, raster_positions=True)
            # The same tokens in every span that runs as many: they then have a state of their own.
            if self._chosen is None or self._chosen.count != budget:
                delta = self.memory.get(site) if settings.restoration == "delta" else None
                scores = token_scores(
                    settings.score,
                    x,
                    site,
                    delta=delta,
                    history=self.history,
                    generators=self._generators,
                )
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
        if isinstance(self.settings.kv, str):
            return None
        seen = sum(s.tokens for s in self.info.schedule.scales[: scale.index + 1])
        return max(1, round(self.settings.kv * seen))


def _derived(seed: int) -> int:
    """The seed of a policy's own draws, so that they differ from those of the sampling."""
    return (seed * 0x9E3779B97F4A7C15 + 0x5374616765) % 2**64
