"""The page and numbers that may be ``auto``: what older workflows hold and link stays what it was."""

from __future__ import annotations

import json
from typing import Any

import pytest
from playwright.sync_api import Page
from testbed.comfy_server import Json, read_json, sampler_node, shipped_workflow

from tests.comfyui.test_browser import CONVERT, browser, page, set_renderer  # noqa: F401 (fixtures)

pytestmark = pytest.mark.browser
NUMBERS = ("cfg", "temperature", "top_k", "top_p")
FRESH = """() => {
    const node = window.LiteGraph.createNode('StageVARSampler');
    return JSON.stringify(Object.fromEntries(node.widgets.map(widget => [widget.name, widget.value])));
}"""


def converted(page: Page, workflow: Json) -> Json:  # noqa: F811
    """The inputs of the sampler, as the page sends them."""
    prompt = json.loads(page.evaluate(CONVERT, json.dumps(workflow)))
    return prompt[sampler_node(prompt)]["inputs"]


def linked(kind: str, name: str, number: float) -> Json:
    """The shipped workflow with a number that comes from another node, as older pages saved it."""
    workflow = read_json(shipped_workflow("text_to_image_embedded", api=False))
    sampler = next(node for node in workflow["nodes"] if node["type"] == "StageVARSampler")
    link, node = workflow["last_link_id"] + 1, workflow["last_node_id"] + 1
    workflow.update(last_link_id=link, last_node_id=node)
    place = {
        "id": node,
        "type": kind,
        "pos": [500, 700],
        "size": [210, 82],
        "flags": {},
        "order": 0,
        "mode": 0,
    }
    typed = "INT" if name == "top_k" else "FLOAT"
    out: Json = {"name": typed, "type": typed, "links": [link]}
    if kind == "PrimitiveNode":
        out["widget"] = {"name": name}
    workflow["nodes"].append(
        {**place, "inputs": [], "outputs": [out], "properties": {}, "widgets_values": [number, "fixed"]}
    )
    workflow["links"].append([link, node, 0, sampler["id"], len(sampler["inputs"]), typed])
    sampler["inputs"].append({"name": name, "type": typed, "widget": {"name": name}, "link": link})
    return workflow


@pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])
def test_numbers_of_older_workflows_stay(page: Page, vue: bool) -> None:  # noqa: F811
    set_renderer(page, vue)
    assert {json.loads(page.evaluate(FRESH))[name] for name in NUMBERS} == {"auto"}
    held: dict[str, Any] = {"cfg": -1, "temperature": -1.0, "top_k": -1, "top_p": 0.9}
    workflow = read_json(shipped_workflow("text_to_image_embedded", api=False))
    sampler = next(node for node in workflow["nodes"] if node["type"] == "StageVARSampler")
    sampler["widgets_values"][2:6] = held.values()
    assert {name: converted(page, workflow)[name] for name in NUMBERS} == held
    sent = converted(page, linked("PrimitiveNode", "cfg", 3.5))
    assert sent["cfg"] == 3.5 and sent["width"] == 128
    assert converted(page, linked("PrimitiveNode", "top_k", 600))["top_k"] == 600
    source, _ = converted(page, linked("PrimitiveFloat", "cfg", 3.5))["cfg"]
    assert source == str(workflow["last_node_id"] + 1)
