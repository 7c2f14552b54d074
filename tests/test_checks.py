"""Refusing values: every message names the value, what was found and what was expected."""

import math

import pytest

from stagevar_core.checks import SHOWN, inside, keys, number, one_of, shown, whole


def test_values_in_range_come_back() -> None:
    assert number("share", 1, 0, 1) == 1.0 and type(number("share", 1, 0, 1)) is float
    assert number("any", -1e300) == -1e300 and number("share", 0.25, 0.25, 0.25) == 0.25
    assert whole("count", 3, 1, 3) == 3 and whole("seed", 2**64) == 2**64
    assert one_of("mode", "b", ("a", "b")) == "b" and one_of("level", 2, [1, 2]) == 2


@pytest.mark.parametrize("value", [True, False, math.nan, math.inf, -math.inf, "1", None, [1], 10**400, 1j])
def test_what_is_no_number_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"^share is .*; expected a number$"):
        number("share", value)
    with pytest.raises(ValueError, match=r"^share is .*; expected a number from 0 to 1$"):
        number("share", value, 0, 1)


@pytest.mark.parametrize("value", [True, 2.0, math.nan, "2", None])
def test_what_is_no_whole_number_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"^count is .*; expected a whole number from 1 to 16777216$"):
        whole("count", value, 1, 1 << 24)


def test_the_range_is_said_as_far_as_it_goes() -> None:
    for low, high, text in (
        (0, math.inf, ", 0 or more"),
        (-math.inf, 0, ", 0 or less"),
        (0, 0.5, " from 0 to 0.5"),
    ):
        with pytest.raises(ValueError, match=rf"^x is 'y'; expected a number{text}$"):
            number("x", "y", low, high)
    with pytest.raises(ValueError, match=r"^batch is 0; expected 1 to 64 images per prompt$"):
        whole("batch", 0, 1, 64, "1 to 64 images per prompt")


@pytest.mark.parametrize("value", ["c", True, None, ["a"]])
def test_a_choice_is_refused_with_all_choices(value: object) -> None:
    with pytest.raises(ValueError, match=r"^mode is .*; expected one of \['a', 1\]$"):
        one_of("mode", value, ("a", 1))


def test_long_values_are_shortened() -> None:
    assert shown("ab") == "'ab'" and len(shown("x" * 1000)) == SHOWN and shown([0] * 100).endswith("...")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1], r"^window is \[1\]; expected an object with any of \['tile', 'reach'\]$"),
        ({"tile": 1, "panes": 4}, r"^'window\.panes' is unknown; expected any of \['tile', 'reach'\]$"),
        ({"a\nb": 1}, r"^'window\.a\\nb' is unknown; expected"),
        ({"x" * 100: 1}, r"^'window\.x+\.\.\. is unknown; expected"),
        ({3: 1}, r"^'window\.3' is unknown; expected"),
    ],
)
def test_other_keys_are_refused(value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        keys("window", value, ("tile", "reach"))
    assert len(str(caught.value)) < 200
    with pytest.raises(ValueError, match=r"^'speed' is unknown"):
        keys("", {"speed": 2}, ("tile",))
    assert keys("window", {"tile": 1}, ("tile", "reach")) == {"tile": 1}


def test_a_refusal_says_its_place() -> None:
    with pytest.raises(
        ValueError, match=r"^some\.json: settings\.skip is -1; expected a whole number, 0 or more$"
    ):
        with inside("some.json: "), inside("settings."):
            whole("skip", -1, 0)
