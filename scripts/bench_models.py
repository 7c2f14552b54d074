"""What ``bench.py`` measures: the embedded model, or a full-size one of random weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from machine import PeakMemory
from torch import Tensor, nn

from stagevar_core.acceleration.policy import AccelerationPolicy
from stagevar_core.autoencoders.bsq import BSQTokenizerConfig
from stagevar_core.autoencoders.vq import VQTokenizerConfig
from stagevar_core.checkpoints.detect import spec_of
from stagevar_core.conditioning import ClassConditioning, TextConditioning
from stagevar_core.models.infinity import INFINITY_2B, INFINITY_8B, INFINITY_125M
from stagevar_core.models.star import STAR_256, STAR_512, STAR_1024
from stagevar_core.models.var import VAR_D16, VAR_D30, VAR_D36
from stagevar_core.pipeline import Pictures, Pipeline
from stagevar_core.sampling import Monitor
from stagevar_core.schedule import Scale
from stagevar_core.trace import Trace

PROMPT = "a red circle left of a blue square"
EMBEDDED = "embedded"
# Family of the transformer, its shape, and that of its tokenizer.
FULL_SIZE: dict[str, tuple[str, Any, Any]] = {
    "infinity-125m": ("infinity", INFINITY_125M, BSQTokenizerConfig(16)),
    "infinity-2b": ("infinity", INFINITY_2B, BSQTokenizerConfig(32)),
    "infinity-8b": ("infinity", INFINITY_8B, BSQTokenizerConfig(14, multipliers=(1, 2, 4, 4))),
    "var-d16": ("var", VAR_D16, VQTokenizerConfig()),
    "var-d30": ("var", VAR_D30, VQTokenizerConfig()),
    "var-d36": ("var", VAR_D36, VQTokenizerConfig()),
    "star-256": ("star", STAR_256, VQTokenizerConfig()),
    "star-512": ("star", STAR_512, VQTokenizerConfig()),
    "star-1024": ("star", STAR_1024, VQTokenizerConfig()),
}
WARM_UP_TOKENS = 64  # the full-size models warm up on the scales up to here: that touches every weight


def fill(module: nn.Module, device: torch.device, seed: int = 0) -> nn.Module:
    """Storage and random weights for a module built on meta; no weight is ever held twice.

    Values come from one block of normal numbers, repeated: drawing 8 billion takes minutes and changes no
    time. Its odd length keeps rows from being equal.
    """
    module.to_empty(device=device)
    block = torch.randn(2**20 + 7, generator=torch.Generator().manual_seed(seed)).to(device)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            flat = parameter.view(-1)
            spread = 1.0 / math.sqrt(parameter[0].numel()) if parameter.dim() > 1 else 0.02
            for start in range(0, flat.numel(), len(block)):
                part = flat[start : start + len(block)]
                part.copy_(block[: len(part)]).mul_(spread)
            if parameter.dim() == 1 and "norm" in name and not name.endswith("bias"):
                parameter.add_(1.0)
    return module.eval().requires_grad_(False)


class RandomText:
    """Stands in for the text encoder of the full-size models: fixed random features of a usual length."""

    def __init__(self, width: int, tokens: int, device: torch.device) -> None:
        self.width, self.device = width, device
        self.features = torch.randn(tokens, width, generator=torch.Generator().manual_seed(1)).to(device)

    def encode(self, prompts: list[str], max_tokens: int = 512) -> tuple[Tensor, ...]:
        return tuple(self.features[:max_tokens] for _ in prompts)


class MeasuredPipeline(Pipeline):
    """Forgets the peak of sampling before it decodes; by then the KV cache is gone."""

    def encode(
        self, prompts: Sequence[str], negative: str | None = None
    ) -> TextConditioning | ClassConditioning:
        """Models that are conditioned on a class take the first one instead of a prompt."""
        return super().encode(prompts if self.text_encoder else ["0"] * len(prompts), negative)

    def decode(self, f_hat: Tensor) -> Tensor:
        PeakMemory(self.device).reset()
        return super().decode(f_hat)


def load(name: str, text_tokens: int, device: torch.device, dtype: torch.dtype) -> Pipeline:
    """The models to measure."""
    if name == EMBEDDED:
        return MeasuredPipeline.embedded(dtype=dtype, device=device)
    return full_size(*FULL_SIZE[name], text_tokens, device, dtype)


def full_size(
    family: str, config: Any, codes: Any, text_tokens: int, device: torch.device, dtype: torch.dtype
) -> Pipeline:
    """A model of this shape with random weights."""
    spec = spec_of("transformer", family)
    paired = spec_of("tokenizer", spec.tokenizer or family)
    transformer = fill(spec.module(config, dtype=dtype, device="meta"), device)
    tokenizer = fill(paired.module(codes, dtype=dtype, device="meta"), device)
    width = getattr(config, "text_width", None)
    text = None if width is None else RandomText(width, text_tokens, device)
    sizes, defaults = spec.sizes(config), spec.defaults
    return MeasuredPipeline(transformer, tokenizer, text, sizes, defaults=defaults, device=device)


def weight_bytes(module: Any) -> int:
    """Memory of all weights; 0 for what has none."""
    parameters = module.parameters() if isinstance(module, nn.Module) else ()
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters)


class _Stop(Exception):
    """Ends a warm-up."""


class _FirstScales(Monitor):
    def scale(self, scale: Scale, f_hat: Tensor) -> None:
        if scale.tokens >= WARM_UP_TOKENS:
            raise _Stop


def warm_up(pipeline: Pipeline, request: dict[str, Any], *, whole: bool) -> None:
    """Touch every weight; ``whole`` runs every scale."""
    try:
        pipeline(PROMPT, monitor=None if whole else _FirstScales(), **request)
    except _Stop:
        pipeline.decode(torch.zeros(1, pipeline.tokenizer.config.dim, 8, 8, device=pipeline.device))


class _Peaks(Monitor):
    def __init__(self, memory: PeakMemory) -> None:
        self.memory = memory
        self.values: dict[int, int | None] = {}

    def scale(self, scale: Scale, f_hat: Tensor) -> None:
        self.values[scale.index] = self.memory.peak()
        self.memory.reset()


@dataclass(frozen=True)
class Run:
    """One measured generation. ``peaks``: peak memory by index of the scale, of those that ran."""

    pictures: Pictures
    peaks: dict[int, int | None]
    decode_peak: int | None

    @property
    def trace(self) -> Trace:
        return self.pictures.generation.trace

    @property
    def peak(self) -> int | None:
        """Of all scales; None where nothing tells."""
        return max((value for value in self.peaks.values() if value), default=None)


def measured(
    pipeline: Pipeline, request: dict[str, Any], seed: int, policy: AccelerationPolicy | None = None
) -> Run:
    """Generate once and measure."""
    memory = PeakMemory(pipeline.device)
    memory.reset()
    peaks = _Peaks(memory)
    pictures = pipeline(PROMPT, seed=seed, monitor=peaks, policy=policy, **request)
    return Run(pictures, peaks.values, memory.peak())
