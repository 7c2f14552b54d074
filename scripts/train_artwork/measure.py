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

BATCH = 7


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


def measure(out: Path, count: int, seed: int = 0, *, dense_only: bool = False, assets: Path = ASSETS) -> Path:
    """Draw ``count`` pictures under every variant, or under none, and store what is measured of each.

    Runs of different seeds add up in :func:`report`, and may run side by side; fewer pictures than classes
    are other classes for the next seed.
    """
    pipeline, judge = shipped(assets)
    labels = [(label + seed) % judge.config.classes for label in spread(count, judge.config.classes)]
    readings, log = Readings(judge, labels), Log(out / "score.jsonl")
    found = compare(
        pipeline,
        {} if dense_only else variants(len(pipeline.schedule())),
        Job(tuple(map(str, labels)), batch=BATCH, seed=1000 * seed),
        keep=readings.keep,
        advance=lambda pictures: log(seed=seed, pictures=pictures),
    )
    path = out / "measured" / f"{'off' if dense_only else 'all'}_{seed}.npz"
    path.parent.mkdir(exist_ok=True)
    np.savez(path, **stored(found, readings))
    return path


def stored(found: Comparison, readings: Readings) -> dict[str, np.ndarray]:
    """One value per picture, under names of variant and measure; FLOPs of the whole run."""
    values: dict[str, np.ndarray] = {}
    for name in found.variants:
        values[f"{name}/top1"] = np.array(readings.right[name], np.float64)
        values[f"{name}/edges"] = np.array(readings.edges[name])
        values[f"{name}/features"] = torch.cat(readings.features[name]).numpy()
        values[f"{name}/flops"] = np.array([found.work[name]["flops"].sum() / len(readings.labels)])
        for key in ("psnr", "ssim"):
            values[f"{name}/{key}"] = found.measures[name][key]
    return values


def report(out: Path) -> list[dict[str, object]]:
    """A row for every variant, of all runs together, and one of pictures by ``off`` alone."""
    parts = {path.stem: dict(np.load(path)) for path in sorted((out / "measured").glob("*.npz"))}
    judge, composer = Judge.load(JUDGE), Composer(gather(out))
    _, real = judge.read(composer.batch(np.random.default_rng(123), 1000)[0])
    together = [part for stem, part in parts.items() if stem.startswith("all")]
    names = dict.fromkeys(key.partition("/")[0] for part in together for key in part)
    rows = [row(name, together, real) for name in names]
    rows.append({**row(REFERENCE, list(parts.values()), real), "variant": "off, all pictures"})
    (out / "presets.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return rows


def row(name: str, parts: list[dict[str, np.ndarray]], real: Tensor) -> dict[str, object]:
    """What the pictures of a variant reach; differences of top-1 are paired with ``off``."""

    def of(variant: str, key: str) -> np.ndarray:
        return np.concatenate([part[f"{variant}/{key}"] for part in parts])

    top1, less = of(name, "top1"), of(name, "top1") - of(REFERENCE, "top1")
    return {
        "variant": name,
        "pictures": len(top1),
        "flop_ratio": round(float(of(REFERENCE, "flops").mean() / of(name, "flops").mean()), 2),
        "psnr": round(float(of(name, "psnr").mean()), 2),
        "ssim": round(float(of(name, "ssim").mean()), 4),
        "top1": round(float(top1.mean()), 4),
        "top1 stderr": round(float(top1.std() / len(top1) ** 0.5), 4),
        "minus off": round(float(less.mean()), 4),
        "minus off stderr": round(float(less.std() / len(less) ** 0.5), 4),
        "frechet": round(frechet_distance(torch.from_numpy(of(name, "features")), real), 4),
        "edges": round(float(of(name, "edges").mean()), 3),
    }
