"""What a sheet comes to: every picture with its seed, size, preset and file, and those drawn together."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from ..checks import MAX_SEED
from ..files import replaced
from .sheet import Row


@dataclass(frozen=True)
class Shared:
    """What rows have that say nothing else; ``images``: of every prompt."""

    seed: int = 0
    width: int | None = None
    height: int | None = None
    preset: str = "off"
    negative: str | None = None
    images: int = 1


@dataclass(frozen=True)
class Picture:
    """One picture to draw, image ``sample`` of ``row``. ``file``: where it goes, below the output folder."""

    row: int
    sample: int
    prompt: str
    negative: str | None
    seed: int
    width: int | None
    height: int | None
    preset: str
    file: str

    @property
    def together(self) -> tuple[object, ...]:
        """What pictures of one batch share."""
        return self.width, self.height, self.preset, self.negative


def pictures(rows: Sequence[Row], shared: Shared, layout: str) -> list[Picture]:
    """All pictures of a sheet in its order.

    Image s of row r has the seed of the row plus s; rows without one go on from ``shared.seed``, a seed for
    every picture before them. So a picture depends on its row and place alone, never on batches or workers.
    """
    found: list[Picture] = []
    number = 0
    for index, row in enumerate(rows):
        count = row.images or shared.images
        first = shared.seed + number if row.seed is None else row.seed
        for sample in range(count):
            found.append(
                Picture(
                    row=index,
                    sample=sample,
                    prompt=row.prompt,
                    negative=shared.negative if row.negative is None else row.negative,
                    seed=(first + sample) % (MAX_SEED + 1),
                    width=row.width or shared.width,
                    height=row.height or shared.height,
                    preset=row.preset or shared.preset,
                    file=_file(layout, row.name or f"{index:05d}", sample, count),
                )
            )
        number += count
    return found


def batches(left: Iterable[Picture], size: int) -> Iterator[list[Picture]]:
    """Pictures that can be drawn together, at most ``size`` of them, in the order of the sheet."""
    open_ones: dict[tuple[object, ...], list[Picture]] = {}
    for picture in left:
        batch = open_ones.setdefault(picture.together, [])
        batch.append(picture)
        if len(batch) == size:
            yield open_ones.pop(picture.together)
    yield from open_ones.values()


def accompany(folder: Path, rows: Sequence[Row], layout: str) -> None:
    """Files that a scorer wants beside the pictures: GenEval's metadata, one for every prompt."""
    if layout != "geneval":
        return
    for index, row in enumerate(rows):
        file = folder / (row.name or f"{index:05d}") / "metadata.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        with replaced(file) as partial:
            partial.write_text(json.dumps(dict(row.metadata) or {"prompt": row.prompt}), encoding="utf-8")


def quartet(parts: Sequence[Image.Image]) -> Image.Image:
    """Four pictures of a prompt as one of 2 x 2, as DPG-Bench's scorer cuts them up."""
    width, height = parts[0].size
    whole = Image.new("RGB", (2 * width, 2 * height))
    for place, part in enumerate(parts):
        whole.paste(part, (place % 2 * width, place // 2 * height))
    return whole


def for_layout(shared: Shared, layout: str, asked: int | None) -> Shared:
    """The number of pictures of a prompt; ``ValueError`` for another than a benchmark has."""
    own = {"geneval": 4, "dpg": 4}.get(layout, 1)
    if layout == "dpg" and asked not in (None, own):
        raise ValueError(f"--images is {asked}; DPG-Bench has 4 pictures of each prompt in one. Leave it out")
    if layout == "coco" and asked not in (None, own):
        raise ValueError(f"--images is {asked}; COCO has one picture of each caption. Leave it out")
    return replace(shared, images=asked or own)


def _file(layout: str, name: str, sample: int, count: int) -> str:
    if layout == "geneval":
        return f"{name}/samples/{sample:04d}.png"
    if layout == "dpg":  # quarters of the picture that DPG-Bench's scorer cuts up again
        return f"parts/{name}_{sample}.png"
    if layout == "coco" or count == 1:
        return f"{name}.png"
    return f"{name}_{sample:02d}.png"
