"""The one loop over scales."""

import logging
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .acceleration.policy import AccelerationPolicy, DensePolicy, PolicyRun, RunInfo, ScalePlan, Seen
from .conditioning import ClassConditioning, TextConditioning
from .context import ScaleContext
from .guidance import GuidanceRows, mix, per_scale
from .heads import HeadContext, Noise, refinement
from .known import Known, known_codes
from .layers import AttentionFn, resize_tokens, sdpa
from .schedule import Scale, ScaleSchedule
from .trace import Recorder, Trace, joined

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class SamplingSettings:
    """Settings of one generation.

    ``cfg_scale`` and ``temperature``: one number or one per scale. ``top_k``, ``top_p``: 0 switches off.
    ``cfg_layers``: 0 mixes the logits; a negative number mixes the hidden states after that block, counted
    from the end (-1 is the last). ``greedy``: the most likely code instead of a draw. ``smooth``: a mixture
    of codes instead of the drawn one, for models with a codebook. ``refine``: 'auto' draws the fine scales
    with a sampler network where the file has one, 'off' does not, other names say in which of its ways.
    """

    cfg_scale: float | Sequence[float] = 3.0
    temperature: float | Sequence[float] = 0.5
    top_k: int = 900
    top_p: float = 0.97
    cfg_layers: tuple[int, ...] = (0,)
    greedy: bool = False
    smooth: bool = False
    refine: str = "auto"

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
        if self.smooth and self.greedy:
            raise ValueError("smooth and greedy are both on; smooth sampling needs noise, switch one off")


@dataclass(frozen=True)
class Generation:
    """Result of one run: the accumulated latent (B, C, H, W), the codes of each scale that ran, the trace.

    Where a policy damped codes or smooth sampling mixed them, they are stored as drawn; only ``f_hat`` has
    what was added.
    """

    f_hat: Tensor
    codes: list[Tensor | None]
    schedule: ScaleSchedule
    trace: Trace


class Monitor:
    """What a caller may watch; raising from a method stops the run, and nothing of it stays behind."""

    def restart(self, runs: int) -> None:
        """Called when the images are made in ``runs`` runs, one after the other, from the first scale."""

    def block(self, scale: Scale, layer: int) -> None:
        """Called after every block."""

    def logits(self, scale: Scale, raw: Tensor, guided: Tensor) -> None:
        """Called with the head's output (rows, L, V) and what is sampled from (B, L, V)."""

    def scale(self, scale: Scale, f_hat: Tensor) -> None:
        """Called after every scale with the accumulated latent (B, C, H, W)."""


@torch.inference_mode()
def generate(  # noqa: PLR0913 - independent collaborators, each with one owner
    model: Any,
    conditioning: TextConditioning | ClassConditioning,
    schedule: ScaleSchedule,
    settings: SamplingSettings,
    *,
    noise: Noise | None,
    quantizer: Any = None,
    policy: AccelerationPolicy | None = None,
    attention: AttentionFn = sdpa,
    monitor: Monitor | None = None,
    known: Sequence[Tensor] = (),
    masks: Sequence[Tensor] = (),
    device: torch.device | str | None = None,
) -> Generation:
    """Generate one image per prompt or class.

    ``noise`` may be None for greedy sampling. ``quantizer`` defaults to the model's own; it is the
    tokenizer's where that has a codebook. ``known``: codes of the first scales on the latent grid, which
    replace the sampled ones (the sampler still draws for them). ``masks``: where they do, (B or 1, h, w)
    booleans of as many scales; everywhere without. ``device``: where to run; the host passes it because
    weights may be offloaded. Raises ``ValueError`` for settings that cannot be used.
    """
    settings.validate(len(schedule), model.config.depth)
    if noise is None and not settings.greedy:
        raise ValueError("sampling needs a noise source; pass one, or settings with greedy=True")
    policy, monitor = policy or DensePolicy(), monitor or Monitor()
    quantizer = quantizer or model.quantizer()
    if settings.smooth and model.bitwise:
        raise ValueError("smooth sampling mixes the rows of a codebook, which bitwise models do not have")
    given, batch = known_codes(known, masks, len(schedule)), conditioning.batch
    images = [(conditioning, noise, given)]
    if policy.per_image and batch > 1:
        monitor.restart(batch)
        images = [
            (conditioning.image(i), noise and noise.image(i), [each.image(i) for each in given])
            for i in range(batch)
        ]
    parts = []
    for texts, draws, fixed in images:
        run = _Run(model, texts, schedule, settings, attention, device)
        parts.append(run.generate(draws, quantizer, policy, monitor, fixed))
    return parts[0] if len(parts) == 1 else _joined(parts)


def _joined(parts: Sequence[Generation]) -> Generation:
    """Generations of one image each as one batch; codes only of scales that all of them ran."""
    scales = zip(*(part.codes for part in parts), strict=True)
    return Generation(
        torch.cat([part.f_hat for part in parts]),
        [None if any(c is None for c in codes) else torch.cat(codes) for codes in scales],
        parts[0].schedule,
        joined([part.trace for part in parts]),
    )


