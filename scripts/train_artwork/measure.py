"""What the shipped files can do: top-1 and Frechet distance under every preset, and what the presets keep."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stagevar_core.acceleration.policy import AccelerationPolicy, FirstScales
from stagevar_core.acceleration.presets import PRESETS
from stagevar_core.acceleration.skipvar import edges
from stagevar_core.embedded import ARTWORK, ASSETS, JUDGE
from stagevar_core.evaluation.compare import REFERENCE, Comparison, Job, compare
from stagevar_core.evaluation.judge import Judge, frechet_distance
from stagevar_core.pipeline import Pipeline

from ..train_embedded.common import Log
from .compose import Composer
from .sources import gather

BATCH = 10


def shipped(assets: Path = ASSETS) -> tuple[Pipeline, Judge]:
    """The files that ship, as a user gets them, or those that an export wrote elsewhere."""
    files = [assets / path.name for path in ARTWORK.values()]
    return Pipeline.load(*files), Judge.load(assets / JUDGE.name)


def variants(scales: int) -> dict[str, AccelerationPolicy]:
    """Every preset, and the first scales alone."""
    skips = {f"skip last {count}": FirstScales(scales - count) for count in (1, 2, 3)}
    return {**{name: policy for name, policy in PRESETS.items() if name != REFERENCE}, **skips}


def spread(count: int, classes: int) -> list[int]:
    """``count`` classes, all equally often, or evenly spread where there are fewer."""
    if count >= classes:
        return [index % classes for index in range(count)]
    return [index * classes // count for index in range(count)]


def texture(images: Tensor) -> Tensor:
    """Mean strength of edges (N,) of pictures (N, H, W, 3) in bytes, in grey levels."""
    return edges(images.permute(0, 3, 1, 2).float().mean(dim=1, keepdim=True)).mean(dim=(1, 2)) / 4


class Readings:
    """What the judge makes of pictures as they come."""

    def __init__(self, judge: Judge, labels: list[int]) -> None:
        self.judge, self.labels = judge, labels
        self.right: dict[str, list[bool]] = {}
        self.features: dict[str, list[Tensor]] = {}
        self.edges: dict[str, list[float]] = {}

    def keep(self, variant: str, number: int, picture: np.ndarray) -> None:
        """One picture (H, W, 3) in bytes."""
        image = torch.from_numpy(picture).unsqueeze(0)
        logits, features = self.judge.read(image)
        self.right.setdefault(variant, []).append(int(logits.argmax()) == self.labels[number])
        self.features.setdefault(variant, []).append(features)
        self.edges.setdefault(variant, []).append(float(texture(image)))


def table(found: Comparison, readings: Readings, real: Tensor) -> list[dict[str, object]]:
    """A row for every variant."""
    dense = found.work[REFERENCE]["flops"].sum()
    rows = []
    for name in found.variants:
        count = len(readings.right[name])
        top1 = sum(readings.right[name]) / count
        rows.append(
            {
                "variant": name,
                "pictures": count,
                "flop_ratio": round(float(dense / found.work[name]["flops"].sum()), 3),
                "psnr": round(float(found.measures[name]["psnr"].mean()), 2),
                "ssim": round(float(found.measures[name]["ssim"].mean()), 4),
                "top1": round(top1, 4),
                "stderr": round((top1 * (1 - top1) / count) ** 0.5, 4),
                "frechet": round(frechet_distance(torch.cat(readings.features[name]), real), 4),
                "edges": round(float(np.mean(readings.edges[name])), 3),
            }
        )
    return rows


def measure(out: Path, count: int = 300, assets: Path = ASSETS) -> list[dict[str, object]]:
    """All variants on the same ``count`` classes and seeds, written to ``presets.json``."""
    pipeline, judge = shipped(assets)
    labels = spread(count, judge.config.classes)
    readings, log = Readings(judge, labels), Log(out / "score.jsonl")
    job = Job(tuple(map(str, labels)), batch=BATCH)
    found = compare(
        pipeline,
        variants(len(pipeline.schedule())),
        job,
        keep=readings.keep,
        advance=lambda pictures: log(pictures=pictures),
    )
    composer = Composer(gather(out))
    _, real = judge.read(composer.batch(np.random.default_rng(123), max(count, 200))[0])
    rows = table(found, readings, real)
    (out / "presets.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    for row in rows:
        log(**row)
    return rows
