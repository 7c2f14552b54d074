"""Parity with the public code of the peers, FastVAR and FasterVAR for Infinity: their runs, replayed by ours.

What they draw at random (mixtures, tokens to restore) is put in place of our draws; everything else is ours.
A folder is compared under the preset that it names. Where the plan of that preset is not the folder's own
(other depths, chunks, schedules), the same method runs on the folder's numbers, and a line says so.
"""

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stagevar_core.acceleration.changes import changed
from stagevar_core.acceleration.fastvar import FastVAR, PruningSetting
from stagevar_core.acceleration.policy import AccelerationPolicy, FirstScales, PolicyRun, RunInfo, ScalePlan
from stagevar_core.acceleration.presets import preset
from stagevar_core.acceleration.staged import StagedPolicy
from stagevar_core.acceleration.stages import ROUNDING, StageBoundaries
from stagevar_core.acceleration.stagevar import PAPER
from stagevar_core.conditioning.types import TextConditioning
from stagevar_core.models.infinity import Infinity
from stagevar_core.network.tokens import Site, TokenMap, TokenReduction
from stagevar_core.sampling.generate import generate
from stagevar_core.schedule import Scale, ScaleSchedule
from tests.support.replay import ReplayedNoise

from .infinity import defaults_of, is_greedy, packed_text, schedule_of, settings_of, stored, tolerance_of
from .infinity_probe import Probe
from .infinity_setup import check_released, load_transformer
from .report import Pair, Report, UnreadableFolder

METHODS = {"fastvar": "fastvar", "fastervar": "paper-released"}  # and the preset where a folder names none
# What a folder keeps: every n-th token, or row and column, or the first rows alone.
THINNED, FIRST = {"hidden": 40, "input": 160, "summed_codes_every4": 4}, {"projected": 4}
REPLAYED = ("I", "exp_noise")  # taken from the folder, so equal by themselves
# Mixtures of thousands of tokens grow with these: states and logits are measured by the largest of them.
RELATIVE, STATES = 1e-5, ("input", "projected", "hidden")
DRAWN = 1e-6  # of a replayed matrix: the numbers that its generator must give


def claims(folder: Path, config: dict) -> bool:
    """Whether a folder holds runs of one of the methods."""
    return config.get("method") in METHODS and "d_vae_in" in config.get("transformer", {})


def compare(folder: Path, config: dict, report: Report) -> None:
    """Compare every run."""
    check_released(config)
    model = load_transformer(config, stored(folder, "transformer"))
    inputs, schedule = stored(folder, "inputs"), schedule_of(config)
    for name, options in config["runs"].items():
        expected = stored(folder, f"outputs_{name}")
        recorded = Recorded(config, expected, schedule)
        policy, said = chosen(recorded, config, name)
        report.write(f"     {report.folder:26} {name:28} {said}")
        measured = _run(model, Replaying(policy, recorded), config, inputs, options, recorded)
        _plans(report, name, recorded, measured)
        _tensors(report, name, recorded, measured)


# ------------------------------------------------------------------------------------- what a folder records


@dataclass
class Recorded:
    """One run: its tensors, and the plan that they and the config tell of."""

    config: dict
    expected: dict[str, Tensor]
    schedule: ScaleSchedule

    def at(self, scale: Scale, quantity: str) -> Tensor | None:
        """A stored tensor of a scale."""
        return self.expected.get(f"scale{scale.index:02d}.{quantity}")

    def ran(self, scale: Scale) -> bool:
        """Whether a scale ran: those that did not store nothing."""
        return any(name.startswith(f"scale{scale.index:02d}.") for name in self.expected)

    def alone(self, scale: Scale) -> bool:
        """Whether the unconditional rows ran alone."""
        raw = self.at(scale, "logits_raw")
        return raw is not None and len(raw) == self.config.get("batch", 1)

    def budget(self, scale: Scale) -> tuple[int, ...]:
        """Tokens that ran, per chunk or in every pruned branch; empty where all of them did."""
        if not self.ran(scale):
            return ()
        if self.config["method"] == "fastvar":
            kept = self.config.get("kept", {}).get(str(scale.index))
            return () if kept is None else (kept,)
        drawn = [self.at(scale, f"chunk{chunk}.I") for chunk in range(self.chunks)]
        if any(index is None for index in drawn):
            return ()
        return tuple(index.shape[-1] for index in drawn if index is not None)

    @property
    def chunks(self) -> int:
        """Chunks of blocks."""
        return self.config["transformer"].get("block_chunks") or 1

    @property
    def skipped(self) -> int:
        """How many of the last scales did not run; :class:`UnreadableFolder` where others did not."""
        ran = [self.ran(scale) for scale in self.schedule]
        if not all(ran[: sum(ran)]):
            raise UnreadableFolder("scales before the last ones are missing in its outputs")
        return len(ran) - sum(ran)

    def info(self) -> RunInfo:
        """What a policy is told of the run."""
        batch = self.config.get("batch", 1)
        return RunInfo(
            self.schedule, self.config["transformer"]["depth"], batch, True, False, tuple(range(batch))
        )


