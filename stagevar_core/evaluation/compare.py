"""Policies side by side: the same prompts and seeds, measured against the run without acceleration.

Every batch runs under all policies in turn, so that what disturbs the clock disturbs all of them. Its results
are written before the next one starts; a second call with the same store goes on where the first one ended.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..acceleration.policy import AccelerationPolicy, DensePolicy, FirstScales
from ..checks import MAX_SEED, whole
from ..conditioning.types import Conditioning
from ..pipeline import Pipeline
from ..sampling.generate import generate
from ..sampling.noise import SeededNoise
from ..sampling.result import Generation
from ..sampling.settings import SamplingSettings
from ..sampling.trace import Trace
from ..schedule import ScaleSchedule
from . import fingerprint
from .lpips import LPIPS
from .metrics import psnr, ssim
from .reading import FEATURES, reader_of
from .store import Part, Store

REFERENCE = "off"  # the variant that all others are measured against
NEARNESS = ("psnr", "ssim", "lpips")  # of pictures to those of the reference
WORK = ("flops", "milliseconds", "computed", "rows", "ran", "kv_bytes")  # per batch and scale
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

    def part(self, start: int) -> list[str]:
        """The captions of the batch that begins with picture ``start``."""
        stop = min(start + self.batch, self.pictures)
        return [self.captions[index // self.seeds] for index in range(start, stop)]


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


def compare(  # noqa: PLR0913 - what to measure, then where the results go
    pipeline: Pipeline,
    variants: Mapping[str, AccelerationPolicy],
    job: Job,
    *,
    store: Path | None = None,
    keep: Keep | None = None,
    lpips: LPIPS | None = None,
    advance: Callable[[int], object] = lambda pictures: None,
) -> Comparison:
    """Draw the captions under every policy and under none.

    ``store``: folder of the results so far. ``keep``: called with variant, number and picture (H, W, 3) as
    they are made, not again for what the store already has. ``advance``: called with every batch's size.
    Raises ``ValueError`` for a store of other models, code or settings.
    """
    runner = _Runner(pipeline, variants, job, lpips, keep)
    results = None if store is None else Store(store, runner.identity())
    parts, warm = [], False
    for start in range(0, job.pictures, job.batch):
        part = None if results is None else results.read(start)
        if part is None:
            if not warm:
                runner.warm_up()
                warm = True
            part = runner.part(start)
            if results is not None:
                results.write(start, part)
        parts.append(part)
        advance(len(job.part(start)))
    return runner.result(parts)


class _Runner:
    """One comparison in the making."""

    def __init__(
        self,
        pipeline: Pipeline,
        variants: Mapping[str, AccelerationPolicy],
        job: Job,
        lpips: LPIPS | None,
        keep: Keep | None,
    ) -> None:
        self.pipeline, self.job, self.keep = pipeline, job, keep
        self.lpips = None if lpips is None else lpips.to(pipeline.device)
        self.variants = {REFERENCE: DensePolicy(), **variants}
        if not isinstance(self.variants[REFERENCE], DensePolicy):
            raise ValueError(
                f"{REFERENCE!r} is what the others are measured against; name this policy otherwise"
            )
        self.settings = job.settings or pipeline.settings()
        self.schedule = job.schedule or pipeline.schedule()
        self.reader = reader_of(pipeline, job.captions, self.schedule)

    def identity(self) -> dict[str, str]:
        """What the results depend on, so that a store is never continued with something else."""
        job = {**asdict(self.job), "settings": asdict(self.settings), "schedule": self.schedule.grids}
        policies = {name: described(policy) for name, policy in self.variants.items()}
        encoder, lpips = self.pipeline.text_encoder, None if self.lpips is None else self.lpips.net
        networks = self.pipeline.transformer, self.pipeline.tokenizer, encoder and encoder.model
        return {
            "job": fingerprint.digest(json.dumps(job)),
            "variants": fingerprint.digest(json.dumps([policies, lpips])),
            "models": fingerprint.weights(*networks),
            "code": fingerprint.code(),
        }

    def warm_up(self) -> None:
        """The first scales once, not measured."""
        first = FirstScales(max(1, len(self.schedule) // 2))
        self._generate(self.pipeline.encode(self.job.captions[:1]), 0, first)

    def part(self, start: int) -> Part:
        """All variants on the batch that begins with picture ``start``."""
        captions, found = self.job.part(start), {}
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

    def result(self, parts: list[Part]) -> Comparison:
        """The parts as one."""
        measures: dict[str, dict[str, np.ndarray]] = {}
        work: dict[str, dict[str, np.ndarray]] = {}
        notes: dict[str, list[str]] = {}
        frechet: dict[str, float] = {}
        reader = self.reader
        scored = () if reader is None else reader.measures
        for number, name in enumerate(self.variants):
            known = [key for key in (*NEARNESS, *scored) if f"{number}.{key}" in parts[0]]
            measures[name] = {
                key: np.concatenate([part[f"{number}.{key}"] for part in parts]) for key in known
            }
            work[name] = {key: np.stack([part[f"{number}.{key}"] for part in parts]) for key in WORK}
            said = [json.loads(str(part[f"{number}.notes"])) for part in parts]
            notes[name] = list(dict.fromkeys(note for some in said for note in some))
            if reader is not None and f"{number}.{FEATURES}" in parts[0]:
                features = np.concatenate([part[f"{number}.{FEATURES}"] for part in parts])
                if (distance := reader.distance(features)) is not None:
                    frechet[name] = distance
        single = tuple(name for name, policy in self.variants.items() if policy.per_image)
        tasks = None if reader is None else reader.tasks
        return Comparison(self.job, self.schedule, measures, work, notes, tasks, single, frechet)

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
