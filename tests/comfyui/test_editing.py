"""StageVAR Edit by Text in ComfyUI: sizes, batches, tries, memory, tasks, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file
from testbed.comfy_server import (
    ComfyServer,
    PromptFailed,
    PromptRejected,
    nodes_of,
    read_json,
    shipped_workflow,
)

from tests.support.events import add_node, saved_images, with_value
from tests.support.official_files import small_transformer
from tests.support.testbed import Bed, run_inside
from tests.support.tiny_families import write_families
from tests.support.tiny_files import write_models
from tests.support.tiny_restorer import write_small_restorer

EDITOR = "embedded/StageVAR-scenes editor (built in)"
CHECKS = ("sizes", "square", "batches", "tries", "room", "notes", "cancel", "memory", "refusals", "tasks")
SHIPPED = "05_edit_by_text_no_download"
FOLDERS = {"transformer": "diffusion_models", "tokenizer": "vae", "text_encoder": "text_encoders"}
DOWNLOADED = {
    "22_edit_by_text_VAREdit_2B": "2B-512.pth",
    "23_edit_by_text_VAREdit_8B": "8B-1024.pth",
    "24_restore_VARestorer": "varestorer.pth",
    "25_generate_edit_restore_2B": "2B-512.pth",
}


@pytest.fixture(scope="module")
def said(bed: Bed, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the checks of `inside_editing.py` print, and how it ended."""
    models = tmp_path_factory.mktemp("editing")
    write_families(models)
    for kind, path in [*write_models(models, edits=True).items(), *write_small_restorer(models).items()]:
        (models / FOLDERS[kind]).mkdir(exist_ok=True)
        path.rename(models / FOLDERS[kind] / path.name)
    published = {name: tensor.contiguous() for name, tensor in small_transformer().items()}
    save_file(published, models / "diffusion_models" / "tiny_varedit.safetensors")
    return run_inside(bed, Path(__file__).with_name("inside_editing.py"), models, models)


@pytest.mark.parametrize("check", CHECKS)
def test_check_passes_inside_comfyui(said: str, check: str) -> None:
    assert f"ok: {check}\n" in said, said


# ----------------------------------------------------------------------------------------- through the server


def test_shipped_workflow_changes_its_picture(comfy_server: ComfyServer) -> None:
    made = read_json(shipped_workflow(SHIPPED))
    (before,) = nodes_of(made, "PreviewImage")
    (saver,) = nodes_of(made, "SaveImage")
    made[before] = {**made[saver], "inputs": {**made[before]["inputs"], "filename_prefix": "before"}}
    entry = comfy_server.run(made)
    (one,), (other,) = (saved_images(comfy_server, entry, node) for node in (before, saver))
    assert one.shape == other.shape == (128, 128, 3) and np.abs(one - other).max() > 0.1
    (node,) = nodes_of(made, "StageVAREditByText")
    (editor,) = nodes_of(made, "StageVARLoadModel")
    assert "128 x 128 at 128 px" in entry["outputs"][node]["text"][0]
    assert "edits pictures at 128 px" in entry["outputs"][editor]["text"][0]


def test_pictures_of_a_list_are_edited_each(comfy_server: ComfyServer) -> None:
    """Every input with a default may be left out, and pictures of two sizes come as a list."""
    made = {
        "1": {
            "class_type": "StageVARLoad",
            "inputs": {"model_name": "embedded/StageVAR-scenes editor (built in)"},
        }
    }
    text = add_node(made, "CLIPTextEncode", clip=["1", 2], text="make the background grey")
    image = add_node(made, "EmptyImage", width=48, height=32, batch_size=2, color=8421504)
    each = add_node(made, "RebatchImages", images=image, batch_size=1)
    edited = add_node(made, "StageVAREditByText", model=["1", 0], vae=["1", 1], image=each, positive=text)
    saver = add_node(made, "SaveImage", images=edited, filename_prefix="edited")[0]
    images = saved_images(comfy_server, comfy_server.run(made), saver)
    assert [image.shape for image in images] == [(32, 48, 3)] * 2


@pytest.mark.parametrize("name", DOWNLOADED)
def test_other_workflows_run_up_to_the_missing_file(comfy_server: ComfyServer, name: str) -> None:
    made = read_json(shipped_workflow(name))
    with pytest.raises((PromptRejected, PromptFailed)) as caught:
        comfy_server.run(made)
    message = str(caught.value)
    assert DOWNLOADED[name] in message and "huggingface.co" in message, message


def test_no_choice_of_a_task_is_refused(comfy_server: ComfyServer) -> None:
    made = read_json(shipped_workflow(SHIPPED))
    assert with_value(made, "task", "paint")
    with pytest.raises((PromptRejected, PromptFailed)) as caught:
        comfy_server.run(made)
    assert "task" in str(caught.value) and "paint" in str(caught.value)