class _Run:
    """Rows, cache and conditioning of one run over the scales."""

    def __init__(
        self,
        model: Any,
        conditioning: TextConditioning | ClassConditioning,
        schedule: ScaleSchedule,
        settings: SamplingSettings,
        attention: AttentionFn,
        device: torch.device | str | None,
    ) -> None:
        self.model, self.schedule, self.settings, self.attention = model, schedule, settings, attention
        self.refine = refinement(model, settings.refine)
        self.conditioning, self.started = conditioning, time.perf_counter()
        self.device = torch.device(device) if device is not None else conditioning.device
        self.cfg = model.guidance_weights(settings.cfg_scale, schedule)
        self.temperature = per_scale("temperature", settings.temperature, len(schedule))
        self.guided = any(value != 1.0 for value in self.cfg)
        self.rows = GuidanceRows(conditioning.batch, unconditional=self.guided)
        self.conditioned = model.condition(conditioning, self.guided, self.device, attention)
        self.cache = model.new_cache(self.rows.count, self.device)
        self.difference: tuple[Scale, Tensor] | None = None  # guidance of the last scale with both rows

    def generate(
        self,
        noise: Noise | None,
        quantizer: Any,
        policy: AccelerationPolicy,
        monitor: Monitor,
        known: Sequence[Known],
    ) -> Generation:
        """All scales, coarse to fine."""
        model, batch = self.model, self.rows.batch
        policy_run = policy.start(self._info(noise))
        for note in policy_run.notes:
            _LOG.warning("%s: %s", policy.name, note)
        self.cache.reserve(self.room(self.schedule[0], policy_run))
        recorder = Recorder(
            policy.name,
            model.config.unit_costs,
            self.schedule,
            images=batch,
            rows=self.rows.count,
            text_tokens=self.conditioning.tokens,
            device=self.device,
            started=self.started,
        )
        f_hat = quantizer.empty(batch, self.schedule, self.device)
        codes: list[Tensor | None] = []
        for scale in self.schedule:
            plan = policy_run.plan(scale)
            # A skipped scale draws as well, so that the later ones see the draws of the dense run.
            draws = self.draws(noise, scale)
            if not plan.run:
                codes.append(None)
                if scale.index < len(known):
                    given = known[scale.index].alone(quantizer, self.device)
                    f_hat = quantizer.add(f_hat, given, self.schedule, scale)
                recorder.skipped(scale, plan, self.cache)
                continue
            self.prepare(scale, plan.rows, policy_run)
            inputs = None if scale.index == 0 else quantizer.next_input(f_hat, scale)
            work: Counter = Counter()
            hidden, raw, guided = self.logits(scale, inputs, plan, monitor, work)
            monitor.logits(scale, raw, guided)
            if self.refines(scale):
                drawn = self.refined(quantizer, hidden, guided, scale, noise)
                added = quantizer.codes(drawn)
            else:
                drawn, added = self.choose(quantizer, guided, draws, scale)
            added = self.weighted(quantizer, added, plan, scale)
            if scale.index < len(known):
                drawn, added = known[scale.index].over(drawn, added, quantizer)
            codes.append(drawn)
            before, f_hat = f_hat, quantizer.add(f_hat, added, self.schedule, scale)
            seen = Seen(scale, f_hat, f_hat - before, raw, guided, model.bitwise, self.decide)
            policy_run.observe(seen)
            recorder.ran(scale, plan, work, self.cache, self.guidance(scale, plan))
            monitor.scale(scale, f_hat)
            recorder.resume()
        recorder.trace.notes.extend(policy_run.notes)
        return Generation(f_hat, codes, self.schedule, recorder.trace)

    def draws(self, noise: Noise | None, scale: Scale) -> tuple[Tensor, ...]:
        """The noise of one scale in the family's order; none where greedy or where passes draw it."""
        if self.settings.greedy or self.refines(scale):
            return ()
        shapes = self.model.noise_shapes(self.rows.batch, scale, smooth=self.settings.smooth)
        return tuple(noise.exponential(scale, shape, self.device) for shape in shapes)

    def refines(self, scale: Scale) -> bool:
        """Whether the model's own network draws this scale."""
        return self.refine is not None and scale.index >= self.model.refined_from

    def refined(
        self, quantizer: Any, hidden: Tensor, guided: Tensor, scale: Scale, noise: Noise | None
    ) -> Tensor:
        """What the model's own network draws in several passes, on the latent grid."""

        def guide(logits: Tensor) -> Tensor:
            tempered = logits * (1.0 / self.temperature[scale.index])
            both = self.rows.conditional and self.rows.unconditional
            return mix(*tempered.chunk(2), self.cfg[-1]) if both else tempered

        ctx = HeadContext(
            scale=scale,
            positions=self.model.positions(self.schedule, scale, self.device),
            conditioned=self.conditioned,
            hidden=hidden,
            guided=guided,
            guide=guide,
            codes=lambda ids: quantizer.codes(quantizer.to_latent(ids, scale)).flatten(2).transpose(1, 2),
            dtype=self.model.compute_dtype,
            attention=self.attention,
            top_k=self.settings.top_k,
            top_p=self.settings.top_p,
            noise=None if self.settings.greedy else noise,
        )
        return quantizer.to_latent(self.model.refine(ctx, self.refine), scale)

    def choose(
        self, quantizer: Any, guided: Tensor, draws: Sequence[Tensor], scale: Scale
    ) -> tuple[Tensor, Tensor]:
        """What is drawn from logits, on the latent grid, and the codes (B, C, h, w) that stand for it."""
        settings = self.settings
        rule = {"top_k": settings.top_k, "top_p": settings.top_p}
        tokens = self.model.sample(guided, **rule, noise=draws[0] if draws else None)
        latent = quantizer.to_latent(tokens, scale)
        if not settings.smooth:
            return latent, quantizer.codes(latent)
        progress = scale.index / max(len(self.schedule) - 1, 1)
        shares = self.model.smooth(guided, **rule, progress=progress, noise=draws[-1])
        return latent, quantizer.mixture(shares, scale)

    def weighted(self, quantizer: Any, codes: Tensor, plan: ScalePlan, scale: Scale) -> Tensor:
        """The codes of this scale (B, C, h, w) with the factors of the plan; given codes have none."""
        weights = None if plan.reduction is None else plan.reduction.code_weights()
        return codes if weights is None else codes * quantizer.spread(weights, scale).to(codes.dtype)

    def prepare(self, scale: Scale, kept: str, policy_run: PolicyRun) -> None:
        """Drop the rows that the plan no longer wants, with their share of the cache."""
        if kept == "both" and not self.guided:
            return  # without guidance the conditional rows are all there is
        if kept == "unconditional" and not self.guided:
            kept = "conditional"
        self.rows, remaining = self.rows.narrow(kept)
        if remaining is None:
            return
        if kept == "unconditional" and self.conditioning.negative is not None:
            # The other rows followed the negative prompt. The null text goes on from what was drawn for the
            # prompt, so that the image is never finished under the text that it should avoid.
            remaining = slice(0, self.rows.batch)
            nulled = replace(self.conditioning, negative=None)
            state = self.model.condition(nulled, True, self.device, self.attention)
            self.conditioned = state.narrow(slice(self.rows.batch, None))
        else:
            self.conditioned = self.conditioned.narrow(remaining)
        self.cache.narrow(remaining, self.room(scale, policy_run))

    def room(self, scale: Scale, policy_run: PolicyRun) -> int:
        """Keys to make room for from ``scale`` on; nothing looks at those of the last scale any more."""
        stored = sum(later.tokens for later in self.schedule.scales[scale.index : -1])
        return min(stored, policy_run.room(scale))

    def logits(
        self, scale: Scale, inputs: Tensor | None, plan: ScalePlan, monitor: Monitor, work: Counter
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The blocks' output (rows, L, C), the head's (rows, L, V), and what is sampled from (B, L, V)."""
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
            reduction=plan.reduction,
            window=plan.window,
            store=plan.store and scale != self.schedule.final,
            kv_budget=plan.kv_budget,
            after_block=after_block,
            work=work,
            schedule=self.schedule,
        )
        if inputs is None:
            x = model.first_tokens(self.conditioned)
        else:
            x = model.embed(inputs).repeat(self.rows.count // self.rows.batch, 1, 1)
        hidden = model(x, ctx)
        raw = model.logits(hidden, self.conditioned)
        work["head"] += raw.shape[0] * raw.shape[1]
        tempered = raw * (1.0 / self.temperature[scale.index])
        if both:
            self.difference = (scale, raw)
        if mixing and 0 in self.settings.cfg_layers:
            return hidden, raw, mix(*tempered.chunk(2), cfg)
        guided = tempered[: self.rows.batch]
        if plan.reuse and self.rows.conditional and not both and self.difference is not None:
            guided = guided + plan.reuse * (cfg - 1.0) * self.reused(scale)
        return hidden, raw, guided

    def reused(self, scale: Scale) -> Tensor:
        """Conditional minus unconditional logits (B, L, V) of the last scale with both, on this grid."""
        earlier, raw = self.difference
        conditional, unconditional = (raw / self.temperature[scale.index]).chunk(2)
        return resize_tokens(conditional - unconditional, earlier, scale, "bilinear")

    def guidance(self, scale: Scale, plan: ScalePlan) -> str:
        """How this scale was guided, for the trace."""
        if self.rows.conditional and self.rows.unconditional:
            return f"cfg {self.cfg[scale.index]:g}"
        if not self.rows.conditional:
            return "unconditional"
        return f"conditional + {plan.reuse:g} reused" if plan.reuse and self.difference else "conditional"

    def decide(self, logits: Tensor) -> Tensor:
        """The most likely codes of logits."""
        return self.model.sample(logits, top_k=0, top_p=0.0, noise=None)

    def _info(self, noise: Noise | None) -> RunInfo:
        batch = self.rows.batch
        return RunInfo(
            self.schedule,
            self.model.config.depth,
            batch,
            self.guided,
            self.conditioning.negative is not None,
            tuple(range(batch)) if noise is None else tuple(noise.seeds),
        )
