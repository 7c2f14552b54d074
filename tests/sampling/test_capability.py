"""Every policy on every family and three schedules; what is checked is in ``capability.py``."""

import functools

import pytest

from stagevar_core.acceleration.presets import PRESETS
from stagevar_core.schedule import ScaleSchedule
from tests.support.capability import FAMILIES, Bench, check_policy

CASES = [
    pytest.param(family, grids, id=f"{family.name} {grids[-1][0]}x{grids[-1][1]}")
    for family in FAMILIES
    for grids in family.grids
]


@functools.lru_cache(maxsize=1)  # of one case at a time
def bench(family, grids) -> Bench:
    return Bench(family, ScaleSchedule.of(grids))


@pytest.mark.parametrize(("family", "grids"), CASES)
@pytest.mark.parametrize("name", PRESETS)
def test_every_policy_runs_on_every_family(family, grids, name: str) -> None:
    check_policy(bench(family, grids), PRESETS[name])


def test_every_family_has_three_schedules() -> None:
    assert all(len(set(family.grids)) == 3 for family in FAMILIES)
