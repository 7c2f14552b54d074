"""StageVAR Restore in ComfyUI: sizes, batches, tiles, memory, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from testbed.comfy_server import ComfyServer, Json, PromptFailed, PromptRejected

from tests.support.events import add_node, saved_images
from tests.support.testbed import Bed, run_inside
from tests.support.tiny_restorer import (
    CODES_FILE,
    MERGED_FILE,
    RESTORER_FILE,
    write_restorers,
    write_small_restorer,
)

CHECKS = ("sizes", "batches", "tiles", "cancel", "memory", "networks", "text", "notes", "refusals")


@pytest.fixture(scope="module")
def said(bed: Bed, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the checks of `inside_restoring.py` print, and how it ended."""
    models = tmp_path_factory.mktemp("restoring")
    for kind, path in write_small_restorer(models).items():
        folder = models / {"transformer": "diffusion_models", "tokenizer": "vae"}[kind]
        folder.mkdir()
        path.rename(folder / path.name)
    return run_inside(bed, Path(__file__).with_name("inside_restoring.py"), models, models)


@pytest.mark.parametrize("check", CHECKS)
def test_check_passes_inside_comfyui(said: str, check: str) -> None:
    assert f"ok: {check}\n" in said, said


def graph(file: str, **inputs: object) -> tuple[Json, str]:
    """A prompt that restores a plain picture of 48 x 32 pixels, and its saver."""
    made: Json = {
        "1": {"class_type": "StageVARLoadModel", "inputs": {"model_name": file, "weight_dtype": "default"}}
    }
    model = ["1", 0]
    vae = add_node(made, "StageVARLoadTokenizer", vae_name=CODES_FILE)
    image = add_node(made, "EmptyImage", width=48, height=32, batch_size=2, color=8421504)
    restored = add_node(made, "StageVARRestore", model=model, vae=vae, image=image, **inputs)
    return made, add_node(made, "SaveImage", images=restored, filename_prefix="restored")[0]


def test_the_published_file_restores_through_the_server(comfy_server: ComfyServer) -> None:
    """All inputs but model, vae and image may be left out of an API file."""
    write_restorers(comfy_server.base / "models")
    made, saver = graph(RESTORER_FILE)
    images = saved_images(comfy_server, comfy_server.run(made), saver)
    assert [image.shape for image in images] == [(128, 192, 3)] * 2


def test_a_merged_file_that_nothing_marks_is_refused(comfy_server: ComfyServer) -> None:
    write_restorers(comfy_server.base / "models")
    with pytest.raises((PromptRejected, PromptFailed)) as caught:
        comfy_server.run(graph(MERGED_FILE)[0])
    assert "--task restore" in str(caught.value)
