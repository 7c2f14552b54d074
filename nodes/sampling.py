"""The sampler node: text to a latent, scale by scale."""

import logging
import time
from dataclasses import dataclass
from typing import Any

import comfy.model_management as mm
import torch
from comfy_api.latest import io
from torch import Tensor

from ..stagevar_core.checkpoints.load import CheckpointError, check_pairing
from ..stagevar_core.conditioning import TextConditioning
from ..stagevar_core.heads import SeededNoise
from ..stagevar_core.models.infinity import Infinity
from ..stagevar_core.sampling import SamplingSettings, generate
from ..stagevar_core.schedule import ScaleSchedule
from . import bridge
from .conditioning import text_conditioning
from .monitor import HostMonitor
from .schema import CATEGORY, VarModel, describe
from .vae import TokenizerVAE

_LOG = logging.getLogger(__name__)
_MAX_SIDE = 16384
_MAX_BATCH = 64


@dataclass(frozen=True)
class Job:
    """One execution of the node: everything that does not change between attempts."""

    model: Any  # the patcher
    vae: TokenizerVAE
    conditioning: TextConditioning
    schedule: ScaleSchedule
    settings: SamplingSettings
    seed: int

    @property
    def network(self) -> Infinity:
        return self.model.model

    def memory(self, batch: int) -> bridge.MemoryEstimate:
        """What ``batch`` images need beside the weights."""
        network, texts = self.network, (*self.conditioning.features, *(self.conditioning.negative or ()))
        rows = 2 * batch if self.settings.cfg_scale != 1.0 else batch
        longest = max(len(text) for text in texts)
        return bridge.estimate_memory(network.config, self.schedule, rows, longest, network.compute_dtype)


