"""Schedule files: what is read, what is refused and with which words, and what it does to a preset."""

import json
import os
import time
from pathlib import Path

import pytest

from stagevar_core.acceleration.changes import flat
from stagevar_core.acceleration.policy import RunInfo
from stagevar_core.acceleration.presets import PRESETS, preset
from stagevar_core.acceleration.schedule_file import (
    FORMAT,
    MAX_BYTES,
    VERSION,
    StageSchedule,
    identity,
    resolve,
)
from stagevar_core.acceleration.staged import StagedPolicy
from stagevar_core.acceleration.stages import StageBoundaries
from stagevar_core.network.local import LocalWindow
from tests.support.tiny import SQUARE, prompts, run, same_codes, tiny_infinity

CURVE = {"mean": [0.5, None], "std": [0.1, None]}
CHUNKED = {"mean": [[1.0, 2.0], [3.0, None]], "std": [[0.0, 0.0], [0.0, None]]}
FULL = {
    "format": FORMAT,
    "version": VERSION,
    "model": {"family": "infinity", "depth": 3, "width": 32},
    "boundaries": {"semantic_end": 0.05, "structure_end": 0.3},
    "keep": [[0.25, 0.5], [1.0, [0.2, 0.4]]],
    "settings": {"guidance": "reuse", "reuse": 0.25, "spans": 2, "kv": 0.5, "window": {"tile": 0.5}},
    "measured": {
        "alpha": 0.96,
        "chunks": 2,
        "prompts": 3,
        "seed": 0,
        "width": 32,
        "schedule": [[1, 1], [2, 2]],
        "curves": {"entropy": CURVE, "rank": CHUNKED},
    },
}


def changed(path: str, value) -> str:
    """The text of ``FULL`` with one entry replaced, for example ``keep.0.1``."""
    values = json.loads(json.dumps(FULL))
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    place = values
    for parent in parents:
        place = place[parent]
    place[last] = value
    return json.dumps(values)


def test_a_file_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    schedule = StageSchedule.parse(json.dumps(FULL))
    assert schedule.boundaries == StageBoundaries(0.05, 0.3)
    assert schedule.keep == ((0.25, 0.5), (1.0, (0.2, 0.4)))
    assert schedule.settings["window"] == LocalWindow(tile=0.5) and schedule.settings["kv"] == 0.5
    schedule.save(tmp_path / "x.json")
    again = StageSchedule.load(tmp_path / "x.json")
    assert again == schedule and again.source == "x.json"
    assert json.loads((tmp_path / "x.json").read_text()) == {
        **FULL,
        "settings": {**FULL["settings"], "window": dict(vars(LocalWindow(tile=0.5)))},
    }
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_what_a_file_leaves_out_stays_as_the_preset_has_it() -> None:
    empty = StageSchedule.parse(json.dumps({"format": FORMAT, "version": VERSION}))
    for name in ("balanced", "fast", "paper"):
        assert empty.apply(PRESETS[name]).settings == PRESETS[name].settings


def test_a_schedule_replaces_stages_budgets_and_settings() -> None:
    policy = StageSchedule.parse(json.dumps(FULL), "my.json").apply(PRESETS["balanced"])
    before, after = PRESETS["balanced"].settings, policy.settings
    assert after.boundaries == StageBoundaries(0.05, 0.3) and after.guidance.reuse == 0.25
    assert after.tokens.keep == ((0.25, 0.5), (1.0, (0.2, 0.4))) and after.tokens.spans == 2
    assert (after.tokens.score, after.tokens.restoration) == (before.tokens.score, before.tokens.restoration)
    assert policy.name == "balanced (my.json)"


def test_shares_over_the_depth_are_averaged_for_one_span() -> None:
    keep = ((0.25, 0.5), (1.0, (0.25, 0.75, 0.5)))
    schedule = StageSchedule(keep=keep)
    assert schedule.apply(preset("balanced", spans=1)).settings.tokens.keep == ((0.25, 0.5), (1.0, 0.5))
    assert schedule.apply(preset("balanced", spans=3)).settings.tokens.keep == keep
    assert (
        StageSchedule(keep=keep, settings={"spans": 4}).apply(PRESETS["balanced"]).settings.tokens.keep
        == keep
    )


def test_a_schedule_decides_what_runs() -> None:
    model, text = tiny_infinity(), prompts(5, 9)
    late = StageSchedule(boundaries=StageBoundaries(0.1, 1.0)).apply(PRESETS["quality"])
    dense = run(model, text)
    assert same_codes(dense, run(model, text, policy=late))
    early = StageSchedule(boundaries=StageBoundaries(0.0, 0.0), keep=0.5).apply(PRESETS["balanced"])
    found = run(model, text, policy=early)
    assert found.trace.scales[-1].budget[0] == SQUARE.final.tokens / 2
    assert [scale.stage for scale in found.trace.scales[1:]] == ["fidelity"] * 4


