"""The pack as ComfyUI sees it after start-up."""

from __future__ import annotations

import re
from typing import Any

import pytest
from testbed.comfy_server import PACK_NAME, ComfyServer, Json

NODES = (
    *("StageVARLoadModel", "StageVARLoadTokenizer", "StageVARLoadTextEncoder", "StageVARSampler"),
    *("StageVARLoadLora", "StageVARAccelerate", "StageVARStageSchedule", "StageVARStageReport"),
    *("StageVARClassLabel", "StageVAREdit", "StageVARChangeWords", "StageVARCompile", "StageVARCompileVAE"),
    *("StageVARMaskPreview", "StageVARPasteBack"),
    "StageVARPickDifferent",
    "StageVARContinue",
)


def our_nodes(server: ComfyServer) -> dict[str, Json]:
    """The schemas of all nodes this pack registers."""
    return {
        name: schema
        for name, schema in server.object_info().items()
        if PACK_NAME in str(schema["python_module"])
    }


def inputs_of(schema: Json) -> list[tuple[str, Any, Json]]:
    """Name, type and options of every input."""
    sections = [schema["input"].get(section, {}) for section in ("required", "optional")]
    found = [(name, spec) for section in sections for name, spec in section.items()]
    return [(name, spec[0], spec[1] if len(spec) > 1 else {}) for name, spec in found]


def test_pack_loads_without_a_complaint(comfy_server: ComfyServer) -> None:
    assert not comfy_server.import_problems(), comfy_server.log_tail()
    complaint = re.compile(r"warn|error|deprecat", re.IGNORECASE)
    lines = [line for line in comfy_server.startup_log.splitlines() if "stagevar" in line.lower()]
    assert not [line for line in lines if complaint.search(line)]


@pytest.mark.parametrize("node", NODES)
def test_node_is_registered(comfy_server: ComfyServer, node: str) -> None:
    assert node in comfy_server.object_info(node)


def test_every_node_id_is_prefixed_and_described(comfy_server: ComfyServer) -> None:
    nodes = our_nodes(comfy_server)
    assert set(NODES) <= set(nodes)
    for name, schema in nodes.items():
        assert name.startswith("StageVAR")
        assert schema["description"], f"{name} has no description"
        assert schema["category"], f"{name} has no category"


def test_every_input_has_a_tooltip_and_floats_keep_their_value(comfy_server: ComfyServer) -> None:
    for node, schema in our_nodes(comfy_server).items():
        for name, kind, options in inputs_of(schema):
            assert options.get("tooltip"), f"{node}.{name} has no tooltip"
            if kind == "FLOAT":  # without both, the page rounds to 0.1
                assert options.get("step") and options.get("round"), f"{node}.{name} needs step and round"


WORDS = {
    "StageVARSampler": ("StageVAR", "Sampler", "Infinity", "VAR", "STAR"),
    "StageVARAccelerate": ("StageVAR", "Accelerate", "faster"),
    "StageVARLoadLora": ("StageVAR", "Load LoRA", "Infinity"),
    "StageVAREdit": ("StageVAR", "Inpaint"),
    "StageVARMaskPreview": ("StageVAR", "Mask", "Preview"),
    "StageVARPasteBack": ("StageVAR", "Paste Back"),
    "StageVARContinue": ("StageVAR", "Continue", "draft"),
    "StageVARChangeWords": ("StageVAR", "Change Words"),
    "StageVARPickDifferent": ("StageVAR", "Pick", "batch"),
    "StageVARStageSchedule": ("StageVAR", "Stage Schedule", "token"),
    "StageVARStageReport": ("StageVAR", "Stage Report", "time"),
    "StageVARCompile": ("StageVAR", "torch.compile"),
    "StageVARCompileVAE": ("StageVAR", "VAE", "torch.compile"),
}


@pytest.mark.parametrize("node", WORDS)
def test_names_carry_the_words_that_people_search_for(comfy_server: ComfyServer, node: str) -> None:
    """Pages of 0.3.75 search names alone."""
    name = comfy_server.object_info(node)[node]["display_name"]
    assert all(word in name for word in WORDS[node]), name


def test_workflow_templates_are_offered(comfy_server: ComfyServer) -> None:
    offered = comfy_server.get("/workflow_templates")
    wanted = {"01_text_to_image_no_download", "02_faster_no_download", "04_compare_presets_no_download"}
    wanted |= {"19_class_to_image_VAR", "20_faster_VAR", "21_inpaint_VAR"}
    wanted |= {"17_text_to_image_STAR", "18_faster_STAR"}
    wanted |= {"10_inpaint_latent_no_download", "11_outpaint_no_download"}
    wanted |= {"30_artwork_no_download", "33_artwork_draft_pick_finish_no_download"}
    assert wanted <= set(offered[PACK_NAME])
