"""Every policy on every family and three schedules; what is checked is in ``capability.py``."""

import functools

import pytest
import torch

from stagevar_core.acceleration.presets import PRESETS, preset
from stagevar_core.network.attention import sdpa
from stagevar_core.network.cache import KVCache
from stagevar_core.sampling.rows import GuidanceRows
from stagevar_core.schedule import ScaleSchedule
from tests.support.capability import (
    CHOICES,
    FAMILIES,
    Bench,
    Draw,
    check_policy,
    check_rows,
    check_weights,
    told,
)
from tests.support.tiny import Logits

DRAWS = 12  # for each family
CASES = [
    pytest.param(family, grids, id=f"{family.name} {grids[-1][0]}x{grids[-1][1]}")
    for family in FAMILIES
    for grids in family.grids
]


@functools.lru_cache(maxsize=3)  # the schedules of one family at a time
def bench(family, grids) -> Bench:
    return Bench(family, ScaleSchedule.of(grids))


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize(("family", "grids"), CASES)
def test_every_policy_runs_on_every_family(family, grids, name: str) -> None:
    check_policy(bench(family, grids), PRESETS[name])


@pytest.mark.slow
@pytest.mark.parametrize("number", range(DRAWS))
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_settings_of_any_combination_keep_the_rules(family, number: int) -> None:
    draw = Draw.of(family, number)
    with told(draw):
        check_policy(bench(family, family.grids[number % 3]), draw.policy, draw.way)


def test_every_family_has_three_schedules() -> None:
    assert all(len(set(family.grids)) == 3 for family in FAMILIES)


def test_the_draws_meet_every_choice() -> None:
    draws = [Draw.of(family, number) for family in FAMILIES for number in range(DRAWS)]
    for name, values in CHOICES.items():
        assert {draw.settings[name] for draw in draws} == set(values), name
    for name in ("batch", "negative", "sequential"):
        assert len({getattr(draw.way, name) for draw in draws}) == (3 if name == "batch" else 2), name
    assert draws[0] == Draw.of(FAMILIES[0], 0) and len({str(draw) for draw in draws}) == len(draws)


def test_a_failure_says_what_was_drawn() -> None:
    draw = Draw.of(FAMILIES[0], 3)
    with (
        pytest.raises(AssertionError, match=r"draw 3, Way\(.*\'spans\': .*\n.*ValueError: broken"),
        told(draw),
    ):
        raise ValueError("broken")


# ------------------------------------------------------------------------- what the tester sees, and can see


def spread(distances: torch.Tensor) -> tuple[float, float]:
    """What a twentieth of the distances stays below, and their median."""
    return float(distances.flatten().quantile(0.05)), float(distances.median())


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_rows_and_tokens_of_the_tiny_models_differ(family) -> None:
    """Else a wrong row, or a token in the place of another, would draw the same codes."""
    seen = Logits()
    bench(family, family.grids[0]).run(None, monitor=seen)
    for raw in seen.raw[-2:]:
        conditional, unconditional = raw.chunk(2)
        size = conditional.norm(dim=-1)
        low, middle = spread((conditional - unconditional).norm(dim=-1) / size)
        assert low > 0.05 and middle > 0.2, "rows"
        apart = ~torch.eye(raw.shape[1], dtype=torch.bool)
        low, middle = spread(torch.cdist(conditional, conditional)[:, apart] / size.mean())
        assert low > 0.04 and middle > 0.15, "tokens"


@pytest.mark.parametrize("guidance", ["conditional", "unconditional", "reuse"])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_rows_that_are_left_are_compared_with_those_of_the_dense_run(family, guidance: str) -> None:
    lost = check_rows(bench(family, family.grids[0]), preset("quality", guidance=guidance))
    assert (lost >= 1) != (guidance == "unconditional" and family.name.startswith("star"))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_rows_alone_draw_what_their_weight_draws(family) -> None:
    made = bench(family, family.grids[0])
    check_weights(made, "conditional")
    if not made.model.config.unit_costs.per_image:  # else these rows read the prompt themselves
        check_weights(made, "unconditional")


def other_half(rows: slice, count: int) -> slice:
    """The rows that a narrowing drops; what divides nothing stays as it is."""
    kept = range(count)[rows]
    return rows if 2 * len(kept) != count else slice(0, len(kept)) if kept.start else slice(len(kept), None)


UNSEEN = (
    ("star", "conditioning"),  # its text enters with the first scale alone
    ("switti whose scales see themselves alone", "cache"),  # which is empty
)
WRONG = [
    pytest.param(family, wrong, id=f"{family.name}-{wrong}")
    for family in FAMILIES
    for wrong in ("slice", "cache", "conditioning")
    if (family.name, wrong) not in UNSEEN
]


@pytest.mark.parametrize(("family", "wrong"), WRONG)
def test_a_wrong_row_is_seen(family, wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Bench(family, ScaleSchedule.of(family.grids[0]))
    policy = preset("quality", guidance="conditional", keep=1.0)
    check_policy(made, policy)
    check_weights(made)
    if wrong == "slice":
        narrow = GuidanceRows.narrow

        def narrowed(self: GuidanceRows, kept: str):
            rows, left = narrow(self, kept)
            return rows, left if left is None else other_half(left, self.count)

        monkeypatch.setattr(GuidanceRows, "narrow", narrowed)
    elif wrong == "cache":
        keep = KVCache.narrow
        monkeypatch.setattr(
            KVCache,
            "narrow",
            lambda self, rows, more=0: keep(self, other_half(rows, self.rows), more),
        )
    else:
        texts = family.condition(2)
        state = type(made.model.condition(texts, True, torch.device("cpu"), sdpa))
        drop = state.narrow
        monkeypatch.setattr(state, "narrow", lambda self, rows: drop(self, other_half(rows, len(self.start))))
    with pytest.raises(AssertionError, match="rows"):
        check_policy(made, policy)
        check_weights(made)
