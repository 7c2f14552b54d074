"""What a generation did, scale by scale: tokens, rows, counted work, time, memory."""

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from ..acceleration.policy import ScalePlan
from ..costs import Flops, UnitCosts, Work, counted
from ..devices import synchronise
from ..network.cache import CachePair, KVCache
from ..schedule import Prefix, Scale, ScaleSchedule

VERSION = 1


@dataclass(frozen=True)
class ScaleTrace:
    """One scale of one generation.

    ``stage``: 'semantic', 'structure' or 'fidelity' where the policy has stages. ``computed``: tokens per row
    that the blocks ran on, the mean over branches and blocks. ``budget``: tokens per row that the plan set
    for each reduced region. ``rows``: rows in the batch. ``visible``: keys that a query saw, the mean.
    ``dense``: what the same scale costs without acceleration. ``kv_length``: tokens per row that the cache
    holds after the scale, the mean over blocks; ``kv_bytes``: the memory it has reserved.
    """

    scale: Scale
    stage: str
    ran: bool
    rows: int
    guidance: str
    computed: float
    budget: tuple[int, ...]
    visible: float
    flops: Flops
    dense: Flops
    milliseconds: float
    kv_length: float
    kv_bytes: int
    note: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = asdict(self)
        values["scale"] = {"index": self.scale.index, "grid": list(self.scale.grid)}
        values["tokens"] = self.scale.tokens
        values["flops"]["total"], values["dense"]["total"] = self.flops.total, self.dense.total
        values["budget"] = list(self.budget)
        return values


@dataclass
class Trace:
    """All scales of a generation and what the policy had to say.

    ``notes``: what a preset declined on this schedule, and which boundaries it chose and why. ``prefix``: the
    pass over what precedes the scales, None where nothing does; totals count it.
    """

    policy: str = "off"
    images: int = 1
    scales: list[ScaleTrace] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    prefix: ScaleTrace | None = None

    @property
    def passes(self) -> list[ScaleTrace]:
        """What ran through the blocks in order: the prefix where there is one, all scales."""
        return self.scales if self.prefix is None else [self.prefix, *self.scales]

    @property
    def flops(self) -> float:
        """FLOPs of all passes."""
        return sum(each.flops.total for each in self.passes)

    @property
    def dense_flops(self) -> float:
        """FLOPs of all passes without acceleration."""
        return sum(each.dense.total for each in self.passes)

    @property
    def ratio(self) -> float:
        """How many times less work than the dense run, transformer only."""
        return self.dense_flops / self.flops if self.flops else 1.0

    @property
    def milliseconds(self) -> float:
        """Time of all passes."""
        return sum(each.milliseconds for each in self.passes)

    @property
    def kv_peak_bytes(self) -> int:
        """Most memory that the KV cache had reserved."""
        return max((each.kv_bytes for each in self.passes), default=0)

    @property
    def skipped(self) -> int:
        """Scales that did not run."""
        return sum(not scale.ran for scale in self.scales)

    def summary(self) -> str:
        """One line for people."""
        offered = sum(scale.scale.tokens for scale in self.scales) or 1
        computed = sum(scale.computed for scale in self.scales)
        work = f"{self.ratio:.2f}x fewer FLOPs" if self.ratio > 1.005 else "as many FLOPs as the dense run"
        parts = [f"{self.policy}: {work}", f"{computed / offered:.0%} of the tokens computed"]
        if self.prefix is not None:
            what = "text" if _opens(self.prefix) else "picture"
            parts.append(f"{self.prefix.scale.tokens} tokens of the {what} before them")
        if self.skipped:
            parts.append(f"{self.skipped} of {len(self.scales)} scales skipped")
        peak = self.kv_peak_bytes
        parts.append(f"KV {peak / 1e9:.2f} GB" if peak >= 1e8 else f"KV {peak / 1e6:.1f} MB")
        parts.append(f"{self.milliseconds / 1e3:.2f} s")
        return ", ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        before = {} if self.prefix is None else {"prefix": self.prefix.to_dict()}
        return {
            "version": VERSION,
            "policy": self.policy,
            "images": self.images,
            "totals": {
                "flops": self.flops,
                "dense_flops": self.dense_flops,
                "flop_ratio": self.ratio,
                "milliseconds": self.milliseconds,
                "kv_peak_bytes": self.kv_peak_bytes,
                "scales_skipped": self.skipped,
            },
            "notes": list(self.notes),
            **before,
            "scales": [scale.to_dict() for scale in self.scales],
        }


def _opens(prefix: ScaleTrace | None) -> bool:
    """Whether the first scale was drawn from what preceded it."""
    return prefix is not None and isinstance(prefix.scale, Prefix) and prefix.scale.opens


