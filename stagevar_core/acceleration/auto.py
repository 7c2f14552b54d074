"""Stage boundaries found while sampling, per prompt, from what is on the device anyway.

Two observations end a stage early or late. Guidance stops once the conditional and the unconditional rows
agree on nearly every code. The fidelity stage begins once a scale changes the accumulated latent by a small
part of its norm. Where the codes of a scale are still nearly all undecided (entropy), neither happens.
"""

from dataclasses import dataclass, field
from math import inf

from ..checks import number
from ..schedule import Scale
from .policy import RunInfo, Seen
from .settings import StageSettings
from .staged import StagedRun


@dataclass(frozen=True)
class AutoSettings:
    """Thresholds, and what happens in the stages that they bound.

    ``disagreement``: share of the most likely codes that differ between the rows, at or below which guidance
    stops. ``change``: norm of what a scale added over that of the accumulated latent, at or below which
    structure is settled. ``entropy``: mean bits per choice above which nothing is settled. ``guidance_from``:
    area fraction from which guidance may stop. ``earliest`` and ``latest``: area fractions after which the
    fidelity stage may and must begin; the last scale always belongs to it.

    The defaults are calibrated on the embedded model (60 held-out captions): its disagreement falls from .29
    at the first scale to .07 at 6x6 and .06 at 8x8 and stays there, its change from 1 to .49 and .43.
    """

    disagreement: float = 0.07
    change: float = 0.5
    entropy: float = 0.5
    guidance_from: float = 1 / 8
    earliest: float = 2 / 9
    latest: float = 9 / 16
    stages: StageSettings = field(default_factory=StageSettings)

    def __post_init__(self) -> None:
        for name in ("disagreement", "entropy", "guidance_from", "earliest", "latest"):
            number(name, getattr(self, name), 0.0, 1.0)
        if self.change != inf:  # settled whatever a scale changes
            number("change", self.change, 0.0)
        if self.earliest > self.latest:
            raise ValueError(f"earliest is {self.earliest}, after latest {self.latest}; swap them")


@dataclass(frozen=True)
class AutoPolicy:
    """:class:`AutoSettings` under a name; every image of a batch has boundaries of its own."""

    name: str
    settings: AutoSettings
    per_image = True

    def start(self, info: RunInfo) -> "AutoRun":
        """Fresh state of one image."""
        return AutoRun(self.settings, info)


class AutoRun(StagedRun):
    """One generation: a staged run whose boundaries are indices that `observe` moves."""

    def __init__(self, settings: AutoSettings, info: RunInfo) -> None:
        self.auto = settings
        self._fidelity_from = len(info.schedule) - 1
        self._guided_until = len(info.schedule) - 1
        super().__init__(settings.stages, info)

    def stage(self, scale: Scale) -> str:
        """Fidelity from where it was found to begin; the other boundary goes by area, for the report."""
        if scale.index >= max(1, self._fidelity_from):
            return "fidelity"
        by_area = self.settings.boundaries.stage(self.info.schedule, scale)
        return "semantic" if by_area == "semantic" else "structure"

    def guided(self, scale: Scale) -> bool:
        """Both rows run until they agree, and never in the fidelity stage."""
        return scale.index <= self._guided_until and self.stage(scale) != "fidelity"

    def room(self, scale: Scale) -> int:
        """Up to where the fidelity stage usually begins; the cache grows when it begins later."""
        # 0.3: a quarter of the area, where `balanced` begins it, and some rounding of the grids.
        later = self.info.schedule.scales[scale.index :]
        usual = [other.tokens for other in later if self.info.schedule.area_fraction(other) <= 0.3]
        return sum(usual) or scale.tokens

    def observe(self, seen: Seen) -> None:
        """Move the boundaries by what the scale showed; waits for the device."""
        super().observe(seen)
        scale, last = seen.scale, len(self.info.schedule) - 1
        if scale.index >= last or self.stage(scale) == "fidelity":
            return
        where = f"{scale.height}x{scale.width}"
        entropy = float(seen.entropy(seen.guided).mean())
        undecided = entropy > self.auto.entropy
        area = self.info.schedule.area_fraction(scale)
        if self.guided(scale) and scale.index < self.info.guides and area >= self.auto.guidance_from:
            conditional, unconditional = seen.choices(seen.raw).chunk(2)
            differing = float((conditional != unconditional).float().mean())
            if differing <= self.auto.disagreement and not undecided:
                self._guided_until = scale.index
                self.notes.append(f"guidance ended after {where}: {differing:.1%} of the codes differ")
        following = self.info.schedule.area_fraction(self.info.schedule[scale.index + 1])
        change = float(seen.change.norm() / seen.f_hat.norm().clamp_min(1e-12))
        if area >= self.auto.earliest and change <= self.auto.change and not undecided:
            self._begin(scale, f"it changed the latent by {change:.0%}")
        elif following > self.auto.latest:
            self._begin(scale, "no later start is allowed")

    def _begin(self, scale: Scale, reason: str) -> None:
        """The fidelity stage begins after ``scale``."""
        self._fidelity_from = scale.index + 1
        self.notes.append(f"structure ended after {scale.height}x{scale.width}: {reason}")

    def _restored_from(self, scale: Scale) -> bool:
        """Any scale may turn out to be the last before the fidelity stage."""
        return self.settings.tokens.mode != "dense" and scale.index + 1 < len(self.info.schedule)
