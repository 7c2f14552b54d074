"""The seam between the sampling loop and acceleration methods.

A policy holds settings and is safe to share; ``start`` gives the state of one generation, which answers in
plain Python values, before a scale runs, what of it runs.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from ..network.local import LocalWindow
from ..network.tokens import TokenReduction
from ..schedule import Prefix, Scale, ScaleSchedule

Started = TypeVar("Started", bound="DensePolicyRun")


@dataclass(frozen=True)
class RunInfo:
    """What a policy may know before the first scale.

    ``depth``: number of blocks. ``guided``: there are unconditional rows. ``negative``: those rows follow a
    negative prompt, not the null text. ``seeds``: one per image, for whatever the policy draws.
    ``prefix``: what runs before the scales, in which a policy has no say. ``guided_until``: scales after
    which nothing is guided any more, so that the conditional rows run alone; None is never. ``corrects``:
    the model was trained to correct itself, see the contract of the families.
    """

    schedule: ScaleSchedule
    depth: int
    batch: int
    guided: bool
    negative: bool
    seeds: tuple[int, ...]
    prefix: Prefix | None = None
    guided_until: int | None = None
    corrects: bool = True

    @property
    def guides(self) -> int:
        """How many of the first scales have both rows, as far as the settings say."""
        count = len(self.schedule) if self.guided_until is None else self.guided_until
        return count if self.guided else 0


@dataclass(frozen=True)
class ScalePlan:
    """What runs at one scale; five independent choices.

    ``run``: False skips the scale, its codes stay zero.
    ``rows``: 'both', 'conditional' or 'unconditional' (the null text, never a negative prompt); rows may only
    narrow. ``reuse``: with conditional rows, the share of the last guided scale's guidance that is added.
    ``reduction``: fewer tokens, how they are restored and how their codes count; None is dense.
    ``window``: self-attention within a window; it is dense where the cache no longer holds whole scales.
    ``store``: False hides this scale's keys and values from later ones. ``kv_budget``: keys left after it.
    ``stage``, ``budget`` (tokens per reduced region) and ``note`` (why) are for the report.
    """

    run: bool = True
    rows: str = "both"
    reuse: float = 0.0
    reduction: TokenReduction | None = None
    window: LocalWindow | None = None
    store: bool = True
    kv_budget: int | None = None
    stage: str = ""
    budget: tuple[int, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Seen:
    """What a policy may look at after a scale ran.

    ``f_hat``: the accumulated latent (B, C, H, W). ``change``: what this scale added to it. ``raw``: head
    outputs (rows, L, V), ``guided``: what was sampled from (B, L, V). ``choices``: logits to the most likely
    codes, (rows, L) or (rows, L, bits). ``entropy``: logits to the mean entropy in bits of the choices of
    every token, (rows, L).
    """

    scale: Scale
    f_hat: Tensor
    change: Tensor
    raw: Tensor
    guided: Tensor
    choices: Callable[[Tensor], Tensor]
    entropy: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Selection:
    """Images of a run that another one goes on from; one may be taken several times.

    ``images``: their places. ``rows``: the same for the rows that run (n,). ``seeds``: of the images from now
    on. ``device``: where what is remembered goes.
    """

    images: tuple[int, ...]
    rows: Tensor
    seeds: tuple[int, ...]
    device: torch.device

    def info(self, before: RunInfo) -> RunInfo:
        """What a policy may know of them."""
        return replace(before, batch=len(self.images), seeds=self.seeds)

    def of_rows(self, remembered: Tensor) -> Tensor:
        """(rows, ...) of the new rows."""
        return remembered[self.rows.to(remembered.device)].to(self.device)

    def of_images(self, remembered: Tensor) -> Tensor:
        """(B, ...) of the new images."""
        return remembered[list(self.images)].to(self.device)


class PolicyRun(Protocol):
    """State of one generation.

    ``notes``: what the user should know about this run, for the report. ``regions``: of the network, whose
    outputs it may remember between scales, (rows, L, C) each.
    """

    notes: list[str]
    regions: int

    def plan(self, scale: Scale) -> ScalePlan:
        """What to do at ``scale``; called once per scale, in order."""
        ...

    def room(self, scale: Scale) -> int:
        """Keys per row to make room for from ``scale`` until the rows change; at most too many.

        The last scale's keys and values are never stored, since nothing attends to them later.
        """
        ...

    def observe(self, seen: Seen) -> None:
        """Look at the result of a scale; no other hook may wait for the device."""

    def narrow(self, rows: slice) -> None:
        """Only these of the rows run on; what is remembered loses the others."""

    def selected(self, taken: "Selection") -> "PolicyRun":
        """The state from which a run of other images goes on; this one stays as it is."""
        ...


class AccelerationPolicy(Protocol):
    """Immutable settings of a method.

    ``name``: for the report. ``per_image``: its plans depend on what was drawn, so every image of a batch is
    a run of its own.
    """

    @property
    def name(self) -> str: ...
    @property
    def per_image(self) -> bool: ...

    def start(self, info: RunInfo) -> PolicyRun:
        """Fresh state for one generation; ``ValueError`` when the method cannot run on this schedule."""
        ...


@dataclass(frozen=True)
class DensePolicy:
    """Everything runs: the official computation."""

    name = "off"
    per_image = False

    def start(self, info: RunInfo) -> "DensePolicyRun":
        """Plans nothing."""
        return DensePolicyRun(info)


class DensePolicyRun:
    """Plans nothing; also the start of other methods, which override what they change."""

    regions = 0

    def __init__(self, info: RunInfo) -> None:
        self.info = info
        self.notes: list[str] = []

    def plan(self, scale: Scale) -> ScalePlan:
        """Everything runs."""
        return ScalePlan()

    def room(self, scale: Scale) -> int:
        return sum(later.tokens for later in self.info.schedule.scales[scale.index : -1])

    def observe(self, seen: Seen) -> None:
        """Nothing to decide."""

    def narrow(self, rows: slice) -> None:
        """Nothing is remembered."""

    def selected(self: Started, taken: Selection) -> Started:
        """The same for other images."""
        chosen = copy.copy(self)
        chosen.info, chosen.notes = taken.info(self.info), list(self.notes)
        return chosen


@dataclass(frozen=True)
class FirstScales:
    """A policy that runs the first ``count`` scales; the codes of the later ones stay zero."""

    count: int
    name = "first scales"
    per_image = False

    def start(self, info: RunInfo) -> "_FirstScalesRun":
        """``ValueError`` for more scales than the schedule has."""
        if not 1 <= self.count <= len(info.schedule):
            raise ValueError(f"scales is {self.count}; expected 1 to {len(info.schedule)} for this schedule")
        return _FirstScalesRun(info, self.count)


class _FirstScalesRun(DensePolicyRun):
    def __init__(self, info: RunInfo, count: int) -> None:
        super().__init__(info)
        self.count = count

    def plan(self, scale: Scale) -> ScalePlan:
        return ScalePlan(run=scale.index < self.count)

    def room(self, scale: Scale) -> int:
        return sum(later.tokens for later in self.info.schedule.scales[scale.index : self.count])
