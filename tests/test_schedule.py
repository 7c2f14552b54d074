"""Aspect-ratio tables as the released models were trained on them."""

import pytest

from stagevar_core.schedule import Scale, ScaleSchedule, infinity_aspect_table

TABLE = infinity_aspect_table()
BUDGETS = {"0.06M": 7, "0.25M": 10, "0.60M": 12, "1M": 13}
NOMINAL_PIXELS = {"0.06M": 256**2, "0.25M": 512**2, "0.60M": 768**2, "1M": 1024**2}


def test_there_are_fifteen_ratios_and_four_budgets() -> None:
    assert list(TABLE.grids) == [
        1.0, 1.25, 0.8, 1.333, 0.75, 1.5, 0.666, 1.75, 0.571, 2.0, 0.5, 2.5, 0.4, 3.0, 0.333,
    ]  # fmt: skip
    assert TABLE.budgets == BUDGETS


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("ratio", TABLE.grids)
def test_every_schedule_is_a_growing_prefix(ratio: float, budget: str) -> None:
    schedule = TABLE.schedule(ratio, budget)
    assert len(schedule) == BUDGETS[budget]
    assert schedule[0].grid == (1, 1) and schedule.reference == TABLE.grids[ratio][-1]
    tokens = [scale.tokens for scale in schedule]
    assert tokens == sorted(set(tokens)) and schedule.tokens == sum(tokens)
    height, width = TABLE.image_size(schedule)
    assert abs(height / width - ratio) < 0.06 * ratio
    assert 0.75 < height * width / NOMINAL_PIXELS[budget] < 1.3
    assert schedule == TABLE.schedule(ratio, "1M").prefix(BUDGETS[budget])


@pytest.mark.parametrize("ratio", [ratio for ratio in TABLE.grids if ratio > 1])
def test_reciprocal_ratios_are_transposes(ratio: float) -> None:
    reciprocal = int(1000 / ratio + 1e-6) / 1000
    if ratio in (1.333, 1.75):  # their keys were cut from 4/3 and 7/4
        reciprocal = {1.333: 0.75, 1.75: 0.571}[ratio]
    assert TABLE.grids[reciprocal] == tuple((width, height) for height, width in TABLE.grids[ratio])


def test_the_square_schedule_is_the_published_one() -> None:
    sides = (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64)
    assert TABLE.grids[1.0] == tuple((side, side) for side in sides)
    assert TABLE.schedule(1.0, "1M").tokens == 10521


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("ratio", TABLE.grids)
def test_a_trained_size_snaps_to_itself(ratio: float, budget: str) -> None:
    schedule = TABLE.schedule(ratio, budget)
    height, width = TABLE.image_size(schedule)
    assert TABLE.image_size(TABLE.snap(height, width)) == (height, width)


@pytest.mark.parametrize(
    ("height", "width", "ratio", "budget"),
    [
        (1024, 1024, 1.0, "1M"),
        (1, 1, 1.0, "0.06M"),
        (16384, 16384, 1.0, "1M"),
        (500, 520, 1.0, "0.25M"),
        (720, 1280, 0.571, "1M"),
        (1280, 720, 1.75, "1M"),
        (768, 768, 1.0, "0.60M"),
        (4096, 1, 3.0, "0.06M"),
        (1, 4096, 0.333, "0.06M"),
    ],
)
def test_a_wanted_size_snaps_to_the_nearest_ratio_then_budget(
    height: int, width: int, ratio: float, budget: str
) -> None:
    assert TABLE.snap(height, width) == TABLE.schedule(ratio, budget)


def test_ties_between_ratios_go_to_the_first_in_the_official_order() -> None:
    assert TABLE.nearest_ratio(9, 8) == 1.0  # 1.125 lies between 1.0 and 1.25
    assert TABLE.nearest_ratio(9, 4) == 2.0  # 2.25 between 2.0 and 2.5


@pytest.mark.parametrize("side", [0, -1, 100_000, float("nan")])
def test_sizes_that_no_image_has_are_named(side: float) -> None:
    with pytest.raises(ValueError, match=f"width is {side}; expected 1 to 16384 pixels"):
        TABLE.snap(1024, side)
    with pytest.raises(ValueError, match=f"height is {side}; expected 1 to 16384 pixels"):
        TABLE.snap(side, 1024)


def test_unknown_templates_and_prefixes_are_named() -> None:
    with pytest.raises(ValueError, match="unknown aspect template 1.1"):
        TABLE.schedule(1.1, "1M")
    with pytest.raises(ValueError, match="unknown pixel budget '2M'"):
        TABLE.schedule(1.0, "2M")
    for count in (0, 14):
        with pytest.raises(ValueError, match=f"1 to 13 scales, got {count}"):
            TABLE.schedule(1.0, "1M").prefix(count)
    for grids in ([], [(1, 0)], [(1, 1), (-2, 2)]):
        with pytest.raises((ValueError, IndexError)):
            ScaleSchedule.of(grids)


def test_a_restricted_table_knows_only_its_part() -> None:
    part = TABLE.restrict([1.0, 1.5], ["0.06M"])
    assert part.snap(1024, 1024) == TABLE.schedule(1.0, "0.06M")
    assert part.nearest_ratio(3, 1) == 1.5
    with pytest.raises(ValueError, match="unknown pixel budget '1M'"):
        part.schedule(1.0, "1M")
    with pytest.raises(ValueError, match="unknown aspect template 7"):
        TABLE.restrict([7], ["1M"])


def test_official_triples_and_fractions() -> None:
    schedule = ScaleSchedule.of([(1, 1, 1), (1, 2, 4)], (1, 32, 64))
    assert schedule.grids == ((1, 1), (2, 4)) and schedule.reference == (32, 64)
    assert schedule.final == Scale(1, 2, 4) and schedule.area_fraction(schedule[0]) == 1 / 8
