"""Stage schedules in a real ComfyUI: files of the user's folder, values on the node, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from testbed.comfy_server import (
    ComfyServer,
    Json,
    PromptFailed,
    PromptRejected,
    only_node,
    read_json,
    sampler_node,
    shipped_workflow,
)

from tests.support.events import add_node, with_value

VALUES = {
    "semantic_end": 0.0625,
    "structure_end": 0.25,
    "keep_first": 0.5,
    "keep_middle": 0.5,
    "keep_last": 0.5,
}
FROM_VALUES = "from the values below"
GOOD = {
    "format": "stagevar-schedule",
    "version": 1,
    "boundaries": {"semantic_end": 0.1, "structure_end": 0.3},
}


@pytest.fixture
def folder(comfy_server: ComfyServer) -> Path:
    """The schedules folder of the running ComfyUI."""
    place = comfy_server.base / "models" / "stagevar_schedules"
    place.mkdir(exist_ok=True)
    return place


@pytest.fixture
def prompt() -> Json:
    """The accelerated workflow with a Stage Schedule, its plot, and the report as text."""
    made = read_json(shipped_workflow("02_faster_no_download"))
    schedule = add_node(made, "StageVARStageSchedule", schedule_file=FROM_VALUES, **VALUES)
    made[only_node(made, "StageVARAccelerate")]["inputs"]["schedule"] = schedule
    add_node(made, "PreviewAny", source=[only_node(made, "StageVARStageReport"), 1])
    return made


def report_of(prompt: Json, entry: Json) -> Json:
    return json.loads(entry["outputs"][only_node(prompt, "PreviewAny")]["text"][0])


def refusal(server: ComfyServer, prompt: Json) -> str:
    """The message with which a prompt is refused; the server must stay up."""
    with pytest.raises((PromptRejected, PromptFailed)) as caught:
        server.run(prompt)
    assert server.get("/system_stats")["system"]
    return str(caught.value)


def test_values_on_the_node_reach_the_run(comfy_server: ComfyServer, prompt: Json) -> None:
    with_value(prompt, "seed", 51)
    entry = comfy_server.run(prompt)
    report, last = report_of(prompt, entry), report_of(prompt, entry)["scales"][-1]
    assert report["policy"] == "balanced (schedule)" and last["computed"] == last["tokens"] / 2
    assert entry["outputs"][only_node(prompt, "StageVARStageSchedule")]["images"], "no plot on the node"


def test_file_is_offered_and_reaches_the_run(comfy_server: ComfyServer, prompt: Json, folder: Path) -> None:
    (folder / "mine.json").write_text(json.dumps(GOOD | {"keep": 0.25}), encoding="utf-8")
    offered = comfy_server.object_info("StageVARStageSchedule")["StageVARStageSchedule"]
    assert "mine.json" in json.dumps(offered["input"]["optional"]["schedule_file"])
    prompt[only_node(prompt, "StageVARStageSchedule")]["inputs"]["schedule_file"] = "mine.json"
    with_value(prompt, "seed", 52)
    report = report_of(prompt, comfy_server.run(prompt))
    last = report["scales"][-1]
    assert report["policy"] == "balanced (mine.json)" and last["computed"] == last["tokens"] / 4


def test_changed_file_is_read_again(comfy_server: ComfyServer, prompt: Json, folder: Path) -> None:
    prompt[only_node(prompt, "StageVARStageSchedule")]["inputs"]["schedule_file"] = "again.json"
    with_value(prompt, "seed", 53)
    computed = []
    for keep in (0.5, 0.125):
        (folder / "again.json").write_text(json.dumps(GOOD | {"keep": keep}), encoding="utf-8")
        computed.append(report_of(prompt, comfy_server.run(prompt))["scales"][-1]["computed"])
    assert computed[1] == computed[0] / 4


def test_equal_contents_are_not_read_again(comfy_server: ComfyServer, prompt: Json, folder: Path) -> None:
    schedule = only_node(prompt, "StageVARStageSchedule")
    prompt[schedule]["inputs"]["schedule_file"] = "same.json"
    with_value(prompt, "seed", 56)
    cached = []
    for seconds in (1, 2):
        (folder / "same.json").write_text(json.dumps(GOOD | {"keep": 0.5}), encoding="utf-8")
        os.utime(folder / "same.json", (seconds, seconds))
        messages = dict(comfy_server.run(prompt)["status"]["messages"])
        cached.append(schedule in messages["execution_cached"]["nodes"])
    assert cached == [False, True]


@pytest.mark.parametrize(
    "name",
    [
        "../secret.json",
        "sub/secret.json",
        "/etc/passwd",
        "C:\\secret.json",
        "no_such.json",
        "notes.txt",
        ".json",
    ],
)
def test_name_that_leaves_the_folder_is_refused(
    comfy_server: ComfyServer, prompt: Json, folder: Path, name: str
) -> None:
    (folder / "sub").mkdir(exist_ok=True)
    for place in (folder.parent / "secret.json", folder / "sub" / "secret.json", folder / "notes.txt"):
        place.write_text(json.dumps(GOOD), encoding="utf-8")
    prompt[only_node(prompt, "StageVARStageSchedule")]["inputs"]["schedule_file"] = name
    message = refusal(comfy_server, prompt)
    assert "schedule_file" in message and name.replace("\\", "\\\\") in message


BAD = {
    "share": (GOOD | {"keep": 1.5}, ("keep", "1.5", "0 to 1")),
    "stages": (GOOD | {"boundaries": {"semantic_end": 0.5, "structure_end": 0.2}}, ("semantic_end", "0.5")),
    "version": (GOOD | {"version": 99}, ("version", "99", "1")),
    "key": (GOOD | {"speed": 3}, ("speed", "unknown")),
    "setting": (GOOD | {"settings": {"guidance": "none"}}, ("guidance", "'none'", "conditional")),
    "model": (GOOD | {"model": {"family": "infinity", "depth": 32}}, ("depth 32", "depth 6")),
    "json": ("{", ("JSON",)),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_file_is_refused_with_key_value_and_range(
    comfy_server: ComfyServer, prompt: Json, folder: Path, name: str
) -> None:
    content, expected = BAD[name]
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / f"bad_{name}.json").write_text(text, encoding="utf-8")
    prompt[only_node(prompt, "StageVARStageSchedule")]["inputs"]["schedule_file"] = f"bad_{name}.json"
    message = refusal(comfy_server, prompt)
    assert f"bad_{name}.json" in message and all(part in message for part in expected), message


def test_overlapping_values_are_refused(comfy_server: ComfyServer, prompt: Json) -> None:
    with_value(prompt, "semantic_end", 0.5)
    message = refusal(comfy_server, prompt)
    assert "semantic_end" in message and "0.5" in message and "overlap" in message


def test_method_with_rules_of_its_own_takes_no_changes(comfy_server: ComfyServer, prompt: Json) -> None:
    inputs = prompt[only_node(prompt, "StageVARAccelerate")]["inputs"]
    inputs["preset"] = "fastvar"
    assert "fastvar" in refusal(comfy_server, prompt) and "schedule" in refusal(comfy_server, prompt)
    del inputs["schedule"]
    inputs["keep"] = 0.5
    message = refusal(comfy_server, prompt)
    assert "keep" in message and "fastvar" in message


def test_off_ignores_schedule_and_changes(comfy_server: ComfyServer, prompt: Json) -> None:
    """So that one can compare without taking anything away."""
    prompt[only_node(prompt, "StageVARAccelerate")]["inputs"] |= {"preset": "off", "keep": 0.5}
    prompt[sampler_node(prompt)]["inputs"]["seed"] = 54
    assert report_of(prompt, comfy_server.run(prompt))["totals"]["flop_ratio"] == 1.0
