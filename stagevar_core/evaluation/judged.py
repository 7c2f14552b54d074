"""The score of a model that draws classes: drawn, and read back by its judge."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..embedded import JUDGE
from ..pipeline import Pipeline
from ..rendering.engines import Engine, working
from ..rendering.work import Load, Task, spans
from .intervals import interval
from .judge import Judge
from .reading import EDGES, FEATURES, TOP1, JudgeReader, judge_of
from .score import Evaluation, Pictures, Scored, gathered, reading
from .store import Part


@dataclass(frozen=True)
class Judged:
    """The task of making pictures of classes by another task, and reading them back where they are made.

    ``shown``: how many pictures come along, the first ones.
    """

    pictures: Task[range, Pictures]
    classes: Sequence[str]
    shown: int = 0

    def begin(self, load: Load) -> Callable[[range], Scored[Part]]:
        """What draws and reads a batch; ``ValueError`` for a model whose classes the judge does not know."""
        judge = judge_of(load())
        if judge is None:
            raise ValueError(
                "the judge that comes along knows other classes than this model; get both files again"
            )
        reader = JudgeReader(judge)
        return reading(
            self.pictures.begin(load),
            self.classes,
            lambda classes, images: reader.read(classes, torch.from_numpy(images)),
            self.shown,
        )


def evaluated(
    by: Engine | Pipeline,
    task: Judged,
    batch: int,
    advance: Callable[[int], object] = lambda pictures: None,
) -> Evaluation:
    """All classes of a task in batches; ``advance`` is called with every batch's size as it is done."""
    found, shown = gathered(working(by), task, spans(len(task.classes), batch), advance)
    values = {
        variant: {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        for variant, parts in found.items()
    }
    reader = JudgeReader(Judge.load(JUDGE))
    reports = {variant: summary(reader, read) for variant, read in values.items()}
    right = next(iter(values.values()))[TOP1] > 0
    return Evaluation(reports, shown, right.tolist())


def summary(reader: JudgeReader, values: dict[str, np.ndarray]) -> dict[str, Any]:
    """Top-1 with standard error and Wilson's 95% interval, edges with their interval, Frechet distance."""
    top1, edges = interval(values[TOP1], share=True), interval(values[EDGES])
    if top1 is None or edges is None:
        raise ValueError("there are no pictures to read; draw at least one")
    error = math.sqrt(top1.mean * (1 - top1.mean) / top1.n)
    return {
        TOP1: {**top1._asdict(), "stderr": error},
        EDGES: None if math.isinf(edges.low) else edges._asdict(),
        "frechet": reader.distance(values[FEATURES]),
    }


def table(reports: dict[str, dict[str, Any]]) -> str:
    """The report as text."""
    lines = []
    for variant, row in reports.items():
        top1, edges, distance = row[TOP1], row[EDGES], row["frechet"]
        lines.append(f"{variant}:")
        lines.append(
            f"  top-1    {top1['mean']:.3f} +- {top1['stderr']:.3f}  "
            f"[{top1['low']:.3f}, {top1['high']:.3f}]  n={top1['n']}"
        )
        if edges is not None:
            lines.append(
                f"  edges    {edges['mean']:.2f}  [{edges['low']:.2f}, {edges['high']:.2f}] grey levels"
            )
        if distance is not None:
            lines.append(f"  Frechet  {distance:.1f} from real drawings; too large with few pictures")
    return "\n".join(lines)
