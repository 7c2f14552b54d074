"""The score of the embedded editing model: scenes changed by an instruction, read back from the pixels."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from ..acceleration.policy import AccelerationPolicy
from ..conditioning.picture import encoder_input
from ..conditioning.types import TextConditioning
from ..pipeline import Pipeline
from ..sampling.generate import generate
from ..sampling.noise import SeededNoise
from ..sampling.settings import SamplingSettings
from ..scenes import render
from ..scenes.edits import KINDS, EditScore, SceneEdit, sample_edit, score_edit
from .intervals import interval


def unseen_edits(count: int, seed: int) -> list[SceneEdit]:
    """``count`` edits that training never saw."""
    rng = np.random.default_rng([seed, 2])
    return [sample_edit(rng, "test") for _ in range(count)]


@torch.inference_mode()
def edited(
    pipeline: Pipeline,
    edits: Sequence[SceneEdit],
    *,
    seed: int = 0,
    batch: int = 20,
    settings: SamplingSettings | None = None,
    policy: AccelerationPolicy | None = None,
) -> Iterator[np.ndarray]:
    """Batches of edited pictures (B, 128, 128, 3) in bytes; picture i has the seed ``seed + i``."""
    schedule, settings = pipeline.schedule(), settings or pipeline.settings()
    dtype = next(pipeline.tokenizer.parameters()).dtype
    for start in range(0, len(edits), batch):
        part = edits[start : start + batch]
        conditioning = pipeline.encode([edit.instruction for edit in part])
        assert isinstance(conditioning, TextConditioning), "the embedded model takes text"
        pictures = torch.cat([encoder_input(render(edit.source)) for edit in part])
        source = pipeline.tokenizer.encode(pictures.to(device=pipeline.device, dtype=dtype)).float()
        found = generate(
            pipeline.transformer,
            replace(conditioning, source=source),
            schedule,
            settings,
            noise=SeededNoise(seed + start, len(part)),
            quantizer=pipeline.quantizer,
            policy=policy,
            attention=pipeline.attention,
            device=pipeline.device,
        )
        yield pipeline.decode(found.f_hat).numpy()


def collect(
    edits: Sequence[SceneEdit], pictures: Iterator[np.ndarray], tick: Callable[[int], object]
) -> list[EditScore]:
    """The scores of all pictures; ``tick`` is told how many came."""
    scores: list[EditScore] = []
    for images in pictures:
        part = edits[len(scores) : len(scores) + len(images)]
        scores += [score_edit(edit, image) for edit, image in zip(part, images, strict=True)]
        tick(len(images))
    return scores


def shares(scores: Sequence[EditScore]) -> dict[str, dict[str, float | int | list[float]]]:
    """For all and for every kind: n, how often the instruction is followed, the rest unchanged, and both.

    Each with the ends of Wilson's 95% interval.
    """
    report: dict[str, dict[str, float | int | list[float]]] = {}
    for kind in ("all", *KINDS):
        group = [score for score in scores if kind in ("all", score.kind)]
        if not group:
            continue
        followed = np.array([score.followed for score in group], dtype=float)
        unchanged = np.array([score.unchanged for score in group], dtype=float)
        row: dict[str, float | int | list[float]] = {"n": len(group)}
        for name, values in (
            ("followed", followed),
            ("unchanged", unchanged),
            ("both", followed * unchanged),
        ):
            found = interval(values, share=True)
            assert found is not None, "a group has scores"
            row[name], row[f"{name} interval"] = found.mean, [found.low, found.high]
        report[kind] = row
    return report


def table(report: dict[str, dict[str, float | int | list[float]]]) -> str:
    """The shares as lines for people."""
    lines = [f"{'edits':12} {'n':>5}  followed  unchanged  both"]
    for kind, row in report.items():
        values = (row[name] for name in ("n", "followed", "unchanged", "both"))
        lines.append("{:12} {:5d}  {:8.3f}  {:9.3f}  {:.3f}".format(kind, *values))
    return "\n".join(lines)
