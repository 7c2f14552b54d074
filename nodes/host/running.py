"""One execution of the sampler: memory, attempts, and what the run did."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import comfy.model_management as mm
import torch
from torch import Tensor

from ...stagevar_core.acceleration.policy import AccelerationPolicy, RunInfo
from ...stagevar_core.conditioning.changing import RunConditioning, tokens_of
from ...stagevar_core.costs import kv_bytes
from ...stagevar_core.models.draws import run_costs
from ...stagevar_core.models.guidance import guided_until
from ...stagevar_core.sampling.forecast import Forecast, forecast
from ...stagevar_core.sampling.generate import generate
from ...stagevar_core.sampling.kept import KeptPrefix
from ...stagevar_core.sampling.memory import MemoryEstimate, estimate_memory
from ...stagevar_core.sampling.noise import SeededNoise
from ...stagevar_core.sampling.paused import PausedRun
from ...stagevar_core.sampling.settings import SamplingSettings
from ...stagevar_core.sampling.state import RunState
from ...stagevar_core.sampling.trace import Trace, joined
from ...stagevar_core.schedule import ScaleSchedule
from . import bridge
from .attached import HostTransformer, Patcher, network_of, options_of
from .edit import Edit
from .monitor import HostMonitor
from .stopping import name_of
from .vae import TokenizerVAE

_LOG = logging.getLogger(__name__)
_SPARE = 0.25  # of the host's free memory


class Result(NamedTuple):
    """What a job gives: the accumulated latent (B, C, h, w), what ran, and what its scales added."""

    f_hat: Tensor
    trace: Trace
    state: RunState


@dataclass(frozen=True)
class Job:
    """Everything that does not change between attempts.

    ``kept``: what earlier runs left of a picture to edit. ``until``: scales after which it stops.
    ``resumed``: what runs that stopped have added, from which it goes on with their seeds. ``paused``: where
    what is left of them is, and where a job that stops leaves its own.
    """

    model: Patcher
    vae: TokenizerVAE
    conditioning: RunConditioning
    schedule: ScaleSchedule
    settings: SamplingSettings
    seed: int
    policy: AccelerationPolicy
    edit: Edit | None = None
    kept: KeptPrefix | None = None
    until: int | None = None
    resumed: RunState | None = None
    paused: PausedRun | None = None

    @property
    def seeds(self) -> tuple[int, ...]:
        """One per image."""
        if self.resumed is not None:
            return self.resumed.seeds
        return SeededNoise(self.seed, self.conditioning.batch).seeds

    def given(self, images: Sequence[int]) -> dict[str, Any]:
        """What ``generate`` is given of these images."""
        if self.resumed is not None:
            return {"resumed": self.resumed.pick(images)}
        return self.edit.given(images) if self.edit is not None else {}

    @property
    def stops(self) -> bool:
        """Whether it ends before the last scale."""
        return self.until is not None and self.until < len(self.schedule)

    @property
    def network(self) -> HostTransformer:
        """The transformer, without compiled blocks."""
        return self.model.model

    @property
    def guided(self) -> bool:
        """Whether any scale runs unconditional rows, too."""
        return any(weight != 1.0 for weight in self.weights)

    @property
    def weights(self) -> tuple[float, ...]:
        """Of the guidance at every scale."""
        return self.network.guidance_weights(self.settings.cfg_scale, self.schedule)

    def forecast(self, batch: int, sequential: bool = False) -> Forecast:
        """What a run of ``batch`` images needs; where every image is a run of its own, what one does."""
        images = 1 if self.policy.per_image else batch
        info = RunInfo(
            self.schedule,
            self.network.config.depth,
            images,
            self.guided,
            self.conditioning.negative is not None,
            self.seeds[:images],
            self.network.prefix(self.conditioning.at(0), self.schedule),
            guided_until(self.weights, self.network.config.unit_costs),
            self.network.corrects,
        )
        units = run_costs(self.network, self.schedule, self.network.drawing_head(self.settings.refine))
        rows = {"sequential": sequential, "offload": self.offload is not None}
        texts = tokens_of(self.conditioning, len(self.schedule))
        return forecast(self.policy, info, units, texts, until=self.until, **rows)

    def memory(self, batch: int, sequential: bool = False) -> MemoryEstimate:
        """What ``batch`` images need beside the weights."""
        network, rows = self.network, 2 * batch if self.guided else batch
        text = rows * self.conditioning.tokens
        return estimate_memory(network.config, self.forecast(batch, sequential), text, network.compute_dtype)

    @property
    def keeps(self) -> bool:
        """Whether what precedes the scales may wait in the host's memory for another run: there is room."""
        prefix = self.network.prefix(self.conditioning.at(0), self.schedule)
        if prefix is None:
            return False
        rows = self.conditioning.batch * (2 if self.guided else 1)
        itemsize = self.network.compute_dtype.itemsize
        needed = kv_bytes(self.network.config, prefix.tokens, rows=rows, itemsize=itemsize)
        return needed <= spare()

    @property
    def offload(self) -> torch.device | None:
        """Where keys and values may wait; nowhere where the device has the host's memory."""
        return None if self.model.load_device.type in ("cpu", "mps") else torch.device("cpu")


def spare() -> float:
    """Bytes of the host's memory that may be used to keep something for another run."""
    return _SPARE * bridge.free_memory(torch.device("cpu"))


@dataclass(frozen=True)
class Attempt:
    """A way to make the images; ``note`` says so in the log and on the node.

    ``sequential``: guidance takes its rows in turn, and half of the keys and values wait in the host's
    memory. ``apart``: image by image. ``reserve``: how much of the estimate is set free before.
    """

    note: str = ""
    sequential: bool = False
    apart: bool = False
    reserve: float = 1.0

    def memory(self, job: Job) -> MemoryEstimate:
        """What it needs beside the weights."""
        return job.memory(1 if self.apart else job.conditioning.batch, self.sequential)


