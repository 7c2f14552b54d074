"""The seam between the sampling loop and acceleration methods.

A policy holds settings and is safe to share; ``start`` gives the state of one generation, which answers in
plain Python values, before a scale runs, what of it runs.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ..layers import TokenPruning
from ..schedule import Scale, ScaleSchedule


@dataclass(frozen=True)
class ScalePlan:
    """What runs at one scale.

    ``run``: False skips the scale, its codes stay zero. ``rows``: 'both', 'conditional' or 'unconditional';
    rows may only narrow from scale to scale. ``pruning``: tokens of the residual branches, None is dense.
    """

    run: bool = True
    rows: str = "both"
    pruning: TokenPruning | None = None


class PolicyRun(Protocol):
    """State of one generation."""

    def plan(self, scale: Scale) -> ScalePlan:
        """What to do at ``scale``."""

    def observe(self, scale: Scale, f_hat: Tensor) -> None:
        """See the accumulated latent (B, C, H, W) after ``scale``; no other hook may wait for the device."""


class AccelerationPolicy(Protocol):
    """Immutable settings of a method."""

    def start(self, schedule: ScaleSchedule, depth: int) -> PolicyRun:
        """Fresh state for one generation over ``schedule`` with ``depth`` blocks."""


class DensePolicy:
    """Everything runs: the official computation."""

    def start(self, schedule: ScaleSchedule, depth: int) -> "DensePolicy":
        return self

    def plan(self, scale: Scale) -> ScalePlan:
        return ScalePlan()

    def observe(self, scale: Scale, f_hat: Tensor) -> None:
        """Nothing to decide."""


@dataclass(frozen=True)
class FirstScales:
    """A policy that runs the first ``count`` scales; the codes of the later ones stay zero."""

    count: int

    def start(self, schedule: ScaleSchedule, depth: int) -> "FirstScales":
        if not 1 <= self.count <= len(schedule):
            raise ValueError(f"scales is {self.count}; expected 1 to {len(schedule)} for this schedule")
        return self

    def plan(self, scale: Scale) -> ScalePlan:
        return ScalePlan(run=scale.index < self.count)

    def observe(self, scale: Scale, f_hat: Tensor) -> None:
        """Nothing to decide."""
