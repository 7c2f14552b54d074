"""The score of a model that draws classes: drawn, and read back by its judge."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from .intervals import interval
from .reading import EDGES, FEATURES, TOP1, JudgeReader
from .score import Pictures


@dataclass
class Judged:
    """What every variant reaches, and the pictures of the first one with whether each is right."""

    reports: dict[str, dict[str, Any]] = field(default_factory=dict)
    images: np.ndarray | None = None
    right: list[bool] = field(default_factory=list)


def collect(
    reader: JudgeReader, classes: Sequence[str], pictures: Pictures, advance: Callable[[int], object]
) -> Judged:
    """Read batches of pictures, in the order of the classes, each a dict of variant to (B, H, W, 3) uint8.

    ``advance`` is called with every batch's size.
    """
    found: dict[str, list[dict[str, np.ndarray]]] = {}
    shown, done = [], 0
    for batch in pictures:
        size = len(next(iter(batch.values())))
        for variant, images in batch.items():
            read = reader.read(classes[done : done + size], torch.from_numpy(images))
            found.setdefault(variant, []).append(read)
        shown.append(next(iter(batch.values())))
        done += size
        advance(size)
    values = {
        name: {k: np.concatenate([p[k] for p in parts]) for k in parts[0]} for name, parts in found.items()
    }
    reports = {variant: summary(reader, value) for variant, value in values.items()}
    right = next(iter(values.values()))[TOP1] > 0
    return Judged(reports, np.concatenate(shown), right.tolist())


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
