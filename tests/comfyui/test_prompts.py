"""Prompts per stage and in regions in a real server: the shipped workflows, their seeds, and a batch."""

from __future__ import annotations

import numpy as np
import pytest
from testbed.comfy_server import ComfyServer, Json, PromptRejected, nodes_of, read_json, shipped_workflow

from stagevar_core.scenes.scorer import read
from tests.support.events import saved_images, with_value

STAGED, REGIONAL = "12_prompt_per_stage_no_download", "13_regional_prompts_no_download"


def made(server: ComfyServer, prompt: Json) -> list[np.ndarray]:
    return saved_images(server, server.run(prompt))


def found(picture: np.ndarray) -> list[tuple[str, str, str]]:
    """Colour, shape and pattern of what a picture shows, from left to right."""
    objects = sorted(read((255 * picture).round().astype(np.uint8)).objects, key=lambda each: each.x)
    return [(each.colour, each.shape, each.pattern) for each in objects]


def test_layout_and_texture_come_from_their_prompts(comfy_server: ComfyServer) -> None:
    (picture,) = made(comfy_server, read_json(shipped_workflow(STAGED)))
    assert found(picture) == [("red", "ring", "striped"), ("blue", "cross", "striped")]


def test_every_half_shows_its_prompt(comfy_server: ComfyServer) -> None:
    prompt = read_json(shipped_workflow(REGIONAL))
    with_value(prompt, "batch_size", 2)
    for picture in made(comfy_server, prompt):
        assert found(picture) == [("red", "ring", "plain"), ("blue", "cross", "plain")]


def test_numbers_per_stage_are_typed(comfy_server: ComfyServer) -> None:
    prompt = read_json(shipped_workflow("01_text_to_image_no_download"))
    pictures = []
    for cfg, temperature in (("3, 2, 1", "0.7"), ("3", "0.7"), ("auto", "0.9,0.7,0.2")):
        with_value(prompt, "cfg", cfg)
        with_value(prompt, "temperature", temperature)
        pictures += made(comfy_server, prompt)
    assert len({picture.tobytes() for picture in pictures}) == 3
    for bad in ("3,2", "3,2,1,1", "3,2,x", "3,2,-1", "3,2,nan", "3,2,99", ",,"):
        with_value(prompt, "cfg", bad)
        with pytest.raises(PromptRejected, match="one per stage"):
            comfy_server.run(prompt)
    assert nodes_of(prompt, "StageVARSampler")
