"""Draws the thumbnails of the artwork model's workflows with these workflows, in a ComfyUI.

    python -m scripts.templates.thumbnails --comfy FOLDER [--python PYTHON]

FOLDER is a ComfyUI, PYTHON one that runs it (default: this one, which also needs Pillow). To be run again
when the model changes.
"""

from __future__ import annotations

import argparse
import copy
import io
import sys
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageDraw

from ..testbed.comfy_server import ComfyServer, Json, nodes_of, only_node, read_json
from .graph import ROOT

SIDE, GAP, QUALITY = 256, 4, 82
PAPER, MARK, PICKED = (32, 34, 40), (214, 92, 150), (240, 190, 60)
SHOWN = ("cat", "strawberry", "sailing boat", "tulip", "ice cream", "panda")
FOLDER = ROOT / "workflows"


class Studio:
    """A server that runs workflows, and the pictures that their nodes show."""

    def __init__(self, server: ComfyServer) -> None:
        self.server = server

    def pictures(self, prompt: Json, *kinds: str) -> list[Image.Image]:
        """What the nodes of these kinds show after a run, kind by kind."""
        outputs = self.server.run(prompt, timeout=1200)["outputs"]
        nodes = [node for kind in kinds for node in nodes_of(prompt, kind)]
        views = [view for node in nodes for view in outputs[node]["images"]]
        return [Image.open(io.BytesIO(self.server.view(view))).convert("RGB") for view in views]


def beside(pictures: list[Image.Image], height: int = 2 * SIDE) -> Image.Image:
    """Pictures of one height in a row."""
    sized = [picture.resize((picture.width * height // picture.height, height)) for picture in pictures]
    row = Image.new("RGB", (sum(p.width for p in sized) + GAP * (len(sized) - 1), height), PAPER)
    left = 0
    for picture in sized:
        row.paste(picture, (left, 0))
        left += picture.width + GAP
    return row


def grid(pictures: list[Image.Image], columns: int) -> Image.Image:
    """Pictures of one size in rows."""
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * SIDE, rows * SIDE), PAPER)
    for index, picture in enumerate(pictures):
        sheet.paste(picture.resize((SIDE, SIDE)), (index % columns * SIDE, index // columns * SIDE))
    return sheet


def classes(studio: Studio, prompt: Json) -> Image.Image:
    """Six classes."""
    drawn = []
    for name in SHOWN:
        one = copy.deepcopy(prompt)
        one[only_node(one, "StageVARClassLabel")]["inputs"]["class_name"] = f"artwork: {name}"
        one[only_node(one, "StageVARSampler")]["inputs"]["batch_size"] = 1
        drawn += studio.pictures(one, "SaveImage")
    return grid(drawn, 3)


def faster(studio: Studio, prompt: Json) -> Image.Image:
    """The pictures, and the report."""
    *drawn, plot = studio.pictures(prompt, "SaveImage", "StageVARStageReport")
    return beside([grid(drawn, 2), plot])


def inpainted(studio: Studio, prompt: Json) -> Image.Image:
    """Before with the part that is drawn anew, and after."""
    before, after = studio.pictures(prompt, "PreviewImage", "SaveImage")
    part = prompt[only_node(prompt, "MaskComposite")]["inputs"]
    size = prompt[part["source"][0]]["inputs"]
    box = (part["x"], part["y"], part["x"] + size["width"] - 1, part["y"] + size["height"] - 1)
    ImageDraw.Draw(before).rectangle(box, outline=MARK, width=2)
    return beside([before, after])


def drafted(studio: Studio, prompt: Json) -> Image.Image:
    """The drafts, the first of them picked, and what it became."""
    drafts, done = studio.pictures(prompt, "PreviewImage", "SaveImage")
    cell = drafts.height // 2
    ImageDraw.Draw(drafts).rectangle((0, 0, cell - 1, cell - 1), outline=PICKED, width=5)
    return beside([drafts, done])


THUMBNAILS: dict[str, Callable[[Studio, Json], Image.Image]] = {
    "30_artwork_no_download": classes,
    "31_artwork_faster_no_download": faster,
    "32_artwork_inpaint_no_download": inpainted,
    "33_artwork_draft_pick_finish_no_download": drafted,
}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--comfy", type=Path, required=True, help="folder of a ComfyUI")
    parser.add_argument("--python", type=Path, default=Path(sys.executable), help="what runs it")
    arguments = parser.parse_args()
    with ComfyServer(arguments.python, arguments.comfy) as server:
        for name, draw in THUMBNAILS.items():
            picture = draw(Studio(server), read_json(FOLDER / "api" / f"{name}.json"))
            path = FOLDER / f"{name}.jpg"
            picture.save(path, quality=QUALITY, optimize=True)
            print(path.name, picture.size)


if __name__ == "__main__":
    main()
