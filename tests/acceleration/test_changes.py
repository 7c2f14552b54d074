"""The one way to change a preset: every face gives the same settings, or refuses with the same words."""

import json
from collections.abc import Callable

import pytest

from stagevar_core.acceleration.changes import NAMES, changed, flat
from stagevar_core.acceleration.policy import RunInfo
from stagevar_core.acceleration.presets import PRESETS, preset
from stagevar_core.acceleration.schedule_file import FORMAT, VERSION, StageSchedule
from stagevar_core.acceleration.settings import StageSettings
from stagevar_core.acceleration.staged import StagedPolicy
from stagevar_core.acceleration.stages import StageBoundaries
from stagevar_core.commands.compare import chosen_policies
from tests.support.tiny import SQUARE

STAGED = [name for name, policy in PRESETS.items() if isinstance(policy, StagedPolicy)]
FIXED = [name for name in PRESETS if name not in STAGED]


def by_preset(name: str, changes: dict) -> StageSettings:
    return preset(name, **changes).settings


def by_command_line(name: str, changes: dict) -> StageSettings:
    overrides = [f"{name}:{key}={json.dumps(value)}" for key, value in changes.items()]
    return chosen_policies(name, overrides)[name].settings


def by_file(name: str, changes: dict) -> StageSettings:
    outer = {key: value for key, value in changes.items() if key in ("boundaries", "keep")}
    inner = {key: value for key, value in changes.items() if key not in outer}
    text = json.dumps({"format": FORMAT, "version": VERSION, **outer, "settings": inner})
    return StageSchedule.parse(text).apply(PRESETS[name]).settings


FACES: dict[str, Callable] = {"--overrides: ": by_command_line, "schedule: ": by_file}
"""What refusals begin with, and the face; :func:`by_preset` is what they are compared with."""

GOOD = {
    "share": {"keep": 0.25},
    "whole number as a share": {"keep": 1},
    "points": {"keep": [[0.25, 0.5], [1, 0.2]]},
    "shares over the depth": {"keep": [[0.25, 0.5], [1.0, [0.2, 0.4]]], "spans": 2},
    "shares over the depth, one span": {"keep": [[0.25, 0.5], [1.0, [0.2, 0.4, 0.6]]], "spans": 1},
    "structure_end": {"structure_end": 0.5},
    "structure_end below semantic_end": {"structure_end": 0.01},
    "structure_end 0": {"structure_end": 0},
    "boundaries": {"boundaries": {"semantic_end": 0.1, "structure_end": 0.5}},
    "guidance": {"guidance": "reuse", "guidance_end": 0.5, "reuse": 1},
    "tokens": {"tokens": "projection", "restoration": "state", "score": "norm", "resize": "nearest"},
    "numbers": {"evenness": 0.5, "code_weight": 1, "skip": 3},
    "cache": {"attention": "local", "window": {"tile": 0.5}, "kv": 0.5},
    "stores": {"kv": "none"},
}

BAD = {
    "keep, true": {"keep": True},
    "keep, text": {"keep": "half"},
    "keep, between": {"keep": -0.5},
    "keep, nearly": {"keep": -0.9999},
    "keep, below": {"keep": -2},
    "code_weight, between": {"code_weight": -0.5},
    "structure_end, between": {"structure_end": -1e-6},
    "skip, below": {"skip": -2},
    "evenness, own": {"evenness": "auto"},
    "keep, null": {"keep": None},
    "keep, out of range": {"keep": 1.5},
    "keep, no points": {"keep": []},
    "keep, no point": {"keep": [0.5]},
    "keep, falling areas": {"keep": [[0.5, 0.1], [0.5, 0.2]]},
    "keep, true as a share": {"keep": [[0.5, True]]},
    "keep, no shares": {"keep": [[0.5, []]]},
    "keep, a share too large": {"keep": [[0.5, [0.5, 7]]]},
    "structure_end, true": {"structure_end": True},
    "structure_end, text": {"structure_end": "0.3"},
    "structure_end, out of range": {"structure_end": 1.5},
    "structure_end, list": {"structure_end": [0.3]},
    "structure_end, twice": {
        "boundaries": {"semantic_end": 0.1, "structure_end": 0.5},
        "structure_end": 0.5,
    },
    "boundaries, number": {"boundaries": 0.3},
    "boundaries, half": {"boundaries": {"semantic_end": 0.1}},
    "boundaries, overlap": {"boundaries": {"semantic_end": 0.5, "structure_end": 0.3}},
    "boundaries, key": {"boundaries": {"semantic_end": 0.1, "structure_end": 0.3, "fidelity_end": 1.0}},
    "guidance, name": {"guidance": "some"},
    "guidance, list": {"guidance": ["reuse"]},
    "guidance, number": {"guidance": 1},
    "guidance_end, true": {"guidance_end": True},
    "reuse, negative": {"reuse": -0.1},
    "tokens, true": {"tokens": True},
    "spans, true": {"spans": True},
    "spans, fraction": {"spans": 2.5},
    "spans, too many": {"spans": 257},
    "skip, true": {"skip": True},
    "skip, 2.0": {"skip": 2.0},
    "skip, too many": {"skip": 65},
    "code_weight, null": {"code_weight": None},
    "kv, true": {"kv": True},
    "kv, name": {"kv": "all"},
    "window, number": {"window": 3},
    "window, key": {"window": {"panes": 4}},
    "window, true": {"window": {"tile": True}},
    "window, too small": {"window": {"tile": 0.001}},
    "unknown": {"colour": "red"},
    "a name inside": {"mode": "dense"},
}


