"""What ``bench.py`` measures: the embedded model, or a full-size one of random weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stagevar_core.acceleration.policy import AccelerationPolicy
from stagevar_core.autoencoders.bsq import BSQTokenizerConfig
from stagevar_core.autoencoders.vq import VQTokenizerConfig
from stagevar_core.checkpoints.detect import spec_of
from stagevar_core.conditioning.t5 import T5EncoderConfig
from stagevar_core.conditioning.types import ClassConditioning, TextConditioning
from stagevar_core.models.hart_config import HART_0_7B
from stagevar_core.models.infinity_config import INFINITY_2B, INFINITY_8B, INFINITY_125M
from stagevar_core.models.star_config import STAR_256, STAR_512, STAR_1024
from stagevar_core.models.switti_config import SWITTI_512, SWITTI_512_AR, SWITTI_1024, SWITTI_1024_AR
from stagevar_core.models.var import VAR_D16, VAR_D30, VAR_D36
from stagevar_core.network.eight_bit import eight_bit
from stagevar_core.network.packing import pack
from stagevar_core.pipeline import Pictures, Pipeline
from stagevar_core.sampling.result import Monitor
from stagevar_core.sampling.trace import Trace
from stagevar_core.schedule import Scale

from .machine import Allocated, Resident, give_back, memory_of
from .text import EncodedText, RandomText
from .weights import FP8, INT8, Fp8Operations, fill, weight_bytes

PROMPT = "a red circle left of a blue square"
EMBEDDED = "embedded"
# Family of the transformer, its shape, and that of its tokenizer.
FULL_SIZE: dict[str, tuple[str, Any, Any]] = {
    "infinity-125m": ("infinity", INFINITY_125M, BSQTokenizerConfig(16)),
    "infinity-2b": ("infinity", INFINITY_2B, BSQTokenizerConfig(32)),
    "infinity-8b": ("infinity", INFINITY_8B, BSQTokenizerConfig(14, multipliers=(1, 2, 4, 4))),
    "infinity-2b-edit-512": ("infinity", replace(INFINITY_2B, edits=True), BSQTokenizerConfig(32)),
    "infinity-8b-edit-1024": (
        "infinity",
        replace(INFINITY_8B, edits=True),
        BSQTokenizerConfig(14, multipliers=(1, 2, 4, 4)),
    ),
    "var-d16": ("var", VAR_D16, VQTokenizerConfig()),
    "var-d30": ("var", VAR_D30, VQTokenizerConfig()),
    "var-d36": ("var", VAR_D36, VQTokenizerConfig()),
    "star-256": ("star", STAR_256, VQTokenizerConfig()),
    "star-512": ("star", STAR_512, VQTokenizerConfig()),
    "star-1024": ("star", STAR_1024, VQTokenizerConfig()),
    "hart-0.7b": ("hart", HART_0_7B, VQTokenizerConfig()),
    "switti-512": ("switti", SWITTI_512, VQTokenizerConfig()),
    "switti-512-ar": ("switti", SWITTI_512_AR, VQTokenizerConfig()),
    "switti-1024": ("switti", SWITTI_1024, VQTokenizerConfig()),
    "switti-1024-ar": ("switti", SWITTI_1024_AR, VQTokenizerConfig()),
}
WARM_UP_TOKENS = 64  # the full-size models warm up on the scales up to here: that touches every weight


class MeasuredPipeline(Pipeline):
    """Forgets the peak of sampling before it decodes; by then the KV cache is gone.

    ``beside``: bytes that the device holds beside the weights before anything ran.
    """

    beside = 0

    def encode(
        self, prompts: Sequence[str], negative: str | None = None
    ) -> TextConditioning | ClassConditioning:
        """Models that are conditioned on a class take the first one instead of a prompt."""
        return super().encode(prompts if self.text_encoder else ["0"] * len(prompts), negative)

    def decode(self, f_hat: Tensor) -> Tensor:
        """Images of accumulated codes, as every pipeline makes them."""
        memory_of(self.device).reset()
        return super().decode(f_hat)


def load(  # noqa: PLR0913 - what a user may ask for, all but the first optional
    name: str,
    text_tokens: int,
    device: torch.device,
    dtype: torch.dtype,
    weights: torch.dtype | None = None,
    text_encoder: T5EncoderConfig | None = None,
) -> MeasuredPipeline:
    """The models to measure. ``weights``: how the transformer's are stored, None is ``dtype``.

    ``text_encoder``: what encodes the text before anything else is loaded; None takes random features.
    """
    if name == EMBEDDED:
        pipeline = MeasuredPipeline.embedded(
            dtype=dtype, device=device, weights="int8" if weights == INT8 else None
        )
    else:
        stored = FP8 if weights == FP8 else dtype
        text = text_encoder and EncodedText(text_encoder, text_tokens, device, stored)
        pipeline = full_size(*FULL_SIZE[name], text_tokens, device, dtype, weights)
        pipeline.text_encoder = text or pipeline.text_encoder
    pipeline.beside = max(0, (memory_of(device).now() or 0) - sum(weight_sizes(pipeline).values()))
    return pipeline


def full_size(
    family: str,
    config: Any,
    codes: Any,
    text_tokens: int,
    device: torch.device,
    dtype: torch.dtype,
    weights: torch.dtype | None = None,
) -> MeasuredPipeline:
    """A model of this shape with random weights."""
    spec = spec_of("transformer", family)
    paired = spec_of("tokenizer", spec.tokenizer or family)
    stored: dict[str, Any] = {"dtype": dtype}
    if weights == FP8:
        stored = {"dtype": FP8, "compute_dtype": dtype, "operations": Fp8Operations}
    transformer = spec.module(config, device="meta", **stored)
    if weights == INT8:
        transformer = eight_bit(transformer)
    transformer = pack(fill(transformer, device))
    tokenizer = fill(paired.module(codes, dtype=dtype, device="meta"), device)
    text = None
    if config.text_width:
        # HART reads texts of one length, padding among them.
        tokens = getattr(config, "context", text_tokens)
        text = RandomText(transformer.text_family, config.text_width, tokens, device)
    sizes, defaults = spec.sizes(config), spec.defaults
    return MeasuredPipeline(transformer, tokenizer, text, sizes, defaults=defaults, device=device)


def weight_sizes(pipeline: Pipeline) -> dict[str, int]:
    """Bytes of the weights of every model."""
    return {
        "transformer": weight_bytes(pipeline.transformer),
        "tokenizer": weight_bytes(pipeline.tokenizer),
        "text_encoder": weight_bytes(pipeline.text_encoder.model) if pipeline.text_encoder else 0,
    }


class _Stop(Exception):
    """Ends a warm-up."""


class _FirstScales(Monitor):
    def scale(self, scale: Scale, f_hat: Tensor) -> None:
        if scale.tokens >= WARM_UP_TOKENS:
            raise _Stop


def pictured(pipeline: Pipeline, request: dict[str, Any]) -> dict[str, Any]:
    """A request of what a model does: weights that edit pictures need one, of the size that is made."""
    if not pipeline.transformer.edits:
        return request
    height, width = pipeline.trained.image_size(pipeline.schedule(request["width"], request["height"]))
    return request | {"picture": np.full((height, width, 3), 128, dtype=np.uint8)}


def warm_up(pipeline: Pipeline, request: dict[str, Any], *, whole: bool) -> None:
    """Touch every weight; ``whole`` runs every scale."""
    try:
        pipeline(PROMPT, monitor=None if whole else _FirstScales(), **pictured(pipeline, request))
    except _Stop:
        pipeline.decode(torch.zeros(1, pipeline.tokenizer.config.dim, 8, 8, device=pipeline.device))


class _Peaks(Monitor):
    def __init__(self, memory: Resident | Allocated) -> None:
        self.memory = memory
        self.values: dict[int, int | None] = {}

    def scale(self, scale: Scale, f_hat: Tensor) -> None:
        peak = self.memory.peak()
        # Images that run one by one come by every scale several times.
        self.values[scale.index] = None if peak is None else max(peak, self.values.get(scale.index) or 0)
        self.memory.reset()


@dataclass(frozen=True)
class Run:
    """One measured generation.

    ``peaks``: peak of the device's memory by index of the scale, of those that ran. ``resident``: peak of
    the process in RAM, whatever the device.
    """

    pictures: Pictures
    peaks: dict[int, int | None]
    decode_peak: int | None
    resident: int | None

    @property
    def trace(self) -> Trace:
        """What ran at every scale."""
        return self.pictures.generation.trace

    @property
    def seconds(self) -> dict[str, float]:
        """By phase; what a preset spends on a scale that it skips is part of the transformer's."""
        found = {name: self.pictures.seconds[name] for name in ("text", "decode", "total")}
        return found | {"transformer": self.trace.milliseconds / 1e3}

    def highest(self) -> tuple[int, int] | None:
        """The peak of all scales and the KV cache at that scale; None where nothing tells."""
        cached = {scale.scale.index: scale.kv_bytes for scale in self.trace.scales}
        return max(((peak, cached[index]) for index, peak in self.peaks.items() if peak), default=None)


