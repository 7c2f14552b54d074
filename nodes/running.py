"""One execution of the sampler: memory, attempts, and what the run did."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_management as mm
import torch
from torch import Tensor

from ..stagevar_core.acceleration.forecast import Forecast, forecast
from ..stagevar_core.acceleration.policy import AccelerationPolicy, RunInfo
from ..stagevar_core.heads import SeededNoise, run_costs
from ..stagevar_core.sampling import SamplingSettings, generate
from ..stagevar_core.schedule import ScaleSchedule
from ..stagevar_core.trace import Trace, joined
from . import bridge
from .compiling import network_of
from .conditioning import Conditioning
from .editing import Edit
from .monitor import HostMonitor
from .vae import TokenizerVAE

_LOG = logging.getLogger(__name__)
Result = tuple[Tensor, Trace]


@dataclass(frozen=True)
class Job:
    """Everything that does not change between attempts."""

    model: Any  # the patcher
    vae: TokenizerVAE
    conditioning: Conditioning
    schedule: ScaleSchedule
    settings: SamplingSettings
    seed: int
    policy: AccelerationPolicy
    edit: Edit | None = None

    @property
    def network(self) -> Any:
        return self.model.model

    @property
    def guided(self) -> bool:
        weights = self.network.guidance_weights(self.settings.cfg_scale, self.schedule)
        return any(weight != 1.0 for weight in weights)

    def forecast(self, batch: int) -> Forecast:
        """What a run of ``batch`` images needs; where every image is a run of its own, what one does."""
        images = 1 if self.policy.per_image else batch
        info = RunInfo(
            self.schedule,
            self.network.config.depth,
            images,
            self.guided,
            self.conditioning.negative is not None,
            SeededNoise(self.seed, images).seeds,
        )
        units = run_costs(self.network, self.schedule, self.settings.refine)
        return forecast(self.policy, info, units, self.conditioning.tokens)

    def memory(self, batch: int) -> bridge.MemoryEstimate:
        """What ``batch`` images need beside the weights."""
        network, rows = self.network, 2 * batch if self.guided else batch
        text = rows * self.conditioning.tokens
        return bridge.estimate_memory(network.config, self.forecast(batch), text, network.compute_dtype)


def run(job: Job, size: tuple[int, int]) -> Result:
    """All images at once; when memory runs out, once more one by one with more of it set free."""
    batch = job.conditioning.batch
    with HostMonitor(job.network, job.vae, size, job.forecast(batch).shares) as monitor:
        try:
            result = _generate(job, range(batch), monitor, reserve=1.0)
            monitor.finish()
            return result
        except Exception as error:
            if not bridge.is_out_of_memory(error):
                raise
        # Outside of the except block, which would keep the failed run's tensors alive.
        _LOG.warning("StageVAR: out of memory; trying again, image by image")
        mm.soft_empty_cache()
        monitor.restart(batch)
        try:
            parts = [_generate(job, [index], monitor, reserve=1.5) for index in range(batch)]
        except Exception as error:
            if not bridge.is_out_of_memory(error):
                raise
            failure = str(error)
        else:
            monitor.finish()
            return torch.cat([f_hat for f_hat, _ in parts]), joined([trace for _, trace in parts])
    mm.soft_empty_cache()
    raise RuntimeError(_out_of_memory(job, size, failure))


def _generate(job: Job, images: Sequence[int], monitor: HostMonitor, reserve: float) -> Result:
    """The latents of these images of the batch on the intermediate device, and their trace."""
    conditioning = job.conditioning
    if len(images) < conditioning.batch:
        conditioning = conditioning.image(images[0])
    quantizer = job.vae.quantizer(job.network.config.patch)
    beside = monitor.previews or isinstance(quantizer, torch.nn.Module)  # codebooks are part of the tokenizer
    models = [job.model, job.vae.patcher] if beside else [job.model]
    needed = int(job.memory(len(images)).total * reserve)
    mm.load_models_gpu(models, memory_required=needed)
    options = job.model.model_options.get("transformer_options", {})
    result = generate(
        network_of(job.model),
        conditioning,
        job.schedule,
        job.settings,
        noise=SeededNoise(job.seed + images[0], len(images)),
        quantizer=quantizer,
        policy=job.policy,
        attention=bridge.attention_for(options),
        monitor=monitor,
        device=job.model.load_device,
        **(job.edit.options(images) if job.edit else {}),
    )
    return result.f_hat.to(mm.intermediate_device()), result.trace


def _out_of_memory(job: Job, size: tuple[int, int], failure: str) -> str:
    memory, gib = job.memory(1), 2**30
    weights = job.model.model_size() / gib
    free = mm.get_free_memory(job.model.load_device) / gib
    return (
        f"Out of memory: one image of {size[1]}x{size[0]} with cfg {job.settings.cfg_scale} needs about "
        f"{memory.total / gib:.1f} GiB ({memory.cache / gib:.1f} GiB keys and values, "
        f"{memory.activations / gib:.1f} GiB activations) beside up to {weights:.1f} GiB of weights; "
        f"{free:.1f} GiB are free on {job.model.load_device}. Use a smaller width and height, cfg 1, "
        f"StageVAR Accelerate, or weight_dtype fp8_e4m3fn. ({failure[:200]})"
    )