class Sampler(io.ComfyNode):
    """Next-scale sampling of a VAR_MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return describe(
            io.Schema,
            node_id="StageVARSampler",
            display_name="StageVAR Sampler",
            category=CATEGORY,
            description="Generates images with an Infinity model, from one token to the full grid. The "
            "result is a latent for VAE Decode. With previews on, every scale is shown.",
            search_aliases=["infinity", "VAR", "next-scale", "visual autoregressive", "sampler"],
            inputs=[*_model_inputs(), *_sampling_inputs(), *_size_inputs()],
            outputs=[
                describe(
                    io.Latent.Output,
                    display_name="latent",
                    tooltip="The sum of all scales' codes. Decode it with the tokenizer's VAE.",
                )
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(  # noqa: PLR0913 (the host passes inputs by name)
        cls,
        model: Any,
        vae: Any,
        positive: list,
        seed: int,
        cfg: float,
        temperature: float,
        top_k: int,
        top_p: float,
        width: int,
        height: int,
        batch_size: int,
        negative: list | None = None,
    ) -> io.NodeOutput:
        network = _checked_pair(model, vae)
        if not 1 <= batch_size <= _MAX_BATCH:
            raise ValueError(f"batch_size is {batch_size}; expected 1 to {_MAX_BATCH}")
        schedule = network.checkpoint.trained.snap(height, width)
        settings = SamplingSettings(cfg_scale=cfg, temperature=temperature, top_k=top_k, top_p=top_p)
        settings.validate(len(schedule), network.config.depth)
        conditioning = text_conditioning(network.config, positive, negative, batch_size)
        size = network.checkpoint.trained.image_size(schedule)
        report = _size_report(size, (height, width), schedule)
        _LOG.info("StageVAR: %s, %d image%s", report, batch_size, "" if batch_size == 1 else "s")
        bridge.show_text(report, cls.hidden.unique_id)
        started = time.perf_counter()
        f_hat = _run(Job(model, vae, conditioning, schedule, settings, seed), size)
        bridge.show_text(f"{report}, {time.perf_counter() - started:.1f} s", cls.hidden.unique_id)
        return io.NodeOutput({"samples": f_hat.to(mm.intermediate_device())})


def _model_inputs() -> list[Any]:
    return [
        describe(VarModel.Input, "model", tooltip="From Load StageVAR Model."),
        describe(
            io.Vae.Input,
            "vae",
            tooltip="From Load StageVAR Tokenizer (VAE): the tokenizer that belongs to the model. It draws "
            "the previews, and a wrong one is noticed before the run.",
        ),
        describe(
            io.Conditioning.Input, "positive", tooltip="The prompt, from CLIP Text Encode. It may be empty."
        ),
        describe(
            io.Conditioning.Input,
            "negative",
            optional=True,
            tooltip="What the image should not show. Without it the model's own null text is used, as in "
            "training.",
        ),
    ]


def _sampling_inputs() -> list[Any]:
    return [
        describe(
            io.Int.Input,
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            control_after_generate=True,
            tooltip="The same seed gives the same image; image n of a batch is the one of seed + n.",
        ),
        describe(
            io.Float.Input,
            "cfg",
            default=3.0,
            min=0.0,
            max=30.0,
            step=0.1,
            round=0.01,
            tooltip="Guidance: how closely the image follows the prompt. 1 is unguided and twice as fast. "
            "Infinity: 3 to 4.",
        ),
        describe(
            io.Float.Input,
            "temperature",
            default=0.5,
            min=0.01,
            max=10.0,
            step=0.05,
            round=0.01,
            tooltip="Below 1 the likely bits are favoured: calmer images. Infinity 2B: 0.5, 8B: 1.",
        ),
        describe(
            io.Int.Input,
            "top_k",
            default=900,
            min=0,
            max=10000,
            advanced=True,
            tooltip="Choices kept per bit. A bit has two, so 1 always takes the likelier and anything else, "
            "0 included, keeps both.",
        ),
        describe(
            io.Float.Input,
            "top_p",
            default=0.97,
            min=0.0,
            max=1.0,
            step=0.01,
            round=0.001,
            advanced=True,
            tooltip="A bit whose less likely value has a probability of at most 1 - top_p is set, not drawn. "
            "0 switches this off.",
        ),
    ]


def _size_inputs() -> list[Any]:
    side = {"default": 1024, "min": 64, "max": _MAX_SIDE, "step": 8}
    snapped = "The model makes the sizes it was trained on: first the nearest ratio, then the nearest area."
    return [
        describe(io.Int.Input, "width", tooltip=f"Wanted width in pixels. {snapped}", **side),
        describe(io.Int.Input, "height", tooltip=f"Wanted height in pixels. {snapped}", **side),
        describe(
            io.Int.Input,
            "batch_size",
            default=1,
            min=1,
            max=_MAX_BATCH,
            tooltip="Images per run. Memory grows with it; when it runs out the images are made one by one.",
        ),
    ]


def _checked_pair(model: Any, vae: Any) -> Infinity:
    """The network, after making sure that both inputs are ours and belong together."""
    network = getattr(model, "model", None)
    if not isinstance(network, Infinity):
        raise ValueError(
            f"model: found {type(network or model).__name__}; expected a VAR_MODEL from Load StageVAR Model"
        )
    if not isinstance(vae, TokenizerVAE):
        raise ValueError(
            f"vae: found a {type(vae).__name__} of another kind of model; expected the one of Load StageVAR "
            "Tokenizer (VAE)"
        )
    try:
        check_pairing(network.checkpoint, vae.checkpoint)
    except CheckpointError as error:
        raise ValueError(f"vae: {error}") from error
    return network


def _size_report(size: tuple[int, int], wanted: tuple[int, int], schedule: ScaleSchedule) -> str:
    asked = "" if size == wanted else f" (nearest trained size to {wanted[1]}x{wanted[0]})"
    return f"{size[1]}x{size[0]}{asked}, {len(schedule)} scales"


def _run(job: Job, size: tuple[int, int]) -> Tensor:
    """All images at once; when memory runs out, once more one by one with more of it set free."""
    batch = job.conditioning.batch
    with HostMonitor(job.network, job.schedule, job.vae, size) as monitor:
        try:
            return _generate(job, range(batch), monitor, reserve=1.0)
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
            return torch.cat(parts)
    mm.soft_empty_cache()
    raise RuntimeError(_out_of_memory(job, size, failure))


def _generate(job: Job, images: Any, monitor: HostMonitor, reserve: float) -> Tensor:
    """The latents of these images of the batch, on the intermediate device."""
    conditioning = job.conditioning
    if len(images) < conditioning.batch:
        negative = conditioning.negative
        conditioning = TextConditioning(
            tuple(conditioning.features[i] for i in images),
            None if negative is None else tuple(negative[i] for i in images),
        )
    models = [job.model, job.vae.patcher] if monitor.previews else [job.model]
    needed = int(job.memory(len(images)).total * reserve)
    mm.load_models_gpu(models, memory_required=needed)
    options = job.model.model_options.get("transformer_options", {})
    result = generate(
        job.network,
        conditioning,
        job.schedule,
        job.settings,
        noise=SeededNoise(job.seed + images[0], len(images)),
        attention=bridge.attention_for(options),
        monitor=monitor,
        device=job.model.load_device,
    )
    return result.f_hat.to(mm.intermediate_device())


def _out_of_memory(job: Job, size: tuple[int, int], failure: str) -> str:
    memory, gib = job.memory(1), 2**30
    weights = job.model.model_size() / gib
    free = mm.get_free_memory(job.model.load_device) / gib
    return (
        f"Out of memory: one image of {size[1]}x{size[0]} with cfg {job.settings.cfg_scale} needs about "
        f"{memory.total / gib:.1f} GiB ({memory.cache / gib:.1f} GiB keys and values, "
        f"{memory.activations / gib:.1f} GiB activations) beside up to {weights:.1f} GiB of weights; "
        f"{free:.1f} GiB are free on {job.model.load_device}. Use a smaller width and height, cfg 1, or "
        f"weight_dtype fp8_e4m3fn. ({failure[:200]})"
    )
