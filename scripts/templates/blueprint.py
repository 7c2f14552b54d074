"""A subgraph blueprint: one node that the page's node library offers, with a small graph inside."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import NamedTuple

from .graph import COLUMN, KINDS, SLOT, Graph, Json, Node
from .parts import DRAWN, EMBEDDED, OWN, SAMPLER, SCENE, accelerate

NAME = "Fast Text to Image (StageVAR)"
SAYS = (
    "A picture from a text with a next-scale model (Infinity, STAR, or the built-in one), accelerated by "
    "StageVAR. Choose the model and the preset; StageVAR Load finds the VAE and the text encoder."
)
INSIDE, OUTSIDE = -10, -20  # the ids of a subgraph's own input and output
# Newer pages renumber what has the id of a node that is there, and then lose the widgets that are shown.
FIRST = 7100
_NUMBERS = dict.fromkeys(("cfg", "temperature", "top_p"), "FLOAT")
_NUMBERS |= dict.fromkeys(("seed", "top_k", "width", "height", "batch_size"), "INT")
TYPES = {"text": "STRING", "smooth": "BOOLEAN", **_NUMBERS}  # of widgets; all others are COMBO


class Exposed(NamedTuple):
    """A widget inside that is one of the whole node, with a socket of its own or, ``followed``, without.

    Pages change a seed after a run only where it stays inside; there the node shows it without a socket.
    """

    node: Node
    widget: str
    followed: bool = False


def fast_text_to_image() -> tuple[Graph, list[Exposed], tuple[Node, str]]:
    """What is inside, which widgets are shown, and the output."""
    graph = Graph(NAME)
    loaded = graph.add("StageVARLoad", (0, 0), (COLUMN, 130), model_name=EMBEDDED, task="auto")
    made = accelerate(graph, (480, 0), (loaded, "var_model"))
    text = graph.add("CLIPTextEncode", (480, 400), (420, 170), clip=(loaded, "clip"), text=SCENE)
    sampler = graph.add(
        *("StageVARSampler", (980, 0), SAMPLER),
        **{"model": (made, "var_model"), "vae": (loaded, "vae"), "positive": (text, "CONDITIONING")},
        **{"seed": 12, **OWN, **DRAWN, "width": 128, "height": 128, "batch_size": 1},
    )
    vae = graph.reroute((980, -120), loaded, "vae")
    decoded = graph.add("VAEDecode", (1490, 0), (220, 60), samples=(sampler, "latent"), vae=vae)
    shown = [
        *(Exposed(text, "text"), Exposed(sampler, "seed", followed=True)),
        *(Exposed(sampler, "width"), Exposed(sampler, "height")),
        *(Exposed(made, "preset"), Exposed(loaded, "model_name")),
    ]
    return graph, shown, (decoded, "IMAGE")


def written(graph: Graph, shown: list[Exposed], output: tuple[Node, str]) -> Json:
    """The blueprint as the page stores one."""
    key = str(uuid.uuid5(uuid.NAMESPACE_URL, f"stagevar/{graph.name}"))
    links = [
        dict(zip(("id", "origin_id", "origin_slot", "target_id", "target_slot", "type"), link, strict=True))
        for link in graph.links
    ]
    places = {name: at for of in {one.node for one in shown} for name, at in _complete(graph, of).items()}
    inputs, outside, proxies, stored = [], [], [], []
    for one in shown:
        entry = graph.nodes[one.node.id - 1]
        if one.followed:
            inner = str(FIRST + one.node.id)
            proxies += [[inner, one.widget], [inner, "control_after_generate"]]
            stored += [graph.api[str(one.node.id)]["inputs"][one.widget], "randomize"]
            continue
        type = TYPES.get(one.widget, "COMBO")
        target = places[one.node, one.widget]
        link = len(links) + 1
        entry["inputs"][target]["link"] = link
        links.append(_link(link, (INSIDE, len(inputs)), (one.node.id, target), type))
        inputs.append(_end(key, one.widget, type, link, (-240, SLOT * (len(inputs) + 1))))
        outside.append({"name": one.widget, "type": type, "widget": {"name": one.widget}, "link": None})
        proxies.append(["-1", one.widget])
        stored.append(graph.api[str(one.node.id)]["inputs"][one.widget])
    source, name = output
    kind = KINDS[source.type].outputs
    link, slot = len(links) + 1, list(kind).index(name)
    links.append(_link(link, (source.id, slot), (OUTSIDE, 0), kind[name]))
    graph.nodes[source.id - 1]["outputs"][slot]["links"] = [link]
    for part in graph.nodes:
        part["id"] += FIRST
    for part in links:
        ends = {end: part[end] + FIRST for end in ("origin_id", "target_id") if part[end] > 0}
        part.update(ends)
    subgraph = {
        **{"id": key, "version": 1, "revision": 0, "config": {}, "name": graph.name, "description": SAYS},
        "state": {
            **{"lastGroupId": 0, "lastNodeId": FIRST + len(graph.nodes)},
            **{"lastLinkId": len(links), "lastRerouteId": 0},
        },
        "inputNode": {"id": INSIDE, "bounding": [-260, 0, 120, SLOT * (len(inputs) + 2)]},
        "outputNode": {"id": OUTSIDE, "bounding": [1800, 0, 120, 60]},
        "inputs": inputs,
        "outputs": [_end(key, name, kind[name], link, (1820, SLOT))],
        **{"widgets": [], "nodes": graph.nodes, "groups": graph.groups, "links": links, "extra": {}},
    }
    node = {
        **{"id": 1, "type": key, "pos": [0, 0], "size": [420, 420], "flags": {}, "order": 0, "mode": 0},
        "inputs": outside,
        "outputs": [{"name": name, "type": kind[name], "links": None}],
        "properties": {"proxyWidgets": proxies, "cnr_id": "stagevar", "ver": graph.pack},
        **{"widgets_values": stored, "title": graph.name},
    }
    extra = {"frontendVersion": graph.page, "BlueprintDescription": SAYS}
    return {
        **{"revision": 0, "last_node_id": 1, "last_link_id": 0, "nodes": [node], "links": []},
        **{"version": 0.4, "definitions": {"subgraphs": [subgraph]}, "extra": extra},
    }


def _complete(graph: Graph, node: Node) -> dict[tuple[Node, str], int]:
    """Gives a node a socket for every widget, as its definition orders them; where each is.

    A page that adds a blueprint takes the places of links as they are stored.
    """
    entry, kind = graph.nodes[node.id - 1], KINDS[node.type]
    for name in kind.widgets:
        type = TYPES.get(name, "COMBO")
        entry["inputs"].append({"name": name, "type": type, "widget": {"name": name}, "link": None})
    return {(node, name): len(kind.sockets) + place for place, name in enumerate(kind.widgets)}


def _link(link: int, source: tuple[int, int], target: tuple[int, int], type: str) -> Json:
    """A link of a subgraph, between (node, slot) and (node, slot)."""
    (origin, slot), (into, place) = source, target
    return {
        **{"id": link, "origin_id": origin, "origin_slot": slot},
        **{"target_id": into, "target_slot": place, "type": type},
    }


def _end(key: str, name: str, type: str, link: int, at: tuple[int, int]) -> Json:
    """An input or output of the subgraph itself."""
    made = str(uuid.uuid5(uuid.UUID(key), name))
    return {"id": made, "name": name, "type": type, "linkIds": [link], "pos": list(at)}


def write(folder: Path) -> Path:
    """Writes the blueprint; ASCII alone, as some servers read it in the encoding of their system."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{NAME}.json"
    path.write_text(json.dumps(written(*fast_text_to_image()), indent=2) + "\n", encoding="ascii")
    return path
