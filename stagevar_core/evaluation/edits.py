"""The score of the embedded editing model: scenes changed by an instruction, read back from the pixels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..conditioning.picture import encoder_input
from ..conditioning.types import TextConditioning
from ..pipeline import Pipeline
from ..rendering.engines import Engine, working
from ..rendering.models import Chosen
from ..rendering.work import Load, Task, advanced, in_order, spans
from ..sampling.generate import generate
from ..sampling.noise import SeededNoise
from ..scenes import render
from ..scenes.edits import KINDS, EditScore, SceneEdit, sample_edit, score_edit
from .intervals import interval


def unseen_edits(count: int, seed: int) -> list[SceneEdit]:
    """``count`` edits that training never saw."""
    rng = np.random.default_rng([seed, 2])
    return [sample_edit(rng, "test") for _ in range(count)]


@dataclass(frozen=True)
class Edited:
    """The task of editing scenes; picture i has the seed ``seed + i``. ``settings``: of the loaded models."""

    edits: Sequence[SceneEdit]
    seed: int = 0
    settings: Chosen = Pipeline.settings

    def begin(self, load: Load) -> Callable[[range], np.ndarray]:
        """What edits a batch: pictures (B, 128, 128, 3) in bytes."""
        pipeline = load()
        schedule, settings = pipeline.schedule(), self.settings(pipeline)
        dtype = next(pipeline.tokenizer.parameters()).dtype

        @torch.inference_mode()
        def draw(span: range) -> np.ndarray:
            part = self.edits[span.start : span.stop]
            conditioning = pipeline.encode([edit.instruction for edit in part])
            assert isinstance(conditioning, TextConditioning), "the embedded model takes text"
            pictures = torch.cat([encoder_input(render(edit.source)) for edit in part])
            source = pipeline.tokenizer.encode(pictures.to(device=pipeline.device, dtype=dtype)).float()
            found = generate(
                pipeline.transformer,
                replace(conditioning, source=source),
                schedule,
                settings,
                noise=SeededNoise(self.seed + span.start, len(part)),
                quantizer=pipeline.quantizer,
                attention=pipeline.attention,
                device=pipeline.device,
            )
            return pipeline.decode(found.f_hat).numpy()

        return draw


@dataclass(frozen=True)
class Judged:
    """The task of editing by another task, and reading the pictures back where they are made."""

    pictures: Task[range, np.ndarray]
    edits: Sequence[SceneEdit]

    def begin(self, load: Load) -> Callable[[range], list[EditScore]]:
        """What edits and scores a batch."""
        draw = self.pictures.begin(load)
        return lambda part: [
            score_edit(edit, image)
            for edit, image in zip(self.edits[part.start : part.stop], draw(part), strict=True)
        ]


def evaluated(
    by: Engine | Pipeline,
    task: Judged,
    batch: int = 20,
    advance: Callable[[int], object] = lambda pictures: None,
) -> list[EditScore]:
    """The scores of all edits; ``advance`` is called with every batch's size as it is done."""
    parts = spans(len(task.edits), batch)
    done = advanced(working(by).run(task, parts), parts, advance)
    return [found for one in in_order(done) for found in one.result]


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
