"""What a run under a policy will need, as far as that is known before its first scale."""

from dataclasses import dataclass

from ..costs import UnitCosts, scale_flops, schedule_flops
from ..schedule import Scale
from .policy import AccelerationPolicy, PolicyRun, RunInfo, ScalePlan


@dataclass(frozen=True)
class Forecast:
    """Upper bounds of one run for memory, and its work for progress.

    ``keys``: rows x tokens in every layer of the cache at its fullest. ``working``: rows x tokens of the
    largest scale that runs. ``remembered``: rows x tokens x regions that token reduction keeps between
    scales. ``flops``: of every scale, 0 where it is known not to run.
    """

    keys: int
    working: int
    remembered: int
    flops: tuple[float, ...]

    @property
    def shares(self) -> tuple[float, ...]:
        """Part of the work of every scale, together 1."""
        return tuple(flops / sum(self.flops) for flops in self.flops)


def forecast(policy: AccelerationPolicy, info: RunInfo, units: UnitCosts, text_tokens: int = 64) -> Forecast:
    """The forecast of a run; ``ValueError`` when the policy cannot run on this schedule.

    Plans that wait for what is drawn cannot be asked in advance: then every scale counts as dense, whatever
    room the run begins with.
    """
    run, schedule = policy.start(info), info.schedule
    every = 2 * info.batch if info.guided else info.batch
    if policy.per_image:
        dense = schedule_flops(units, schedule, rows=every, text_tokens=text_tokens, images=info.batch)
        final = schedule.final.tokens
        keys = _with_one_layer(every * (schedule.tokens - final), every * schedule.tokens, units)
        regions = len(getattr(run, "spans", ()))
        working = every * final
        return Forecast(keys, working, regions * working, tuple(flops.total for flops in dense))
    return _planned(run, info, units, every, text_tokens)


def _planned(run: PolicyRun, info: RunInfo, units: UnitCosts, every: int, text_tokens: int) -> Forecast:
    """Goes through the plans of a run whose choices are known in advance."""
    rows, length = (
        every,
        run.room(info.schedule[0]),
    )  # of the cache, which is reserved up to the next narrowing
    keys, passing, working, remembered, stored, costs = every * length, 0, 0, 0, 0.0, []
    for scale in info.schedule:
        plan = run.plan(scale)
        if not plan.run:
            costs.append(0.0)
            continue
        if plan.rows != "both" and rows != info.batch:
            rows, length = info.batch, length + run.room(scale)
            keys = max(keys, rows * length)
        tokens = _tokens(plan, scale)
        flops = scale_flops(
            units, tokens, stored + tokens, rows=rows, text_tokens=text_tokens, images=info.batch
        )
        costs.append(flops.total + units.head * rows * (scale.tokens - tokens))
        if plan.store and scale != info.schedule.final:
            stored += tokens
        else:
            passing = max(passing, rows * (length + scale.tokens))
        working = max(working, rows * scale.tokens)
        remembered = max(remembered, _regions(plan, units) * rows * scale.tokens)
    return Forecast(_with_one_layer(keys, passing, units), working, remembered, tuple(costs))


def _tokens(plan: ScalePlan, scale: Scale) -> float:
    """Tokens per row that run, the mean over the regions of the plan."""
    if plan.reduction is None or not plan.budget:
        return float(scale.tokens)
    return sum(plan.budget) / len(plan.budget)


def _regions(plan: ScalePlan, units: UnitCosts) -> int:
    """Regions whose outputs a plan may remember."""
    if plan.reduction is None:
        return 0
    return len(plan.reduction.spans) or units.depth * len(units.branches)


def _with_one_layer(keys: int, passing: int, units: UnitCosts) -> int:
    """``keys`` in every layer, those of one layer twice while they move, and ``passing`` ones in one layer.

    What is not stored, the last scale's among it, passes through memory that all layers share.
    """
    return keys + -(-(keys + passing) // units.depth)