@pytest.mark.parametrize("name", [n for n, p in PRESETS.items() if not hasattr(p, "settings")])
def test_methods_without_stages_take_no_schedule(name: str) -> None:
    with pytest.raises(
        ValueError, match=rf"{name!r} is a fixed method and takes no schedule; expected one of .*'balanced'"
    ):
        StageSchedule().apply(PRESETS[name])


def test_another_model_is_refused_with_both_sides() -> None:
    model, other = (identity(m.family, m.config.to_dict()) for m in (tiny_infinity(), tiny_infinity(depth=2)))
    schedule = StageSchedule(model=model)
    schedule.check(model)
    StageSchedule().check(other)
    with pytest.raises(
        ValueError, match=r"made for infinity with depth 3.*the model is infinity with depth 2"
    ):
        schedule.check(other)
    with pytest.raises(ValueError, match="made for var"):
        StageSchedule(model={"family": "var", "depth": 3}).check(model)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("format", "other", "format is 'other'; expected 'stagevar-schedule'"),
        ("version", 2, "version is 2; expected 1"),
        ("version", True, "version is True"),
        ("colour", 1, "'colour' is unknown; expected any of .*'boundaries'"),
        ("model", [], "model is .*; expected an object"),
        ("model.family", 3, "model.family is 3"),
        ("model.depth", -1, "model.depth is -1; expected a whole number from 0 to"),
        ("model.depth", 3.0, "model.depth is 3.0; expected a whole number"),
        ("model.wings", 2, "'model.wings' is unknown"),
        ("boundaries", 0.3, "boundaries is 0.3"),
        ("boundaries", {"semantic_end": 0.1}, "boundaries.structure_end is None; expected"),
        ("boundaries.semantic_end", 0.5, "semantic_end is 0.5, after structure_end 0.3.*overlap"),
        ("boundaries.structure_end", 1.5, "boundaries.structure_end is 1.5; expected .* from 0 to 1"),
        ("boundaries.structure_end", "0.3", "boundaries.structure_end is '0.3'"),
        ("boundaries.fidelity_end", 1.0, "'boundaries.fidelity_end' is unknown"),
        ("keep", 1.01, "keep is 1.01; expected .* from 0 to 1"),
        ("keep", "half", "keep is 'half'"),
        ("keep", True, "keep is True"),
        ("keep", [], r"keep is \[\]; expected 1 to 64 points"),
        ("keep", [[i / 100, 0.5] for i in range(65)], "keep is .*expected 1 to 64 points"),
        ("keep.0", 0.5, r"keep\[0\] is 0.5; expected \[area fraction, share\]"),
        ("keep.1.0", 0.25, r"keep\[1\]\[0\] is 0.25; expected more than 0.25"),
        ("keep.1.0", 2, r"keep\[1\]\[0\] is 2; expected an area fraction from 0 to 1"),
        ("keep.0.1", -0.1, r"keep\[0\]\[1\] is -0.1; expected .* from 0 to 1"),
        ("keep.0.1", None, r"keep\[0\]\[1\] is None"),
        ("keep.1.1", [], r"keep\[1\]\[1\] is \[\]; expected 1 to 256 shares"),
        ("keep.1.1", [0.5, 7], r"keep\[1\]\[1\]\[1\] is 7; expected a share from 0 to 1"),
        ("keep.1.1", [0.5, [0.5]], r"keep\[1\]\[1\]\[1\] is \[0.5\]"),
        ("settings", [1], "settings is "),
        ("settings.colour", "red", "'settings.colour' is unknown; expected any of .*'guidance'"),
        ("settings.keep", 0.5, "'settings.keep' is unknown"),
        ("settings.guidance", "some", "settings.guidance is 'some'; expected one of .*'reuse'"),
        ("settings.guidance", ["reuse"], "settings.guidance is .*; expected one of .*'reuse'"),
        ("settings.spans", 0, "settings.spans is 0; expected a whole number from 1 to 256"),
        ("settings.spans", 2.5, "settings.spans is 2.5; expected a whole number"),
        ("settings.spans", True, "settings.spans is True"),
        ("settings.skip", 10**9, "settings.skip is 1000000000"),
        ("settings.reuse", 1.5, "settings.reuse is 1.5; expected a number from 0 to 1"),
        ("settings.code_weight", None, "settings.code_weight is None"),
        ("settings.kv", 1.5, "settings.kv is 1.5; expected .*'none' or a share from 0 to 1"),
        ("settings.kv", "all", "settings.kv is 'all'"),
        ("settings.window", 3, "settings.window is 3; expected an object with any of .*'tile'"),
        ("settings.window.tile", -1, "settings.window.tile is -1; expected a share from 0.015625 to 1"),
        ("settings.window.tile", 0.001, "settings.window.tile is 0.001; expected a share from 0.015625"),
        ("settings.window.panes", 4, "'settings.window.panes' is unknown"),
        ("measured", {}, "measured.alpha is None"),
        ("measured.alpha", 96, "measured.alpha is 96; expected .* from 0 to 1"),
        ("measured.chunks", 0, "measured.chunks is 0; expected a whole number from 1 to 256"),
        ("measured.schedule", [], "measured.schedule is "),
        ("measured.schedule.1", [2], r"measured.schedule\[1\] is \[2\]; expected \[height, width\]"),
        ("measured.schedule.1", [2, 0], r"measured.schedule\[1\] is 0; expected a whole number from 1"),
        ("measured.curves.beauty", CURVE, "'measured.curves.beauty' is unknown"),
        ("measured.curves.entropy", CHUNKED, r"curves.entropy.mean\[0\] is \[1.0, 2.0\]"),
        ("measured.curves.rank", CURVE, "curves.rank is .*; expected as many chunks"),
        ("measured.curves.rank.std", [[0.0], [0.0]], "curves.rank is .*; expected as many chunks"),
        (
            "measured.curves.entropy.mean",
            [0.5],
            "entropy.mean is .*; expected a list with one entry for each",
        ),
        ("measured.curves.entropy.mean.0", "x", r"entropy.mean\[0\] is 'x'; expected a number"),
    ],
)
def test_bad_values_are_named_with_what_is_allowed(path: str, value, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        StageSchedule.parse(changed(path, value), "some.json")
    assert str(caught.value).startswith("some.json: ") and len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no valid JSON"),
        ("{", "no valid JSON"),
        ("[1, 2]", r"the file is \[1, 2\]; expected a JSON object"),
        ("null", "the file is None"),
        ("{}", "format is None"),
        ("[" * 100_000, "nested too deeply"),
        ('{"keep": NaN}', "holds NaN; expected finite numbers"),
        ('{"keep": -Infinity}', "holds -Infinity"),
        (json.dumps(FULL)[:-1] + ', "keep": 0.5}', "'keep' is there twice"),
        ('{"format": "stagevar-schedule", "version": 1, "keep": 1e999}', "keep is inf; expected"),
        ('{"format": "stagevar-schedule", "version": 1, "keep": 1' + "0" * 5000 + "}", "some.json: "),
        (" " * (MAX_BYTES + 1), f"more than {MAX_BYTES}"),
    ],
)
def test_what_is_no_schedule_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StageSchedule.parse(text, "some.json")


