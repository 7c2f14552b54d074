"""StageVAR Vary in ComfyUI: what stays of a picture or a run, what it costs, what is refused."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from testbed.comfy_server import ComfyServer, Json, PromptFailed, nodes_of, read_json, shipped_workflow

from stagevar_core.scenes.scorer import read
from tests.support.events import saved_images
from tests.support.testbed import Bed, run_inside
from tests.support.tiny_families import write_families

CHECKS = ("same", "varied", "drafts", "sixteen", "batches", "sizes", "families", "refusals")


@pytest.fixture(scope="module")
def said(bed: Bed, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the checks of `inside_varying.py` print, and how it ended."""
    models = tmp_path_factory.mktemp("varying")
    write_families(models)
    return run_inside(bed, Path(__file__).with_name("inside_varying.py"), models, models)


@pytest.mark.parametrize("check", CHECKS)
def test_check_passes_inside_comfyui(said: str, check: str) -> None:
    assert f"ok: {check}\n" in said, said


# ----------------------------------------------------------------------------------------- through the server


def shipped(name: str) -> tuple[Json, str, str]:
    """A shipped workflow that saves what it shows, and its nodes that save, in their order."""
    made = read_json(shipped_workflow(name))
    before, *_ = nodes_of(made, "PreviewImage")
    (after,) = nodes_of(made, "SaveImage")
    inputs = {**made[before]["inputs"], "filename_prefix": "before"}
    made[before] = {**made[after], "inputs": inputs}
    return made, before, after


def objects(picture: np.ndarray) -> list[tuple[str, int, int]]:
    """Shapes from left to right, with their places on a grid of 16 pixels."""
    found = sorted(read((picture * 255).round().astype(np.uint8)).objects, key=lambda each: each.x)
    return [(each.shape, round(each.x / 16), round(each.y / 16)) for each in found]


def colours(picture: np.ndarray) -> tuple[str, ...]:
    """Colours from left to right."""
    found = sorted(read((picture * 255).round().astype(np.uint8)).objects, key=lambda each: each.x)
    return tuple(each.colour for each in found)


def test_shipped_variations_keep_the_composition_and_differ_in_colour(comfy_server: ComfyServer) -> None:
    made, before, after = shipped("07_vary_no_download")
    entry = comfy_server.run(made)
    (one,), four = (saved_images(comfy_server, entry, node) for node in (before, after))
    assert len(four) == 4 and [objects(each) for each in four] == [objects(one)] * 4
    assert min(np.abs(each - one).max() for each in four) > 0.3
    assert len({colours(each) for each in four}) > 1
    (node,) = nodes_of(made, "StageVARVary")
    assert entry["outputs"][node]["text"] == [
        "keeps 1 of 7 scales, up to 1 x 1 tokens; draws the others anew"
    ]


def test_shipped_drawing_becomes_what_the_prompt_says(comfy_server: ComfyServer) -> None:
    made, before, after = shipped("08_image_to_image_no_download")
    entry = comfy_server.run(made)
    (one,), (other,) = (saved_images(comfy_server, entry, node) for node in (before, after))
    drawn, became = objects(one), objects(other)
    assert [shape for shape, *_ in drawn] == ["square"] * 2
    assert [shape for shape, *_ in became] == ["circle", "diamond"]
    for (_, x, y), (_, u, v) in zip(drawn, became, strict=True):
        assert abs(x - u) + abs(y - v) <= 1


def test_shipped_strip_is_an_animation_of_all_scales(comfy_server: ComfyServer) -> None:
    made = read_json(shipped_workflow("09_scales_strip_no_download"))
    (shown,), (saver,) = (nodes_of(made, kind) for kind in ("PreviewImage", "SaveAnimatedWEBP"))
    made[shown]["class_type"] = "SaveImage"
    made[shown]["inputs"]["filename_prefix"] = "scales"
    entry = comfy_server.run(made)
    (side_by_side,) = saved_images(comfy_server, entry, shown)
    assert side_by_side.shape == (128, 7 * 128 + 6 * 4, 3)
    strip = [side_by_side[:, start : start + 128] for start in range(0, 7 * 132, 132)]
    away = [np.abs(each - strip[-1]).mean() for each in strip]
    assert away[2:] == sorted(away[2:], reverse=True) and away[0] > away[2], away
    (file,) = comfy_server.images({"outputs": {saver: entry["outputs"][saver]}})
    assert Image.open(io.BytesIO(comfy_server.view(file))).n_frames == 7


@pytest.mark.parametrize("ways", [(), ("image", "latent")], ids=["neither", "both"])
def test_one_picture_has_to_be_connected(comfy_server: ComfyServer, ways: tuple[str, ...]) -> None:
    made = read_json(shipped_workflow("07_vary_no_download"))
    (node,), (sampler, _) = nodes_of(made, "StageVARVary"), nodes_of(made, "StageVARSampler")
    decoder = made[nodes_of(made, "PreviewImage")[0]]["inputs"]["images"]
    given = {"image": decoder, "latent": [sampler, 0]}
    made[node]["inputs"].pop("latent")
    made[node]["inputs"] |= {way: given[way] for way in ways}
    with pytest.raises(PromptFailed) as caught:
        comfy_server.run(made)
    assert "image, latent: " in str(caught.value), caught.value
