"""The one loop over scales."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .acceleration.policy import AccelerationPolicy, DensePolicy
from .conditioning import TextConditioning
from .context import ScaleContext
from .guidance import GuidanceRows, mix, per_scale
from .heads import Noise
from .layers import AttentionFn, TokenPruning, sdpa
from .schedule import Scale, ScaleSchedule


@dataclass(frozen=True)
class SamplingSettings:
    """Settings of one generation.

    ``cfg_scale`` and ``temperature``: one number or one per scale. ``top_k``, ``top_p``: 0 switches off.
    ``cfg_layers``: 0 mixes the logits; a negative number mixes the hidden states after that block, counted
    from the end (-1 is the last). ``greedy``: the most likely code instead of a draw.
    """

    cfg_scale: float | Sequence[float] = 3.0
    temperature: float | Sequence[float] = 0.5
    top_k: int = 900
    top_p: float = 0.97
    cfg_layers: tuple[int, ...] = (0,)
    greedy: bool = False

    def validate(self, scales: int, depth: int) -> None:
        """Raise ``ValueError`` naming the first setting that cannot be used."""
        for name, value in (("cfg", self.cfg_scale), ("temperature", self.temperature)):
            for number in per_scale(name, value, scales):
                if not math.isfinite(number):
                    raise ValueError(f"{name} is {number}; expected a finite number")
                if name == "temperature" and number <= 0:
                    raise ValueError(f"temperature is {number}; expected a number above 0, for example 0.5")
        if not math.isfinite(self.top_p) or not 0 <= self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; expected 0 (off) to 1")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; expected 0 (off) or a positive number")
        for layer in self.cfg_layers:
            if not -depth < layer <= 0:
                raise ValueError(f"cfg_layers holds {layer}; expected 0 (logits) or -1 to {1 - depth}")


@dataclass(frozen=True)
class Generation:
    """Result of one run: the accumulated latent (B, C, H, W) and the codes of each scale that ran."""

    f_hat: Tensor
    codes: list[Tensor | None]
    schedule: ScaleSchedule


class Monitor:
    """What a caller may watch; raising from a method stops the run, and nothing of it stays behind."""

    def block(self, scale: Scale, layer: int) -> None:
        """Called after every block."""

    def logits(self, scale: Scale, raw: Tensor, guided: Tensor) -> None:
        """Called with the head's output (rows, L, V) and what is sampled from (B, L, V)."""

    def scale(self, scale: Scale, f_hat: Tensor) -> None:
        """Called after every scale with the accumulated latent (B, C, H, W)."""


@torch.inference_mode()
def generate(  # noqa: PLR0913 - independent collaborators, each with one owner
    model: Any,
    conditioning: TextConditioning,
    schedule: ScaleSchedule,
    settings: SamplingSettings,
    *,
    noise: Noise | None,
    quantizer: Any = None,
    policy: AccelerationPolicy | None = None,
    attention: AttentionFn = sdpa,
    monitor: Monitor | None = None,
    known: Sequence[Tensor] = (),
    device: torch.device | str | None = None,
) -> Generation:
    """Generate one image per prompt.

    ``noise`` may be None for greedy sampling. ``quantizer`` defaults to the model's own. ``known``: codes of
    the first scales on the latent grid, which replace the sampled ones (the sampler still draws for them).
    ``device``: where to run; the host passes it because weights may be offloaded. Raises ``ValueError`` for
    settings that cannot be used.
    """
    settings.validate(len(schedule), model.config.depth)
    if noise is None and not settings.greedy:
        raise ValueError("sampling needs a noise source; pass one, or settings with greedy=True")
    run = _Run(model, conditioning, schedule, settings, attention, device)
    policy_run = (policy or DensePolicy()).start(schedule, model.config.depth)
    monitor = monitor or Monitor()
    quantizer = quantizer or model.quantizer()
    f_hat = quantizer.empty(conditioning.batch, schedule, run.device)
    codes: list[Tensor | None] = []
    for scale in schedule:
        plan = policy_run.plan(scale)
        if not plan.run:
            codes.append(None)
            continue
        run.narrow(plan.rows)
        inputs = None if scale.index == 0 else quantizer.next_input(f_hat, scale)
        logits = run.logits(scale, inputs, plan.pruning, monitor)
        shape = model.noise_shape(conditioning.batch, scale)
        draws = None if settings.greedy else noise.exponential(scale, shape, run.device)
        tokens = model.sample(logits, top_k=settings.top_k, top_p=settings.top_p, noise=draws)
        latent = quantizer.to_latent(tokens, scale)
        if scale.index < len(known):
            latent = known[scale.index].to(device=run.device, dtype=latent.dtype).reshape(latent.shape)
        codes.append(latent)
        f_hat = quantizer.add(f_hat, quantizer.codes(latent))
        policy_run.observe(scale, f_hat)
        monitor.scale(scale, f_hat)
    return Generation(f_hat, codes, schedule)


