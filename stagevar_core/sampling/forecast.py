"""What a run under a policy will need, as far as that is known before its first scale."""

import itertools
from dataclasses import dataclass, replace

from ..acceleration.policy import AccelerationPolicy, PolicyRun, RunInfo, ScalePlan
from ..acceleration.reduction import Reduction
from ..costs import TextTokens, UnitCosts, prefix_flops, scale_flops, schedule_flops, texts_at
from ..network.tokens import Site
from ..schedule import Scale, ScaleSchedule


@dataclass(frozen=True)
class Load:
    """What one scale holds at once, in tokens.

    ``stream``: rows x tokens of the residual stream. ``computed``: those of them that the blocks run on, in
    ``turns`` where the rows of guidance take some. ``drawn``: images x tokens whose codes are drawn.
    ``reduced``: a method restores regions of blocks.
    """

    stream: int
    computed: int
    drawn: int
    turns: int = 1
    reduced: bool = False


@dataclass(frozen=True)
class Forecast:
    """Upper bounds of one run for memory, and its work for progress.

    ``keys``: rows x tokens in every layer of the cache at its fullest, without those that wait on another
    device. ``loads``: of every scale that may run. ``remembered``: rows x tokens x regions that token
    reduction keeps between scales. ``flops``: of every scale, 0 where it is known not to run; what precedes
    the scales counts to the first one.
    """

    keys: int
    loads: tuple[Load, ...]
    remembered: int
    flops: tuple[float, ...]

    @property
    def shares(self) -> tuple[float, ...]:
        """Part of the work of every scale, together 1."""
        return tuple(flops / sum(self.flops) for flops in self.flops)


def forecast(
    policy: AccelerationPolicy,
    info: RunInfo,
    units: UnitCosts,
    text_tokens: TextTokens = 64,
    *,
    sequential: bool = False,
    offload: bool = False,
    until: int | None = None,
) -> Forecast:
    """The forecast of a run; ``ValueError`` when the policy cannot run on this schedule.

    ``sequential``, ``offload``: whether guidance takes its rows in turn and half of the keys wait elsewhere.
    ``until``: scales after which it stops; the others are not part of the forecast.

    Plans that wait for what is drawn cannot be asked in advance: then every scale counts as dense, whatever
    room the run begins with.
    """
    run, schedule = policy.start(info), info.schedule
    ends = schedule if until is None else schedule.prefix(until)
    turns = 2 if sequential and info.guided else 1
    if not policy.per_image:
        found = _planned(run, info, units, text_tokens, ends=ends, turns=turns, offload=offload)
    else:
        every, before = _rows(info), _before(info)
        rows = [info.batch * (1 + (scale.index < info.guides)) for scale in schedule]
        dense = schedule_flops(
            units, schedule, rows=rows, text_tokens=text_tokens, images=info.batch, prefix=info.prefix
        )
        stored = before
        if units.history:
            stored += sum(scale.tokens for scale in ends if scale != schedule.final)
        kept = every // 2 if turns == 2 and offload else every
        passing = every * (before + ends.tokens) if units.history else 0
        keys = _with_one_layer(kept * stored, passing, units)
        tokens = every * ends.final.tokens
        load = Load(tokens, tokens, info.batch * ends.final.tokens, turns, reduced=True)
        costs = tuple(flops.total for flops in dense)[: len(ends)]
        found = Forecast(keys, (load,), run.regions * tokens, costs)
    return found if info.prefix is None else _preceded(found, info, units, text_tokens, turns)


def _rows(info: RunInfo) -> int:
    """Rows that a run begins with."""
    return 2 * info.batch if info.guided else info.batch


def _before(info: RunInfo) -> int:
    """Tokens that precede the scales, per row."""
    return 0 if info.prefix is None else info.prefix.tokens


def _preceded(
    found: Forecast, info: RunInfo, units: UnitCosts, text_tokens: TextTokens, turns: int
) -> Forecast:
    """With the pass over what precedes the scales."""
    assert info.prefix is not None, "nothing precedes the scales"
    rows = _rows(info)
    flops = prefix_flops(units, info.prefix, rows=rows, text_tokens=text_tokens, images=info.batch)
    tokens, (first, *others) = rows * info.prefix.tokens, found.flops
    return replace(
        found,
        loads=(Load(tokens, tokens, 0, turns), *found.loads),
        flops=(first + flops.total, *others),
    )


