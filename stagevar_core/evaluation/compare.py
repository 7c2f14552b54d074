"""Policies side by side: the same prompts and seeds, measured against the run without acceleration.

Every batch runs under all policies in turn, so that what disturbs the clock disturbs all of them. Its results
are written as it is done; a second call with the same store goes on where the first one ended.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..acceleration.policy import AccelerationPolicy, DensePolicy, FirstScales
from ..checks import MAX_SEED, whole
from ..conditioning.types import Conditioning
from ..pipeline import Pipeline
from ..rendering.engines import Engine, ask, working
from ..rendering.work import Load, advanced, spans
from ..sampling.generate import generate
from ..sampling.noise import SeededNoise
from ..sampling.result import Generation
from ..sampling.settings import SamplingSettings
from ..sampling.trace import Trace
from ..schedule import ScaleSchedule
from . import fingerprint
from .lpips import LPIPS
from .metrics import psnr, ssim
from .reading import FEATURES, Reader, reader_of
from .store import Part, Store

REFERENCE = "off"  # the variant that all others are measured against
NEARNESS = ("psnr", "ssim", "lpips")  # of pictures to those of the reference
WORK = ("flops", "milliseconds", "computed", "rows", "ran", "kv_bytes")  # per batch and scale
_SAMPLING_LOG = logging.getLogger(generate.__module__.rpartition(".")[0])
Keep = Callable[[str, int, np.ndarray], None]  # variant, number of the picture, picture (H, W, 3) uint8


@dataclass(frozen=True)
class Job:
    """What is drawn: ``seeds`` pictures of each caption, next to each other; picture i has seed ``seed + i``.

    ``batch``: pictures at once. ``settings`` and ``schedule``: the model's own where None.
    """

    captions: tuple[str, ...]
    seeds: int = 1
    seed: int = 0
    batch: int = 20
    settings: SamplingSettings | None = None
    schedule: ScaleSchedule | None = None

    def __post_init__(self) -> None:
        if not self.captions:
            raise ValueError("no caption was given; pass at least one")
        whole("seeds", self.seeds, 1, 1024, "1 to 1024")
        whole("batch", self.batch, 1, 1024, "1 to 1024")
        last = MAX_SEED - self.pictures
        whole("seed", self.seed, 0, last, f"0 to {last}")

    @property
    def pictures(self) -> int:
        """How many in all."""
        return len(self.captions) * self.seeds

    @property
    def batches(self) -> list[range]:
        """The numbers of the pictures that are drawn at once."""
        return spans(self.pictures, self.batch)


@dataclass(frozen=True)
class Comparison:
    """What was measured.

    ``measures``: variant -> measure -> one value per picture, NaN where it does not apply. ``work``: variant
    -> quantity (:data:`WORK`) -> (batches, scales); FLOPs and milliseconds are those of a whole batch,
    'computed' is tokens per row. ``tasks``: of every caption, None where the captions have none.
    ``single``: variants that make the pictures of a batch one by one. ``frechet``: how far the pictures of
    a variant lie from real ones, where a judge says so.
    """

    job: Job
    schedule: ScaleSchedule
    measures: dict[str, dict[str, np.ndarray]]
    work: dict[str, dict[str, np.ndarray]]
    notes: dict[str, list[str]]
    tasks: tuple[str, ...] | None
    single: tuple[str, ...]
    frechet: dict[str, float] = field(default_factory=dict)

    @property
    def variants(self) -> list[str]:
        """Their names, the dense run first."""
        return list(self.measures)

    def per_caption(self, variant: str, measure: str) -> np.ndarray:
        """Means over the seeds of each caption: the independent values."""
        values = self.measures[variant][measure].reshape(-1, self.job.seeds)
        known = ~np.isnan(values)
        totals = np.where(known, values, 0.0).sum(axis=1)
        return np.where(known.any(axis=1), totals / np.maximum(known.sum(axis=1), 1), np.nan)


@dataclass(frozen=True)
class About:
    """What the models of a worker make of a job.

    ``identity``: what the results depend on, so that a store is never continued with something else.
    ``reader``: who reads the pictures back, None where nobody can.
    """

    identity: dict[str, str]
    schedule: ScaleSchedule
    reader: Reader | None


@dataclass(frozen=True)
class Compared:
    """The task of drawing a batch under every policy and measuring it, where it is drawn.

    ``keep``: called there with variant, number and picture (H, W, 3).
    """

    variants: Mapping[str, AccelerationPolicy]
    job: Job
    lpips: LPIPS | None = None
    keep: Keep | None = None

    def begin(self, load: Load) -> Callable[[range], Part]:
        """What measures a batch."""
        return _Runner(load(), self).part

    def about(self, pipeline: Pipeline) -> About:
        """What loaded models make of it, nothing drawn yet."""
        return _Runner(pipeline, self).about()


def compare(  # noqa: PLR0913 - what to measure, then where the results go
    by: Engine | Pipeline,
    variants: Mapping[str, AccelerationPolicy],
    job: Job,
    *,
    store: Path | None = None,
    keep: Keep | None = None,
    lpips: LPIPS | None = None,
    advance: Callable[[int], object] = lambda pictures: None,
    about: About | None = None,
) -> Comparison:
    """Draw the captions under every policy and under none.

    ``store``: folder of the results so far. ``keep``: called with variant, number and picture (H, W, 3) as
    they are made and where they are made, not again for what the store already has. ``advance``: called with
    every batch's size. ``about``: what the models were asked already. Raises ``ValueError`` for a store of
    other models, code or settings.
    """
    engine, task = working(by), Compared(dense_first(variants), job, lpips, keep)
    about = about or ask(engine, task.about)
    results = None if store is None else Store(store, about.identity)
    parts = {batch: None if results is None else results.read(batch.start) for batch in job.batches}
    left = [batch for batch, part in parts.items() if part is None]
    for batch in parts.keys() - left:
        advance(len(batch))
    for done in advanced(engine.run(task, left), left, advance):
        batch = left[done.number]
        if results is not None:
            results.write(batch.start, done.result)
        parts[batch] = done.result
    return together(task, about, [part for part in parts.values() if part is not None])


def dense_first(variants: Mapping[str, AccelerationPolicy]) -> dict[str, AccelerationPolicy]:
    """The variants behind the one that all are measured against."""
    found = {REFERENCE: DensePolicy(), **variants}
    if not isinstance(found[REFERENCE], DensePolicy):
        raise ValueError(f"{REFERENCE!r} is what the others are measured against; name this policy otherwise")
    return found


def together(task: Compared, about: About, parts: Sequence[Part]) -> Comparison:
    """The parts of all batches as one."""
    measures: dict[str, dict[str, np.ndarray]] = {}
    work: dict[str, dict[str, np.ndarray]] = {}
    notes: dict[str, list[str]] = {}
    frechet: dict[str, float] = {}
    reader = about.reader
    scored = () if reader is None else reader.measures
    for number, name in enumerate(task.variants):
        known = [key for key in (*NEARNESS, *scored) if f"{number}.{key}" in parts[0]]
        measures[name] = {key: np.concatenate([part[f"{number}.{key}"] for part in parts]) for key in known}
        work[name] = {key: np.stack([part[f"{number}.{key}"] for part in parts]) for key in WORK}
        said = [json.loads(str(part[f"{number}.notes"])) for part in parts]
        notes[name] = list(dict.fromkeys(note for some in said for note in some))
        if reader is not None and f"{number}.{FEATURES}" in parts[0]:
            features = np.concatenate([part[f"{number}.{FEATURES}"] for part in parts])
            if (distance := reader.distance(features)) is not None:
                frechet[name] = distance
    single = tuple(name for name, policy in task.variants.items() if policy.per_image)
    tasks = None if reader is None else reader.tasks
    return Comparison(task.job, about.schedule, measures, work, notes, tasks, single, frechet)


@contextmanager
def _quiet() -> Iterator[None]:
    """What the loop notes of a policy is in the report, once, not in the log for every batch."""
    level = _SAMPLING_LOG.level
    _SAMPLING_LOG.setLevel(logging.ERROR)
    try:
        yield
    finally:
        _SAMPLING_LOG.setLevel(level)


class _Runner:
    """One comparison with loaded models."""

    def __init__(self, pipeline: Pipeline, task: Compared) -> None:
        self.pipeline, self.job, self.keep, self.variants = pipeline, task.job, task.keep, task.variants
        self.lpips = None if task.lpips is None else task.lpips.to(pipeline.device)
        self.settings = self.job.settings or pipeline.settings()
        self.schedule = self.job.schedule or pipeline.schedule()
        self.warm = False
        self.reader = reader_of(pipeline, self.job.captions, self.schedule)

    def about(self) -> About:
        """What does not depend on any picture."""
        job = {**asdict(self.job), "settings": asdict(self.settings), "schedule": self.schedule.grids}
        policies = {name: described(policy) for name, policy in self.variants.items()}
        encoder, lpips = self.pipeline.text_encoder, None if self.lpips is None else self.lpips.net
        networks = self.pipeline.transformer, self.pipeline.tokenizer, encoder and encoder.model
        identity = {
            "job": fingerprint.digest(json.dumps(job)),
            "variants": fingerprint.digest(json.dumps([policies, lpips])),
            "models": fingerprint.weights(*networks),
            "code": fingerprint.code(),
        }
        return About(identity, self.schedule, self.reader)

    def warm_up(self) -> None:
        """The first scales once, not measured, before the first batch of this worker."""
        if self.warm:
            return
        first = FirstScales(max(1, len(self.schedule) // 2))
        self._generate(self.pipeline.encode(self.job.captions[:1]), 0, first)
        self.warm = True

    def part(self, batch: range) -> Part:
        """All variants on the pictures with these numbers."""
        with _quiet():
            self.warm_up()
            return self._measured(batch)

    def _measured(self, batch: range) -> Part:
        start, found = batch.start, {}
        captions = [self.job.captions[index // self.job.seeds] for index in batch]
        conditioning = self.pipeline.encode(captions)
        dense = None
        for number, (name, policy) in enumerate(self.variants.items()):
            generation = self._generate(conditioning, start, policy)
            pictures = self.pipeline.decode(generation.f_hat)
            dense = pictures if dense is None else dense
            values = self._nearness(dense, pictures) | _work(generation.trace)
            if self.reader is not None:
                values |= self.reader.read(captions, pictures)
            found |= {f"{number}.{key}": value for key, value in values.items()}
            if self.keep is not None:
                for index, picture in enumerate(pictures.numpy()):
                    self.keep(name, start + index, picture)
        return found

    def _generate(self, conditioning: Conditioning, start: int, policy: AccelerationPolicy) -> Generation:
        return generate(
            self.pipeline.transformer,
            conditioning,
            self.schedule,
            self.settings,
            noise=SeededNoise(self.job.seed + start, conditioning.batch),
            quantizer=self.pipeline.quantizer,
            policy=policy,
            attention=self.pipeline.attention,
            device=self.pipeline.device,
        )

    def _nearness(self, dense: Tensor, pictures: Tensor) -> Part:
        """Picture by picture on the model's device: large ones take much more memory while compared."""
        ways = {"psnr": psnr, "ssim": ssim}
        if self.lpips is not None:
            ways["lpips"] = self.lpips
        found: dict[str, list[float]] = {key: [] for key in ways}
        for pair in zip(dense.split(1), pictures.split(1), strict=True):
            a, b = (picture.to(self.pipeline.device) for picture in pair)
            for key, way in ways.items():
                found[key].append(float(way(a, b)))
        return {key: np.array(values, np.float32) for key, values in found.items()}


def _work(trace: Trace) -> Part:
    """The trace per scale, and what the policy had to say."""
    rows = [(s.flops.total, s.milliseconds, s.computed, s.rows, s.ran, s.kv_bytes) for s in trace.scales]
    columns = zip(*rows, strict=True)
    found = {key: np.array(column, np.float64) for key, column in zip(WORK, columns, strict=True)}
    return found | {"notes": np.array(json.dumps(trace.notes))}


def described(value: object) -> Any:
    """A policy or a part of one as plain values that are the same in every process."""
    if is_dataclass(value):
        return [type(value).__qualname__, {key: described(item) for key, item in vars(value).items()}]
    if isinstance(value, Mapping):
        return {str(key): described(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [described(item) for item in value]
    if value is None or isinstance(value, str | int | float):
        return value
    return [type(value).__qualname__, described(getattr(value, "__dict__", {}))]
