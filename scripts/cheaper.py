"""Ways to spend fewer FLOPs that no preset has; variants of an experiment (see ``experiments.py``)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from stagevar_core.acceleration.changes import changed
from stagevar_core.acceleration.policy import RunInfo, ScalePlan, Seen
from stagevar_core.acceleration.settings import StageSettings
from stagevar_core.acceleration.staged import StagedRun
from stagevar_core.network.tokens import Site, resize_tokens
from stagevar_core.schedule import Scale


@dataclass(frozen=True)
class ByDisagreement:
    """Tokens by how much guidance changed their logits at the last scale that had both rows."""

    name: str
    settings: StageSettings
    per_image = False

    def start(self, info: RunInfo) -> StagedRun:
        """Fresh state of one generation."""
        return _DisagreementRun(self.settings, info)


class _DisagreementRun(StagedRun):
    _seen: tuple[Scale, Tensor] | None = None

    def observe(self, seen: Seen) -> None:
        """Remember (B, L, 1) where both rows ran."""
        super().observe(seen)
        if len(seen.raw) == 2 * len(seen.f_hat):
            difference = torch.sub(*seen.raw.chunk(2))
            self._seen = seen.scale, difference.square().sum(dim=-1, keepdim=True)

    def scores(self, x: Tensor, site: Site) -> Tensor:
        """What was remembered, on the grid of the tokens."""
        if self._seen is None:
            return super().scores(x, site)
        scale, found = self._seen
        resized = resize_tokens(found, scale, site.scale, "bilinear").squeeze(-1)
        return resized.repeat(len(x) // len(resized), 1)


@dataclass(frozen=True)
class ByMass:
    """A budget for every picture: as many tokens of the last scale as hold ``mass`` of all change.

    Change is what the scale before added to the latent, squared. ``steepness``: its power, above 1 tells
    pictures more apart.
    """

    name: str
    settings: StageSettings
    mass: float
    per_image = True

    def start(self, info: RunInfo) -> StagedRun:
        """Fresh state of one picture."""
        return _MassRun(self.settings, info, self.mass)


class _MassRun(StagedRun):
    def __init__(self, settings: StageSettings, info: RunInfo, mass: float) -> None:
        super().__init__(settings, info)
        self.mass = mass

    def observe(self, seen: Seen) -> None:
        """Find the share before the fidelity stage begins."""
        super().observe(seen)
        share = mass_share(seen, self.mass)
        self.settings = changed(self.settings, keep=((0.75, 0.0), (0.9, share)))

    def plan(self, scale: Scale) -> ScalePlan:
        """As settings say now."""
        return super().plan(scale)


def mass_share(seen: Seen, mass: float) -> float:
    """The share of a scale's places that hold ``mass`` of the entropy of what was drawn there."""
    values = seen.entropy(seen.guided)[0].float().sort(descending=True).values
    reached = values.cumsum(0) / values.sum().clamp_min(1e-12)
    count = int((reached < mass).sum()) + 1
    return min(1.0, count / len(values)) if math.isfinite(mass) else 1.0
