"""In-painting and out-painting with core's latent nodes: what is kept, drawn, shown, and refused."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from testbed.comfy_server import (
    ComfyServer,
    Json,
    PromptFailed,
    PromptRejected,
    nodes_of,
    read_json,
    shipped_workflow,
)

from stagevar_core.scenes.scorer import read, score
from tests.support.events import add_node, saved_images
from tests.support.testbed import Bed, run_inside
from tests.support.tiny_families import write_families

CHECKS = (
    *("read_back", "same_machinery", "sizes", "batches", "masks", "other_pictures", "runs"),
    *("families", "preview", "paste", "refusals"),
)
INPAINT, OUTPAINT = "10_inpaint_latent_no_download", "11_outpaint_no_download"
OTHER = "a striped red ring to the left of a green triangle on a white background"


@pytest.fixture(scope="module")
def said(bed: Bed, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the checks of `inside_inpainting.py` print, and how it ended."""
    models = tmp_path_factory.mktemp("inpainting")
    write_families(models)
    return run_inside(bed, Path(__file__).with_name("inside_inpainting.py"), models, models)


@pytest.mark.parametrize("check", CHECKS)
def test_check_passes_inside_comfyui(said: str, check: str) -> None:
    assert f"ok: {check}\n" in said, said


# ----------------------------------------------------------------------------------------- through the server


def run_with(server: ComfyServer, made: Json, original: list) -> tuple[Json, np.ndarray, np.ndarray]:
    """Runs a workflow; its history, an image within it, and the one that it saves."""
    (saver,) = nodes_of(made, "SaveImage")
    first = add_node(made, "SaveImage", images=original, filename_prefix="first")[0]
    entry = server.run(made)
    (before,), (after,) = (saved_images(server, entry, node) for node in (first, saver))
    return entry, before, after


def as_bytes(image: np.ndarray) -> np.ndarray:
    return (image * 255).round().astype(np.uint8)


@pytest.mark.parametrize("name", [INPAINT, OUTPAINT])
def test_shipped_workflow_draws_one_side_and_keeps_the_other(comfy_server: ComfyServer, name: str) -> None:
    made = read_json(shipped_workflow(name))
    (paste,) = nodes_of(made, "StageVARPasteBack")
    entry, before, after = run_with(comfy_server, made, made[paste]["inputs"]["original"])
    assert before.shape == after.shape == (128, 128, 3)
    assert (as_bytes(before)[:, :56] == as_bytes(after)[:, :56]).all()  # up to the seam
    assert np.abs(before - after)[:, 70:].max() > 0.3
    assert score(OTHER, as_bytes(after)).strict, read(as_bytes(after))
    sampler = next(node for node in nodes_of(made, "StageVARSampler") if "latent" in made[node]["inputs"])
    assert "128 x 128" in entry["outputs"][sampler]["text"][0]
    preview = nodes_of(made, "PreviewImage")[-1]
    (marked,) = entry["outputs"][preview]["images"]
    shown = np.asarray(Image.open(io.BytesIO(comfy_server.view(marked))).convert("RGB"))
    assert shown.shape == (192, 2 * 192 + 4, 3)  # where its tokens stand at the last scale, and before
    assert (shown[:, :192] != shown[:, 196:]).any() == (name == INPAINT)  # a half ends where tokens do


def test_core_masks_and_batches_reach_the_sampler(comfy_server: ComfyServer) -> None:
    """Grown, repeated, cropped from a batch: what core's nodes do to latents and masks is understood."""
    made = read_json(shipped_workflow(INPAINT))
    (masked,) = nodes_of(made, "SetLatentNoiseMask")
    sampler = next(node for node in nodes_of(made, "StageVARSampler") if "latent" in made[node]["inputs"])
    grown = add_node(made, "GrowMask", mask=made[masked]["inputs"]["mask"], expand=4, tapered_corners=True)
    made[masked]["inputs"]["mask"] = grown
    several = add_node(made, "RepeatLatentBatch", samples=[masked, 0], amount=3)
    two = add_node(made, "LatentFromBatch", samples=several, batch_index=1, length=2)
    made[sampler]["inputs"] |= {"latent": two, "width": 1024, "height": 512}
    (saver,) = nodes_of(made, "SaveImage")
    entry = comfy_server.run(made)
    images = saved_images(comfy_server, entry, saver)
    assert len(images) == 2 and np.abs(images[0] - images[1]).max() > 0.02
    assert any("width and height are set aside" in line for line in entry["outputs"][sampler]["text"])


def test_an_empty_latent_is_a_size(comfy_server: ComfyServer, prompt: Json) -> None:
    (sampler,) = nodes_of(prompt, "StageVARSampler")
    plain = saved_images(comfy_server, comfy_server.run(prompt))[0]
    empty = add_node(prompt, "EmptyLatentImage", width=128, height=128, batch_size=1)
    prompt[sampler]["inputs"] |= {"latent": empty, "width": 512, "height": 512}
    entry = comfy_server.run(prompt)
    assert np.array_equal(saved_images(comfy_server, entry)[0], plain)


def test_two_ways_at_once_are_refused(comfy_server: ComfyServer) -> None:
    made = read_json(shipped_workflow(INPAINT))
    sampler = next(node for node in nodes_of(made, "StageVARSampler") if "latent" in made[node]["inputs"])
    (shown,) = nodes_of(made, "StageVARMaskPreview")
    inputs = {**made[shown]["inputs"], "vae": made[sampler]["inputs"]["vae"]}
    made[sampler]["inputs"]["edit"] = add_node(made, "StageVAREdit", **inputs)
    with pytest.raises((PromptRejected, PromptFailed)) as caught:
        comfy_server.run(made)
    assert "edit and latent" in str(caught.value) and "connect one of them" in str(caught.value)
    assert comfy_server.get("/system_stats")["system"]
