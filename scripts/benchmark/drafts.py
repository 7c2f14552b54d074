"""``bench.py --drafts``: drafts, and finishing some of them, against pictures that are finished at once.

Everything is counted from the plans, for which no weights are needed, and timed unless only the count is
asked for. Shares are those of ``off``: of a draft, of one picture; of picking, of as many finished pictures
as there are drafts. The transformer's work counts, of a draft that is decoded the decoder's as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from stagevar_core.acceleration.policy import AccelerationPolicy, RunInfo
from stagevar_core.acceleration.presets import preset
from stagevar_core.acceleration.stages import STAGES, boundaries_of
from stagevar_core.autoencoders.costs import decode_flops
from stagevar_core.checkpoints.detect import spec_of
from stagevar_core.models.draws import run_costs
from stagevar_core.models.guidance import guided_until
from stagevar_core.sampling.clock import synchronise
from stagevar_core.sampling.drafts import draft_grid, reduced
from stagevar_core.sampling.forecast import forecast
from stagevar_core.sampling.generate import generate
from stagevar_core.sampling.noise import SeededNoise
from stagevar_core.sampling.paused import PausedRun
from stagevar_core.sampling.settings import SamplingSettings
from stagevar_core.sampling.state import RunState
from stagevar_core.schedule import ScaleSchedule

from .models import FULL_SIZE, PROMPT, MeasuredPipeline

BASE, FINISH = "off", ("off", "balanced")


class Shape(NamedTuple):
    """What is counted: a model without its weights. ``codes``: the tokenizer's config."""

    transformer: Any
    codes: Any
    schedule: ScaleSchedule
    settings: SamplingSettings
    text_tokens: int

    def flops(self, policy: AccelerationPolicy, images: int) -> tuple[float, ...]:
        """Of every scale of a run."""
        weights = self.transformer.guidance_weights(self.settings.cfg_scale, self.schedule)
        guided = any(weight != 1.0 for weight in weights)
        depth, seeds = self.transformer.config.depth, tuple(range(images))
        ends = guided_until(weights, self.transformer.config.unit_costs)
        corrects = self.transformer.corrects
        info = RunInfo(self.schedule, depth, images, guided, False, seeds, None, ends, corrects)
        units = run_costs(self.transformer, self.schedule, self.transformer.drawing_head())
        return forecast(policy, info, units, self.text_tokens).flops

    def decoding(self, until: int, images: int) -> float:
        """Of the pictures after some scales, on the grid of the last of them."""
        patch = self.transformer.config.patch
        whole, last = (
            (scale.height * patch, scale.width * patch)
            for scale in (self.schedule.final, self.schedule[until - 1])
        )
        return decode_flops(self.codes, draft_grid(whole, last), batch=images)


def without_weights(name: str, pixels: int | None, cfg: float | None, text_tokens: int) -> Shape:
    """A model of full size, to count alone."""
    family, config, codes = FULL_SIZE[name]
    spec = spec_of("transformer", family)
    sizes, defaults = spec.sizes(config), spec.defaults
    side = pixels or defaults.get("height") or max(sizes.image_size(sizes.snap(4096, 4096)))
    settings = SamplingSettings(cfg_scale=defaults["cfg"] if cfg is None else cfg)
    tokens = text_tokens if config.text_width else 1
    return Shape(spec.module(config, device="meta"), codes, sizes.snap(side, side), settings, tokens)


def of(pipeline: MeasuredPipeline, request: dict[str, Any]) -> Shape:
    """What a loaded model is."""
    schedule = pipeline.schedule(request["width"], request["height"])
    codes, tokens = pipeline.tokenizer.config, pipeline.encode([PROMPT]).tokens
    return Shape(pipeline.transformer, codes, schedule, request["settings"], tokens)


