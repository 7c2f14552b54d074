"""What is read back from pictures: scenes by their scorer, artwork by its judge, others by nobody.

A reader gives one value per picture of each of its measures, NaN where it does not apply.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from torch import Tensor

from ..acceleration.skipvar import edges
from ..conditioning.labels import class_index
from ..embedded import JUDGE
from ..pipeline import Pipeline
from ..scenes import CANVAS, parse, score
from ..schedule import ScaleSchedule
from .judge import Judge
from .score import SCORED
from .store import Part

TOP1, EDGES, FEATURES = "top1", "edges", "features"
JUDGED = (TOP1, EDGES)  # what a judge reads of every picture


class Reader(Protocol):
    """Reads pictures back.

    ``measures``: their names. ``tasks``: the kind of every caption, None where there are no kinds.
    """

    measures: tuple[str, ...]
    tasks: tuple[str, ...] | None

    def read(self, captions: Sequence[str], images: Tensor) -> Part:
        """Values (N,) of pictures (N, H, W, 3) in bytes that were drawn for these captions."""
        ...

    def distance(self, features: np.ndarray) -> float | None:
        """How far pictures of these features (N, C) lie from real ones; None without such a distance."""
        ...


class SceneReader:
    """Reads everything back that the captions of scenes say."""

    measures: tuple[str, ...] = SCORED

    def __init__(self, tasks: tuple[str, ...]) -> None:
        self.tasks: tuple[str, ...] | None = tasks

    def read(self, captions: Sequence[str], images: Tensor) -> Part:
        """See :class:`Reader`."""
        scores = [score(text, image) for text, image in zip(captions, images.numpy(), strict=True)]
        return {
            key: np.array(
                [np.nan if (v := getattr(s, key)) is None else float(v) for s in scores], np.float32
            )
            for key in SCORED
        }

    def distance(self, features: np.ndarray) -> None:
        """See :class:`Reader`; there is none."""


class JudgeReader:
    """Reads which class a picture shows, how strong its edges are, and the features of the distance."""

    measures: tuple[str, ...] = JUDGED
    tasks: tuple[str, ...] | None = None

    def __init__(self, judge: Judge) -> None:
        self.judge = judge

    def read(self, captions: Sequence[str], images: Tensor) -> Part:
        """See :class:`Reader`; the features (N, C) among it."""
        judge = self.judge
        wanted = [class_index(text, judge.config.classes, judge.names) for text in captions]
        logits, features = judge.read(images)
        return {
            TOP1: (logits.argmax(dim=1).numpy() == np.array(wanted)).astype(np.float32),
            EDGES: edge_strength(images).numpy(),
            FEATURES: features.numpy().astype(np.float16),
        }

    def distance(self, features: np.ndarray) -> float | None:
        """See :class:`Reader`: the Frechet distance to the real drawings of the judge's file."""
        return self.judge.distance(features)


def edge_strength(images: Tensor) -> Tensor:
    """Mean strength of edges (N,) of pictures (N, H, W, 3) in bytes, in grey levels."""
    return edges(images.permute(0, 3, 1, 2).float().mean(dim=1, keepdim=True)).mean(dim=(1, 2)) / 4


def judge_of(pipeline: Pipeline) -> Judge | None:
    """The judge that comes along, for a model of the same class names; None for all others."""
    if not pipeline.class_names:
        return None
    judge = Judge.load(JUDGE)
    return judge if judge.names == pipeline.class_names else None


def reader_of(pipeline: Pipeline, captions: Sequence[str], schedule: ScaleSchedule) -> Reader | None:
    """Who can read what this model draws for these captions; None where nobody can."""
    if judge := judge_of(pipeline):
        return JudgeReader(judge)
    if pipeline.trained.image_size(schedule) != (CANVAS, CANVAS):
        return None
    specs = [parse(caption) for caption in captions]
    tasks = tuple(spec.task for spec in specs if spec is not None)
    return SceneReader(tasks) if len(tasks) == len(captions) else None
