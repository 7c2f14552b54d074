"""Random graphs: shipped workflows in API format, changed a few times as a page or a script could."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from testbed.comfy_server import Json

OURS = "StageVAR"
# Larger values are fine, but a graph with them takes minutes on a CPU, and a soak is about many graphs.
LARGEST = {
    **dict.fromkeys(("batch_size", "amount", "tries", "length", "columns", "rows", "count", "images"), 4),
    **dict.fromkeys(("width", "height", "cell_width", "cell_height", "left", "right", "top", "bottom"), 256),
    **dict.fromkeys(("scale_by", "megapixels"), 1),
}
TEXTS = (
    "",
    "auto",
    "a red circle",
    "(a red circle:1.6)",
    "((",
    "0.5, 0.4, 0.3",
    "1,2",
    "-1",
    "nan",
    "x " * 400,
    "红",
)
# Core nodes that people put between two others: by the kind of link that goes in and comes out.
BETWEEN = {
    "LATENT": (
        *(
            "LatentFromBatch",
            "RepeatLatentBatch",
            "LatentFlip",
            "LatentRotate",
            "LatentCrop",
            "LatentUpscale",
        ),
        *("LatentMultiply", "LatentAdd", "LatentBlend", "LatentComposite", "LatentBatch", "RebatchLatents"),
        *("SetLatentNoiseMask", "LatentBatchSeedBehavior"),
    ),
    "IMAGE": (
        *("ImageFromBatch", "RepeatImageBatch", "ImageInvert", "ImageScale", "ImageScaleBy", "ImageCrop"),
        *("ImageBatch", "ImageBlend", "ImageBlur", "RebatchImages", "ImagePadForOutpaint", "ImageQuantize"),
    ),
    "CONDITIONING": (
        *("ConditioningCombine", "ConditioningAverage", "ConditioningConcat", "ConditioningZeroOut"),
        *("ConditioningSetArea", "ConditioningSetAreaPercentage", "ConditioningSetTimestepRange"),
        *("ConditioningSetAreaStrength",),
    ),
    "MASK": ("InvertMask", "GrowMask", "FeatherMask", "ThresholdMask", "CropMask"),
    "STAGEVAR_MODEL": ("StageVARAccelerate",),
}


class Edit(NamedTuple):
    """One change of a graph: what kind, at which node and input, and the value or node that it brings."""

    kind: str
    node: str
    input: str
    value: Any


class Graphs:
    """Makes cases, a template with edits each, out of what the server says about its nodes."""

    def __init__(self, info: Json, templates: Mapping[str, Json], seed: int) -> None:
        self.info, self.templates, self.random = info, templates, random.Random(seed)

    def case(self) -> tuple[str, list[Edit]]:
        """A template's name and one to five edits that apply to it in their order."""
        name = self.random.choice(sorted(self.templates))
        graph, edits = copy.deepcopy(self.templates[name]), []
        for _ in range(self.random.randint(1, 5)):
            edit = self._edit(graph)
            if edit is not None:
                edits.append(edit)
                graph = applied(graph, [edit], self.info)
        return name, edits

    def _edit(self, graph: Json) -> Edit | None:
        kind = self.random.choices(("value", "relink", "cut", "insert"), (5, 2, 1, 3))[0]
        ours = [node for node in graph if graph[node]["class_type"].startswith(OURS)]
        node = self.random.choice(ours if ours and self.random.random() < 0.7 else sorted(graph))
        inputs = inputs_of(self.info, graph[node]["class_type"])
        links = [name for name, value in graph[node]["inputs"].items() if is_link(value)]
        if kind == "value":
            widgets = [name for name, spec in inputs.items() if is_widget(spec)]
            if not widgets:
                return None
            name = self.random.choice(widgets)
            return Edit(kind, node, name, self._value(name, inputs[name]))
        if not links:
            return None
        name = self.random.choice(links)
        if kind == "cut":
            return Edit(kind, node, name, None)
        source = graph[node]["inputs"][name]
        wanted = output_type(self.info, graph, source)
        if kind == "relink":
            others = [link for link in outputs(self.info, graph, wanted) if not reaches(graph, link[0], node)]
            return Edit(kind, node, name, self.random.choice(others)) if others else None
        between = [entry for entry in BETWEEN.get(wanted, ()) if entry in self.info]
        if not between:
            return None
        return Edit(kind, node, name, self._between(graph, self.random.choice(between), source, wanted))

    def _between(self, graph: Json, class_type: str, source: Sequence[Any], wanted: str) -> Json:
        """A node for the middle of a link; its other inputs get what there is."""
        values: Json = {}
        used = False
        for name, spec in inputs_of(self.info, class_type).items():
            if is_widget(spec):
                values[name] = self._value(name, spec, odd=False)
            elif spec[0] == wanted and not used:
                values[name], used = list(source), True
            elif others := list(outputs(self.info, graph, str(spec[0]))):
                values[name] = self.random.choice(others)
        return {"class_type": class_type, "inputs": values}

    def _value(self, name: str, spec: Sequence[Any], *, odd: bool = True) -> Any:
        kind, about = spec[0], spec[1] if len(spec) > 1 else {}
        choices = kind if isinstance(kind, list) else about.get("options")
        if choices:
            return "nonsense" if odd and self.random.random() < 0.05 else self.random.choice(choices)
        if kind == "BOOLEAN":
            return self.random.random() < 0.5
        if kind in ("INT", "FLOAT"):
            return self._number(name, kind, about, odd=odd)
        return self.random.choice(TEXTS)

    def _number(self, name: str, kind: str, about: Json, *, odd: bool) -> int | float:
        low, high = about.get("min", 0), about.get("max", 100)
        high = min(high, LARGEST.get(name, high))
        inside = low + (high - low) * self.random.random()
        values = [low, high, about.get("default", low), inside, low + (high - low) * 0.01]
        if odd and self.random.random() < 0.1:
            values = [low - 1, about.get("max", 100) + 1, 0, -1]
        value = self.random.choice(values)
        if isinstance(value, (int, float)):
            return int(value) if kind == "INT" else float(value)
        return low