def counted(shape: Shape, drafts: int, picked: int) -> dict[str, Any]:
    """Shares of the work; ``kept``: with keys and values of the drafts, ``again``: without."""
    dense = sum(shape.flops(preset(BASE), 1))
    whole = shape.decoding(len(shape.schedule), 1)
    rows = []
    for stage in STAGES[:-1]:
        until = boundaries_of(preset(BASE)).end(shape.schedule, stage)
        row: dict[str, Any] = {"stage": stage, "scales": until, "finish": {}}
        begun = sum(shape.flops(preset(BASE), drafts)[:until])
        row["draft"] = begun / drafts / dense
        row["draft_with_decode"] = (begun + shape.decoding(until, drafts)) / drafts / dense
        for name in FINISH:
            every = shape.flops(preset(name), picked)
            own = sum(shape.flops(preset(name), drafts)[:until])
            rest = {"kept": sum(every[until:]), "again": sum(every)}
            row["finish"][name] = {
                way: {"alone": cost / drafts / dense, "with_drafts": (own + cost) / drafts / dense}
                for way, cost in rest.items()
            }
        rows.append(row)
    return {"drafts": drafts, "picked": picked, "dense_flops": dense, "decode_flops": whole, "stages": rows}


def timed(
    pipeline: MeasuredPipeline, request: dict[str, Any], drafts: int, picked: int, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Seconds of the same, in the same shares: all at once first, then stage by stage."""
    shape, device = of(pipeline, request), pipeline.device
    prompts, seeds = pipeline.encode([PROMPT] * drafts), SeededNoise(0, drafts).seeds

    def run(policy: AccelerationPolicy, images: int, **options: Any) -> tuple[float, Any]:
        synchronise(device)
        start = time.perf_counter()
        made = generate(
            pipeline.transformer,
            prompts.images(list(range(images))),
            shape.schedule,
            shape.settings,
            noise=SeededNoise.of(seeds[:images]),
            quantizer=pipeline.quantizer,
            policy=policy,
            device=device,
            **options,
        )
        synchronise(device)
        return time.perf_counter() - start, made

    def decode(latent: torch.Tensor, until: int) -> float:
        grid = pipeline.quantizer.latent_grid(shape.schedule[until - 1])
        start = time.perf_counter()
        pipeline.decode(reduced(latent, grid))
        return time.perf_counter() - start

    with torch.inference_mode():
        whole, made = run(preset(BASE), drafts)
        shown = decode(made.f_hat, len(shape.schedule))
        say(f"{drafts} finished at once: {whole:.2f} s, decoded {shown:.2f} s")
        rows = []
        for stage in STAGES[:-1]:
            until = boundaries_of(preset(BASE)).end(shape.schedule, stage)
            row: dict[str, Any] = {"stage": stage, "scales": until, "finish": {}}
            for name in FINISH:
                paused = PausedRun()
                begun, draft = run(preset(name), drafts, until=until, paused=paused)
                if name == BASE:
                    row["draft"] = begun / whole
                    row["draft_with_decode"] = (begun + decode(draft.f_hat, until)) / whole
                state = RunState.of(draft, seeds, shape.settings).pick(range(picked))
                found = {}
                for way, kept in (("kept", paused), ("again", None)):
                    spent, _ = run(preset(name), picked, resumed=state, paused=kept)
                    found[way] = {"alone": spent / whole, "with_drafts": (begun + spent) / whole}
                row["finish"][name] = found
            say(f"drafts to the end of {stage}: {row['draft']:.1%}")
            rows.append(row)
    return rows


def show(found: dict[str, Any]) -> None:
    """The table for people."""
    print(f"\n{found['drafts']} drafts, {found['picked']} of them finished; shares of off without drafts")
    print(f"{'':<48}{'counted':>10}{'wall':>10}")
    times = found.get("wall") or [None] * len(found["stages"])
    for row, wall in zip(found["stages"], times, strict=True):
        for (name, share), (_, spent) in zip(_lines(row), _lines(wall or row), strict=True):
            print(f"{row['stage'] + ', ' + name:<48}{share:>10.1%}{_wall(spent, wall)}")


def _wall(spent: float, wall: dict[str, Any] | None) -> str:
    return f"{'-':>10}" if wall is None else f"{spent:>10.1%}"


def _lines(row: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers of a stage by their names."""
    yield "draft", row["draft"]
    yield "draft, decoded", row["draft_with_decode"]
    for name, ways in row["finish"].items():
        for way, found in ways.items():
            for what, share in found.items():
                yield f"{name}, {way}, {what.replace('_', ' ')}", share