def refusal(face: Callable, name: str, changes: dict) -> str:
    with pytest.raises(ValueError, match="is ") as caught:
        face(name, changes)
    return str(caught.value)


@pytest.mark.parametrize("changes", GOOD.values(), ids=GOOD)
@pytest.mark.parametrize("name", ["balanced", "paper"])
def test_every_face_makes_the_same_settings(name: str, changes: dict) -> None:
    expected = by_preset(name, changes)
    assert expected != PRESETS[name].settings or changes.items() <= flat(PRESETS[name].settings).items()
    assert hash(expected) is not None  # what came as lists is tuples
    for face in FACES.values():
        assert face(name, changes) == expected


OWN = {
    "auto": {"keep": "auto", "code_weight": "auto", "structure_end": "auto", "skip": "auto"},
    "as older workflows have it": {"keep": -1.0, "code_weight": -1, "structure_end": -1.0, "skip": -1},
}


@pytest.mark.parametrize("changes", OWN.values(), ids=OWN)
def test_a_value_may_be_left_to_the_preset(changes: dict) -> None:
    for name, policy in PRESETS.items():
        assert preset(name, **changes) is policy  # fixed methods as well
        assert chosen_policies(name, [f"{key}={value}" for key, value in changes.items()])[name] is policy
    for face in (by_preset, *FACES.values()):
        assert face("fast", changes) == PRESETS["fast"].settings
        beside = face("fast", {**changes, "reuse": 0.25})
        assert beside == changed(PRESETS["fast"].settings, reuse=0.25)


@pytest.mark.parametrize("changes", BAD.values(), ids=BAD)
def test_every_face_refuses_with_the_same_words(changes: dict) -> None:
    expected = refusal(by_preset, "balanced", changes)
    assert list(changes)[-1] in expected and "; expected " in expected or "overlap" in expected
    for place, face in FACES.items():
        said = refusal(face, "balanced", changes)
        assert said.startswith(place)
        said = said.removeprefix(place).replace("settings.", "")
        if "unknown" in said:  # keep and boundaries have a place of their own in a file
            said, expected = said.partition(" [")[0], expected.partition(" [")[0]
        assert said == expected


@pytest.mark.parametrize("name", FIXED)
def test_every_face_refuses_to_change_a_fixed_method(name: str) -> None:
    expected = f"preset {name!r} is a fixed method and takes no keep; expected one of {STAGED}, or no keep"
    assert refusal(by_preset, name, {"keep": 0.5}) == expected
    assert refusal(by_command_line, name, {"keep": 0.5}) == f"--overrides: {expected}"
    assert refusal(by_file, name, {"keep": 0.5}) == expected.replace("keep", "schedule")
    assert preset(name) is PRESETS[name]


def test_names_say_what_was_changed() -> None:
    assert preset("fast", skip=1).name == "fast (changed)"
    assert chosen_policies("fast", ["skip=1"])["fast"].name == "fast (changed)"
    assert (
        StageSchedule(settings={"skip": 1}, source="my.json").apply(PRESETS["fast"]).name == "fast (my.json)"
    )


@pytest.mark.parametrize("name", STAGED)
def test_all_settings_can_be_said_by_their_public_names(name: str) -> None:
    values = flat(PRESETS[name].settings)
    assert sorted([*values, "structure_end"]) == sorted(NAMES)
    assert changed(StageSettings(), **values) == PRESETS[name].settings


def test_structure_end_takes_semantic_end_along_only_where_it_must() -> None:
    settings = changed(StageSettings(), boundaries=StageBoundaries(0.2, 0.5))
    assert changed(settings, structure_end=0.3).boundaries == StageBoundaries(0.2, 0.3)
    assert changed(settings, structure_end=0.1).boundaries == StageBoundaries(0.1, 0.1)
    schedule = StageSchedule(settings={"structure_end": 0.5})
    assert schedule.stages() == StageBoundaries(structure_end=0.5) and StageSchedule().stages() is None
    assert StageSchedule.parse(schedule.to_json()) == schedule


def test_a_share_that_has_no_effect_is_noted() -> None:
    info = RunInfo(SQUARE, 2, 1, True, False, (0,))
    for policy in (preset("quality", keep=0.5), StageSchedule(keep=0.5).apply(PRESETS["quality"])):
        assert policy.start(info).notes == ["keep has no effect: all tokens run with tokens 'dense'"]
        assert preset("quality").start(info).notes == []
    assert preset("quality", keep=0.5, tokens="gather").start(info).notes == []
