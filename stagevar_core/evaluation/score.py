"""The score of the embedded model: scenes asked for, drawn, and read back from the pixels."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..acceleration.policy import FirstScales
from ..pipeline import Pipeline
from ..sampling.result import Monitor
from ..sampling.settings import SamplingSettings
from ..scenes import Scene, place, render, sample_caption, score
from ..scenes.grammar import CANVAS
from ..scenes.scorer import Score
from ..schedule import Scale, ScaleSchedule
from .intervals import interval

PARTS = ("texture", "shape", "colour", "count", "position", "size", "background")
SCORED = ("strict", *PARTS)  # of :class:`~stagevar_core.scenes.Score`
Report = dict[str, dict[str, Any]]  # task -> "n", and measure -> mean with its uncertainty, see summarise


def held_out(count: int, seed: int) -> list[tuple[Scene, str]]:
    """``count`` different captions that training never saw, each with a scene that shows it."""
    rng = np.random.default_rng([seed, 1])
    found: dict[str, Scene] = {}
    while len(found) < count:
        spec, caption = sample_caption(rng, "test")
        scene = place(spec, rng)
        found.setdefault(caption, scene)
    return [(scene, caption) for caption, scene in found.items()]


def quarter(schedule: ScaleSchedule) -> int:
    """Number of scales up to a quarter of the final area."""
    return sum(schedule.area_fraction(scale) <= 0.25 for scale in schedule)


def summarise(scores: Iterable[Score]) -> Report:
    """Per task and for 'all': n, and for each of :data:`SCORED` how often it holds.

    That is a dict of mean, standard error, the ends of Wilson's 95% interval and n; None where no caption
    says it.
    """
    groups: dict[str, list[Score]] = {"all": list(scores)}
    for task in sorted({found.task for found in groups["all"]}):
        groups[task] = [found for found in groups["all"] if found.task == task]
    return {
        task: {
            "n": len(group),
            **{part: _share([getattr(found, part) for found in group]) for part in SCORED},
        }
        for task, group in groups.items()
    }


def _share(values: Sequence[bool | None]) -> dict[str, float] | None:
    found = interval(np.array([math.nan if value is None else value for value in values], float), share=True)
    if found is None:
        return None
    error = math.sqrt(found.mean * (1 - found.mean) / found.n)
    return {"mean": found.mean, "stderr": error, "low": found.low, "high": found.high, "n": found.n}


@dataclass
class Evaluation:
    """Scores per variant ('all', 'without the last 2', ...) and the pictures of the first variant."""

    reports: dict[str, Report] = field(default_factory=dict)
    images: np.ndarray | None = None
    right: list[bool] = field(default_factory=list)


Pictures = Iterator[dict[str, np.ndarray]]  # batch for batch, variant -> (B, H, W, 3) uint8


def collect(captions: Sequence[str], pictures: Pictures, advance: Callable[[int], object]) -> Evaluation:
    """Score batches of pictures, in the order of the captions, each a dict of variant to (B, H, W, 3) uint8.

    ``advance`` is called with every batch's size. ``ValueError`` for pictures that the scorer cannot read.
    """
    scores: dict[str, list] = {}
    shown, done = [], 0
    for batch in pictures:
        size = len(next(iter(batch.values())))
        for variant, images in batch.items():
            if images.shape[1:3] != (CANVAS, CANVAS):
                raise ValueError(
                    f"the pictures are {images.shape[2]} x {images.shape[1]}; the scorer reads {CANVAS} x "
                    f"{CANVAS}. Score the embedded model"
                )
            texts = captions[done : done + size]
            scores.setdefault(variant, []).extend(
                score(text, image) for text, image in zip(texts, images, strict=True)
            )
        shown.append(next(iter(batch.values())))
        done += size
        advance(size)
    first = next(iter(scores.values()))
    reports = {variant: summarise(found) for variant, found in scores.items()}
    return Evaluation(reports, np.concatenate(shown), [found.strict for found in first])


class _Latents(Monitor):
    """Remembers the latent after the scales in ``wanted`` (numbers of scales)."""

    def __init__(self, wanted: set[int]) -> None:
        self.wanted, self.found = wanted, {}

    def scale(self, scale: Scale, f_hat: Tensor) -> None:
        if scale.index + 1 in self.wanted:
            self.found[scale.index + 1] = f_hat


def generated(
    pipeline: Pipeline,
    captions: Sequence[str],
    *,
    seed: int,
    batch: int,
    settings: SamplingSettings | None = None,
    scales: int | None = None,
) -> Pictures:
    """Pictures of the captions; picture ``i`` has the seed ``seed + i`` whatever the batch size.

    Without ``scales`` every run is also read before its last two scales, which is the same as generating
    without them: later scales never change earlier ones.
    """
    schedule = pipeline.schedule()
    policy = None if scales is None else FirstScales(scales)
    prefixes = {len(schedule) - 2} if scales is None and len(schedule) > 2 else set()
    for start in range(0, len(captions), batch):
        latents = _Latents(prefixes)
        found = pipeline(
            captions[start : start + batch],
            seed=seed + start,
            settings=settings,
            monitor=latents,
            policy=policy,
        )
        name = "all scales" if scales is None else f"first {scales} scales"
        pictures = {name: found.images.numpy()}
        for count, latent in latents.found.items():
            pictures[f"without the last {len(schedule) - count}"] = pipeline.decode(latent).numpy()
        yield pictures


@torch.inference_mode()
def reconstructed(pipeline: Pipeline, scenes: Sequence[Scene], *, batch: int) -> Pictures:
    """Rendered scenes through the tokenizer, with all scales and with those up to a quarter of the area."""
    schedule = pipeline.schedule()
    quantizer = pipeline.quantizer
    weight = next(pipeline.tokenizer.parameters())
    early = quarter(schedule)
    for start in range(0, len(scenes), batch):
        images = np.stack([render(scene) for scene in scenes[start : start + batch]])
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1.0
        features = pipeline.tokenizer.encode(pixels.to(device=pipeline.device, dtype=weight.dtype))
        bits, _ = quantizer.encode(features, schedule)
        pictures = {}
        for name, count in (("all scales", len(schedule)), (f"first {early} scales", early)):
            pictures[name] = pipeline.decode(quantizer.accumulate(bits[:count], schedule)).numpy()
        yield pictures


def rendered(scenes: Sequence[Scene], *, batch: int) -> Pictures:
    """The scenes as drawn, which is what the scorer itself is judged on."""
    for start in range(0, len(scenes), batch):
        yield {"rendered": np.stack([render(scene) for scene in scenes[start : start + batch]])}


def table(reports: dict[str, Report]) -> str:
    """The report as text: strict per task with standard error and 95% interval, then texture and parts."""
    lines = []
    for variant, report in reports.items():
        lines.append(f"{variant}:")
        for task, row in report.items():
            name = "overall" if task == "all" else task
            lines.append(f"  strict {name:<10} {_cell(row['strict'])}")
        everything = report["all"]
        for part in PARTS:
            if everything.get(part):
                lines.append(f"  {part:<17} {_cell(everything[part])}")
    return "\n".join(lines)


def _cell(value: dict[str, float]) -> str:
    return (
        f"{value['mean']:.3f} +- {value['stderr']:.3f}  "
        f"[{value['low']:.3f}, {value['high']:.3f}]  n={value['n']}"
    )


def contact_sheet(
    images: np.ndarray, right: Sequence[bool], columns: int = 10, limit: int = 100
) -> np.ndarray:
    """The first ``limit`` pictures (N, H, W, 3) uint8 in a grid, framed green where ``right``, else red."""
    framed = []
    for image, good in zip(images[:limit], right, strict=False):
        frame = np.full((image.shape[0] + 6, image.shape[1] + 6, 3), 255, np.uint8)
        frame[1:-1, 1:-1] = (40, 160, 60) if good else (210, 40, 40)
        frame[3:-3, 3:-3] = image
        framed.append(frame)
    columns = min(columns, len(framed))
    while len(framed) % columns:
        framed.append(np.full_like(framed[0], 255))
    rows = [np.concatenate(framed[i : i + columns], axis=1) for i in range(0, len(framed), columns)]
    return np.concatenate(rows, axis=0)
