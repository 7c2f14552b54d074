"""HART in ComfyUI: its text encoder, sampled, in-painted, accelerated, and refused where it does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
from testbed.comfy_server import ComfyServer, read_json, shipped_workflow

from tests.support.events import saved_images, with_value
from tests.support.hart_files import CODES_FILE, HART_FILE, QWEN_FILE, write_hart
from tests.support.testbed import Bed, run_inside
from tests.support.tiny_families import write_families

CHECKS = ("loaded", "text", "pictures", "in-painting", "refusals")


@pytest.fixture(scope="module")
def said(bed: Bed, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the checks of `inside_hart.py` print, and how it ended."""
    models = tmp_path_factory.mktemp("hart")
    write_families(models)
    write_hart(models)
    return run_inside(bed, Path(__file__).with_name("inside_hart.py"), models, models)


@pytest.mark.parametrize("check", CHECKS)
def test_check_passes_inside_comfyui(said: str, check: str) -> None:
    assert f"ok: {check}\n" in said, said


@pytest.mark.parametrize("name", ["26_text_to_image_HART", "27_faster_HART"])
def test_shipped_workflow_runs(comfy_server: ComfyServer, name: str) -> None:
    write_hart(comfy_server.base / "models")
    made = read_json(shipped_workflow(name))
    with_value(made, "model_name", HART_FILE)
    with_value(made, "vae_name", CODES_FILE)
    with_value(made, "text_encoder_name", QWEN_FILE)
    for side in ("width", "height"):
        with_value(made, side, 256)
    entry = comfy_server.run(made)
    saver = next(node for node, data in made.items() if data["class_type"] == "SaveImage")
    (image,) = saved_images(comfy_server, entry, saver)
    assert image.shape == (256, 256, 3) and image.std() > 0.005
