"""The options that stop a run, keep it in a file and go on from there."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stagevar_core.sampling.state import RunState
from tests.support.tiny_files import command

PROMPT = "a red circle left of a blue square"


def drawn(files: dict[str, Path], *options: object) -> dict:
    code, stdout, stderr = command(files, "generate", "--prompt", PROMPT, "--json", *options)
    assert code == 0 and not stderr, stderr
    return json.loads(stdout[-1])


def pictures(report: dict) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path)) for path in report["files"]])


@pytest.mark.parametrize("preset", ["off", "balanced", "auto"])
def test_a_run_that_stopped_ends_in_the_same_pictures(files, tmp_path, preset):
    given = ("--batch", 2, "--seed", 7, "--preset", preset, "--cfg", 3)
    whole = drawn(files, *given, "--out", tmp_path / "whole.png")
    kept, out = tmp_path / "new" / "draft.state", tmp_path / "x.png"
    draft = drawn(files, *given, "--until", "structure", "--save-state", kept, "--out", out)
    assert draft["width"] < whole["width"] and len(draft["report"]["scales"]) == 5
    done = drawn(files, "--preset", preset, "--resume", kept, "--out", out)
    assert done["seeds"] == [7, 8] and done["settings"] == whole["settings"]
    assert (pictures(done) == pictures(whole)).all()


def test_a_later_draft_goes_on_from_an_earlier_one_with_other_settings(files, tmp_path):
    first, second, out = tmp_path / "1", tmp_path / "2", tmp_path / "x.png"
    code, stdout, _ = command(
        files, "generate", "--prompt", PROMPT, "--until", "semantic", "--save-state", first
    )
    assert code == 0 and stdout[0].startswith(f"{first}  ")
    drawn(files, "--resume", first, "--until", 6, "--cfg", 1, "--save-state", second)
    early, late = RunState.load(first), RunState.load(second)
    assert (early.scales, late.scales) == (3, 6) and late.settings.cfg_scale == 1.0
    for one, two in zip(early.lead(0), late.lead(0), strict=False):
        assert (one.drawn == two.drawn).all()
    assert drawn(files, "--resume", second, "--out", out)["settings"]["cfg_scale"] == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--until", "fidelity"),
            "--until is 'fidelity'; expected semantic or structure, or 1 to 7: this model",
        ),
        (
            ("--until", "8"),
            "--until is 8; expected semantic or structure, or 1 to 7: this model has 7 scales",
        ),
        (("--until", "0"), "--until is 0"),
        (("--until", "-1"), "--until is '-1'"),
        (("--until", "structure", "--edit", "x.png"), "--until does not go with --edit"),
        (("--resume", "{state}", "--batch", "2"), "--batch does not go with --resume"),
        (("--resume", "{state}", "--seed", "2"), "--seed does not go with --resume"),
        (("--resume", "{state}", "--width", "64"), "--width does not go with --resume"),
        (("--resume", "{state}", "--until", "5"), "went over 5 of 7 scales; nothing is left"),
        (("--resume", "{absent}"), "absent cannot be read"),
        (("--resume", "{empty}"), "empty: it is empty"),
        (("--resume", "{other}"), "other: it holds no runs that stopped; pass what --save-state wrote"),
        (("--resume", "{cut}"), "cut: the state of the run is damaged"),
    ],
)
def test_what_cannot_be_is_one_line(files, tmp_path, options, message):
    state = tmp_path / "state"
    drawn(files, "--until", "structure", "--save-state", state)
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "other").write_bytes(b"what is this" * 9)
    (tmp_path / "cut").write_bytes(state.read_bytes()[:-9])
    names = {name: str(tmp_path / name) for name in ("state", "absent", "empty", "other", "cut")}
    given = [option.format(**names) for option in options]
    code, stdout, stderr = command(files, "generate", "--prompt", PROMPT, "--out", tmp_path / "x.png", *given)
    assert code == 2 and not stdout and len(stderr) == 1 and message in stderr[0], stderr


def test_runs_of_another_model_are_refused(files, tmp_path):
    state = tmp_path / "state"
    drawn(files, "--until", "structure", "--save-state", state)
    code, _, stderr = command(
        {}, "generate", "--prompt", PROMPT, "--resume", state, "--out", tmp_path / "x.png"
    )
    assert code == 2 and len(stderr) == 1
    assert "begun with transformer.safetensors (infinity, 3 blocks" in stderr[0]
