"""A workflow under construction, and its two forms: the page's own and the API's."""

from __future__ import annotations

import json
import re
import uuid
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
Json = dict[str, Any]
Point = tuple[float, float]

COLUMN = 400  # width of loaders
TITLE = 30  # height of a node's title bar, which lies above its position
SLOT = 20  # distance of sockets
VIEW = (1420, 720)  # pixels of the window for a workflow; Vue pages draw it a fifth larger
CORNER = (90, 120)  # where they begin, beside and below the page's own


class Kind(NamedTuple):
    """What the page knows of a node type: sockets (an optional one ends in ?), widgets, outputs."""

    sockets: dict[str, str]
    widgets: tuple[str, ...]
    outputs: dict[str, str]


_LOADED = {"var_model": "VAR_MODEL", "vae": "VAE", "clip": "CLIP"}
KINDS = {
    "StageVARLoad": Kind({}, ("model_name", "task"), _LOADED),
    "StageVARLoadModel": Kind({}, ("model_name", "weight_dtype", "task"), {"var_model": "VAR_MODEL"}),
    "StageVARLoadTokenizer": Kind({}, ("vae_name",), {"vae": "VAE"}),
    "StageVARLoadTextEncoder": Kind(
        {}, ("text_encoder_name", "weight_dtype", "second_text_encoder_name"), {"clip": "CLIP"}
    ),
    "StageVARLoadLora": Kind({"model": "VAR_MODEL"}, ("lora_name", "strength"), {"var_model": "VAR_MODEL"}),
    "StageVARClassLabel": Kind({}, ("class_name", "label"), {"conditioning": "CONDITIONING"}),
    "StageVARAccelerate": Kind(
        {"model": "VAR_MODEL", "schedule": "STAGE_SCHEDULE?"},
        (
            *("preset", "guidance", "tokens", "keep", "restoration"),
            *("code_weight", "structure_end", "skip_scales"),
        ),
        {"var_model": "VAR_MODEL"},
    ),
    "StageVAREdit": Kind(
        {"model": "VAR_MODEL", "vae": "VAE", "image": "IMAGE", "mask": "MASK"}, (), {"edit": "STAGE_EDIT"}
    ),
    "StageVARVary": Kind(
        {"model": "VAR_MODEL", "vae": "VAE", "image": "IMAGE?", "latent": "LATENT?"},
        ("variation",),
        {"edit": "STAGE_EDIT"},
    ),
    "StageVARScales": Kind({"latent": "LATENT", "vae": "VAE"}, ("decoding",), {"images": "IMAGE"}),
    "StageVARSampler": Kind(
        {
            **{"model": "VAR_MODEL", "vae": "VAE", "positive": "CONDITIONING"},
            **{"negative": "CONDITIONING?", "edit": "STAGE_EDIT?", "latent": "LATENT?"},
        },
        (
            *("seed", "cfg", "temperature", "top_k", "top_p", "width", "height", "batch_size"),
            *("refine", "smooth", "stop_after"),
        ),
        {"latent": "LATENT", "report": "STAGE_REPORT"},
    ),
    "StageVARMaskPreview": Kind(
        {"model": "VAR_MODEL", "image": "IMAGE", "mask": "MASK"}, (), {"mask": "MASK", "tokens": "IMAGE"}
    ),
    "StageVARPasteBack": Kind(
        {"original": "IMAGE", "drawn": "IMAGE", "mask": "MASK"}, ("feather",), {"image": "IMAGE"}
    ),
    "StageVARContinue": Kind(
        {
            **{"model": "VAR_MODEL", "vae": "VAE", "latent": "LATENT"},
            **{"positive": "CONDITIONING", "negative": "CONDITIONING?"},
        },
        ("seed", "cfg", "temperature", "top_k", "top_p", "stop_after"),
        {"latent": "LATENT", "report": "STAGE_REPORT"},
    ),
    "StageVAREditByText": Kind(
        {
            **{"model": "VAR_MODEL", "vae": "VAE", "image": "IMAGE"},
            **{"positive": "CONDITIONING", "negative": "CONDITIONING?"},
        },
        ("seed", "cfg", "temperature", "top_k", "top_p", "tries"),
        {"image": "IMAGE", "latent": "LATENT", "report": "STAGE_REPORT"},
    ),
    "StageVARRestore": Kind(
        {
            **{"model": "VAR_MODEL", "vae": "VAE", "image": "IMAGE"},
            **{"positive": "CONDITIONING?", "upscale_model": "UPSCALE_MODEL?"},
        },
        ("seed", "scale", "overlap"),
        {"image": "IMAGE"},
    ),
    "StageVARStageReport": Kind({"report": "STAGE_REPORT"}, (), {"plot": "IMAGE", "json": "STRING"}),
    "CLIPTextEncode": Kind({"clip": "CLIP"}, ("text",), {"CONDITIONING": "CONDITIONING"}),
    "ConditioningSetTimestepRange": Kind(
        {"conditioning": "CONDITIONING"}, ("start", "end"), {"CONDITIONING": "CONDITIONING"}
    ),
    "ConditioningSetAreaPercentage": Kind(
        {"conditioning": "CONDITIONING"},
        ("width", "height", "x", "y", "strength"),
        {"CONDITIONING": "CONDITIONING"},
    ),
    "ConditioningCombine": Kind(
        {"conditioning_1": "CONDITIONING", "conditioning_2": "CONDITIONING"},
        (),
        {"CONDITIONING": "CONDITIONING"},
    ),
    "VAEDecode": Kind({"samples": "LATENT", "vae": "VAE"}, (), {"IMAGE": "IMAGE"}),
    "VAEEncode": Kind({"pixels": "IMAGE", "vae": "VAE"}, (), {"LATENT": "LATENT"}),
    "SetLatentNoiseMask": Kind({"samples": "LATENT", "mask": "MASK"}, (), {"LATENT": "LATENT"}),
    "ImageCrop": Kind({"image": "IMAGE"}, ("width", "height", "x", "y"), {"IMAGE": "IMAGE"}),
    "ImagePadForOutpaint": Kind(
        {"image": "IMAGE"},
        ("left", "top", "right", "bottom", "feathering"),
        {"IMAGE": "IMAGE", "MASK": "MASK"},
    ),
    "RebatchImages": Kind({"images": "IMAGE"}, ("batch_size",), {"IMAGE": "IMAGE"}),
    "ImageGrid": Kind(
        {"images": "IMAGE"}, ("columns", "cell_width", "cell_height", "padding"), {"images": "IMAGE"}
    ),
    "LatentFromBatch": Kind({"samples": "LATENT"}, ("batch_index", "length"), {"LATENT": "LATENT"}),
    "SaveImage": Kind({"images": "IMAGE"}, ("filename_prefix",), {}),
    "PreviewImage": Kind({"images": "IMAGE"}, (), {}),
    "LoadImage": Kind({}, ("image",), {"IMAGE": "IMAGE", "MASK": "MASK"}),
    "UNETLoader": Kind({}, ("unet_name", "weight_dtype"), {"MODEL": "MODEL"}),
    "CLIPLoader": Kind({}, ("clip_name", "type", "device"), {"CLIP": "CLIP"}),
    "PrimitiveInt": Kind({}, ("value",), {"INT": "INT"}),
    "EmptyImage": Kind({}, ("width", "height", "batch_size", "color"), {"IMAGE": "IMAGE"}),
    "ImageCompositeMasked": Kind(
        {"destination": "IMAGE", "source": "IMAGE", "mask": "MASK?"},
        ("x", "y", "resize_source"),
        {"IMAGE": "IMAGE"},
    ),
    "SaveAnimatedWEBP": Kind(
        {"images": "IMAGE"}, ("filename_prefix", "fps", "lossless", "quality", "method"), {}
    ),
    "SolidMask": Kind({}, ("value", "width", "height"), {"MASK": "MASK"}),
    "MaskComposite": Kind(
        {"destination": "MASK", "source": "MASK"}, ("x", "y", "operation"), {"MASK": "MASK"}
    ),
}
# A note's own brown leaves too little contrast to the grey text of newer dark pages.
NOTE = {"color": "#223", "bgcolor": "#335"}
# Widgets that the page follows by one of its own: what happens to the number after a run.
SEEDS = {
    *((kind, "seed") for kind in ("StageVARSampler", "StageVAREditByText", "StageVARRestore")),
    ("PrimitiveInt", "value"),
}
UPLOADS = {"LoadImage"}  # their picture is followed by the kind of its button


