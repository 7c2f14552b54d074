"""VAR and STAR in ComfyUI: loaded from files, sampled, in-painted, and refused where they do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from testbed.comfy_server import ComfyServer, Json, PromptFailed, PromptRejected, read_json, shipped_workflow

from tests.support.events import add_node, saved_images, with_value
from tests.support.testbed import Bed, run_inside
from tests.support.tiny_families import CLIP_FILE, STAR_FILE, TOKENIZER_FILE, VAR_FILE, write_families

FAMILIES = (
    "19_class_to_image_VAR",
    "20_faster_VAR",
    "17_text_to_image_STAR",
    "18_faster_STAR",
    "21_inpaint_VAR",
)
CHECKS = ("loaded", "var", "defaults", "in-painting", "in-painting with bits", "star")
CHECKS += ("star, accelerated", "refusals")


@pytest.fixture(scope="module")
def said(bed: Bed, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the checks of `inside_families.py` print, and how it ended."""
    models = tmp_path_factory.mktemp("families")
    write_families(models)
    return run_inside(bed, Path(__file__).with_name("inside_families.py"), models, models)


@pytest.mark.parametrize("check", CHECKS)
def test_check_passes_inside_comfyui(said: str, check: str) -> None:
    assert f"ok: {check}\n" in said, said


# ----------------------------------------------------------------------------------------- through the server


@pytest.fixture(scope="module")
def server(comfy_server: ComfyServer) -> ComfyServer:
    """The running ComfyUI with the tiny files in its model folders."""
    write_families(comfy_server.base / "models")
    return comfy_server


def shipped(name: str) -> Json:
    """A shipped workflow with the tiny files and a size that they have."""
    made = read_json(shipped_workflow(name))
    with_value(made, "model_name", STAR_FILE if name.endswith("STAR") else VAR_FILE)
    with_value(made, "vae_name", TOKENIZER_FILE)
    with_value(made, "text_encoder_name", CLIP_FILE)
    for side in ("width", "height"):
        with_value(made, side, 256)
    return made


@pytest.fixture
def prompt() -> Json:
    """The shipped class-to-image workflow with the tiny files."""
    made = shipped("19_class_to_image_VAR")
    with_value(made, "label", "3")
    with_value(made, "batch_size", 1)
    return made


def refusal(server: ComfyServer, prompt: Json) -> str:
    with pytest.raises((PromptRejected, PromptFailed)) as caught:
        server.run(prompt)
    return str(caught.value)


def test_files_are_offered_by_the_loaders(server: ComfyServer) -> None:
    offered = str(server.object_info("StageVARLoadModel"))
    assert VAR_FILE in offered and STAR_FILE in offered
    assert TOKENIZER_FILE in str(server.object_info("StageVARLoadTokenizer"))
    assert "207: golden retriever" in str(server.object_info("StageVARClassLabel"))


@pytest.mark.parametrize("name", FAMILIES)
def test_shipped_workflow_runs(server: ComfyServer, name: str) -> None:
    made = shipped(name)
    with_value(made, "label", "3")  # the tiny model has ten classes
    with_value(made, "batch_size", 2)
    folder = server.base / "input"
    Image.linear_gradient("L").convert("RGBA").rotate(30).save(folder / "example.png")  # corners to paint
    entry = server.run(made)
    saver = next(node for node, data in made.items() if data["class_type"] == "SaveImage")
    images = saved_images(server, entry, saver)
    assert [image.shape for image in images] == [(256, 256, 3)] * 2
    assert all(image.std() > 0.005 for image in images) and abs(images[0] - images[1]).max() > 0.01


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("label", "no such animal", ("label", "no such animal")),
        ("label", "", ("207", "0 to 9")),  # the list's choice, which this model of ten classes has not
        ("model_name", STAR_FILE, ("positive", "class label", "CLIP Text Encode")),
    ],
)
def test_what_does_not_fit_is_refused(
    server: ComfyServer, prompt: Json, name: str, value: Any, words: tuple[str, ...]
) -> None:
    assert with_value(prompt, name, value)
    message = refusal(server, prompt)
    assert all(word in message for word in words), message


def test_inpainting_workflow_runs_on_a_picture(server: ComfyServer, prompt: Json) -> None:
    """The core mask nodes and the edit, from the page's point of view."""
    decoded = next(node for node, data in prompt.items() if data["class_type"] == "VAEDecode")
    sampler = prompt[prompt[decoded]["inputs"]["samples"][0]]["inputs"]
    mask = add_node(prompt, "SolidMask", value=1.0, width=64, height=64)
    edit = add_node(prompt, "StageVAREdit", model=["1", 0], vae=sampler["vae"], image=[decoded, 0], mask=mask)
    inputs = {**sampler, "edit": edit, "seed": 8}
    latent = add_node(prompt, "StageVARSampler", **inputs)
    again = add_node(prompt, "VAEDecode", samples=latent, vae=sampler["vae"])
    saved = add_node(prompt, "SaveImage", images=again, filename_prefix="edited")
    (image,) = saved_images(server, server.run(prompt), saved[0])
    assert image.shape == (256, 256, 3)