def measured(
    pipeline: Pipeline, request: dict[str, Any], seed: int, policy: AccelerationPolicy | None = None
) -> Run:
    """Generate once and measure; weights that edit pictures get a grey one."""
    memory, process = memory_of(pipeline.device), Resident()
    give_back()
    process.reset()
    memory.reset()
    peaks = _Peaks(memory)
    pictures = pipeline(PROMPT, seed=seed, monitor=peaks, policy=policy, **pictured(pipeline, request))
    decode_peak, resident = memory.peak(), process.peak()
    if memory.kind == process.kind:  # its peak was forgotten between the scales
        resident = max((peak for peak in (*peaks.values.values(), decode_peak) if peak), default=None)
    return Run(pictures, peaks.values, decode_peak, resident)


def memory_by_kind(pipeline: MeasuredPipeline, runs: Sequence[Run]) -> dict[str, Any]:
    """Bytes by what they are for, at most over all runs; None where nothing tells.

    ``kind``: 'resident' or 'allocated', see :func:`machine.memory_of`. ``process``: what was there beside the
    weights before anything ran: interpreter and libraries. ``activations``: at the scale with the highest
    peak, whatever is neither weights, nor KV cache, nor ``process``. ``beyond_weights``: the peak without
    the weights alone. ``resident``: of the process in RAM, also where the model runs on a GPU. ``peak_text``
    and ``text_first``: where a text encoder made place, the peak by then and its weights.
    """
    sizes, text = weight_sizes(pipeline), pipeline.text_encoder
    first = {}
    if isinstance(text, EncodedText):
        first = {"peak_text": text.peak, "text_first": text.bytes}
    weights = sum(sizes.values())
    sampling = max((found for run in runs if (found := run.highest())), default=None)
    decode = max((run.decode_peak for run in runs if run.decode_peak), default=None)
    running = max((each for each in (sampling and sampling[0], decode) if each), default=None)
    peak = running and max(running, first.get("peak_text") or 0)
    held = weights + pipeline.beside
    return (
        sizes
        | first
        | {
            "kind": memory_of(pipeline.device).kind,
            "weights": weights,
            "process": pipeline.beside,
            "kv_cache": max(run.trace.kv_peak_bytes for run in runs),
            "activations": sampling and max(0, sampling[0] - sampling[1] - held),
            "activations_decode": decode and max(0, decode - held),
            "peak_sampling": sampling and sampling[0],
            "peak_decode": decode,
            "peak": peak,
            "beyond_weights": running and running - weights,
            "resident": max((run.resident for run in runs if run.resident), default=None),
        }
    )
