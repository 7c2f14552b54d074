"""Values of every kind through `/prompt`: defaults may be left out, what cannot be is refused once."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
import websocket
from testbed.comfy_server import (
    ComfyServer,
    Json,
    PromptFailed,
    PromptRejected,
    only_node,
    read_json,
    sampler_node,
    shipped_workflow,
)

from tests.support.events import Watcher, add_node, saved_images

# By node: inputs that have no default.
NEEDED = {
    "StageVARSampler": {"model", "vae", "positive"},
    "StageVARContinue": {"model", "vae", "latent", "positive"},
    "StageVARAccelerate": {"model"},
    "StageVARLoadLora": {"model"},
    "StageVARStageSchedule": set(),
    "StageVARCompile": {"model"},
    "StageVARCompileVAE": {"vae"},
}
OWN = ("cfg", "temperature", "top_k", "top_p", "keep", "code_weight", "structure_end", "skip_scales")
TEXT = 3  # the kind of binary message that is a text on a node
STATUS = "128x128 (nearest trained size to 100x100), 7 scales, 11.9 s"


@pytest.fixture
def prompt() -> Json:
    """The accelerated workflow in API format."""
    return read_json(shipped_workflow("02_faster_no_download"))


@pytest.fixture
def scheduled(prompt: Json) -> Json:
    """The same with a Stage Schedule."""
    owner_of(prompt, "preset")["schedule"] = add_node(prompt, "StageVARStageSchedule")
    return prompt


def owner_of(prompt: Json, name: str) -> Json:
    """The inputs of the node of ours that has an input of that name."""
    kinds = {
        "StageVARStageSchedule": {"schedule_file", "semantic_end", "keep_first", "keep_last"},
        "StageVARAccelerate": {"preset", "guidance", "tokens", "restoration", *OWN[4:]},
    }
    kind = next((kind for kind, names in kinds.items() if name in names), "StageVARSampler")
    return prompt[only_node(prompt, kind)]["inputs"]


def refusal(server: ComfyServer, prompt: Json) -> str:
    """What one is told, without what the host says around it; the server must stay up."""
    with pytest.raises((PromptRejected, PromptFailed)) as caught:
        server.run(prompt)
    assert server.get("/system_stats")["system"]
    return str(caught.value)


def test_what_has_a_default_is_optional(comfy_server: ComfyServer) -> None:
    for node, needed in NEEDED.items():
        inputs = comfy_server.object_info(node)[node]["input"]
        assert set(inputs.get("required", {})) == needed, node


def test_a_model_and_a_preset_are_enough(comfy_server: ComfyServer, prompt: Json) -> None:
    sampler, accelerate = owner_of(prompt, "seed"), owner_of(prompt, "preset")
    for inputs, kept in ((sampler, {"width", "height"}), (accelerate, {"preset"})):
        for name in [name for name, value in inputs.items() if not isinstance(value, list)]:
            if name not in kept:
                del inputs[name]
    assert saved_images(comfy_server, comfy_server.run(prompt))


def test_auto_minus_one_and_nothing_are_the_same(comfy_server: ComfyServer, prompt: Json) -> None:
    """Older files hold -1; the page of today holds texts."""
    pictures = []
    for own in ("auto", -1, -1.0, "-1", " AUTO ", "", None):
        for name in OWN:
            owner_of(prompt, name)[name] = own
            if own is None:
                del owner_of(prompt, name)[name]
        owner_of(prompt, "seed")["seed"] = 61
        owner_of(prompt, "seed")["smooth"] = False
        pictures += saved_images(comfy_server, comfy_server.run(prompt))
    assert all(np.array_equal(picture, pictures[0]) for picture in pictures[1:])


def test_typed_numbers_are_numbers(comfy_server: ComfyServer, prompt: Json) -> None:
    pictures = []
    for values in (("2.5", "0.8", "600", "0.9", "0.5", "1"), (2.5, 0.8, 600, 0.9, 0.5, 1)):
        for name, value in zip((*OWN[:5], "skip_scales"), values, strict=True):
            owner_of(prompt, name)[name] = value
        owner_of(prompt, "seed")["seed"] = 62
        pictures += saved_images(comfy_server, comfy_server.run(prompt))
    assert np.array_equal(*pictures)


def test_numbers_are_linked_to_them(comfy_server: ComfyServer, prompt: Json) -> None:
    owner_of(prompt, "cfg")["cfg"] = add_node(prompt, "PrimitiveFloat", value=2.0)
    owner_of(prompt, "top_k")["top_k"] = add_node(prompt, "PrimitiveInt", value=600)
    owner_of(prompt, "top_p")["top_p"] = add_node(prompt, "PrimitiveString", value="auto")
    owner_of(prompt, "skip_scales")["skip_scales"] = add_node(prompt, "PrimitiveInt", value=1)
    assert saved_images(comfy_server, comfy_server.run(prompt))
    owner_of(prompt, "cfg")["cfg"] = add_node(prompt, "PrimitiveFloat", value=-0.3)
    assert "cfg is -0.3; expected 'auto', or a number from 0 to 30" in refusal(comfy_server, prompt)


BAD_OWN = (
    -0.3,
    "-0.3",
    -2,
    "nan",
    "inf",
    "-inf",
    "1e999",
    "much",
    "0,5",
    1e6,
    True,
    {"a": 1},
    {"__value__": [1, 2]},
)


@pytest.mark.parametrize("name", OWN)
def test_number_that_is_none_is_refused_once(comfy_server: ComfyServer, prompt: Json, name: str) -> None:
    whole = name in ("top_k", "skip_scales")
    for value in (*BAD_OWN, *((0.5, "2.5") if whole else ())):
        owner_of(prompt, name)[name] = value
        said = refusal(comfy_server, prompt)
        assert f"{name} is " in said and "expected 'auto', or a " in said and "\n" not in said, said
        assert said.count("expected") == 1 and len(said) < 300, said


COMBOS = ("preset", "guidance", "tokens", "restoration", "refine")


@pytest.mark.parametrize("name", COMBOS)
def test_choice_that_is_none_is_refused_with_value_and_choices(
    comfy_server: ComfyServer, prompt: Json, name: str
) -> None:
    for value in ("fp16", "", None, 3, True, {"__value__": []}, {"__value__": ["off", "auto"]}, {"a": 1}):
        owner_of(prompt, name)[name] = value
        said = refusal(comfy_server, prompt)
        assert f"{name} is " in said and said.count("expected one of [") == 1, said


@pytest.mark.parametrize("value", ["nan", "Infinity", -1, 2, None, {"__value__": [0.5]}, {"a": 1}])
@pytest.mark.parametrize("name", ["semantic_end", "keep_last"])
def test_schedule_number_that_is_none_is_refused(
    comfy_server: ComfyServer, scheduled: Json, name: str, value: Any
) -> None:
    owner_of(scheduled, name)[name] = value
    assert name in refusal(comfy_server, scheduled)


@pytest.mark.parametrize("value", [None, 3, "", {"__value__": []}, {"a": 1}])
def test_schedule_file_that_is_no_name_is_refused(
    comfy_server: ComfyServer, scheduled: Json, value: Any
) -> None:
    owner_of(scheduled, "schedule_file")["schedule_file"] = value
    assert "schedule_file" in refusal(comfy_server, scheduled)


@pytest.mark.parametrize("name", ["seed", "width", "height", "batch_size"])
@pytest.mark.parametrize("value", ["nan", 1e400, -1, 2**70, None, {"__value__": [128]}, {"a": 1}])
def test_whole_number_that_is_none_is_refused(
    comfy_server: ComfyServer, prompt: Json, name: str, value: Any
) -> None:
    owner_of(prompt, name)[name] = value
    assert name in refusal(comfy_server, prompt)


def test_linked_numbers_are_checked(comfy_server: ComfyServer, prompt: Json) -> None:
    owner_of(prompt, "batch_size")["batch_size"] = add_node(prompt, "PrimitiveInt", value=65)
    assert "batch_size is 65; expected a whole number from 1 to 64" in refusal(comfy_server, prompt)


SOCKETS = {
    "StageVARSampler": ("model", "vae", "positive", "negative", "edit"),
    "StageVARAccelerate": ("model", "schedule"),
    "StageVARLoadLora": ("model",),
    "StageVARCompile": ("model",),
    "StageVARCompileVAE": ("vae",),
    "StageVARStageReport": ("report",),
}


@pytest.mark.parametrize("value", ["a red ball", {}, 3, {"__value__": []}, {"__value__": [[1, 2]]}])
@pytest.mark.parametrize(
    ("node", "name"), [(node, name) for node, names in SOCKETS.items() for name in names]
)
def test_literal_in_a_socket_is_refused_by_name(
    comfy_server: ComfyServer, prompt: Json, node: str, name: str, value: Any
) -> None:
    lora = add_node(prompt, "StageVARLoadLora", model=owner_of(prompt, "seed")["model"])
    compiled = add_node(prompt, "StageVARCompile", model=lora)
    vae = add_node(prompt, "StageVARCompileVAE", vae=owner_of(prompt, "seed")["vae"])
    owner_of(prompt, "seed").update(model=compiled, vae=vae)
    prompt[only_node(prompt, node)]["inputs"][name] = value
    said = refusal(comfy_server, prompt)
    assert f"{name}: found " in said and "; expected " in said and "; connect " in said, said
    assert "\n" not in said.strip()


def test_status_text_of_older_pages_is_taken_for_auto(comfy_server: ComfyServer, prompt: Json) -> None:
    """API files saved from a page that had stored what stood on the node as the value of the next widget."""
    pictures = []
    for refine in (
        "auto",
        STATUS,
        "off: as many FLOPs as the dense run\n100% of the tokens computed, KV 8.6 MB, 4.88 s",
    ):
        owner_of(prompt, "refine").update(
            refine=refine, stop_after=refine if refine != "auto" else "finished"
        )
        owner_of(prompt, "seed")["seed"] = 63
        pictures += saved_images(comfy_server, comfy_server.run(prompt))
    assert all(np.array_equal(picture, pictures[0]) for picture in pictures[1:])


def text_of(prompt: Json, entry: Json) -> list[str]:
    return entry["outputs"][sampler_node(prompt)]["text"]


def test_result_line_says_preset_work_seconds_and_size(comfy_server: ComfyServer, scheduled: Json) -> None:
    owner_of(scheduled, "seed").update(seed=64, width=100, height=100)
    line, *notes = text_of(scheduled, comfy_server.run(scheduled))
    assert line.startswith("balanced (schedule): ") and "x less work, " in line and " s, " in line
    assert line.endswith(", 128 x 128 (nearest trained size to 100 x 100)") and "\n" not in line
    owner_of(scheduled, "preset")["preset"] = "off"
    owner_of(scheduled, "seed").update(seed=64, width=128, height=128, batch_size=2)
    line, *notes = text_of(scheduled, comfy_server.run(scheduled))
    assert line.startswith("off: nothing left out, ") and line.endswith(" s, 2 images of 128 x 128")
    assert not notes


def test_a_cached_rerun_keeps_the_line_in_the_history_of_the_first(
    comfy_server: ComfyServer, prompt: Json
) -> None:
    owner_of(prompt, "seed")["seed"] = 65
    first = text_of(prompt, comfy_server.run(prompt))
    del prompt[only_node(prompt, "StageVARStageReport")]
    again = comfy_server.run(prompt)
    cached = dict(again["status"]["messages"])["execution_cached"]["nodes"]
    assert first and sampler_node(prompt) in cached, "the sampler must not run again"


def test_off_says_what_it_does_not_use(comfy_server: ComfyServer, scheduled: Json) -> None:
    owner_of(scheduled, "preset").update(preset="off", keep=0.5)
    owner_of(scheduled, "seed")["seed"] = 66
    entry = comfy_server.run(scheduled)
    assert entry["outputs"][only_node(scheduled, "StageVARAccelerate")]["text"] == [
        "off: schedule, keep not used"
    ]


def test_progress_says_which_scale_runs_to_the_one_who_asked(watcher: Watcher, prompt: Json) -> None:
    owner_of(prompt, "seed").update(seed=67, batch_size=2)
    owner_of(prompt, "preset")["preset"] = "sparsevar"  # which makes the images one by one
    with Watcher(watcher.server) as other:
        prompt_id = watcher.queue(prompt)
        assert watcher.until_end(prompt_id)[0] == "execution_success"
        other.socket.settimeout(1)
        with contextlib.suppress(websocket.WebSocketTimeoutException):
            other.until(lambda name, data: False)
        assert not other.data_of("stagevar.progress")
    told = watcher.data_of("stagevar.progress")
    place = {"node": sampler_node(prompt), "display_node": sampler_node(prompt), "prompt_id": prompt_id}
    assert told == [
        {**place, "scale": scale + 1, "scales": 7, "image": image, "images": 2}
        for image in (1, 2)
        for scale in range(7)
    ]


def test_nothing_is_sent_as_text_on_a_node(watcher: Watcher, prompt: Json) -> None:
    """Pages of 2025 store such a text as one more value of the node when the workflow is saved."""
    kinds = []
    watcher._record_preview = lambda message: kinds.append(int.from_bytes(message[:4], "big"))
    owner_of(prompt, "seed")["seed"] = 68
    assert watcher.until_end(watcher.queue(prompt))[0] == "execution_success"
    assert kinds and TEXT not in kinds
