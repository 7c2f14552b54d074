"""Inputs that cannot work are refused with a message, and the server stays up."""

from __future__ import annotations

from typing import Any

import pytest
from testbed.comfy_server import ComfyServer, Json, PromptFailed, PromptRejected, nodes_of, sampler_node

from tests.support.events import value_of, with_value


def refusal(server: ComfyServer, prompt: Json) -> str:
    """The message with which a prompt is refused, before or during its run."""
    with pytest.raises((PromptRejected, PromptFailed)) as caught:
        server.run(prompt)
    assert server.get("/system_stats")["system"]
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"), [("width", 0), ("height", -64), ("batch_size", 0), ("seed", -1), ("width", "wide")]
)
def test_value_outside_its_range_is_refused(
    comfy_server: ComfyServer, prompt: Json, name: str, value: Any
) -> None:
    assert with_value(prompt, name, value), f"the workflow has no {name}"
    assert name in refusal(comfy_server, prompt)


@pytest.mark.parametrize("loader", ["StageVARLoadModel", "StageVARLoadTokenizer", "StageVARLoadTextEncoder"])
def test_missing_file_is_named(comfy_server: ComfyServer, prompt: Json, loader: str) -> None:
    for node in nodes_of(prompt, loader):
        inputs = prompt[node]["inputs"]
        name = next(key for key in inputs if key.endswith("_name"))
        inputs[name] = "no_such_file.safetensors"
        assert "no_such_file.safetensors" in refusal(comfy_server, prompt)
        return
    pytest.fail(f"the workflow has no {loader}")


def test_unlinked_input_is_refused(comfy_server: ComfyServer, prompt: Json) -> None:
    del prompt[sampler_node(prompt)]["inputs"]["positive"]
    assert "positive" in refusal(comfy_server, prompt)


def test_odd_sizes_run(comfy_server: ComfyServer, prompt: Json) -> None:
    """A size the model has no schedule for is adjusted, not refused."""
    with_value(prompt, "width", value_of(prompt, "width") + 8)
    assert comfy_server.images(comfy_server.run(prompt))


def test_empty_text_runs(comfy_server: ComfyServer, prompt: Json) -> None:
    with_value(prompt, "text", "")
    assert comfy_server.images(comfy_server.run(prompt))


def test_server_still_works(comfy_server: ComfyServer, prompt: Json) -> None:
    with_value(prompt, "seed", 999)
    assert comfy_server.images(comfy_server.run(prompt))
