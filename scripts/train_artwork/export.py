"""Writes the trained parts as the files that ship: float16 matrices, names and licences in the metadata."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from stagevar_core.checkpoints.header import Header
from stagevar_core.checkpoints.save import save
from stagevar_core.embedded import ASSETS
from stagevar_core.evaluation.judge import Judge, JudgeConfig, Moments
from stagevar_core.schedule import SIDES_512, SquareTable

from ..train_embedded.common import Log
from .compose import Composer
from .judging import loaded_judge
from .sources import class_names, gather, licence_notes
from .tokenizer import CONFIG as TOKENIZER_CONFIG
from .tokenizer import loaded_tokenizer
from .transformer import CONFIG, SAMPLING, loaded_transformer

TITLE = "StageVAR-artwork"
LIMIT = 12 * 2**20
REAL, REAL_SEED = (
    1000,
    123,
)  # drawings to measure the Frechet distance from, placed anew


def real_moments(out: Path, judge: Judge) -> Moments:
    """What the judge's features of real drawings are like."""
    pictures, _ = Composer(gather(out)).batch(np.random.default_rng(REAL_SEED), REAL)
    return Moments.of(judge.read(pictures)[1])


def export(out: Path, assets: Path = ASSETS) -> int:
    """Write the three files into ``assets``, their size; ``ValueError`` when they are larger than allowed."""
    assets.mkdir(parents=True, exist_ok=True)
    about = {"title": TITLE, "notes": {"trained on": licence_notes()}}
    table = SquareTable.of(SIDES_512, pixels_per_token=TOKENIZER_CONFIG.stride)
    own = SAMPLING
    defaults = {"cfg": own.cfg_scale, "temperature": own.temperature, "top_k": own.top_k, "top_p": own.top_p}
    names = class_names()
    parts = {
        "tokenizer": (
            loaded_tokenizer(out),
            Header("tokenizer", "var", TOKENIZER_CONFIG.to_dict(), trained=table, **about),
        ),
        "transformer": (
            loaded_transformer(out),
            Header(
                "transformer",
                "var",
                CONFIG.to_dict(),
                trained=table,
                defaults=defaults,
                classes=names,
                **about,
            ),
        ),
        "judge": (
            loaded_judge(out),
            Header("judge", "artwork", JudgeConfig(classes=len(names)).to_dict(), classes=names, **about),
        ),
    }
    more = {"judge": real_moments(out, parts["judge"][0]).tensors()}
    log, total = Log(out / "export.jsonl"), 0
    for name, (module, header) in parts.items():
        weights = {key: value.contiguous() for key, value in module.state_dict().items()}
        weights |= more.get(name, {})
        size = save(assets / f"artwork_{name}.safetensors", weights, header, dtype=torch.float16)
        total += size
        log(file=name, bytes=size)
    if total > LIMIT:
        raise ValueError(f"the artwork model has {total} bytes; it may have {LIMIT}")
    return total