def applied(graph: Json, edits: Sequence[Edit], info: Json) -> Json:
    """A graph with the edits that still fit it."""
    made = copy.deepcopy(graph)
    for kind, node, name, value in edits:
        if node not in made:
            continue
        inputs = made[node]["inputs"]
        if kind == "cut":
            inputs.pop(name, None)
        elif kind == "insert":
            key = str(max((int(each) for each in made if each.isdecimal()), default=0) + 1)
            known = all(not is_link(link) or link[0] in made for link in value["inputs"].values())
            if known:
                made[key] = copy.deepcopy(value)
                first = output_type(info, made, [key, 0])
                inputs[name] = [key, 0] if first else inputs.get(name)
        elif kind == "value" or value[0] in made:
            inputs[name] = value
    return made


def inputs_of(info: Json, class_type: str) -> Json:
    """The inputs of a node as the server lists them, required and optional ones."""
    listed = info.get(class_type, {}).get("input", {})
    return {**listed.get("required", {}), **listed.get("optional", {})}


def is_link(value: Any) -> bool:
    """Whether an input of a graph is a link."""
    return (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], str)
        and isinstance(value[1], int)
    )


def is_widget(spec: Sequence[Any]) -> bool:
    """Whether an input is set on the node rather than linked."""
    return isinstance(spec[0], list) or spec[0] in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


def output_type(info: Json, graph: Json, link: Sequence[Any]) -> str:
    """The type of what a link carries; empty where there is no such output."""
    kinds = info.get(graph.get(link[0], {}).get("class_type", ""), {}).get("output", [])
    return str(kinds[link[1]]) if link[1] < len(kinds) else ""


def outputs(info: Json, graph: Json, wanted: str) -> Iterator[list[Any]]:
    """Links to all outputs of a type."""
    for node in sorted(graph):
        kinds = info.get(graph[node]["class_type"], {}).get("output", [])
        yield from ([node, index] for index, kind in enumerate(kinds) if kind == wanted)


def reaches(graph: Json, start: str, wanted: str) -> bool:
    """Whether ``start`` depends on ``wanted``, so that a link from it would close a circle."""
    waiting, seen = [start], set()
    while waiting:
        node = waiting.pop()
        if node == wanted:
            return True
        if node in seen or node not in graph:
            continue
        seen.add(node)
        waiting += [value[0] for value in graph[node]["inputs"].values() if is_link(value)]
    return False