def test_files_that_are_no_text_or_far_too_long_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"x\.json is no text in UTF-8"):
        StageSchedule.load(path)
    path.write_bytes(b" " * (MAX_BYTES + 1))
    with pytest.raises(ValueError, match=rf"x\.json has more than {MAX_BYTES} bytes"):
        StageSchedule.load(path)
    with pytest.raises(ValueError, match=r"absent\.json is not there; expected a schedule file at"):
        StageSchedule.load(tmp_path / "absent.json")
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(FULL).encode())  # as some editors save it
    assert StageSchedule.load(path) == StageSchedule.parse(json.dumps(FULL))


@pytest.mark.skipif(os.name == "nt", reason="no pipes and permissions of that kind")
@pytest.mark.parametrize(
    "kind", ["folder", "pipe", "loop", "below a file", "long name", "zero", "unreadable"]
)
def test_what_cannot_be_read_is_an_error_of_ours(tmp_path: Path, kind: str, monkeypatch) -> None:
    path = tmp_path / "x.json"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to("x.json")
    elif kind == "below a file":
        path.write_text("{}")
        path = path / "y.json"
    elif kind == "long name":
        path = tmp_path / ("x" * 300 + ".json")
    elif kind == "zero":
        path = Path("/dev/zero")
    else:
        path.write_text(json.dumps(FULL))

        def refused(*_: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(ValueError, match="expected a schedule file at") as found:
        StageSchedule.load(path)
    assert len(str(found.value)) < 300 and "\n" not in str(found.value)


@pytest.mark.parametrize("place", ["", "model", "settings", "boundaries", "measured", "measured.curves"])
def test_tens_of_thousands_of_keys_take_no_longer_than_they_are_long(place: str) -> None:
    many: dict = {f"key {i}": i for i in range(40_000)}
    for key in reversed(place.split(".") if place else []):
        many = {key: {**FULL["measured"], **many} if key == "measured" else many}
    text = json.dumps({**FULL, **many} if place else {**many, **FULL})
    started = time.process_time()
    with pytest.raises(ValueError, match="is unknown; expected any of"):
        StageSchedule.parse(text)
    assert time.process_time() - started < 5.0
    repeated = text[:-1] + ', "version": 1}'
    with pytest.raises(ValueError, match="'version' is there twice"):
        StageSchedule.parse(repeated)


@pytest.mark.parametrize("depth", [10, 300, 900, 960, 980, 990, 2000, 400_000])
@pytest.mark.parametrize(("opened", "closed"), [("[", "]"), ('{"a":', "}"), ("[[0.5, ", "]]")])
def test_deep_nesting_is_refused_whatever_the_depth(depth: int, opened: str, closed: str) -> None:
    text = json.dumps({"format": FORMAT, "version": VERSION})[:-1]
    with pytest.raises(ValueError, match="nested too deeply|expected|characters"):
        StageSchedule.parse(f'{text}, "keep": {opened * depth}1{closed * depth}}}')


@pytest.mark.parametrize("family", ["x" * 1000, "two\nlines", "\ud800", "", "\0"])
def test_a_family_is_a_short_name(family: str) -> None:
    text = json.dumps({**FULL, "model": {"family": family}})
    if family:
        with pytest.raises(ValueError, match="model.family is .* expected the name of a model family"):
            StageSchedule.parse(text)


def test_every_setting_of_the_presets_can_be_written_and_read() -> None:
    for name, policy in PRESETS.items():
        if not isinstance(policy, StagedPolicy):
            continue
        values = flat(policy.settings)
        boundaries, keep = values.pop("boundaries"), values.pop("keep")
        schedule = StageSchedule(boundaries=boundaries, keep=keep, settings=values)
        again = StageSchedule.parse(schedule.to_json())
        assert again == schedule, name
        assert again.apply(PRESETS["quality"]).settings == policy.settings, name


def test_a_file_name_stays_in_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "schedules"
    folder.mkdir()
    (folder / "mine.json").write_text("{}")
    (folder / "same.json").symlink_to("mine.json")
    assert resolve(folder, "mine.json") == folder / "mine.json"
    assert resolve(folder, "new one (2).json") == folder / "new one (2).json"
    assert resolve(folder, "same.json") == folder / "mine.json"
    assert resolve(folder, "größe.json").parent == folder


@pytest.mark.parametrize(
    "name",
    [
        "../x.json",
        "..\\x.json",
        "/etc/passwd",
        "/x.json",
        "C:x.json",
        "C:\\x.json",
        "\\\\host\\x.json",
        "a/b.json",
        "./x.json",
        "..json",
        ".hidden.json",
        "x.json/..",
        "x.json\n",
        "x\0.json",
        "x.json\0",
        "x.JSON",
        "x.txt",
        "x",
        "",
        " x.json",
        "~x.json",
        "x" * 200 + ".json",
        None,
        7,
    ],
)
def test_names_that_could_leave_the_folder_are_refused(tmp_path: Path, name) -> None:
    with pytest.raises(ValueError, match="expected a file name such as balanced.json"):
        resolve(tmp_path, name)


@pytest.mark.skipif(os.name == "nt", reason="links need rights that Windows users rarely have")
def test_links_that_leave_the_folder_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "schedules"
    folder.mkdir()
    (tmp_path / "secret.json").write_text("{}")
    (folder / "out.json").symlink_to(tmp_path / "secret.json")
    (folder / "inside.txt").write_text("")
    (folder / "kind.json").symlink_to("inside.txt")
    (folder / "loop.json").symlink_to("loop.json")
    for name in ("out.json", "kind.json", "loop.json"):
        with pytest.raises(ValueError, match="a link that leaves schedules"):
            resolve(folder, name)


def test_a_schedule_for_the_paper_keeps_its_chunks() -> None:
    info = RunInfo(SQUARE, 4, 1, True, False, (0,))
    policy = StageSchedule(keep=((1.0, (0.25, 0.5, 0.75, 1.0)),), settings={"spans": 4})
    budgets = policy.apply(PRESETS["paper"]).start(info).budgets(SQUARE.final)
    assert budgets == (10, 19, 28, 36)
