"""Workflows of every released version, through the server: what ran runs, with the picture it had."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from testbed.comfy_server import ComfyServer, PromptRejected, nodes_of, read_json

ARCHIVE = Path(__file__).parents[1] / "workflows"
PROMPTS = sorted(ARCHIVE.glob("*/api/*.json"))
BUILT_IN = [path for path in PROMPTS if path.stem.endswith("embedded")]
OTHERS = [path for path in PROMPTS if path not in BUILT_IN]
# Means of 8 x 8 pixels: "version/name/node" to hexadecimal. Made by the version that wrote the workflow, or
# anew since the host reads the first word of a prompt as in training, which moved three of them.
PICTURES = read_json(ARCHIVE / "pictures.json")


def told(path: Path) -> str:
    return f"{path.parent.parent.name}-{path.stem}"


@pytest.mark.parametrize("path", BUILT_IN, ids=told)
def test_it_makes_the_picture_it_made(comfy_server: ComfyServer, path: Path) -> None:
    prompt = read_json(path)
    for node in nodes_of(prompt, "SaveImage"):  # new to the server, so that it does not answer from its cache
        prompt[node]["inputs"]["filename_prefix"] = f"old_{path.parent.parent.name}_{path.stem}_{node}"
    entry = comfy_server.run(prompt)
    for node in nodes_of(prompt, "SaveImage"):
        (image,) = entry["outputs"][node]["images"]
        picture = Image.open(io.BytesIO(comfy_server.view(image))).convert("RGB")
        small = np.asarray(picture.resize((16, 16), Image.Resampling.BOX), np.float32)
        known = np.frombuffer(
            bytes.fromhex(PICTURES[f"{path.parent.parent.name}/{path.stem}/{node}"]), np.uint8
        )
        assert np.abs(small - known.reshape(16, 16, 3)).mean() < 1


@pytest.mark.parametrize("path", OTHERS, ids=told)
def test_it_is_valid_up_to_the_files_that_are_missing(comfy_server: ComfyServer, path: Path) -> None:
    prompt = read_json(path)
    with pytest.raises(PromptRejected) as refused:
        comfy_server.run(prompt)
    found = refused.value.details["node_errors"]
    errors = [(prompt[node], error) for node, data in found.items() for error in data["errors"]]
    assert errors
    for node, error in errors:
        missing = node["class_type"].startswith("StageVARLoad") or node["class_type"] == "LoadImage"
        assert missing and "_name" in str(error) or node["class_type"] == "LoadImage", (node, error)
