"""Semantic, structure and fidelity stages of a schedule, by area."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..checks import number
from ..schedule import Scale, ScaleSchedule

STAGES = ("semantic", "structure", "fidelity")
FRACTION = "a fraction of the final area from 0 to 1"
ROUNDING = 1.05  # grids are whole numbers, so an area may pass a boundary by 5%


@dataclass(frozen=True)
class StageBoundaries:
    """Where the stages end, as fractions of the final grid's area, the boundary itself included.

    The defaults are the paper's sides 16 and 32 of 64 (StageVAR, arXiv 2512.16483, section 3).
    """

    semantic_end: float = 1 / 16
    structure_end: float = 1 / 4

    def __post_init__(self) -> None:
        for name in ("semantic_end", "structure_end"):
            number(name, getattr(self, name), 0.0, 1.0, FRACTION)
        if self.semantic_end > self.structure_end:
            raise ValueError(
                f"semantic_end is {self.semantic_end}, after structure_end {self.structure_end}; the stages "
                "would overlap"
            )

    def stage(self, schedule: ScaleSchedule, scale: Scale) -> str:
        """The stage of ``scale``. Grids are rounded, so a boundary gives way by 5% of its area.

        The first scale has nothing to refine and is never in the fidelity stage.
        """
        area = schedule.area_fraction(scale)
        if area <= self.semantic_end * ROUNDING:
            return "semantic"
        return "structure" if area <= self.structure_end * ROUNDING or scale.index == 0 else "fidelity"

    def stages(self, schedule: ScaleSchedule) -> list[str]:
        """The stage of every scale."""
        return [self.stage(schedule, scale) for scale in schedule]

    def end(self, schedule: ScaleSchedule, stage: str) -> int:
        """How many scales it takes to the end of a stage, at least one."""
        reached = STAGES[: STAGES.index(stage) + 1]
        return max(1, sum(each in reached for each in self.stages(schedule)))


def holds(schedule: ScaleSchedule, scale: Scale, start: float, end: float) -> bool:
    """Whether a scale lies in a range of area fractions, beyond ``start`` and up to ``end``.

    Both give way by 5%, as the boundaries of stages do; ranges that meet share no scale and leave none out.
    """
    area = schedule.area_fraction(scale)
    return (start <= 0.0 or area > start * ROUNDING) and (end >= 1.0 or area <= end * ROUNDING)


def per_stage(values: Sequence[float], schedule: ScaleSchedule) -> tuple[float, ...]:
    """One number per scale from one per stage; ``ValueError`` where there are not three."""
    if len(values) != len(STAGES):
        raise ValueError(f"got {len(values)} numbers; expected one per stage: {', '.join(STAGES)}")
    return tuple(values[STAGES.index(stage)] for stage in StageBoundaries().stages(schedule))


def boundaries_of(policy: object) -> StageBoundaries:
    """Those of a policy that has some, else the paper's."""
    settings = getattr(policy, "settings", policy)
    found = getattr(getattr(settings, "stages", settings), "boundaries", None)
    return found if isinstance(found, StageBoundaries) else StageBoundaries()


def kept_scales(schedule: ScaleSchedule, variation: float) -> int:
    """How many of the first scales stay for a ``variation`` from 0, the same picture, to 1, another one.

    Those whose area fraction is at most ``(1 - variation)`` squared, so that equal steps of it are equal
    steps of the sides of the token maps: 0.5 keeps the structure stage, 0.75 the semantic one. Grids are
    rounded as for stages; above 0 the last scale is always drawn.
    """
    number("variation", variation, 0.0, 1.0)
    if not variation:
        return len(schedule)
    most = (1.0 - variation) ** 2 * ROUNDING
    return sum(schedule.area_fraction(scale) <= most for scale in schedule.scales[:-1])