def attempts(job: Job) -> list[Attempt]:
    """All ways, from the fastest to the one that needs least memory."""
    turns = "the rows of guidance run in turn"
    last = Attempt(turns if job.guided else "once more with more memory set free", job.guided, reserve=1.5)
    if job.conditioning.batch == 1:
        return [Attempt(), last]
    apart = replace(last, note=f"image by image, {turns}" if job.guided else "image by image", apart=True)
    return [Attempt(), Attempt(turns, sequential=True), apart] if job.guided else [Attempt(), apart]


def first_attempt(job: Job, ways: Sequence[Attempt]) -> int:
    """Which of them to begin with: the one that moves the fewest weights through the device while it runs.

    None do where a run fits beside all weights. Rows in turn fetch those that do not fit once per turn.
    """
    device = job.model.load_device
    if job.offload is None:
        return 0
    loaded = sum(each.loaded_size() for each in mm.loaded_models() if each.load_device == device)
    room = bridge.free_memory(device) + loaded - mm.extra_reserved_memory()

    def moved(way: Attempt) -> float:
        needed = way.memory(job).total
        if needed > room:
            return math.inf
        runs = (2 if way.sequential else 1) * (job.conditioning.batch if way.apart else 1)
        return runs * max(0.0, job.model.model_size() + needed - room)

    costs = [moved(way) for way in ways]
    return len(ways) - 1 if min(costs) == math.inf else costs.index(min(costs))


def run(job: Job, size: tuple[int, int]) -> Result:
    """All images; where memory runs out, again in ways that need less of it."""
    ways, failure = attempts(job), ""
    start = first_attempt(job, ways)
    shares = job.forecast(job.conditioning.batch).shares
    with HostMonitor(job.network.config, job.vae, size, shares) as monitor:
        for number, way in enumerate(ways[start:]):
            # Only here, as the error that an except block handles keeps the failed run's tensors alive.
            reason = "out of memory" if number else "not enough memory for all at once" if start else ""
            if reason:
                _LOG.warning("StageVAR: %s; %s", reason, way.note)
            if number:
                mm.soft_empty_cache()
                monitor.restart(job.conditioning.batch if way.apart else 1)
            try:
                result = _attempt(job, way, monitor)
            except Exception as error:
                if not bridge.is_out_of_memory(error):
                    raise
                failure = str(error)
                continue
            monitor.finish()
            if reason:
                result.trace.notes.append(f"{reason}: {way.note}")
            return result
    mm.soft_empty_cache()
    raise RuntimeError(_out_of_memory(job, size, failure))


def _attempt(job: Job, way: Attempt, monitor: HostMonitor) -> Result:
    """All images in one way."""
    batch = job.conditioning.batch
    if not way.apart:
        return _generate(job, range(batch), monitor, way)
    parts = [_generate(job, [index], monitor, way) for index in range(batch)]
    latents, traces, states = zip(*parts, strict=True)
    images = tuple(image for state in states for image in state.images)
    return Result(torch.cat(latents), joined(traces), replace(states[0], images=images, seeds=job.seeds))


def _generate(job: Job, images: Sequence[int], monitor: HostMonitor, way: Attempt) -> Result:
    """The latents of these images of the batch on the intermediate device, their trace and their state."""
    conditioning = job.conditioning
    if len(images) < conditioning.batch:
        conditioning = conditioning.image(images[0])
    quantizer = job.vae.quantizer(job.network.config.patch)
    beside = monitor.decodes or isinstance(quantizer, torch.nn.Module)  # codebooks are part of the tokenizer
    models = [job.model, job.vae.patcher] if beside else [job.model]
    needed = int(way.memory(job).total * way.reserve)
    mm.load_models_gpu(models, memory_required=needed)
    seeds = [job.seeds[index] for index in images]
    result = generate(
        network_of(job.model),
        conditioning,
        job.schedule,
        job.settings,
        noise=SeededNoise.of(seeds),
        quantizer=quantizer,
        policy=job.policy,
        attention=bridge.attention_for(options_of(job.model.model_options)),
        monitor=monitor,
        device=job.model.load_device,
        sequential=way.sequential,
        offload=job.offload if way.sequential else None,
        kept=job.kept if job.keeps else None,
        until=job.until,
        paused=job.paused,
        **job.given(images),
    )
    names = {"model": name_of(job.network.checkpoint), "tokenizer": job.vae.checkpoint.source}
    state = RunState.of(result, seeds, job.settings, **names)
    return Result(result.f_hat.to(mm.intermediate_device()), result.trace, state)


def _out_of_memory(job: Job, size: tuple[int, int], failure: str) -> str:
    memory, gib = job.memory(1, job.guided), 2**30
    weights = job.model.model_size() / gib
    free = bridge.free_memory(job.model.load_device) / gib
    return (
        f"Out of memory: one image of {size[1]}x{size[0]} with cfg {job.settings.cfg_scale} needs about "
        f"{memory.total / gib:.1f} GiB ({memory.cache / gib:.1f} GiB keys and values, "
        f"{memory.activations / gib:.1f} GiB activations) beside up to {weights:.1f} GiB of weights, its "
        f"rows of guidance in turn; {free:.1f} GiB are free on {job.model.load_device}. Use a smaller width "
        f"and height, cfg 1, StageVAR Accelerate, or weight_dtype fp8_e4m3fn. ({failure[:200]})"
    )