class _Run:
    """Rows, cache and conditioning of one ``generate()`` call."""

    def __init__(
        self,
        model: Any,
        conditioning: TextConditioning,
        schedule: ScaleSchedule,
        settings: SamplingSettings,
        attention: AttentionFn,
        device: torch.device | str | None,
    ) -> None:
        self.model, self.schedule, self.settings, self.attention = model, schedule, settings, attention
        self.device = torch.device(device) if device is not None else conditioning.features[0].device
        self.cfg = per_scale("cfg", settings.cfg_scale, len(schedule))
        self.temperature = per_scale("temperature", settings.temperature, len(schedule))
        self.guided = any(value != 1.0 for value in self.cfg)
        self.rows = GuidanceRows(conditioning.batch, unconditional=self.guided)
        self.conditioned = model.condition(conditioning, self.guided, self.device, attention)
        self.cache = model.new_cache(self.rows.count, self.device)
        self.cache.reserve(schedule.tokens)

    def narrow(self, kept: str) -> None:
        """Drop the rows that the plan no longer wants, with their share of the cache."""
        if kept == "both" and not self.guided:
            return  # without guidance the conditional rows are all there is
        self.rows, remaining = self.rows.narrow(kept)
        if remaining is not None:
            self.cache.narrow(remaining)
            self.conditioned = self.conditioned.narrow(remaining)

    def logits(
        self, scale: Scale, inputs: Tensor | None, pruning: TokenPruning | None, monitor: Monitor
    ) -> Tensor:
        """Logits (B, L, V) to sample from: after temperature and guidance."""
        model, cfg = self.model, self.cfg[scale.index]
        both = self.rows.conditional and self.rows.unconditional
        mixing = both and cfg != 1.0

        def after_block(layer: int, x: Tensor) -> Tensor:
            monitor.block(scale, layer)
            if mixing and layer - model.config.depth in self.settings.cfg_layers:
                mixed = mix(*x.chunk(2), cfg)
                return torch.cat((mixed, mixed))
            return x

        ctx = ScaleContext(
            scale=scale,
            positions=model.positions(self.schedule, scale, self.device),
            conditioned=self.conditioned,
            dtype=model.compute_dtype,
            attention=self.attention,
            cache=self.cache,
            pruning=pruning,
            after_block=after_block,
        )
        if inputs is None:
            x = model.first_tokens(self.conditioned)
        else:
            x = model.embed(inputs).repeat(self.rows.count // self.rows.batch, 1, 1)
        raw = model.logits(model(x, ctx), self.conditioned)
        tempered = raw * (1.0 / self.temperature[scale.index])
        if mixing and 0 in self.settings.cfg_layers:
            guided = mix(*tempered.chunk(2), cfg)
        else:
            guided = tempered[: self.rows.batch]
        monitor.logits(scale, raw, guided)
        return guided
