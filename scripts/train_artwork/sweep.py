"""Sampling settings side by side on the judge, and the contact sheet."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from stagevar_core.evaluation.judge import Judge, frechet_distance
from stagevar_core.pipeline import Pipeline
from stagevar_core.sampling.settings import SamplingSettings

from ..train_embedded.common import Log
from .compose import Composer
from .measure import BATCH, shipped, spread
from .sources import gather

CFGS, TEMPERATURES, TOP_PS = (1.5, 3.0, 5.0), (0.6, 0.8, 1.0), (0.9, 0.0)
THUMBNAIL, COLUMNS = 72, 8


def drawn(
    pipeline: Pipeline, labels: list[int], settings: SamplingSettings | None, seed: int
) -> torch.Tensor:
    """Pictures (N, H, W, 3) in bytes of these classes."""
    parts = []
    for start in range(0, len(labels), BATCH):
        texts = [str(label) for label in labels[start : start + BATCH]]
        parts.append(pipeline(texts, seed=seed + start, settings=settings).images)
    return torch.cat(parts)


def top1(judge: Judge, images: torch.Tensor, labels: list[int]) -> tuple[float, torch.Tensor]:
    """Share of pictures that the judge reads as their class, and their features."""
    logits, features = judge.read(images)
    return float((logits.argmax(dim=1) == torch.tensor(labels)).float().mean()), features


def sweep(out: Path, count: int = 75) -> None:
    """Top-1 and Frechet distance of ``count`` pictures under every combination."""
    pipeline, judge = shipped()
    labels, log = spread(count, judge.config.classes), Log(out / "sweep.jsonl")
    _, real = judge.read(Composer(gather(out)).batch(np.random.default_rng(123), 600)[0])
    for cfg, temperature, top_p in product(CFGS, TEMPERATURES, TOP_PS):
        settings = SamplingSettings(cfg_scale=cfg, temperature=temperature, top_k=0, top_p=top_p)
        found, features = top1(judge, drawn(pipeline, labels, settings, 5000), labels)
        distance = frechet_distance(features, real)
        log(cfg=cfg, temperature=temperature, top_p=top_p, top1=found, frechet=distance)


def sheet(out: Path, path: Path, count: int = 64) -> None:
    """Real and generated pictures of the same classes next to each other, real ones left."""
    pipeline, judge = shipped()
    labels = spread(count, judge.config.classes)
    composer, rng = Composer(gather(out)), np.random.default_rng(11)
    generated = drawn(pipeline, labels, None, 7000).numpy()
    tiles = []
    for label, made in zip(labels, generated, strict=True):
        own = np.flatnonzero(composer.artwork.labels == label)
        pair = [composer.one(rng, int(rng.choice(own)))[0], made]
        small = [Image.fromarray(p).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX) for p in pair]
        tiles.append(np.pad(np.concatenate([np.asarray(p) for p in small], axis=1), ((2, 2), (2, 2), (0, 0))))
    rows = [np.concatenate(tiles[i : i + COLUMNS], axis=1) for i in range(0, count, COLUMNS)]
    Image.fromarray(np.concatenate(rows)).save(path, quality=82)
