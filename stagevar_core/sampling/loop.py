"""One run over the scales."""

import logging
import time
from collections import defaultdict
from dataclasses import replace

import torch
from torch import Tensor

from ..acceleration.policy import AccelerationPolicy, PolicyRun, RunInfo, ScalePlan, Seen
from ..conditioning.changing import RunConditioning, tokens_of
from ..costs import Work, dense_flops
from ..models.contract import Drawing, Noise, Quantizer, Transformer
from ..models.draws import run_costs
from ..models.guidance import mix, per_scale
from ..network.attention import AttentionFn
from ..network.cache import KVCache
from ..network.context import ScaleContext
from ..schedule import Prefix, Scale, ScaleSchedule
from .editing import Given
from .guidance import Guide
from .kept import KeptPrefix, prefix_key
from .numbers import Watch
from .result import Generation, Monitor
from .rows import Rows
from .settings import SamplingSettings
from .trace import Recorder

_LOG = logging.getLogger(__name__)
REUSED = "the picture's keys and values are those of an earlier run"


class Run:
    """All scales of one run, coarse to fine; made for one call of :meth:`generate`.

    ``sequential``, ``offload``: see :class:`Rows`. Raises ``ValueError`` for what the model cannot do, before
    anything is computed.
    """

    def __init__(
        self,
        model: Transformer,
        conditioning: RunConditioning,
        schedule: ScaleSchedule,
        settings: SamplingSettings,
        attention: AttentionFn,
        device: torch.device | str | None,
        *,
        sequential: bool = False,
        offload: torch.device | str | None = None,
    ) -> None:
        self.started = time.perf_counter()
        self.model, self.schedule, self.settings, self.attention = model, schedule, settings, attention
        self.head = model.drawing_head(settings.refine)
        self.head.check(smooth=settings.smooth)
        self.device = torch.device(device) if device is not None else conditioning.device
        self.guide = Guide(
            model.guidance_weights(settings.cfg_scale, schedule),
            per_scale("temperature", settings.temperature, len(schedule)),
            settings.cfg_layers,
        )
        self.conditioning, self.prefix = conditioning, model.prefix(conditioning.at(0), schedule)
        self.rows = Rows(
            model,
            conditioning,
            self.device,
            attention,
            guided=self.guide.guided,
            sequential=sequential,
            offload=offload,
        )
        self.watch = Watch(conditioning)

    def generate(
        self,
        noise: Noise | None,
        quantizer: Quantizer,
        policy: AccelerationPolicy,
        monitor: Monitor,
        given: Given,
        kept: KeptPrefix | None = None,
    ) -> Generation:
        """The codes of every scale that runs, and the latent that they add up to."""
        policy_run = policy.start(self._info(noise))
        for note in policy_run.notes:
            _LOG.warning("%s: %s", policy.name, note)
        before = 0 if self.prefix is None else self.prefix.tokens
        self.rows.cache.reserve(before + self.room(self.schedule[0], policy_run))
        self.quantizer, self.monitor = quantizer, monitor
        self.given = given.start(quantizer, self.device)
        self.noise = None if self.settings.greedy else noise
        self.recorder = self._recorder(policy)
        if self.prefix is not None:
            self.precede(self.prefix, kept)
        f_hat = quantizer.empty(self.rows.batch, self.schedule, self.device)
        codes: list[Tensor | None] = []
        for scale in self.schedule:
            plan = policy_run.plan(scale)
            if plan.run:
                f_hat, drawn = self.run_scale(scale, plan, policy_run, f_hat)
            else:
                f_hat, drawn = self.skip_scale(scale, plan, f_hat), None
            codes.append(drawn)
            # Outside of the scale's function: what it leaves shall not lie beside the blocks of the next one.
            self.recorder.resume()
        self.recorder.trace.notes.extend(policy_run.notes)
        return Generation(f_hat, codes, self.schedule, self.recorder.trace)

    def precede(self, prefix: Prefix, kept: KeptPrefix | None) -> None:
        """What precedes the scales runs once and leaves its keys and values, which no plan changes.

        Where ``kept`` has them of an earlier run nothing runs.
        """
        key = ()
        if kept is not None:
            key = prefix_key(self.model, self.conditioning.at(0), prefix, guided=self.guide.guided)
            if kept.fill(key, prefix, self.rows.cache):
                self.recorder.trace.notes.append(REUSED)
                return
        work: Work = defaultdict(float)
        x = self.model.prefix_tokens(self.conditioning.at(0), prefix, self.device)  # (B, L, C)

        def after_block(layer: int, x: Tensor) -> Tensor:
            self.monitor.block(self.schedule[0], layer)
            return x

        ctx = self.context(prefix, ScalePlan(), work)
        self.model(self.every_row(x), replace(ctx, after_block=after_block))
        if kept is not None:
            kept.keep(key, self.rows.cache)
        self.rows.cache.precede(prefix)
        self.recorder.preceded(prefix, work, self.rows.cache)

    def run_scale(
        self, scale: Scale, plan: ScalePlan, policy_run: PolicyRun, f_hat: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One scale: the latent (B, C, H, W) with its codes, and what was drawn, on its latent grid."""
        model, rows, quantizer = self.model, self.rows, self.quantizer
        rows.turn_to(scale.index)
        rows.narrow(plan.rows, self.room(scale, policy_run), policy_run)
        work: Work = defaultdict(float)

        ctx = self.context(scale, plan, work)
        hidden = model(self.tokens(scale, f_hat), ctx)  # (rows, L, C)
        raw = model.logits(hidden, rows.conditioned)  # (rows, L, V)
        work["head"] += raw.shape[0] * raw.shape[1]
        guided = self.guide.logits(raw, rows.running, scale, plan)  # (B, L, V)
        self.watch.logits(raw, guided)
        self.monitor.logits(scale, raw, guided)

        given = self.given.at(scale, f_hat, raw if rows.running.both else None)
        drawn, added = self.head.draw(self.drawing(plan, ctx, hidden, guided))
        work["refine"] += rows.running.count * self.head.flops(scale)
        weights = None if plan.reduction is None else plan.reduction.code_weights()  # (B, L)
        weights = None if weights is None else quantizer.spread(weights, scale)  # (B, 1, h, w)
        if given is not None:
            drawn, added, weights = given.over(drawn, added, weights, quantizer)

        before, f_hat = f_hat, quantizer.add(f_hat, added, self.schedule, scale, weights)
        self.watch.latent(f_hat)
        policy_run.observe(
            Seen(scale, f_hat, f_hat - before, raw, guided, self.head.choices, self.head.entropy)
        )
        said = self.guide.described(rows.running, scale, plan)
        self.recorder.ran(scale, plan, work, rows.cache, said)
        self.watch.read(scale.index, len(self.schedule))  # the recorder has waited for the device
        self.monitor.scale(scale, f_hat)
        return f_hat, drawn

    def skip_scale(self, scale: Scale, plan: ScalePlan, f_hat: Tensor) -> Tensor:
        """A scale that does not run: it draws as well, so that later ones see the draws of the dense run."""
        if self.noise is not None:
            smooth = self.settings.smooth
            self.head.pass_over(scale, self.rows.batch, self.noise, self.device, smooth=smooth)
        given = self.given.at(scale, f_hat, None)
        if given is not None:
            codes, weights = given.alone(self.quantizer, self.device)
            f_hat = self.quantizer.add(f_hat, codes, self.schedule, scale, weights)
            self.watch.latent(f_hat)
        self.recorder.skipped(scale, plan, self.rows.cache)
        self.watch.read(scale.index, len(self.schedule))
        return f_hat

    def tokens(self, scale: Scale, f_hat: Tensor) -> Tensor:
        """What enters the blocks, (rows, L, C): the start tokens, then the latent so far."""
        if scale.index == 0:
            return self.model.first_tokens(self.rows.conditioned)
        return self.every_row(self.model.embed(self.quantizer.next_input(f_hat, scale)))

    def every_row(self, x: Tensor) -> Tensor:
        """Tokens of the images (B, L, C), which both rows of each have, (rows, L, C)."""
        return x.repeat(self.rows.running.count // self.rows.batch, 1, 1)

    def context(self, scale: Scale, plan: ScalePlan, work: Work) -> ScaleContext:
        """What the blocks may use at a scale."""
        depth, rows = self.model.config.depth, self.rows
        weight, mixing = self.guide.weights[scale.index], self.guide.mixing(rows.running, scale)

        def after_block(layer: int, x: Tensor) -> Tensor:
            self.monitor.block(scale, layer)
            if mixing and layer - depth in self.settings.cfg_layers:
                conditional, unconditional = x.chunk(2)
                mixed = mix(conditional, unconditional, weight)
                return torch.cat((mixed, mixed))
            return x

        return ScaleContext(
            scale=scale,
            schedule=self.schedule,
            positions=self.model.positions(self.schedule, scale, self.device, self.prefix),
            conditioned=rows.conditioned,
            dtype=self.model.compute_dtype,
            attention=self.attention,
            cache=rows.cache if isinstance(rows.cache, KVCache) else None,
            reduction=plan.reduction,
            window=plan.window,
            store=plan.store and scale != self.schedule.final,
            kv_budget=plan.kv_budget,
            after_block=after_block,
            work=work,
            turns=rows.turns,
            images=rows.batch,
            per_image=self.model.config.unit_costs.per_image,
            sight=rows.conditioned.seen(scale),
        )

    def drawing(self, plan: ScalePlan, ctx: ScaleContext, hidden: Tensor, guided: Tensor) -> Drawing:
        """What the head may use at a scale."""
        running, scale = self.rows.running, ctx.scale

        def guide(logits: Tensor) -> Tensor:
            mixed = self.guide.of_pass(logits, running, scale, plan)
            self.watch.logits(logits, mixed)
            return mixed

        return Drawing(
            scale=scale,
            progress=scale.index / max(len(self.schedule) - 1, 1),
            hidden=hidden,
            guided=guided,
            guide=guide,
            quantizer=self.quantizer,
            noise=self.noise,
            top_k=self.settings.top_k,
            top_p=self.settings.top_p,
            smooth=self.settings.smooth,
            positions=ctx.positions,
            conditioned=ctx.conditioned,
            dtype=ctx.dtype,
            attention=ctx.attention,
        )

    def room(self, scale: Scale, policy_run: PolicyRun) -> int:
        """Keys to make room for from ``scale`` on; nothing looks at those of the last scale any more."""
        stored = sum(later.tokens for later in self.schedule.scales[scale.index : -1])
        return min(stored, policy_run.room(scale))

    def _recorder(self, policy: AccelerationPolicy) -> Recorder:
        units, images = run_costs(self.model, self.schedule, self.head), self.rows.batch
        dense = dense_flops(
            units,
            self.schedule,
            rows=self.rows.running.count,
            text_tokens=tokens_of(self.conditioning, len(self.schedule)),
            images=images,
            prefix=self.prefix,
        )
        return Recorder(policy.name, units, dense, images=images, device=self.device, started=self.started)

    def _info(self, noise: Noise | None) -> RunInfo:
        batch = self.rows.batch
        return RunInfo(
            self.schedule,
            self.model.config.depth,
            batch,
            self.guide.guided,
            self.conditioning.negative is not None,
            tuple(range(batch)) if noise is None else tuple(noise.seeds),
            self.prefix,
        )