class Node(NamedTuple):
    """A node of a graph; an output of it is ``(node, name)``."""

    id: int
    type: str


def versions() -> tuple[str, str, str]:
    """This pack's version, the oldest ComfyUI it supports, and that one's front end."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    setup = (ROOT / "scripts" / "testbed" / "bootstrap.py").read_text(encoding="utf-8")
    return (
        re.search(r'^version = "(.+)"', project, re.MULTILINE)[1],
        re.search(r'^requires-comfyui = ">=(.+)"', project, re.MULTILINE)[1],
        re.search(r"comfyui-frontend-package==(\S+)", setup)[1],
    )


class Graph:
    """Nodes and links, added in the order of a run; sizes and positions are in pixels of the canvas."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.nodes: list[Json] = []
        self.links: list[list] = []
        self.panel: dict[str, list] = {"inputs": [], "outputs": []}
        self.api: Json = {}
        self.origins: dict[Node, tuple[Node, str]] = {}  # of reroutes
        self.models: list[Json] = []
        self.groups: list[Json] = []
        self.pack, self.host, self.page = versions()

    def add(
        self,
        type: str,
        at: Point,
        size: Point,
        /,
        *,
        title: str = "",
        after: str = "randomize",
        collapsed: bool = False,
        models: list[Json] | None = None,
        **given: Any,
    ) -> Node:
        """Adds a node. ``given``: its widgets' values, and links as ``(node, output)``."""
        kind, node = KINDS[type], Node(len(self.nodes) + 1, type)
        linked = {name: value for name, value in given.items() if isinstance(value, tuple)}
        values = []
        for widget in kind.widgets:
            values.append(given.get(widget, 0 if widget in linked else None))
            if widget in linked:
                values[-1] = 0
            values += [after] if (type, widget) in SEEDS else []
        values += ["image"] if type in UPLOADS else []
        title = title or TITLES[type]
        entry = self._entry(node, at, size, values, title)
        entry["flags"] = {"collapsed": True} if collapsed else {}
        entry["inputs"] = [self._socket(name, of) for name, of in kind.sockets.items()]
        for name in kind.widgets:
            if name in linked:
                made = {"name": name, "type": "INT", "widget": {"name": name}, "link": None}
                entry["inputs"].insert(-1, made)
        entry["outputs"] = [{"name": name, "type": of, "links": None} for name, of in kind.outputs.items()]
        if models:
            entry["properties"]["models"] = models
            self.models += [model for model in models if model not in self.models]
        self.nodes.append(entry)
        for name, (source, output) in linked.items():
            self._link(source, output, entry, name)
        inputs = {name: given[name] for name in kind.widgets if name not in linked}
        for name, end in linked.items():
            source, output = self.origins.get(end[0], end)
            inputs[name] = [str(source.id), list(KINDS[source.type].outputs).index(output)]
        shown = {"_meta": {"title": title}}
        self.api[str(node.id)] = {"class_type": type, "inputs": inputs, **shown}
        return node

    def reroute(self, at: Point, source: Node, output: str) -> tuple[Node, str]:
        """The page's own node for a bend of a wire; what it gives on, to be linked like an output."""
        node = Node(len(self.nodes) + 1, "Reroute")
        entry = self._entry(node, at, (75, 26), [], "")
        entry["inputs"] = [{"name": "", "type": "*", "link": None}]
        entry["outputs"] = [{"name": "", "type": KINDS[source.type].outputs[output], "links": None}]
        entry["properties"] = {"showOutputText": False, "horizontal": False}
        del entry["title"], entry["widgets_values"]
        self.nodes.append(entry)
        self._link(source, output, entry, "")
        self.origins[node] = (source, output)
        return node, ""

    def note(self, at: Point, size: Point) -> None:
        """The workflow's note, in colours that are readable on light and dark pages."""
        text = (Path(__file__).with_name("notes") / f"{self.name}.md").read_text(encoding="utf-8")
        node = Node(len(self.nodes) + 1, "MarkdownNote")
        entry = self._entry(node, at, size, [text.strip()], "How to use")
        self.nodes.append(entry | {"properties": {}, **NOTE})

    def group(self, title: str, at: Point, size: Point) -> None:
        """A frame with a title around what lies in it."""
        bounding = [*at, *size]
        self.groups.append(
            {
                "id": len(self.groups) + 1,
                "title": title,
                "bounding": bounding,
                "color": "#3f789e",
                "flags": {},
            }
        )

    def app(self, inputs: list[tuple[Node, str]], outputs: list[Node]) -> None:
        """What the page's app panel offers and shows."""
        self.panel = {
            "inputs": [[node.id, widget] for node, widget in inputs],
            "outputs": [node.id for node in outputs],
        }

    def _entry(self, node: Node, at: Point, size: Point, values: list, title: str) -> Json:
        ours = node.type.startswith("StageVAR")
        return {
            **{"id": node.id, "type": node.type, "pos": list(at), "size": list(size), "flags": {}},
            **{"order": len(self.nodes), "mode": 0, "inputs": [], "outputs": [], "title": title},
            "properties": {
                "cnr_id": "stagevar" if ours else "comfy-core",
                "ver": self.pack if ours else self.host,
                "Node name for S&R": node.type,
            },
            "widgets_values": values,
        }

    @staticmethod
    def _socket(name: str, of: str) -> Json:
        made = {"name": name, "type": of.removesuffix("?"), "link": None}
        return made | ({"shape": 7} if of.endswith("?") else {})

    def _link(self, source: Node, output: str, target: Json, name: str) -> None:
        slot = list(KINDS[source.type].outputs).index(output) if output else 0
        link = len(self.links) + 1
        place = next(i for i, entry in enumerate(target["inputs"]) if entry["name"] == name)
        taken, given = target["inputs"][place], self.nodes[source.id - 1]["outputs"][slot]
        taken["link"], given["links"] = link, [*(given["links"] or []), link]
        self.links.append([link, source.id, slot, target["id"], place, given["type"]])

    def _view(self) -> Json:
        """Where the page looks at first: all of it, for windows from 1536 x 864 pixels on.

        Early Vue pages that choose a view themselves do so while they measure the nodes, and then draw them
        too near to each other or too far apart.
        """
        boxes = [(*node["pos"], *node["size"]) for node in self.nodes]
        boxes += [tuple(group["bounding"]) for group in self.groups]
        left, top = min(box[0] for box in boxes), min(box[1] for box in boxes) - TITLE
        width = max(box[0] + box[2] for box in boxes) - left
        height = max(box[1] + box[3] for box in boxes) - top
        scale = round(min(VIEW[0] / width, VIEW[1] / height, 1.0), 2)
        return {"scale": scale, "offset": [round(CORNER[0] / scale - left), round(CORNER[1] / scale - top)]}

    def write(self, folder: Path) -> None:
        """Writes both forms."""
        extra: Json = {"frontendVersion": self.page, "linearData": self.panel, "ds": self._view()}
        made = {
            **{"id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"stagevar/{self.name}")), "revision": 0},
            **{"last_node_id": len(self.nodes), "last_link_id": len(self.links)},
            **{"nodes": self.nodes, "links": self.links, "groups": self.groups, "config": {}, "extra": extra},
            **({"models": self.models} if self.models else {}),
            "version": 0.4,
        }
        (folder / "api").mkdir(parents=True, exist_ok=True)
        for path, content in ((f"{self.name}.json", made), (f"api/{self.name}.json", self.api)):
            text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
            (folder / path).write_text(text, encoding="utf-8")


# Short titles; the names of the nodes are longer, because they are searched.
TITLES = {
    "StageVARLoad": "StageVAR Load",
    "StageVARLoadModel": "Load Model",
    "StageVARLoadTokenizer": "Load Tokenizer (VAE)",
    "StageVARLoadTextEncoder": "Load Text Encoder (CLIP)",
    "StageVARLoadLora": "StageVAR Load LoRA",
    "StageVARClassLabel": "StageVAR Class Label",
    "StageVARAccelerate": "StageVAR Accelerate",
    "StageVAREdit": "StageVAR Inpaint",
    "StageVARVary": "StageVAR Vary",
    "StageVARScales": "Scales to Images",
    "StageVARSampler": "StageVAR Sampler",
    "StageVARMaskPreview": "StageVAR Mask Preview",
    "StageVARPasteBack": "StageVAR Paste Back",
    "StageVARContinue": "StageVAR Continue",
    "StageVAREditByText": "StageVAR Edit by Text",
    "StageVARRestore": "StageVAR Restore",
    "StageVARStageReport": "Stage Report",
    "CLIPTextEncode": "CLIP Text Encode (Prompt)",
    "ConditioningSetTimestepRange": "Conditioning Set Timestep Range",
    "ConditioningSetAreaPercentage": "Conditioning (Set Area with Percentage)",
    "ConditioningCombine": "Conditioning (Combine)",
    "VAEDecode": "VAE Decode",
    "VAEEncode": "VAE Encode",
    "SetLatentNoiseMask": "Set Latent Noise Mask",
    "ImageCrop": "Image Crop",
    "ImagePadForOutpaint": "Pad Image for Outpainting",
    "LatentFromBatch": "Latent From Batch",
    "RebatchImages": "Rebatch Images",
    "ImageGrid": "Image Grid",
    "SaveImage": "Save Image",
    "PreviewImage": "Preview Image",
    "EmptyImage": "Empty Image",
    "ImageCompositeMasked": "Image Composite Masked",
    "SaveAnimatedWEBP": "Save Animated WEBP",
    "LoadImage": "Load Image",
    "UNETLoader": "Load Diffusion Model",
    "CLIPLoader": "Load CLIP",
    "PrimitiveInt": "Int",
    "SolidMask": "SolidMask",
    "MaskComposite": "MaskComposite",
}
