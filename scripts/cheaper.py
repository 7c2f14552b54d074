"""Ways to spend fewer FLOPs that no preset has; variants of an experiment (see ``experiments.py``)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from stagevar_core.acceleration.changes import changed
from stagevar_core.acceleration.policy import RunInfo, Seen
from stagevar_core.acceleration.settings import StageSettings
from stagevar_core.acceleration.staged import StagedRun
from stagevar_core.network.tokens import Site, resize_tokens
from stagevar_core.schedule import Scale

MASSES = tuple(count / 40 for count in range(8, 40))  # shares of the entropy, from .2 on


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
    """A budget for every picture: as many tokens of the last scale as hold ``mass`` of the entropy.

    By the entropy of the last structure scale, in shares of its tokens; the tokens are chosen as otherwise.
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


@dataclass
class Entropies:
    """A policy that leaves in ``shares`` what every one of :data:`MASSES` would take of a picture."""

    name: str
    settings: StageSettings
    shares: list[float] = field(default_factory=list)
    per_image = True

    def start(self, info: RunInfo) -> StagedRun:
        """Fresh state of one picture."""
        return _EntropyRun(self.settings, info, self.shares)


class _EntropyRun(StagedRun):
    def __init__(self, settings: StageSettings, info: RunInfo, shares: list[float]) -> None:
        super().__init__(settings, info)
        self.shares = shares

    def observe(self, seen: Seen) -> None:
        """Those of the last scale that is seen."""
        super().observe(seen)
        self.shares[:] = [mass_share(seen, mass) for mass in MASSES]


def mass_share(seen: Seen, mass: float) -> float:
    """The share of a scale's tokens that hold ``mass`` of the entropy of what was drawn there."""
    values = seen.entropy(seen.guided)[0].float().sort(descending=True).values
    reached = values.cumsum(0) / values.sum().clamp_min(1e-12)
    return min(1.0, (int((reached < mass).sum()) + 1) / len(values))
