"""Acceleration in a real ComfyUI: the shipped workflows, reports, independence, batches."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image
from testbed.comfy_server import (
    ComfyServer,
    Json,
    nodes_of,
    only_node,
    read_json,
    sampler_node,
    shipped_workflow,
)

from tests.support.events import Watcher, add_node, saved_images, with_value

COMPARED = ("off", "balanced", "paper")


@pytest.fixture
def accelerated() -> Json:
    """The shipped accelerated workflow in API format."""
    return read_json(shipped_workflow("02_faster_no_download"))


@pytest.fixture(scope="module")
def side_by_side(comfy_server: ComfyServer) -> tuple[Json, Json]:
    """The shipped comparison, run once, and its history entry; its reports are written out as text."""
    prompt = read_json(shipped_workflow("04_compare_presets_no_download"))
    with_value(prompt, "value", 41)
    for node in nodes_of(prompt, "StageVARStageReport"):
        add_node(prompt, "PreviewAny", source=[node, 1])
    return prompt, comfy_server.run(prompt)


def picture(server: ComfyServer, prompt: Json, entry: Json, preset: str) -> np.ndarray:
    """The saved picture of one branch of the comparison."""
    (node,) = [n for n in nodes_of(prompt, "SaveImage") if preset in prompt[n]["inputs"]["filename_prefix"]]
    (image,) = saved_images(server, entry, node)
    return image


def report_text(prompt: Json, entry: Json, report: str) -> Json:
    """The JSON of a Stage Report, which a Preview Any node shows."""
    (node,) = [n for n in nodes_of(prompt, "PreviewAny") if prompt[n]["inputs"]["source"] == [report, 1]]
    return json.loads(entry["outputs"][node]["text"][0])


def shown(server: ComfyServer, entry: Json, node: str) -> np.ndarray:
    """The preview on a node, in 0..1."""
    (image,) = entry["outputs"][node]["images"]
    return np.asarray(Image.open(io.BytesIO(server.view(image))).convert("RGB"), np.float32) / 255


def test_a_report_has_its_plot_for_dark_pages_as_well(
    comfy_server: ComfyServer, side_by_side: tuple[Json, Json]
) -> None:
    prompt, entry = side_by_side
    for node in nodes_of(prompt, "StageVARStageReport"):
        light = shown(comfy_server, entry, node)
        (image,) = entry["outputs"][node]["dark"]
        dark = np.asarray(Image.open(io.BytesIO(comfy_server.view(image))).convert("RGB"), np.float32) / 255
        assert dark.shape == light.shape and light.mean() > 0.8 and dark.mean() < 0.3


def run_preset(server: ComfyServer, prompt: Json, **inputs: object) -> tuple[Json, list[np.ndarray]]:
    """The report and the pictures of the accelerated workflow with some inputs of its Accelerate node."""
    prompt[only_node(prompt, "StageVARAccelerate")]["inputs"].update(inputs)
    report = only_node(prompt, "StageVARStageReport")
    if not nodes_of(prompt, "PreviewAny"):
        add_node(prompt, "PreviewAny", source=[report, 1])
    entry = server.run(prompt)
    return report_text(prompt, entry, report), saved_images(server, entry, only_node(prompt, "SaveImage"))


def test_comparison_makes_three_different_pictures(
    comfy_server: ComfyServer, side_by_side: tuple[Json, Json]
) -> None:
    images = {preset: picture(comfy_server, *side_by_side, preset) for preset in COMPARED}
    assert len({image.shape for image in images.values()}) == 1
    assert all(image.std() > 0.02 for image in images.values()), "a picture is a flat colour"
    assert not np.array_equal(images["off"], images["balanced"])
    assert not np.array_equal(images["balanced"], images["paper"])


def test_comparison_reports_say_what_each_preset_did(
    comfy_server: ComfyServer, side_by_side: tuple[Json, Json]
) -> None:
    prompt, entry = side_by_side
    ratios = {}
    for node in nodes_of(prompt, "StageVARStageReport"):
        report, plot = report_text(prompt, entry, node), shown(comfy_server, entry, node)
        ratios[report["policy"]] = report["totals"]["flop_ratio"]
        assert len(report["scales"]) == 7 and report["images"] == 1
        assert plot.shape[0] > 300 and plot.shape[1] > 300 and plot.std() > 0.02, "the plot is empty"
    assert set(ratios) == set(COMPARED)
    assert ratios["off"] == 1.0 and ratios["balanced"] > 2 and ratios["paper"] > 2


def test_off_is_the_picture_without_the_node(
    comfy_server: ComfyServer, side_by_side: tuple[Json, Json], accelerated: Json
) -> None:
    prompt, entry = side_by_side
    with_value(accelerated, "seed", 41)
    without = accelerated[sampler_node(accelerated)]["inputs"]
    without["model"] = accelerated[only_node(accelerated, "StageVARAccelerate")]["inputs"]["model"]
    (plain,) = saved_images(comfy_server, comfy_server.run(accelerated))
    assert np.array_equal(plain, picture(comfy_server, prompt, entry, "off"))


@pytest.mark.parametrize("preset", ["balanced", "paper"])
def test_samplers_on_one_loader_do_not_touch_each_other(
    comfy_server: ComfyServer, side_by_side: tuple[Json, Json], accelerated: Json, preset: str
) -> None:
    """Alone, a preset makes the picture that it makes beside the others."""
    prompt, entry = side_by_side
    with_value(accelerated, "seed", 41)
    report, (alone,) = run_preset(comfy_server, accelerated, preset=preset)
    assert report["policy"] == preset
    assert np.array_equal(alone, picture(comfy_server, prompt, entry, preset))


def test_second_node_replaces_the_first(comfy_server: ComfyServer, accelerated: Json) -> None:
    first = only_node(accelerated, "StageVARAccelerate")
    second = add_node(accelerated, "StageVARAccelerate", model=[first, 0], preset="quality")
    for name, value in accelerated[first]["inputs"].items():
        accelerated[second[0]]["inputs"].setdefault(name, value)
    accelerated[sampler_node(accelerated)]["inputs"]["model"] = second
    report = only_node(accelerated, "StageVARStageReport")
    add_node(accelerated, "PreviewAny", source=[report, 1])
    entry = comfy_server.run(accelerated)
    assert report_text(accelerated, entry, report)["policy"] == "quality"


def test_overrides_change_what_runs(comfy_server: ComfyServer, accelerated: Json) -> None:
    with_value(accelerated, "seed", 42)
    whole, _ = run_preset(comfy_server, accelerated, preset="quality")
    half, _ = run_preset(comfy_server, accelerated, tokens="gather", keep=0.5, restoration="state")
    assert half["policy"] == "quality (changed)"
    last = [report["scales"][-1] for report in (whole, half)]
    assert last[0]["computed"] == last[0]["tokens"] and last[1]["computed"] == last[1]["tokens"] / 2
    assert half["totals"]["flops"] < whole["totals"]["flops"]


def test_progress_ends_full_where_the_last_scales_are_skipped(watcher: Watcher, accelerated: Json) -> None:
    with_value(accelerated, "seed", 43)
    accelerated[only_node(accelerated, "StageVARAccelerate")]["inputs"]["preset"] = "paper-released"
    assert watcher.until_end(watcher.queue(accelerated))[0] == "execution_success"
    sampler = sampler_node(accelerated)
    events = [data for data in watcher.data_of("progress") if data["node"] == sampler]
    done = [data["value"] / data["max"] for data in events]
    assert len(done) > 3 and done == sorted(done) and done[-1] == 1.0
    assert done[-2] < 1.0, "the bar must not be full before the run is"


@pytest.mark.parametrize("preset", ["balanced", "sparsevar"], ids=["planned", "image by image"])
def test_batch_keeps_its_first_picture(comfy_server: ComfyServer, accelerated: Json, preset: str) -> None:
    with_value(accelerated, "seed", 44)
    _, (single,) = run_preset(comfy_server, accelerated, preset=preset)
    with_value(accelerated, "batch_size", 2)
    report, (first, second) = run_preset(comfy_server, accelerated, preset=preset)
    assert report["images"] == 2
    assert np.abs(first - single).mean() < 0.002 < np.abs(first - second).mean()
