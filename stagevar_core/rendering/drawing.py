"""The task of a sheet: a batch of pictures to files."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..acceleration.presets import preset
from ..files import replaced
from .models import Chosen
from .plan import Picture
from .work import Load


@dataclass(frozen=True)
class Drawing:
    """Draws batches into a folder that all workers reach. ``settings``: of the loaded models."""

    folder: str
    settings: Chosen

    def begin(self, load: Load) -> Callable[[Sequence[Picture]], tuple[int, int]]:
        """What draws pictures that share size, preset and negative prompt, and says their size.

        Every file appears whole or not at all.
        """
        pipeline, folder = load(), Path(self.folder)
        settings = self.settings(pipeline)

        def draw(batch: Sequence[Picture]) -> tuple[int, int]:
            first = batch[0]
            found = pipeline(
                [picture.prompt for picture in batch],
                first.negative,
                seed=[picture.seed for picture in batch],
                width=first.width,
                height=first.height,
                settings=settings,
                policy=preset(first.preset),
            )
            for picture, image in zip(batch, found.images.numpy(), strict=True):
                write(folder / picture.file, picture, image)
            return found.size

        return draw


def write(file: Path, picture: Picture, image: np.ndarray) -> None:
    """A PNG that says prompt, negative prompt, seed and preset of its picture."""
    told = PngInfo()
    for name in ("prompt", "negative", "seed", "preset"):
        value = getattr(picture, name)
        if value is not None:
            told.add_itxt(name, str(value))
    file.parent.mkdir(parents=True, exist_ok=True)
    with replaced(file) as partial:
        Image.fromarray(image).save(partial, format="PNG", pnginfo=told)