def chosen(recorded: Recorded, config: dict, run: str) -> tuple[AccelerationPolicy, str]:
    """The policy to compare with, and the line that says which."""
    kind = "preset_noskip" if "noskip" in run and "preset_noskip" in config else "preset"
    name = config.get(kind) or METHODS[config["method"]]
    policy, source = preset(name), config.get("source", config["method"]).rstrip("/ ")
    differing = [text for text, same in _agreement(policy.start(recorded.info()), recorded) if not same]
    replayed = "kept tokens and bits" if config["method"] == "fastvar" else "bits, Q and I replayed,"
    against = f"{replayed} against {source}"
    if not differing:
        return policy, f"preset {name}: {against}"
    way = _pruning if config["method"] == "fastvar" else _projection
    return way(recorded), f"method of {name} on the folder's own {', '.join(differing)}: {against}"


def _agreement(run: PolicyRun, recorded: Recorded) -> Iterator[tuple[str, bool]]:
    """What of a plan is the folder's own."""
    plans = [(scale, run.plan(scale)) for scale in recorded.schedule]
    yield "scales", all(plan.run == recorded.ran(scale) for scale, plan in plans)
    reduced = [(scale, plan) for scale, plan in plans if plan.run and _reduces(plan, scale)]
    found = {scale: plan.budget for scale, plan in reduced}
    yield (
        "budgets",
        found == {scale: recorded.budget(scale) for scale in recorded.schedule if recorded.budget(scale)},
    )
    yield (
        "rows",
        all((plan.rows == "unconditional") == recorded.alone(scale) for scale, plan in plans if plan.run),
    )
    blocks = getattr(run, "layers", None)
    if blocks is not None:
        yield "blocks", blocks == _blocks(recorded)
        yield "anchor", getattr(run, "anchor", None) == recorded.config.get("cached_scale")


def _reduces(plan: ScalePlan, scale: Scale) -> bool:
    return plan.reduction is not None and bool(plan.budget) and min(plan.budget) < scale.tokens


def _blocks(recorded: Recorded) -> range:
    """The pruned blocks that a model of this depth has."""
    start, stop = recorded.config.get("pruned_blocks", (0, 0))
    depth = recorded.config["transformer"]["depth"]
    return range(min(start, depth), min(stop, depth))


def _pruning(recorded: Recorded) -> AccelerationPolicy:
    """FastVAR with the folder's shares, scales and blocks."""
    end = len(recorded.schedule) - recorded.skipped
    if not any(recorded.budget(scale) for scale in recorded.schedule):
        return FirstScales(end)
    first = recorded.config["cached_scale"] + 1
    kept = {scale.index: recorded.budget(scale) for scale in recorded.schedule}
    shares = []
    for scale in recorded.schedule.scales[first:end]:
        dropped = scale.tokens - kept[scale.index][0] if kept[scale.index] else 0
        shares.append(min(1.0, (dropped + 0.5) / scale.tokens) if dropped else 0.0)
    setting = PruningSetting(tuple(shares), recorded.skipped, _blocks(recorded))
    every = StageBoundaries(0.0, 0.0)  # all scales but the first are of the fidelity stage
    return FastVAR(setting, setting, every)


def _projection(recorded: Recorded) -> StagedPolicy:
    """The paper's policy with the folder's chunks, ranks, scales and rows."""
    schedule = recorded.schedule
    alone = [scale for scale in schedule if recorded.alone(scale) or recorded.budget(scale)]
    first = alone[0].index if alone else len(schedule)
    area = schedule.area_fraction
    if not first:
        raise UnreadableFolder("its first scale runs without the conditional rows; nothing could be sampled")
    end = (
        1.0 if first == len(schedule) else (area(schedule[first - 1]) + area(schedule[first])) / 2 / ROUNDING
    )
    points = []
    for scale in schedule.scales[first:]:
        ranks = recorded.budget(scale)
        share = tuple(min(1.0, (rank - 0.5) / scale.tokens) for rank in ranks) if ranks else 1.0
        points.append((area(scale), share))
    return StagedPolicy(
        "paper (folder)",
        changed(
            PAPER.settings,
            boundaries=StageBoundaries(min(1 / 16, end), end),
            spans=recorded.chunks,
            keep=tuple(points) or 1.0,
            skip=recorded.skipped,
        ),
    )


# -------------------------------------------------------------------------------------------------- replaying


