"""STAR's inner sampler under acceleration: its draws, its counted work, guidance that is reused."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from stagevar_core.acceleration.policy import DensePolicyRun, RunInfo, ScalePlan
from stagevar_core.acceleration.presets import PRESETS
from stagevar_core.models.draws import run_costs
from stagevar_core.models.star_config import STARConfig
from stagevar_core.models.star_sampler import refine_flops
from stagevar_core.sampling.forecast import forecast
from stagevar_core.sampling.generate import generate
from stagevar_core.sampling.noise import SeededNoise
from stagevar_core.sampling.settings import SamplingSettings
from stagevar_core.schedule import SIDES_1024
from tests.support.tiny import plain_attention
from tests.support.tiny_star import SQUARES, encoded, tiny_star
from tests.support.tiny_var import DIM, squares, tiny_vq

SETTINGS = SamplingSettings(cfg_scale=4.0, temperature=1.0, top_k=12, top_p=0.9)
ODD = squares(*range(1, 10), 11, 12)  # two scales that the sampler draws


def run(model, schedule=SQUARES, settings=SETTINGS, batch: int = 1, **options):
    """A seeded generation of encoded texts unless told otherwise."""
    options = {"noise": SeededNoise(3, batch), "quantizer": tiny_vq().quantizer(), **options}
    return generate(model, encoded(batch), schedule, settings, **options)


@dataclass(frozen=True)
class Plans:
    """A policy that plans some scales otherwise."""

    of: dict[int, ScalePlan]
    name = "plans"
    per_image = False

    def start(self, info: RunInfo) -> "_PlansRun":
        return _PlansRun(info, self.of)


class _PlansRun(DensePolicyRun):
    def __init__(self, info: RunInfo, of: dict[int, ScalePlan]) -> None:
        super().__init__(info)
        self.of = of

    def plan(self, scale) -> ScalePlan:
        return self.of.get(scale.index, ScalePlan())


class HeardNoise(SeededNoise):
    """Sums of all draws by scale."""

    def __init__(self, batch: int) -> None:
        super().__init__(3, batch)
        self.heard: dict[int, list[float]] = {}

    def exponential(self, scale, shape, device):
        return self._hear(scale, super().exponential(scale, shape, device))

    def uniform(self, scale, shape, device):
        return self._hear(scale, super().uniform(scale, shape, device))

    def _hear(self, scale, draws):
        self.heard.setdefault(scale.index, []).append(float(draws.double().sum()))
        return draws


@pytest.mark.parametrize("mode", ["mixed", "full"])
@pytest.mark.parametrize("skipped", [(9,), (11, 12), (9, 10, 11, 12)], ids=str)
def test_scales_after_a_skipped_one_see_the_draws_of_the_dense_run(mode: str, skipped: tuple) -> None:
    model, settings = tiny_star(sampler=1), replace(SETTINGS, refine=mode)
    dense, other = HeardNoise(2), HeardNoise(2)
    run(model, settings=settings, batch=2, noise=dense)
    plans = Plans({index: ScalePlan(run=False) for index in skipped})
    result = run(model, settings=settings, batch=2, noise=other, policy=plans)
    assert all(result.codes[index] is None for index in skipped)
    assert other.heard == dense.heard


@pytest.mark.parametrize("mode", ["mixed", "full"])
def test_the_counted_work_has_the_passes(mode: str) -> None:
    model = tiny_star(levels=len(ODD), sampler=2)
    with FlopCounterMode(display=False) as counter:
        trace = run(model, ODD, replace(SETTINGS, refine=mode), attention=plain_attention).trace
    width, count, text = model.config.width, 3 if mode == "mixed" else 8, 5
    once = model.config.condition_flops(2, text) + 2 * 2 * model.config.text_width * width
    embedded = 2 * (ODD.tokens - 1) * DIM * width
    embedded += sum(count * 2 * scale.tokens * DIM * width for scale in ODD.scales[9:])  # of decided tokens
    phi = sum(2 * 9 * DIM**2 * ODD.final.tokens for _ in ODD)
    assert counter.get_total_flops() - once - embedded - phi == trace.flops == trace.dense_flops
    assert all((scale.flops.refine > 0) == (scale.scale.index >= 9) for scale in trace.scales)
    assert run(model, ODD, replace(SETTINGS, refine="off")).trace.flops < trace.flops


def test_passes_cost_more_than_the_blocks_of_the_last_scale_of_the_1024_model() -> None:
    config = STARConfig.released(30, SIDES_1024, sampler=True)
    schedule = squares(*SIDES_1024)
    units = config.unit_costs
    blocks = schedule.final.tokens * sum(units.branches.values()) * units.depth
    assert refine_flops(config, schedule.final, "mixed") > blocks
    assert refine_flops(config, schedule[8], "mixed") == 0.0


@pytest.mark.parametrize("name", ["off", "balanced", "paper"])
def test_the_forecast_has_the_passes(name: str) -> None:
    model = tiny_star(sampler=1)
    info = RunInfo(SQUARES, model.config.depth, 1, True, False, (3,), corrects=model.corrects)
    units = run_costs(model, SQUARES, model.drawing_head("auto"))
    assert run_costs(model, SQUARES, model.drawing_head("off")) == model.config.unit_costs
    found = forecast(PRESETS[name], info, units, 5).flops
    trace = run(model, policy=PRESETS[name]).trace
    for planned, scale in zip(found, trace.scales, strict=True):
        assert planned == pytest.approx(scale.flops.total, rel=0.25, abs=1.0)
    assert trace.flops == pytest.approx(sum(found), rel=0.1)


def test_reused_guidance_reaches_the_passes() -> None:
    """At a scale with one row the sampler draws from its own logits and a share of the last guidance."""
    model, guided = tiny_star(sampler=1), {}
    draw = model.sampler.draw

    def watch(ctx, text, mode):
        guided[ctx.scale.index] = ctx.guide(torch.zeros(len(ctx.hidden), *ctx.guided.shape[1:]))
        return draw(ctx, text, mode)

    model.sampler.draw = watch
    plans = {13: ScalePlan(rows="conditional", reuse=0.5)}
    result = run(model, settings=replace(SETTINGS, refine="full"), policy=Plans(plans))
    assert result.trace.scales[13].guidance == "conditional + 0.5 reused"
    assert guided[13].abs().max() > 1e-3
    run(model, settings=replace(SETTINGS, refine="full"), policy=Plans({13: ScalePlan(rows="conditional")}))
    assert guided[13].abs().max() == 0.0
