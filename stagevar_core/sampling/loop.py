"""One run over the scales."""

import logging
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..acceleration.policy import AccelerationPolicy, PolicyRun, ScalePlan, Seen
from ..conditioning.changing import RunConditioning, check_once, tokens_of
from ..costs import Work, dense_flops
from ..models.contract import Drawing, Noise, Quantizer, Transformer
from ..models.draws import run_costs
from ..models.guidance import guided_until, mix, per_scale
from ..network.attention import AttentionFn
from ..network.cache import KVCache
from ..network.context import ScaleContext
from ..schedule import Prefix, Scale, ScaleSchedule
from .editing import ALL_GIVEN, Given, Known
from .forecast import room
from .guidance import Guide
from .kept import REUSED, KeptPrefix, prefix_key
from .numbers import Watch
from .passage import Passage
from .paused import GONE_ON, Left
from .result import Generation, Monitor, ScaleCodes
from .rows import Rows
from .settings import SamplingSettings
from .trace import Recorder

_LOG = logging.getLogger(__name__)


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
        self.units = run_costs(model, schedule, self.head)
        self.device = torch.device(device) if device is not None else conditioning.device
        weights = model.guidance_weights(settings.cfg_scale, schedule)
        temperature = per_scale("temperature", settings.temperature, len(schedule))
        until = guided_until(weights, self.units)
        self.guide = Guide(weights, temperature, settings.cfg_layers, until)
        self.conditioning, self.prefix = conditioning, model.prefix(conditioning.at(0), schedule)
        check_once(conditioning, self.prefix)
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
        passage: Passage,
        kept: KeptPrefix | None = None,
    ) -> Generation:
        """What every scale adds, up to where the run stops, and the latent that they add up to."""
        info = passage.info(self.schedule, self.model, self.prefix, self.guide)
        policy_run = policy.start(info)
        for note in policy_run.notes:
            _LOG.warning("%s: %s", policy.name, note)
        self.quantizer, self.monitor = quantizer, monitor
        self.given = given.start(quantizer, self.device)
        self.finished = self.given.replayed and self.given.settled(self.schedule.final) is not None
        self.noise = None if self.settings.greedy else noise
        self.first = None if passage.fan is None else passage.fan.first  # the images that run shared scales
        self.images, self.stores = passage.conditioning.batch, min(passage.until, len(self.schedule) - 1)
        self.recorder = self._recorder(policy)
        f_hat = quantizer.empty(self.rows.batch, self.schedule, self.device)
        scales: list[ScaleCodes] = []
        if passage.found is not None:
            policy_run, f_hat = self.go_on(passage, policy_run, scales, f_hat)
        else:
            before = 0 if self.prefix is None else self.prefix.tokens
            self.rows.cache.reserve(before + self.room(self.schedule[0], policy_run))
            if self.prefix is not None:
                self.precede(self.prefix, kept)
        for scale in self.schedule.scales[len(scales) : passage.until]:
            if passage.fan is not None and scale.index == passage.fan.scales:
                policy_run, f_hat = self.fan_out(passage, passage.fan.images, scale, policy_run, f_hat)
                scales = [added.images(passage.fan.images) for added in scales]
            f_hat, added = self.pass_scale(scale, policy_run, f_hat)
            scales.append(added)
            # Outside of the scale's function: what it leaves shall not lie beside the blocks of the next one.
            self.recorder.resume()
        self.recorder.trace.notes.extend(policy_run.notes)
        if passage.until < len(self.schedule):
            self.recorder.stopped(passage.until, self.schedule)
            if isinstance(self.rows.cache, KVCache):
                passage.leave(self.left(passage.until, policy_run), scales)
        return Generation(f_hat, scales, self.schedule, self.recorder.trace)

    def pass_scale(self, scale: Scale, policy_run: PolicyRun, f_hat: Tensor) -> tuple[Tensor, ScaleCodes]:
        """One scale, run or skipped: the latent after it, and what it added."""
        plan, settled = policy_run.plan(scale), self.given.settled(scale)
        if settled is not None:
            settled = (settled if self.first is None else settled.images(self.first)).to(self.device)
            if plan.run and (settled.drawn is None or self.finished):
                note = "skipped, as when its picture was drawn" if settled.drawn is None else ALL_GIVEN
                plan = ScalePlan(run=False, stage=plan.stage, note=note)
        if plan.run:
            return self.run_scale(scale, plan, policy_run, f_hat, settled)
        return self.skip_scale(scale, plan, f_hat, settled)

    def precede(self, prefix: Prefix, kept: KeptPrefix | None) -> None:
        """What precedes the scales runs once and leaves its keys and values, which no plan changes.

        Where ``kept`` has them of an earlier run nothing runs.
        """
        key = ()
        kept = None if prefix.opens else kept  # it leaves more than keys and values
        if kept is not None:
            key = prefix_key(self.model, self.conditioning.at(0), prefix, guided=self.guide.guided)
            if kept.fill(key, prefix, self.rows.cache):
                self.recorder.trace.notes.append(REUSED)
                return
        work: Work = defaultdict(float)
        x = self.tokens(prefix, None)  # (rows, L, C)

        def after_block(layer: int, x: Tensor) -> Tensor:
            self.monitor.block(self.schedule[0], layer)
            return x

        ctx = self.context(prefix, ScalePlan(), work)
        x = self.model(x, replace(ctx, after_block=after_block))
        self.rows.opening = x[:, -1:] if prefix.opens else None
        if kept is not None:
            kept.keep(key, self.rows.cache)
        self.rows.cache.precede(prefix)
        self.recorder.preceded(prefix, work, self.rows.cache)

    def go_on(
        self, passage: Passage, policy_run: PolicyRun, scales: list[ScaleCodes], f_hat: Tensor
    ) -> tuple[PolicyRun, Tensor]:
        """Take over what an earlier run left; ``scales`` gets what its scales added."""
        assert passage.found is not None, "there is a run to go on from"
        left, images = passage.found
        own = left.of(images, passage.seeds, self.device, self.room(self.schedule[left.scales], policy_run))
        self.rows.take_over(own.running, own.cache)
        self.guide.last = own.last
        for scale in self.schedule.scales[: left.scales]:
            settled = self.given.settled(scale)
            assert settled is not None, "what is left is found by the codes of its scales"
            f_hat = self.settle(scale, settled, f_hat)
            self.recorder.skipped(scale, ScalePlan(run=False, note=GONE_ON), self.rows.cache)
            scales.append(settled)
        self.recorder.resume()
        self.recorder.trace.notes.append(f"the first {left.scales} scales: {GONE_ON}")
        return own.policy, f_hat

    def fan_out(
        self, passage: Passage, images: Sequence[int], scale: Scale, policy_run: PolicyRun, f_hat: Tensor
    ) -> tuple[PolicyRun, Tensor]:
        """From ``scale`` on every image goes its own way; ``images``: from which of those that ran."""
        left, room = self.left(scale.index, policy_run), self.room(scale, policy_run)
        own = left.of(images, passage.seeds, self.device, room)
        self.rows.fan_out(passage.conditioning, images, own.cache)
        self.guide.last, self.first = own.last, None
        return own.policy, f_hat[list(images)]

    def left(self, count: int, policy_run: PolicyRun) -> Left:
        """The state after ``count`` scales."""
        cache = self.rows.cache
        assert isinstance(cache, KVCache), "rows that run in turn leave nothing"
        return Left(count, self.rows.running, cache, policy_run, self.guide.last)

    def settle(self, scale: Scale, settled: ScaleCodes, f_hat: Tensor) -> Tensor:
        """The latent with what is given of a scale; its draws are passed over where others follow."""
        if self.noise is not None and scale is not self.schedule.final:
            smooth = self.settings.smooth
            self.head.pass_over(scale, self.images, self.noise, self.device, smooth=smooth)
        f_hat = settled.add(f_hat, self.quantizer, self.schedule, scale)
        self.watch.latent(f_hat)
        return f_hat

    def run_scale(
        self, scale: Scale, plan: ScalePlan, policy_run: PolicyRun, f_hat: Tensor, settled: ScaleCodes | None
    ) -> tuple[Tensor, ScaleCodes]:
        """One scale: the latent (B, C, H, W) with its codes, and these.

        ``settled``: what it adds where that is given; its tokens run for what follows alone.
        """
        model, rows, quantizer = self.model, self.rows, self.quantizer
        rows.turn_to(scale.index)
        kept = self.guide.kept(plan, rows.running, scale)
        rows.narrow(kept, self.room(scale, policy_run, kept), policy_run)
        work: Work = defaultdict(float)
        ctx = self.context(scale, plan, work)
        opening = None if scale.index else rows.opening
        hidden = model(self.tokens(scale, f_hat), ctx) if opening is None else opening  # (rows, L, C)
        raw = model.logits(hidden, rows.conditioned)  # (rows, L, V)
        work["head"] += raw.shape[0] * raw.shape[1]
        guided = self.guide.logits(raw, rows.running, scale, plan)  # (B, L, V)
        self.watch.logits(raw, guided)
        self.monitor.logits(scale, raw, guided)

        before = f_hat
        if settled is not None and self.given.replayed:
            f_hat, codes = self.settle(scale, settled, f_hat), settled
        else:
            given = self.given.at(scale, f_hat, raw if rows.running.both else None)
            drawn, added, exact = self.head.draw(self.drawing(plan, ctx, hidden, guided))
            work["refine"] += rows.running.count * self.head.flops(scale)
            weights = None if plan.reduction is None else plan.reduction.code_weights()  # (B, L)
            weights = None if weights is None else quantizer.spread(weights, scale)  # (B, 1, h, w)
            if isinstance(given, ScaleCodes) and given.drawn is not None:
                drawn, added, weights, exact = given.drawn, quantizer.codes(given.drawn), None, True
            elif isinstance(given, Known):
                drawn, added, weights = given.over(drawn, added, weights, quantizer)
            f_hat = quantizer.add(f_hat, added, self.schedule, scale, weights)
            codes = ScaleCodes(drawn, added if self.settings.smooth or not exact else None, weights)
            self.watch.latent(f_hat)
        policy_run.observe(
            Seen(scale, f_hat, f_hat - before, raw, guided, self.head.choices, self.head.entropy)
        )
        said = self.guide.described(rows.running, scale, plan)
        self.recorder.ran(scale, plan, work, rows.cache, said)
        self.watch.read(scale.index, len(self.schedule))  # the recorder has waited for the device
        self.monitor.scale(scale, f_hat)
        return f_hat, codes

    def skip_scale(
        self, scale: Scale, plan: ScalePlan, f_hat: Tensor, settled: ScaleCodes | None
    ) -> tuple[Tensor, ScaleCodes]:
        """A scale that does not run: it draws as well, so that later ones see the draws of the dense run."""
        given = settled or self.given.at(scale, f_hat, None)
        codes = given if isinstance(given, ScaleCodes) else ScaleCodes(None)
        f_hat = self.settle(scale, codes, f_hat)
        if isinstance(given, Known):
            added, weights = given.alone(self.quantizer, self.device)
            f_hat = self.quantizer.add(f_hat, added, self.schedule, scale, weights)
            self.watch.latent(f_hat)
        self.recorder.skipped(scale, plan, self.rows.cache)
        self.watch.read(scale.index, len(self.schedule))
        return f_hat, codes

    def tokens(self, scale: Scale, f_hat: Tensor | None) -> Tensor:
        """What enters the blocks, (rows, L, C): of a prefix its own, the start tokens, then the latent."""
        if isinstance(scale, Prefix) and not scale.opens:
            return self.every_row(self.model.prefix_tokens(self.conditioning.at(0), scale, self.device))
        if scale.index == 0 or f_hat is None:
            first = self.model.first_tokens(self.rows.conditioned)
            # A schedule may begin with more than one token: all of them start alike.
            return first.expand(-1, scale.tokens, -1) if first.shape[1] == 1 else first
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
            store=plan.store and self.units.history and scale != self.schedule.final,
            kv_budget=plan.kv_budget,
            after_block=after_block,
            work=work,
            turns=rows.turns,
            images=rows.batch,
            per_image=self.units.per_image,
            sight=rows.conditioned.seen(scale),
        )

    def drawing(self, plan: ScalePlan, ctx: ScaleContext, hidden: Tensor, guided: Tensor) -> Drawing:
        """What the head may use at a scale."""
        running, scale = self.rows.running, ctx.scale
        return Drawing(
            scale=scale,
            progress=scale.index / max(len(self.schedule) - 1, 1),
            hidden=hidden,
            guided=guided,
            guide=lambda raw: self.watch.logits(raw, self.guide.of_pass(raw, running, scale, plan)),
            watched=self.watch.found,
            weight=self.guide.weight(running, scale),
            quantizer=self.quantizer,
            noise=self.noise,
            top_k=self.settings.top_k,
            top_p=self.settings.top_p,
            smooth=self.settings.smooth,
            unguided=self.guide.over(scale),
            positions=ctx.positions,
            conditioned=ctx.conditioned,
            dtype=ctx.dtype,
            attention=ctx.attention,
        )

    def room(self, scale: Scale, policy_run: PolicyRun, kept: str = "both") -> int:
        """Keys to make room for from ``scale`` until the rows change, of which these are ``kept``."""
        until = self.guide.until if kept == "both" else 0
        return room(policy_run, self.units, self.schedule, scale, (until, self.stores))

    def _recorder(self, policy: AccelerationPolicy) -> Recorder:
        images, units, prefix = self.images, self.units, self.prefix
        rows = [images * (1 + self.guide.pairs(scale)) for scale in self.schedule]
        texts = tokens_of(self.conditioning, len(self.schedule))
        dense = dense_flops(units, self.schedule, rows=rows, text_tokens=texts, images=images, prefix=prefix)
        return Recorder(policy.name, units, dense, images=images, device=self.device, started=self.started)
