"""Pictures of a comparison on disk: folders of scorers, grids to look at."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ..rendering.plan import quartet

CELL = 512  # longest side of a picture in a grid


class Album:
    """Pictures on disk in GenEval's layout, one folder per variant: ``00000/metadata.jsonl``, ``samples/``.

    ``metadata``: one object per caption, with its "prompt". ``limit``: captions whose pictures are kept.
    """

    def __init__(self, root: Path, metadata: Sequence[Mapping[str, Any]], seeds: int, limit: int) -> None:
        self.root, self.metadata, self.seeds = root, metadata, seeds
        self.limit = min(limit, len(metadata))

    def folder(self, variant: str) -> Path:
        """Where the pictures of a variant are; what GenEval's scorer is given."""
        return self.root / re.sub(r"[^\w.-]+", "_", variant)

    def keep(self, variant: str, index: int, picture: np.ndarray) -> None:
        """Write picture ``index`` of a variant."""
        caption, sample = divmod(index, self.seeds)
        if caption >= self.limit:
            return
        folder = self.folder(variant) / f"{caption:05d}"
        (folder / "samples").mkdir(parents=True, exist_ok=True)
        (folder / "metadata.jsonl").write_text(json.dumps(self.metadata[caption]), encoding="utf-8")
        Image.fromarray(picture).save(folder / "samples" / f"{sample:04d}.png")

    def open(self, variant: str, caption: int, sample: int) -> Image.Image:
        """One picture."""
        path = self.folder(variant) / f"{caption:05d}" / "samples" / f"{sample:04d}.png"
        with Image.open(path) as image:
            return image.convert("RGB")

    def quartets(self, variant: str, names: Sequence[str], folder: Path) -> None:
        """The first four pictures of each caption as one of 2 x 2, as DPG-Bench's scorer cuts them up."""
        folder.mkdir(parents=True, exist_ok=True)
        for caption, name in enumerate(names[: self.limit]):
            whole = quartet([self.open(variant, caption, sample) for sample in range(4)])
            whole.save(folder / f"{name}.png")


def grid(album: Album, variants: Sequence[str], rows: int) -> Image.Image:
    """The first picture of the first captions: a row for each, a column for each variant."""
    rows = min(rows, album.limit)
    first = album.open(variants[0], 0, 0)
    shrink = min(1.0, CELL / max(first.size))
    width, height = (max(1, round(side * shrink)) for side in first.size)
    line, gap = 14, 4
    columns = width + gap
    sheet = Image.new("RGB", (columns * len(variants) + gap, line + (height + line + gap) * rows), "white")
    draw = ImageDraw.Draw(sheet)
    for column, name in enumerate(variants):
        draw.text((gap + column * columns, 1), _fitting(draw, name, width), fill="black")
        for row in range(rows):
            top = line + row * (height + line + gap)
            picture = album.open(name, row, 0).resize((width, height), Image.Resampling.LANCZOS)
            sheet.paste(picture, (gap + column * columns, top + line))
    for row in range(rows):
        text = str(album.metadata[row]["prompt"]).encode("latin-1", "replace").decode("latin-1")
        place = (gap, line + row * (height + line + gap) + 1)
        draw.text(place, _fitting(draw, text, sheet.width - 2 * gap), fill="black")
    return sheet


def _fitting(draw: ImageDraw.ImageDraw, text: str, width: int) -> str:
    """As much of a text as there is room for."""
    while text and draw.textlength(text) > width:
        text = text[:-1]
    return text
