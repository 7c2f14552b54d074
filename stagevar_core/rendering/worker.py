"""What draws the pictures of a batch and writes their files: in this process, or one of many."""

import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..acceleration.presets import preset
from ..devices import DTYPES
from ..files import replaced
from ..pipeline import Pipeline
from ..sampling.settings import SamplingSettings
from .plan import Picture


@dataclass(frozen=True)
class Models:
    """What every worker loads, and how it runs: files, options of ``Pipeline.load``, sampling numbers."""

    transformer: str
    tokenizer: str
    text_encoder: str
    text_encoder_2: str | None = None
    dtype: str | None = None
    weights: str | None = None
    device: str | None = None
    task: str = "auto"
    loras: tuple[tuple[str, float], ...] = ()
    threads: int | None = None
    cfg: Any = None
    temperature: Any = None
    top_k: int | None = None
    top_p: float | None = None

    def load(self) -> Pipeline:
        """The pipeline; ``ValueError`` for files that do not work."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        dtype = DTYPES[self.dtype] if self.dtype else None
        return Pipeline.load(
            *(self.transformer, self.tokenizer, self.text_encoder),
            dtype=dtype,
            device=self.device,
            task=self.task,
            loras=self.loras,
            text_encoder_2=self.text_encoder_2,
            weights=self.weights,
        )

    def settings(self, pipeline: Pipeline) -> SamplingSettings:
        """Sampling settings, the model's own where they say nothing."""
        return pipeline.settings(self.cfg, self.temperature, self.top_k, self.top_p)


@dataclass(frozen=True)
class Drawn:
    """A batch whose files are written: its pictures, their size, the seconds it took, and who drew it."""

    pictures: tuple[Picture, ...]
    size: tuple[int, int]
    seconds: float
    machine: str
    process: int


class Worker:
    """One loaded model that draws batch after batch into a folder."""

    def __init__(self, models: Models, folder: str) -> None:
        self.pipeline, self.folder = models.load(), Path(folder)
        self.settings = models.settings(self.pipeline)

    def draw(self, batch: Sequence[Picture]) -> Drawn:
        """Draw pictures that share size, preset and negative prompt; every file appears whole or not at all.

        A PNG says prompt, negative prompt, seed and preset of its picture.
        """
        started, first = time.perf_counter(), batch[0]
        found = self.pipeline(
            [picture.prompt for picture in batch],
            first.negative,
            seed=[picture.seed for picture in batch],
            width=first.width,
            height=first.height,
            settings=self.settings,
            policy=preset(first.preset),
        )
        for picture, image in zip(batch, found.images.numpy(), strict=True):
            told = PngInfo()
            for name in ("prompt", "negative", "seed", "preset"):
                value = getattr(picture, name)
                if value is not None:
                    told.add_itxt(name, str(value))
            file = self.folder / picture.file
            file.parent.mkdir(parents=True, exist_ok=True)
            with replaced(file) as partial:
                Image.fromarray(image).save(partial, format="PNG", pnginfo=told)
        seconds = time.perf_counter() - started
        return Drawn(tuple(batch), found.size, seconds, socket.gethostname(), os.getpid())
