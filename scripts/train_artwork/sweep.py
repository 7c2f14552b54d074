"""Sampling settings side by side on the judge, and the contact sheet."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from stagevar_core.autoencoders.vq import VQTokenizer
from stagevar_core.evaluation.judge import Moments, frechet_distance
from stagevar_core.pipeline import Pipeline, to_uint8
from stagevar_core.sampling.settings import SamplingSettings

from ..train_embedded.common import Log
from .compose import Composer, to_tensor
from .judging import loaded_judge
from .measure import BATCH, shipped, spread
from .sources import gather
from .tokenizer import EARLY, SCHEDULE, loaded_tokenizer
from .transformer import loaded_transformer, score

CFGS, TEMPERATURES, TOP_PS = (2.0, 4.0, 6.0), (0.5, 0.8), (0.9,)
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


def sweep(out: Path, count: int = 75, scales: int = EARLY) -> None:
    """Top-1 and Frechet distance of ``count`` pictures under every combination, on the last checkpoint.

    After the early scales alone, which settle the class and take a tenth of the time.
    """
    model, tokenizer, judge = loaded_transformer(out), loaded_tokenizer(out), loaded_judge(out)
    log, real = Log(out / "sweep.jsonl"), Composer(gather(out)).batch(np.random.default_rng(123), 600)[0]
    near = torch.cat([passed(tokenizer, part, scales) for part in real.split(20)])
    wanted = Moments.of(judge.read(near)[1])
    for cfg, temperature, top_p in product(CFGS, TEMPERATURES, TOP_PS):
        settings = SamplingSettings(cfg_scale=cfg, temperature=temperature, top_k=0, top_p=top_p)
        found, images = score(model, tokenizer, judge, count, scales=scales, settings=settings, seed=5000)
        distance = frechet_distance(Moments.of(judge.read(images)[1]), wanted)
        log(cfg=cfg, temperature=temperature, top_p=top_p, top1=found, frechet=distance)


@torch.inference_mode()
def passed(tokenizer: VQTokenizer, images: torch.Tensor, scales: int) -> torch.Tensor:
    """Pictures (N, H, W, 3) in bytes through the first scales of the tokenizer."""
    ids, _ = tokenizer.quantize.encode(tokenizer.encode(to_tensor(images)), SCHEDULE)
    return to_uint8(tokenizer.decode(tokenizer.quantize.accumulate(ids[:scales], SCHEDULE)))


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
