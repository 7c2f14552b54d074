"""Drafts and StageVAR Continue in ComfyUI: the same end, picks, presets, memory, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from testbed.comfy_server import ComfyServer, Json, PromptFailed, only_node, read_json, shipped_workflow

from tests.support.events import Watcher, add_node, saved_images
from tests.support.testbed import Bed, run_inside
from tests.support.tiny_families import write_families

CHECKS = (
    "same_end",
    "picks",
    "presets",
    "drafts",
    "finished",
    "old_latents",
    "room",
    "patches",
    "memory",
    "progress",
)
CHECKS += ("cancel", "changes", "joined", "families", "refusals")
SHIPPED = "06_draft_pick_finish_no_download"


@pytest.fixture(scope="module")
def said(bed: Bed, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the checks of `inside_continuing.py` print, and how it ended."""
    models = tmp_path_factory.mktemp("continuing")
    write_families(models)
    return run_inside(bed, Path(__file__).with_name("inside_continuing.py"), models, models)


@pytest.mark.parametrize("check", CHECKS)
def test_check_passes_inside_comfyui(said: str, check: str) -> None:
    assert f"ok: {check}\n" in said, said


# ----------------------------------------------------------------------------------------- through the server


@pytest.fixture
def drafts() -> Json:
    """The shipped workflow with drafts that are saved."""
    made = read_json(shipped_workflow(SHIPPED))
    made[only_node(made, "PreviewImage")]["class_type"] = "SaveImage"
    for node in made.values():
        if node["class_type"] == "SaveImage":
            node["inputs"].setdefault("filename_prefix", "drafts")
    return made


def places(made: Json) -> tuple[str, str]:
    """The nodes that save the grid of drafts, and the picture."""
    saved = {
        made[each["inputs"]["images"][0]]["class_type"]: node
        for node, each in made.items()
        if each["class_type"] == "SaveImage"
    }
    return saved["ImageGrid"], saved["VAEDecode"]


def test_shipped_workflow_draws_drafts_once_and_finishes_the_picked_one(
    comfy_server: ComfyServer, watcher: Watcher, drafts: Json
) -> None:
    """Another number finishes another draft, and nothing before the pick runs again."""
    small, large = places(drafts)
    sampler, pick, done = (
        only_node(drafts, kind) for kind in ("StageVARSampler", "LatentFromBatch", "StageVARContinue")
    )
    drafts[sampler]["inputs"]["seed"] = 4711  # no other test's
    entry = comfy_server.run(drafts)
    (grid,) = saved_images(comfy_server, entry, small)
    (first,) = saved_images(comfy_server, entry, large)
    assert grid.shape == (2 * 192 + 4, 4 * 192 + 12, 3) and first.shape == (128, 128, 3)
    cells = [grid[196 * (n // 4) :, 196 * (n % 4) :][:192, :192] for n in range(8)]
    assert all(np.abs(one - other).mean() > 0.001 for one, other in zip(cells, cells[1:], strict=False))
    assert "as a draft of 96 x 96" in entry["outputs"][sampler]["text"][0]
    assert any(
        "those of the run that this one goes on from" in line for line in entry["outputs"][done]["text"]
    )
    drafts[pick]["inputs"]["batch_index"] = 5
    watcher.until_end(watcher.queue(drafts))
    cached = {node for data in watcher.data_of("execution_cached") for node in data["nodes"]}
    ran = {data["node"] for data in watcher.data_of("executing") if data.get("node")}
    assert {sampler, drafts[small]["inputs"]["images"][0]} <= cached and sampler not in ran
    assert {pick, done, large} <= ran
    (other,) = saved_images(comfy_server, comfy_server.run(drafts), large)
    assert np.abs(other - first).max() > 0.1
    drafts[pick]["inputs"]["batch_index"] = 40
    beyond = comfy_server.run(drafts)
    assert "draft 7 of its batch; 0 is the first" in beyond["outputs"][done]["text"]
    drafts[done]["inputs"]["latent"] = [sampler, 0]
    all_of_them = saved_images(comfy_server, comfy_server.run(drafts), large)
    for found, wanted in ((all_of_them[0], first), (all_of_them[5], other)):
        assert np.abs(found - wanted).max() < 2 / 255


def test_what_has_no_run_is_said_in_the_page(comfy_server: ComfyServer, drafts: Json) -> None:
    done = only_node(drafts, "StageVARContinue")
    drafts[done]["inputs"]["latent"] = add_node(
        drafts, "EmptyLatentImage", width=128, height=128, batch_size=1
    )
    with pytest.raises(PromptFailed) as caught:
        comfy_server.run(drafts)
    assert "latent: found samples of shape" in str(caught.value) and "Latent From Batch" in str(caught.value)