def _planned(
    run: PolicyRun,
    info: RunInfo,
    units: UnitCosts,
    text_tokens: TextTokens,
    *,
    ends: ScaleSchedule,
    turns: int,
    offload: bool,
) -> Forecast:
    """Goes through the plans of a run whose choices are known in advance."""
    # The cache holds rows x length keys; it is reserved up to the next narrowing.
    rows, before = _rows(info), _before(info)
    stores = min(len(ends), len(info.schedule) - 1)
    length = before + room(run, units, info.schedule, info.schedule[0], (info.guides, stores))
    away = info.batch if turns == 2 and offload else 0  # rows whose keys wait elsewhere
    keys, passing, remembered, stored = (rows - away) * length, 0, 0, 0.0
    costs: list[float] = []
    loads: list[Load] = []
    for scale in ends:
        plan = run.plan(scale)
        if not plan.run:
            costs.append(0.0)
            continue
        if (plan.rows != "both" or scale.index >= info.guides) and rows != info.batch:
            rows, turns, away = info.batch, 1, 0
            length += room(run, units, info.schedule, scale, (0, stores))
            keys = max(keys, rows * length)
        tokens = _tokens(plan, scale) if info.schedule.entering(scale, info.prefix) else 0.0
        ways = {"rows": rows, "text_tokens": texts_at(text_tokens, scale), "images": info.batch}
        leading = 0 if info.prefix is None else info.prefix.keys(scale, units.depth)
        flops = scale_flops(units, tokens, stored + tokens, **ways, before=leading)
        flops += units.refining(scale, rows)
        costs.append(flops.total + units.head * rows * (scale.tokens - tokens))
        computed, appended = _computed(plan, scale), _appended(plan, units, scale)
        if plan.store and units.history and scale != info.schedule.final:
            stored += tokens
            passing = max(passing, away * (length + appended))
            if info.prefix is not None and info.prefix.aligned:
                passing = max(passing, rows * (length - before + scale.tokens + appended))
        elif units.history:  # else a layer's own keys are all that it sees
            passing = max(passing, rows * (length + appended))
        reduced = plan.reduction is not None
        loads.append(Load(rows * scale.tokens, rows * computed, info.batch * scale.tokens, turns, reduced))
        remembered = max(remembered, _regions(plan, units, scale) * rows * scale.tokens)
    return Forecast(_with_one_layer(keys, passing, units), tuple(loads), remembered, tuple(costs))


def room(
    run: PolicyRun, units: UnitCosts, schedule: ScaleSchedule, scale: Scale, reach: tuple[int, int]
) -> int:
    """Keys per row that the cache makes room for from ``scale`` until the rows change.

    ``reach``: how many of the first scales have both rows, and how many are stored, never the last one:
    nothing looks at its keys any more. Where scales see themselves alone there are none.
    """
    if not units.history:
        return 0
    guides, stores = reach
    ends = stores if scale.index >= guides else min(stores, guides)
    return min(run.room(scale), sum(later.tokens for later in schedule.scales[scale.index : ends]))


def _tokens(plan: ScalePlan, scale: Scale) -> float:
    """Tokens per row that run, the mean over the regions of the plan."""
    if plan.reduction is None or not plan.budget:
        return float(scale.tokens)
    return sum(plan.budget) / len(plan.budget)


def _computed(plan: ScalePlan, scale: Scale) -> int:
    """Tokens per row that a block runs on at the most; a plan for single branches may leave some whole."""
    whole = plan.reduction is None or not plan.reduction.spans or not plan.budget
    return scale.tokens if whole else max(plan.budget)


def _appended(plan: ScalePlan, units: UnitCosts, scale: Scale) -> int:
    """Tokens per row whose keys a layer appends at the most."""
    if not isinstance(plan.reduction, Reduction) or plan.reduction.spans or not plan.budget:
        return _computed(plan, scale)
    attention = next(iter(units.branches))  # comes first in every family
    sites = (Site(scale, range(layer, layer + 1), attention) for layer in range(units.depth))
    return max(plan.budget) if all(map(plan.reduction.concerns, sites)) else scale.tokens


def _regions(plan: ScalePlan, units: UnitCosts, scale: Scale) -> int:
    """Regions whose outputs a plan remembers."""
    if not isinstance(plan.reduction, Reduction):
        return 0
    if plan.reduction.spans:
        sites = [Site(scale, span, "blocks") for span in plan.reduction.spans]
    else:
        each = itertools.product(range(units.depth), units.branches)
        sites = [Site(scale, range(layer, layer + 1), part) for layer, part in each]
    return sum(map(plan.reduction.remembers, sites))


def _with_one_layer(keys: int, passing: int, units: UnitCosts) -> int:
    """``keys`` in every layer, and those of one layer more: while they move, or of what is ``passing``.

    What is not stored, the last scale's among it, passes through memory that all layers share.
    """
    return keys + -(-max(keys, passing) // units.depth)