def joined(traces: Sequence[Trace]) -> Trace:
    """The traces of images that were made one after the other as one: work, time and rows add up."""
    total = Trace(traces[0].policy, sum(trace.images for trace in traces))
    for number, trace in enumerate(traces):
        total.notes += [f"image {number}: {note}" for note in trace.notes]
    passes: list[ScaleTrace] = []
    for parts in zip(*(trace.passes for trace in traces), strict=True):
        rows = sum(part.rows for part in parts)
        ways = dict.fromkeys(part.guidance for part in parts)
        passes.append(
            replace(
                parts[0],
                ran=any(part.ran for part in parts),
                stage="/".join(dict.fromkeys(part.stage for part in parts)),
                rows=rows,
                guidance="/".join(ways),
                computed=sum(part.computed * part.rows for part in parts) / max(1, rows),
                budget=tuple(number for part in parts for number in part.budget),
                visible=sum(part.visible * part.rows for part in parts) / max(1, rows),
                flops=sum((part.flops for part in parts), Flops()),
                dense=sum((part.dense for part in parts), Flops()),
                milliseconds=sum(part.milliseconds for part in parts),
                kv_length=sum(part.kv_length for part in parts) / len(parts),
                kv_bytes=max(part.kv_bytes for part in parts),
                note="; ".join(dict.fromkeys(part.note for part in parts if part.note)),
            )
        )
    if traces[0].prefix is not None:
        total.prefix = passes.pop(0)
    total.scales = passes
    return total


class Recorder:
    """Writes the trace of one run while it goes.

    ``units``: the family's costs. ``dense``: what every pass costs without acceleration. ``started``: the
    clock before the text was projected, which counts to the first pass.
    """

    def __init__(
        self,
        policy: str,
        units: UnitCosts,
        dense: Mapping[Scale, Flops],
        *,
        images: int,
        device: torch.device,
        started: float,
    ) -> None:
        self.trace, self._units, self._device = Trace(policy, images), units, device
        self._dense, self._last = dense, started

    def preceded(self, prefix: Prefix, work: Work, cache: KVCache | CachePair) -> None:
        """The pass over what precedes the scales."""
        self.trace.prefix = self._traced(prefix, ScalePlan(), work, cache, "", ran=True)

    def skipped(self, scale: Scale, plan: ScalePlan, cache: KVCache | CachePair) -> None:
        """A scale that did not run."""
        self.trace.scales.append(self._traced(scale, plan, defaultdict(float), cache, "", ran=False))

    def ran(
        self, scale: Scale, plan: ScalePlan, work: Work, cache: KVCache | CachePair, guidance: str
    ) -> None:
        """A scale that did; ``guidance`` names the rows that took part and how they were mixed."""
        self.trace.scales.append(self._traced(scale, plan, work, cache, guidance, ran=True))

    def _traced(
        self,
        scale: Scale,
        plan: ScalePlan,
        work: Work,
        cache: KVCache | CachePair,
        guidance: str,
        *,
        ran: bool,
    ) -> ScaleTrace:
        synchronise(self._device)
        now, depth = time.perf_counter(), self._units.depth
        spent, self._last = now - self._last, now
        units, rows = self._units, cache.rows if ran else 0
        single = min(rows, self.trace.images)  # rows of the branches that run once per image
        parts = [work[part] / max(1, single if part in units.per_image else rows) for part in units.branches]
        computed = sum(parts) / (len(parts) * depth)
        if ran and scale.index == 0 and _opens(self.trace.prefix):
            computed = float(scale.tokens)  # what stands for it ran before
        queries = work[next(iter(self._units.branches))]  # self-attention comes first in every family
        return ScaleTrace(
            scale=scale,
            stage=plan.stage,
            ran=ran,
            rows=rows,
            guidance=guidance,
            computed=computed,
            budget=plan.budget,
            visible=work["pairs"] / queries if queries else 0.0,
            flops=counted(self._units, work),
            dense=self._dense[scale],
            milliseconds=1e3 * spent,
            kv_length=sum(map(cache.length, range(depth))) / depth,
            kv_bytes=cache.bytes,
            note=plan.note,
        )

    def stopped(self, count: int, schedule: ScaleSchedule) -> None:
        """The run ends after its first ``count`` scales; says what that is of the dense picture."""
        whole, last = sum(flops.total for flops in self._dense.values()), schedule[count - 1]
        self.trace.notes.append(
            f"stopped after scale {count} of {len(schedule)} ({last.width}x{last.height} tokens): "
            f"{self.trace.flops / whole:.1%} of the FLOPs of the whole dense picture"
        )

    def resume(self) -> None:
        """Start the clock of the next scale; what a caller did in between is not the model's time."""
        self._last = time.perf_counter()