@dataclass
class Replaying:
    """A policy whose draws are replaced by a folder's, and whose choices are written down."""

    policy: AccelerationPolicy
    recorded: Recorded
    name: str = "replayed"
    per_image: bool = False
    plans: dict[int, ScalePlan] = field(default_factory=dict)
    seen: dict[str, Tensor] = field(default_factory=dict)
    kept: dict[int, list[Tensor]] = field(default_factory=dict)

    def start(self, info: RunInfo) -> "ReplayingRun":
        return ReplayingRun(self, self.policy.start(info))


class ReplayingRun:
    """The run of the policy, except for the reduction of its plans."""

    def __init__(self, replaying: Replaying, run: PolicyRun) -> None:
        self._replaying, self._run = replaying, run
        self.notes, self.regions = run.notes, run.regions
        self.observe, self.narrow, self.room = run.observe, run.narrow, run.room

    def plan(self, scale: Scale) -> ScalePlan:
        plan = self._run.plan(scale)
        self._replaying.plans[scale.index] = plan
        if plan.reduction is None or not _reduces(plan, scale):
            return plan
        return replace(plan, reduction=ReplayingReduction(self._replaying, plan.reduction))


class ReplayingReduction:
    """A reduction whose tokens are seen, and whose mixtures are the folder's."""

    def __init__(self, replaying: Replaying, reduction: TokenReduction) -> None:
        self._replaying, self._own = replaying, reduction
        self.spans, self.restore, self.code_weights = (
            reduction.spans,
            reduction.restore,
            reduction.code_weights,
        )

    def reduce(self, x: Tensor, site: Site) -> TokenMap | None:
        tokens = self._own.reduce(x, site)
        if tokens is None:
            return None
        if tokens.matrix is None:
            self._replaying.kept.setdefault(site.scale.index, []).append(tokens.keep)
            return tokens
        chunk = self.spans.index(site.layers)
        place, recorded = f"scale{site.scale.index:02d}.chunk{chunk}", self._replaying.recorded
        keep = recorded.expected[f"{place}.I"].long().expand(len(x), -1)
        matrix = _matrix(recorded.config, site.scale, chunk, keep.shape[-1])
        if tokens.count == keep.shape[-1]:  # else the budgets differ, which is a miss of its own
            tokens = replace(tokens, keep=keep, matrix=matrix.expand(len(x), -1, -1))
        self._replaying.seen |= {f"{place}.input": x, f"{place}.projected": tokens.apply(x)}
        return tokens


def _gaussian(config: dict, scale: Scale, chunk: int, rank: int) -> np.ndarray:
    """The numbers of a mixture before they are divided by the root of its rank, (1, L, r)."""
    generator = np.random.RandomState(config["projection_seed"] + 1000 * scale.index + chunk)
    return generator.standard_normal((1, scale.tokens, rank))


def _matrix(config: dict, scale: Scale, chunk: int, rank: int) -> Tensor:
    return torch.from_numpy(_gaussian(config, scale, chunk, rank).astype(np.float32)) / math.sqrt(rank)


class RanNoise(ReplayedNoise):
    """Stored draws; scales that were skipped have none, and what is drawn for them is used by nobody."""

    def __init__(self, recorded: Recorded) -> None:
        draws = [recorded.at(scale, "exp_noise") for scale in recorded.schedule]
        missing = [
            s.index for s, d in zip(recorded.schedule, draws, strict=True) if d is None and recorded.ran(s)
        ]
        if missing or draws[0] is None:
            raise UnreadableFolder(f"a sampled run stores no noise for scales {missing or [0]}")
        super().__init__([draws[0] if draw is None else draw for draw in draws])
        self._stored = [draw is not None for draw in draws]

    def exponential(self, scale, shape, device) -> Tensor:
        stored = self._stored[scale.index]
        return super().exponential(scale, shape, device) if stored else torch.ones(*shape, device=device)


def _run(
    model: Infinity,
    policy: Replaying,
    config: dict,
    inputs: dict[str, Tensor],
    options: dict,
    recorded: Recorded,
) -> dict[str, Tensor]:
    """One run; everything measured, under the names of the fixtures."""
    options = {**defaults_of(config), **options}
    greedy = is_greedy(options, recorded.expected)
    with Probe(model, TextConditioning(packed_text(inputs))) as probe:
        result = generate(
            model,
            probe.conditioning,
            recorded.schedule,
            settings_of(options, greedy),
            noise=None if greedy else RanNoise(recorded),
            monitor=probe,
            policy=policy,
        )
    measured = probe.seen | policy.seen
    for scale in recorded.schedule:
        place, plan = f"scale{scale.index:02d}", policy.plans[scale.index]
        measured[f"{place}.ran"] = torch.tensor(result.codes[scale.index] is not None)
        if plan.run and _reduces(plan, scale):
            measured[f"{place}.budget"] = torch.tensor(plan.budget)
        if scale.index in policy.kept:
            measured[f"{place}.kept_bits"] = _packed_sets(policy.kept[scale.index], scale)
    return measured | {"summed_codes": result.f_hat, "summed_codes_every4": result.f_hat}


