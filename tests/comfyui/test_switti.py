"""Switti in ComfyUI: loaded with two text encoders, sampled, accelerated, in-painted, and refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from testbed.comfy_server import ComfyServer, read_json, shipped_workflow

from tests.support.events import saved_images, with_value
from tests.support.testbed import Bed, run_inside
from tests.support.tiny_switti_files import FILES, LARGE_FILE, SMALL_FILE, TOKENIZER_FILE, write_switti

CHECKS = ("pair", "pictures", "in-painting", "refusals", "matching")


@pytest.fixture(scope="module")
def said(bed: Bed, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the checks of `inside_switti.py` print, and how it ended."""
    models = tmp_path_factory.mktemp("switti")
    write_switti(models)
    return run_inside(bed, Path(__file__).with_name("inside_switti.py"), models, models)


@pytest.mark.parametrize("check", CHECKS)
def test_check_passes_inside_comfyui(said: str, check: str) -> None:
    assert f"ok: {check}\n" in said, said


@pytest.mark.parametrize("name", ["28_text_to_image_Switti", "29_faster_Switti"])
def test_shipped_workflow_runs(comfy_server: ComfyServer, name: str) -> None:
    write_switti(comfy_server.base / "models")
    made = read_json(shipped_workflow(name))
    with_value(made, "model_name", FILES["Switti"])
    with_value(made, "vae_name", TOKENIZER_FILE)
    with_value(made, "text_encoder_name", SMALL_FILE)
    with_value(made, "second_text_encoder_name", LARGE_FILE)
    with_value(made, "batch_size", 2)
    for side in ("width", "height"):
        with_value(made, side, 256)
    entry = comfy_server.run(made)
    saver = next(node for node, data in made.items() if data["class_type"] == "SaveImage")
    images = saved_images(comfy_server, entry, saver)
    assert [image.shape for image in images] == [(256, 256, 3)] * 2
    assert abs(images[0] - images[1]).max() > 0.01
