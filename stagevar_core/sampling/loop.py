"""One run over the scales: its rows, its cache, its loop."""

import logging
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..acceleration.policy import AccelerationPolicy, PolicyRun, RunInfo, ScalePlan, Seen
from ..conditioning.types import ClassConditioning, TextConditioning
from ..models.draws import HeadContext, Noise, refinement, run_costs
from ..models.guidance import mix, per_scale
from ..network.attention import AttentionFn
from ..network.cache import CachePair, KVCache
from ..network.context import ScaleContext, Turn
from ..network.tokens import resize_tokens
from ..schedule import Scale, ScaleSchedule
from .editing import Known
from .result import Generation, Monitor
from .rows import GuidanceRows
from .settings import SamplingSettings
from .trace import Recorder

_LOG = logging.getLogger(__name__)


class Run:
    """Rows, cache and conditioning of one run over the scales.

    ``sequential``: every block runs on the conditional rows, then on the unconditional ones, each with a
    cache of its own; ``offload``: where the keys and values of the unconditional ones wait.
    """

    def __init__(
        self,
        model: Any,
        conditioning: TextConditioning | ClassConditioning,
        schedule: ScaleSchedule,
        settings: "SamplingSettings",
        attention: AttentionFn,
        device: torch.device | str | None,
        *,
        sequential: bool = False,
        offload: torch.device | str | None = None,
    ) -> None:
        self.model, self.schedule, self.settings, self.attention = model, schedule, settings, attention
        self.refine = refinement(model, settings.refine)
        self.units = run_costs(model, schedule, settings.refine)
        self.conditioning, self.started = conditioning, time.perf_counter()
        self.device = torch.device(device) if device is not None else conditioning.device
        self.cfg = model.guidance_weights(settings.cfg_scale, schedule)
        self.temperature = per_scale("temperature", settings.temperature, len(schedule))
        self.guided = any(value != 1.0 for value in self.cfg)
        self.rows = GuidanceRows(conditioning.batch, unconditional=self.guided)
        self.conditioned = model.condition(conditioning, self.guided, self.device, attention)
        self.turns: list[Turn] = []
        self.cache: KVCache | CachePair
        if sequential and self.guided:
            self.cache = self.divide(offload)
        else:
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
            self.units,
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
            if not plan.run:
                # It draws as well, so that the later ones see the draws of the dense run.
                self.draws(noise, scale)
                codes.append(None)
                if self.refines(scale) and not self.settings.greedy:
                    model.pass_over(noise, scale, batch, self.refine, self.device)
                if scale.index < len(known):
                    given, weights = known[scale.index].alone(quantizer, self.device)
                    f_hat = quantizer.add(f_hat, given, self.schedule, scale, weights)
                recorder.skipped(scale, plan, self.cache)
                continue
            self.prepare(scale, plan.rows, policy_run)
            inputs = None if scale.index == 0 else quantizer.next_input(f_hat, scale)
            work: Counter = Counter()
            hidden, raw, guided = self.logits(scale, inputs, plan, monitor, work)
            monitor.logits(scale, raw, guided)
            if self.refines(scale):
                drawn = self.refined(quantizer, hidden, guided, scale, plan, noise)
                added = quantizer.codes(drawn)
                work["refine"] += self.rows.count * self.units.refine[scale.index]
            else:
                drawn, added = self.choose(quantizer, guided, self.draws(noise, scale), scale)
            weights = self.weights(quantizer, plan, scale)
            if scale.index < len(known):
                drawn, added, weights = known[scale.index].over(drawn, added, weights, quantizer)
            codes.append(drawn)
            before, f_hat = f_hat, quantizer.add(f_hat, added, self.schedule, scale, weights)
            seen = Seen(scale, f_hat, f_hat - before, raw, guided, model.bitwise, self.decide)
            policy_run.observe(seen)
            recorder.ran(scale, plan, work, self.cache, self.guidance(scale, plan))
            monitor.scale(scale, f_hat)
            # What a scale leaves shall not lie beside the blocks of the next one.
            del inputs, hidden, raw, guided, added, before, seen
            recorder.resume()
        recorder.trace.notes.extend(policy_run.notes)
        return Generation(f_hat, codes, self.schedule, recorder.trace)

    def divide(self, offload: torch.device | str | None) -> CachePair:
        """Turns for the conditional and the unconditional rows, and the caches of both."""
        batch = self.rows.batch
        caches = [self.model.new_cache(batch, self.device) for _ in range(2)]
        if offload is not None:
            caches[1].keep_on(offload)
        rows = slice(0, batch), slice(batch, 2 * batch)
        self.turns = [
            Turn(self.conditioned.narrow(half), cache) for half, cache in zip(rows, caches, strict=True)
        ]
        return CachePair(*caches)

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
        self,
        quantizer: Any,
        hidden: Tensor,
        guided: Tensor,
        scale: Scale,
        plan: ScalePlan,
        noise: Noise | None,
    ) -> Tensor:
        """What the model's own network draws in several passes, on the latent grid."""

        def guide(logits: Tensor) -> Tensor:
            tempered = logits * (1.0 / self.temperature[scale.index])
            if self.rows.conditional and self.rows.unconditional:
                return mix(*tempered.chunk(2), self.cfg[-1])
            return self.steered(tempered, plan, scale, self.cfg[-1])

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

    def weights(self, quantizer: Any, plan: ScalePlan, scale: Scale) -> Tensor | None:
        """How much of every code counts, (B, 1, h, w) on the latent grid; None is all of it."""
        weights = None if plan.reduction is None else plan.reduction.code_weights()
        return None if weights is None else quantizer.spread(weights, scale)

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
            nulled = self.conditioning.nulled(getattr(self.model.config, "null_rows", None))
            state = self.model.condition(nulled, True, self.device, self.attention)
            self.conditioned = state.narrow(slice(self.rows.batch, None))
        else:
            self.conditioned = self.conditioned.narrow(remaining)
        self.turns = []
        self.cache = self.cache.narrow(remaining, self.room(scale, policy_run))

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
            turns=self.turns,
            per_image=model.config.unit_costs.per_image,
        )
        hidden = model(self.tokens(inputs), ctx)
        raw = model.logits(hidden, self.conditioned)
        work["head"] += raw.shape[0] * raw.shape[1]
        tempered = raw * (1.0 / self.temperature[scale.index])
        if both:
            self.difference = (scale, raw)
        if mixing and 0 in self.settings.cfg_layers:
            return hidden, raw, mix(*tempered.chunk(2), cfg)
        guided = tempered[: self.rows.batch]
        return hidden, raw, guided if both else self.steered(guided, plan, scale, cfg)

    def steered(self, logits: Tensor, plan: ScalePlan, scale: Scale, cfg: float) -> Tensor:
        """Logits (B, L, V) of one row per image, with the share of the last guidance that the plan reuses."""
        if not plan.reuse or not self.rows.conditional or self.difference is None:
            return logits
        return logits + plan.reuse * (cfg - 1.0) * self.reused(scale)

    def tokens(self, inputs: Tensor | None) -> Tensor:
        """What enters the blocks (rows, L, C); ``inputs`` None starts."""
        if inputs is None:
            return self.model.first_tokens(self.conditioned)
        return self.model.embed(inputs).repeat(self.rows.count // self.rows.batch, 1, 1)

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
