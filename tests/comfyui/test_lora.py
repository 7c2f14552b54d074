"""LoRAs on models in ComfyUI: patched by its own patcher, and the node in a real server."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from testbed.comfy_server import ComfyServer, Json, only_node, read_json, shipped_workflow

from stagevar_core.scenes import read
from tests.support.events import add_node, saved_images
from tests.support.lora import red, styled
from tests.support.testbed import Bed, run_inside

CHECKS = ("patches", "chain", "node", "storage", "int8", "compiled", "kept")


def write_files(folder: Path) -> Path:
    """The shipped LoRA as PEFT keeps it, one with DoRA, and one of another model."""
    (folder / "peft").mkdir(parents=True)
    styled(red(), "peft", folder / "peft")
    layer = "blocks.1.ca.proj"
    some = {key: value for key, value in red().items() if key.startswith(f"{layer}.")}
    save_file(some | {f"{layer}.dora_scale": torch.rand(256, 1) + 0.5}, folder / "dora.safetensors")
    other = {f"lora_unet_mid_block_0.lora_{half}.weight": torch.ones(4, 4) for half in ("up", "down")}
    save_file(other, folder / "sdxl.safetensors")
    return folder


@pytest.fixture(scope="module")
def said(bed: Bed, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the checks of `inside_lora.py` print, and how it ended."""
    files = write_files(tmp_path_factory.mktemp("files"))
    return run_inside(
        bed, Path(__file__).with_name("inside_lora.py"), tmp_path_factory.mktemp("inside"), files
    )


@pytest.mark.parametrize("check", CHECKS)
def test_check_passes_inside_comfyui(said: str, check: str) -> None:
    assert f"ok: {check}\n" in said, said


@pytest.fixture
def prompt() -> Json:
    """The shipped workflow in API format: one picture with the LoRA, and the same without."""
    return read_json(shipped_workflow("14_lora_no_download"))


def colours(server: ComfyServer, prompt: Json) -> list[set[str]]:
    """The colours of the objects in every picture that a run saves, in the order of the workflow."""
    pictures = saved_images(server, server.run(prompt))
    return [
        {each.colour for each in read((picture * 255).round().astype("uint8")).objects}
        for picture in pictures
    ]


def test_the_shipped_workflow_paints_one_picture_red_and_not_the_other(
    comfy_server: ComfyServer, prompt: Json
) -> None:
    assert sorted(map(sorted, colours(comfy_server, prompt))) == [["blue", "green"], ["red"]]
    entry = prompt[only_node(prompt, "StageVARLoadLora")]
    entry["inputs"]["strength"] = 0.0
    assert colours(comfy_server, prompt) == [{"blue", "green"}] * 2
    entry["inputs"]["strength"] = 0.5
    entry["inputs"]["model"] = add_node(prompt, "StageVARLoadLora", **entry["inputs"])
    assert sorted(map(sorted, colours(comfy_server, prompt))) == [["blue", "green"], ["red"]]


def test_the_node_says_how_many_layers_it_changed(comfy_server: ComfyServer, prompt: Json) -> None:
    node = only_node(prompt, "StageVARLoadLora")
    prompt[node]["inputs"]["strength"] = 0.75
    said = comfy_server.run(prompt)["outputs"][node]["text"]
    assert said == ["changed 30 layers of rank 4; strength 0.75"]


KEPT = "the first 5 scales: they are those of the run that this one goes on from"
AGAIN = "the first 5 scales ran again on their codes"


def test_drafts_are_finished_with_another_strength(comfy_server: ComfyServer, prompt: Json) -> None:
    """What the drafts left in memory is of their strength alone, and waits for it; they are drawn once."""
    made = read_json(shipped_workflow("06_draft_pick_finish_no_download"))
    sampler, done = (only_node(made, kind) for kind in ("StageVARSampler", "StageVARContinue"))
    plain = made[done]["inputs"]["model"]
    lora = prompt[only_node(prompt, "StageVARLoadLora")]["inputs"] | {"model": plain}
    changed = add_node(made, "StageVARLoadLora", **lora)
    drafts = add_node(made, "StageVARLoadLora", **lora)
    made[sampler]["inputs"] |= {"batch_size": 2, "seed": 4712, "model": drafts}

    def finished(model: list, strength: float) -> tuple[str, np.ndarray]:
        made[done]["inputs"]["model"] = model
        made[changed[0]]["inputs"]["strength"] = strength
        entry = comfy_server.run(made)
        (picture,) = saved_images(comfy_server, entry)
        (cached,) = (data for name, data in entry["status"]["messages"] if name == "execution_cached")
        ran.append(sampler not in cached["nodes"])
        return entry["outputs"][done]["text"][-1], picture

    ran: list[bool] = []
    steps = [(changed, strength) for strength in (1.0, 0.5, 0.0)] + [(plain, 1.0), (changed, 1.0)]
    lines, (first, half, none, without, last) = zip(*(finished(*step) for step in steps), strict=True)
    assert ran == [True] + [False] * 4
    assert [line.startswith(AGAIN) for line in lines] == [False, True, True, True, False]
    assert lines[0] == lines[-1] == KEPT
    assert np.array_equal(first, last) and np.array_equal(none, without)
    assert min(np.abs(half - other).max() for other in (first, none)) > 0.02
