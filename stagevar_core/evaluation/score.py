"""The score of the embedded model: scenes asked for, drawn, and read back from the pixels."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..acceleration.policy import FirstScales
from ..pipeline import Pipeline
from ..rendering.engines import Engine, working
from ..rendering.models import Chosen
from ..rendering.work import Load, Task, advanced, in_order, spans
from ..sampling.result import Monitor
from ..scenes import Scene, place, render, sample_caption, score
from ..scenes.grammar import CANVAS
from ..scenes.scorer import Score
from ..schedule import Scale, ScaleSchedule
from .intervals import interval

PARTS = ("texture", "shape", "colour", "count", "position", "size", "background")
SCORED = ("strict", *PARTS)  # of :class:`~stagevar_core.scenes.Score`
SHOWN = 100  # pictures of a contact sheet
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


Pictures = dict[str, np.ndarray]  # of a batch: variant -> (B, H, W, 3) uint8
Draw = Callable[[range], Pictures]  # the pictures with these numbers
Values = TypeVar("Values")  # what is read back from a batch of one variant


@dataclass(frozen=True)
class Scored(Generic[Values]):
    """A batch that was read back: what was read per variant, and pictures of the first one to show."""

    values: dict[str, Values]
    shown: np.ndarray


def reading(
    draw: Draw, texts: Sequence[str], read: Callable[[Sequence[str], np.ndarray], Values], shown: int
) -> Callable[[range], Scored[Values]]:
    """What draws a batch and reads it back.

    ``read``: gets captions and pictures (B, H, W, 3) uint8. ``shown``: how many pictures come along, the
    first ones of all.
    """

    def judged(part: range) -> Scored[Values]:
        found, wanted = draw(part), texts[part.start : part.stop]
        values = {variant: read(wanted, images) for variant, images in found.items()}
        first = next(iter(found.values()))
        return Scored(values, first[: max(0, shown - part.start)])

    return judged


@dataclass(frozen=True)
class Judged:
    """The task of making pictures of captions by another task, and reading them back where they are made.

    ``shown``: how many pictures come along, the first ones.
    """

    pictures: Task[range, Pictures]
    captions: Sequence[str]
    shown: int = 0

    def begin(self, load: Load) -> Callable[[range], Scored[list[Score]]]:
        """What draws and scores a batch; ``ValueError`` for pictures that the scorer cannot read."""
        return reading(self.pictures.begin(load), self.captions, read_back, self.shown)


def read_back(captions: Sequence[str], images: np.ndarray) -> list[Score]:
    """The scores of pictures (B, H, W, 3) uint8; ``ValueError`` for those that the scorer cannot read."""
    if images.shape[1:3] != (CANVAS, CANVAS):
        raise ValueError(
            f"the pictures are {images.shape[2]} x {images.shape[1]}; the scorer reads {CANVAS} x {CANVAS}. "
            "Score the embedded model"
        )
    return [score(text, image) for text, image in zip(captions, images, strict=True)]


def gathered(
    engine: Engine,
    task: Task[range, Scored[Values]],
    parts: Sequence[range],
    advance: Callable[[int], object],
) -> tuple[dict[str, list[Values]], np.ndarray]:
    """What a task read per variant, in the order of the parts, and the pictures to show.

    ``advance`` is called with every part's size as it is done.
    """
    values, shown = dict[str, list[Values]](), []
    for one in in_order(advanced(engine.run(task, parts), parts, advance)):
        for variant, found in one.result.values.items():
            values.setdefault(variant, []).append(found)
        shown.append(one.result.shown)
    return values, np.concatenate(shown)


def evaluated(
    by: Engine | Pipeline,
    task: Judged,
    batch: int,
    advance: Callable[[int], object] = lambda pictures: None,
) -> Evaluation:
    """All captions of a task in batches; ``advance`` is called with every batch's size as it is done."""
    values, shown = gathered(working(by), task, spans(len(task.captions), batch), advance)
    scores = {variant: list(chain.from_iterable(parts)) for variant, parts in values.items()}
    reports = {variant: summarise(found) for variant, found in scores.items()}
    return Evaluation(reports, shown, [found.strict for found in next(iter(scores.values()))])


class _Latents(Monitor):
    """Remembers the latent after the scales in ``wanted`` (numbers of scales)."""

    def __init__(self, wanted: set[int]) -> None:
        self.wanted, self.found = wanted, {}

    def scale(self, scale: Scale, f_hat: Tensor) -> None:
        if scale.index + 1 in self.wanted:
            self.found[scale.index + 1] = f_hat


@dataclass(frozen=True)
class Generated:
    """The task of drawing captions; picture ``i`` has the seed ``seed + i`` whatever the batch size.

    Without ``scales`` every run is also read before its last two scales, which is the same as generating
    without them: later scales never change earlier ones. ``settings``: of the loaded models.
    """

    captions: Sequence[str]
    seed: int
    scales: int | None = None
    settings: Chosen = Pipeline.settings

    def begin(self, load: Load) -> Draw:
        """What draws a batch."""
        pipeline = load()
        schedule, scales = pipeline.schedule(), self.scales
        policy = None if scales is None else FirstScales(scales)
        prefixes = {len(schedule) - 2} if scales is None and len(schedule) > 2 else set()
        settings = self.settings(pipeline)

        def draw(part: range) -> Pictures:
            latents = _Latents(prefixes)
            found = pipeline(
                self.captions[part.start : part.stop],
                seed=self.seed + part.start,
                settings=settings,
                monitor=latents,
                policy=policy,
            )
            name = "all scales" if scales is None else f"first {scales} scales"
            pictures = {name: found.images.numpy()}
            for count, latent in latents.found.items():
                pictures[f"without the last {len(schedule) - count}"] = pipeline.decode(latent).numpy()
            return pictures

        return draw


@dataclass(frozen=True)
class Reconstructed:
    """The task of sending scenes through the tokenizer, with all scales and up to a quarter of the area."""

    scenes: Sequence[Scene]

    def begin(self, load: Load) -> Draw:
        """What reconstructs a batch."""
        pipeline = load()
        schedule, quantizer = pipeline.schedule(), pipeline.quantizer
        weight, early = next(pipeline.tokenizer.parameters()), quarter(schedule)

        @torch.inference_mode()
        def draw(part: range) -> Pictures:
            images = np.stack([render(scene) for scene in self.scenes[part.start : part.stop]])
            pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1.0
            features = pipeline.tokenizer.encode(pixels.to(device=pipeline.device, dtype=weight.dtype))
            bits, _ = quantizer.encode(features, schedule)
            pictures = {}
            for name, count in (("all scales", len(schedule)), (f"first {early} scales", early)):
                pictures[name] = pipeline.decode(quantizer.accumulate(bits[:count], schedule)).numpy()
            return pictures

        return draw


@dataclass(frozen=True)
class Rendered:
    """The task of the scenes as drawn, which is what the scorer itself is judged on; it needs no models."""

    scenes: Sequence[Scene]

    def begin(self, load: Load) -> Draw:
        """What renders a batch."""
        return lambda part: {
            "rendered": np.stack([render(scene) for scene in self.scenes[part.start : part.stop]])
        }


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
    images: np.ndarray, right: Sequence[bool], columns: int = 10, limit: int = SHOWN
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
