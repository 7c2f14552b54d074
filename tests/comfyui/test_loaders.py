"""The loaders: names, folders and fingerprints, matching sets, and what is refused."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from testbed.comfy_server import ComfyServer, Json, PromptFailed, PromptRejected, nodes_of

from tests.support.events import saved_images
from tests.support.sparse_files import write_published
from tests.support.testbed import Bed, run_inside
from tests.support.tiny_families import write_families

CHECKS = ("sets", "variants", "roots", "company", "names", "refusals", "fingerprints", "vanished", "loops")
CHECKS += ("walks", "labels", "optional")
MATCHING = (
    "companions",
    "memory_of_looks",
    "whole_set",
    "order",
    "old_files",
    "foreign_files",
    "published",
    "missing",
)
MATCHING += ("wrong_pairs",)


@pytest.fixture(scope="module")
def said(bed: Bed, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the checks of `inside_loaders.py` print, and how it ended."""
    models = tmp_path_factory.mktemp("loaders")
    return run_inside(bed, Path(__file__).with_name("inside_loaders.py"), models, models)


@pytest.fixture(scope="module")
def matched(bed: Bed, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the checks of `inside_matching.py` print, and how it ended."""
    models = tmp_path_factory.mktemp("matching")
    write_families(models)
    write_published(models)
    return run_inside(bed, Path(__file__).with_name("inside_matching.py"), models, models)


@pytest.mark.parametrize("check", CHECKS)
def test_check_of_the_files_passes_inside_comfyui(said: str, check: str) -> None:
    assert f"ok: {check}\n" in said, said


@pytest.mark.parametrize("check", MATCHING)
def test_check_of_matching_sets_passes_inside_comfyui(matched: str, check: str) -> None:
    assert f"ok: {check}\n" in matched, matched


# ----------------------------------------------------------------------------------------- through the server


def with_one_loader(prompt: Json) -> Json:
    """The same prompt with StageVAR Load in place of the three loaders."""
    outputs = {"StageVARLoadModel": 0, "StageVARLoadTokenizer": 1, "StageVARLoadTextEncoder": 2}
    old = {node: slot for kind, slot in outputs.items() for node in nodes_of(prompt, kind)}
    for node in old:
        del prompt[node]
    for data in prompt.values():
        for name, value in data["inputs"].items():
            if isinstance(value, list) and value[0] in old:
                data["inputs"][name] = ["load", old[value[0]]]
    prompt["load"] = {"class_type": "StageVARLoad", "inputs": {}}
    return prompt


def test_one_loader_gives_the_picture_of_the_three(comfy_server: ComfyServer, prompt: Json) -> None:
    (three,) = saved_images(comfy_server, comfy_server.run(prompt))
    (one,) = saved_images(comfy_server, comfy_server.run(with_one_loader(prompt)))
    assert (one == three).all()


def test_int8_draws_nearly_the_picture_of_the_default(comfy_server: ComfyServer, prompt: Json) -> None:
    (wide,) = saved_images(comfy_server, comfy_server.run(prompt))
    for node in nodes_of(prompt, "StageVARLoadModel"):
        prompt[node]["inputs"]["weight_dtype"] = "int8"
    (narrow,) = saved_images(comfy_server, comfy_server.run(prompt))
    off = ((wide.astype(float) - narrow.astype(float)) ** 2).mean()
    assert 0 < off < 255**2 / 10**2.5, "25 dB at least, of one picture"


def test_text_encoders_have_no_int8(comfy_server: ComfyServer, prompt: Json) -> None:
    (node,) = nodes_of(prompt, "StageVARLoadTextEncoder")
    prompt[node]["inputs"]["weight_dtype"] = "int8"
    with pytest.raises((PromptRejected, PromptFailed), match="int8"):
        comfy_server.run(prompt)


def test_loaders_run_without_any_input(comfy_server: ComfyServer, prompt: Json) -> None:
    """What an early version stored has none of the inputs that came later."""
    for node in prompt.values():
        if node["class_type"].startswith("StageVARLoad"):
            node["inputs"] = {}
    assert comfy_server.images(comfy_server.run(prompt))


@pytest.mark.parametrize(
    ("loader", "name", "value"),
    [
        ("StageVARLoadModel", "model_name", None),
        ("StageVARLoadModel", "model_name", {"a": 1}),
        ("StageVARLoadModel", "weight_dtype", "fp16"),
        ("StageVARLoadModel", "weight_dtype", None),
        ("StageVARLoadTokenizer", "vae_name", 3),
        ("StageVARLoadTextEncoder", "text_encoder_name", None),
        ("StageVARLoadTextEncoder", "weight_dtype", "float16"),
    ],
)
def test_what_is_no_choice_is_refused_with_the_choices(
    comfy_server: ComfyServer, prompt: Json, loader: str, name: str, value: Any
) -> None:
    (node,) = nodes_of(prompt, loader)
    prompt[node]["inputs"][name] = value
    with pytest.raises((PromptRejected, PromptFailed)) as caught:
        comfy_server.run(prompt)
    message = str(caught.value)
    default = "default" if name == "weight_dtype" else "embedded/StageVAR-scenes (built in)"
    assert name in message and repr(value) in message and default in message, message
    assert comfy_server.get("/system_stats")["system"]


def test_fingerprints_have_no_times(comfy_server: ComfyServer, prompt: Json) -> None:
    """They are stored in every picture."""
    (image,) = comfy_server.images(comfy_server.run(prompt))
    stored = json.loads(Image.open(io.BytesIO(comfy_server.view(image))).info["prompt"])
    for kind in ("StageVARLoadModel", "StageVARLoadTokenizer", "StageVARLoadTextEncoder"):
        (node,) = nodes_of(stored, kind)
        (text,) = stored[node]["is_changed"]
        assert len(text) == 32 and int(text, 16) >= 0, text