def _packed_sets(kept: list[Tensor], scale: Scale) -> Tensor:
    """Which tokens ran, (branches, rows, bytes), as the folders store it."""
    masks = [torch.zeros(len(keep), scale.tokens).scatter(1, keep, 1.0).bool().numpy() for keep in kept]
    return torch.from_numpy(np.packbits(np.stack(masks), axis=-1))


# -------------------------------------------------------------------------------------------------- comparing


def _plans(report: Report, run: str, recorded: Recorded, measured: dict[str, Tensor]) -> None:
    """What ran, on how many tokens, and that the mixtures are those that the folder was made with."""
    scales, config = list(recorded.schedule), recorded.config
    ran = [
        (f"scale{s.index:02d}", measured[f"scale{s.index:02d}.ran"], torch.tensor(recorded.ran(s)))
        for s in scales
    ]
    report.compare(run, "scale ran", ran, 0.0)
    budgets = []
    for scale in scales:
        found = measured.get(f"scale{scale.index:02d}.budget", torch.tensor(()))
        expected = torch.tensor(recorded.budget(scale))
        stated = config.get("ranks", {}).get(str(scale.index)) if recorded.budget(scale) else None
        if stated is not None and list(recorded.budget(scale)) != stated:
            report.missing(
                run, "ranks", f"scale {scale.index} has other ranks in its tensors than in config.json"
            )
        budgets.append((f"scale{scale.index:02d}", found, expected))
    report.compare(run, "budgets", budgets, 0.0)
    checks = []
    for scale in scales:
        for chunk, rank in enumerate(recorded.budget(scale) if "projection_seed" in config else ()):
            stored = config.get("Q_checks", {}).get(f"{scale.index}.{chunk}")
            if stored is not None:
                drawn = _gaussian(config, scale, chunk, rank).astype(np.float32)
                found = [*drawn.ravel()[:3].tolist(), drawn.astype(np.float64).sum()]
                pair = (torch.tensor(v, dtype=torch.float64) for v in (found, stored))
                checks.append((f"scale{scale.index:02d}.chunk{chunk}", *pair))
    if checks:
        report.compare(run, "numbers of Q", checks, DRAWN)


def _tensors(report: Report, run: str, recorded: Recorded, measured: dict[str, Tensor]) -> None:
    """Everything stored, one line for every quantity."""
    pairs: dict[str, list[Pair]] = defaultdict(list)
    left = []
    for name, expected in sorted(recorded.expected.items()):
        place, _, quantity = name.rpartition(".")
        if quantity in REPLAYED:
            continue
        if name not in measured:
            left.append(name)
            continue
        found = _as_stored(name, measured[name], expected, recorded)
        if quantity == "kept_bits":
            quantity, found, expected = "tokens kept", _unpacked(found), _unpacked(expected)
        if quantity in STATES or quantity.startswith("logits"):
            largest = expected.abs().max().clamp_min(1.0)
            found, expected = found / largest, expected / largest
        pairs[quantity].append((place, found, expected))
    for quantity, found in pairs.items():
        tolerance = 0.0 if quantity == "tokens kept" else RELATIVE if quantity in STATES else None
        report.compare(run, quantity, found, tolerance_of(quantity) if tolerance is None else tolerance)
    report.not_compared(run, left)


def _unpacked(sets: Tensor) -> Tensor:
    return torch.from_numpy(np.unpackbits(sets.numpy(), axis=-1))


def _as_stored(name: str, whole: Tensor, expected: Tensor, recorded: Recorded) -> Tensor:
    """What was measured, at the places that a folder keeps."""
    place, _, quantity = name.rpartition(".")
    if quantity in FIRST:
        return whole[:, : FIRST[quantity]]
    if quantity == "summed_codes_every4":
        return whole[..., :: THINNED[quantity], :: THINNED[quantity]]
    if quantity in THINNED:
        return whole[:, :: _step(whole, expected, THINNED[quantity])]
    if quantity in ("logits_raw", "logits_post"):
        every = recorded.config.get("logits_every", {}).get(str(int(place.removeprefix("scale"))), 1)
        return whole[:, :: _step(whole, expected, every)]
    return whole


def _step(whole: Tensor, expected: Tensor, stated: int) -> int:
    """Every how many tokens are stored: as stated, else what gives as many."""
    tokens, kept = whole.shape[1], expected.shape[1]
    steps = (stated, *range(1, tokens + 1))
    return next((step for step in steps if math.ceil(tokens / step) == kept), stated)
