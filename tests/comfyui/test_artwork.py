"""The workflows of the built-in model of classes, as a user queues them."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from testbed.comfy_server import ComfyServer, Json, nodes_of, only_node, read_json, shipped_workflow

PLAIN, FASTER = "30_artwork_no_download", "31_artwork_faster_no_download"
INPAINT, DRAFTS = "32_artwork_inpaint_no_download", "33_artwork_draft_pick_finish_no_download"


def run(server: ComfyServer, prompt: Json) -> dict[str, list[np.ndarray]]:
    """The pictures (H, W, 3) that each node shows, by its title."""
    outputs = server.run(prompt)["outputs"]
    return {
        prompt[node]["_meta"]["title"]: [
            np.asarray(Image.open(io.BytesIO(server.view(view))).convert("RGB")).astype(int)
            for view in shown.get("images", [])
        ]
        for node, shown in outputs.items()
    }


def single(name: str, **changes: object) -> Json:
    """A shipped workflow that draws one picture at once."""
    prompt = read_json(shipped_workflow(name))
    for node in nodes_of(prompt, "StageVARSampler"):
        prompt[node]["inputs"] |= {"batch_size": 1, **changes}
    return prompt


def test_the_accelerated_workflow_draws_what_the_plain_one_draws(comfy_server: ComfyServer) -> None:
    """Bypassed it is the same picture; with its preset a near one, and a report."""
    (plain,) = run(comfy_server, single(PLAIN))["Save Image"]
    prompt = single(FASTER)
    found = run(comfy_server, prompt)
    (near,), (plot,) = found["Save Image"], found["Stage Report"]
    assert plain.shape == near.shape == (256, 256, 3) and plot.shape[1] > 256
    assert 0 < np.abs(near - plain).mean() < 40
    prompt[only_node(prompt, "StageVARAccelerate")]["inputs"]["preset"] = "off"
    (off,) = run(comfy_server, prompt)["Save Image"]
    assert np.array_equal(off, plain)


def test_a_half_is_drawn_anew_and_the_other_stays(comfy_server: ComfyServer) -> None:
    """With another class, so that the change can be told from what codes alone lose of a picture."""
    prompt = single(INPAINT)
    for node in nodes_of(prompt, "StageVARClassLabel"):
        if prompt[node]["_meta"]["title"] == "What it should show":
            prompt[node]["inputs"]["class_name"] = "artwork: whale"
    found = run(comfy_server, prompt)
    (before,), (after,) = found["Before"], found["After"]
    change = np.abs(after - before).mean(axis=(0, 2))
    assert change[:96].mean() < change[160:].mean() / 2


def test_a_draft_becomes_the_picture_that_the_plain_workflow_draws(comfy_server: ComfyServer) -> None:
    """Finished with the preset of the drafts, the first is what its seed draws in one go."""
    prompt = single(DRAFTS)
    found = run(comfy_server, prompt)
    (picked,) = found["The picture"]
    sampler = only_node(prompt, "StageVARSampler")
    prompt[sampler]["inputs"] |= {"stop_after": "finished"}
    saved = only_node(prompt, "SaveImage")
    decoder = prompt[saved]["inputs"]["images"][0]
    prompt[decoder]["inputs"]["samples"] = [sampler, 0]
    (whole,) = run(comfy_server, {k: v for k, v in prompt.items() if v["class_type"] != "StageVARContinue"})[
        "The picture"
    ]
    assert np.abs(picked - whole).max() <= 2
