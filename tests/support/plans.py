"""Policies whose plans a test writes down, and a look at the cache while they run."""

from dataclasses import dataclass, field

import pytest
from torch import Tensor

from stagevar_core.acceleration.policy import RunInfo, ScalePlan, Seen
from stagevar_core.network.cache import KVCache
from stagevar_core.sampling.result import Monitor
from stagevar_core.schedule import Scale

# How the three blocks of a tiny model may be divided into regions.
BRANCHES: tuple[range, ...] = ()
WHOLE = (range(3),)
SPANS = (range(2), range(2, 3))


@dataclass(frozen=True)
class Planned:
    """A policy that is its own state: a plan per scale, counted from the last one."""

    plans: dict[int, ScalePlan] = field(default_factory=dict)
    otherwise: ScalePlan = ScalePlan()
    info: RunInfo | None = None
    name = "planned"
    per_image = False
    notes = ()
    regions = 0

    def start(self, info: RunInfo) -> "Planned":
        return type(self)(self.plans, self.otherwise, info)

    def plan(self, scale: Scale) -> ScalePlan:
        return self.plans.get(scale.index - len(self.info.schedule), self.otherwise)

    def room(self, scale: Scale) -> int:
        return sum(later.tokens for later in self.info.schedule.scales[scale.index :])

    def observe(self, seen: Seen) -> None:
        pass

    def narrow(self, rows: slice) -> None:
        pass


class CacheWatch(Monitor):
    """Bytes and rows of the run's cache after every scale."""

    def __init__(self, model, monkeypatch: pytest.MonkeyPatch) -> None:
        self.caches: list[KVCache] = []
        self.bytes: list[int] = []
        self.rows: list[int] = []
        new_cache = model.new_cache
        monkeypatch.setattr(
            model, "new_cache", lambda *a: self.caches.append(new_cache(*a)) or self.caches[-1]
        )

    def scale(self, scale: Scale, f_hat: Tensor) -> None:
        self.bytes.append(self.caches[-1].bytes)
        self.rows.append(self.caches[-1].rows)
