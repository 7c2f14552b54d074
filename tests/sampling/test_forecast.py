"""What is known of a run before its first scale, against what the run then does."""

from __future__ import annotations

import re
from pathlib import Path
from random import Random

import pytest

from stagevar_core.acceleration.changes import changed
from stagevar_core.acceleration.fastvar import FastVAR, PruningSetting
from stagevar_core.acceleration.policy import FirstScales, RunInfo
from stagevar_core.acceleration.presets import PRESETS
from stagevar_core.acceleration.settings import StageSettings
from stagevar_core.acceleration.staged import StagedPolicy
from stagevar_core.acceleration.stages import StageBoundaries
from stagevar_core.conditioning.types import TextConditioning
from stagevar_core.costs import kv_bytes
from stagevar_core.models.infinity_config import INFINITY_2B
from stagevar_core.sampling.forecast import forecast
from stagevar_core.sampling.generate import generate
from stagevar_core.sampling.noise import SeededNoise
from stagevar_core.sampling.result import Generation
from stagevar_core.sampling.settings import SamplingSettings
from stagevar_core.schedule import ScaleSchedule, infinity_aspect_table
from tests.support.tiny import SQUARE, TALL, texts, tiny_infinity

HELP = Path(__file__).resolve().parents[2] / "web" / "docs" / "StageVARAccelerate.md"
STAGED = [name for name, policy in PRESETS.items() if isinstance(policy, StagedPolicy)]


def info(schedule: ScaleSchedule, depth: int, batch: int = 1, guided: bool = True) -> RunInfo:
    return RunInfo(schedule, depth, batch, guided, False, tuple(range(batch)))


def run(name: str, schedule: ScaleSchedule, batch: int, cfg: float) -> Generation:
    """A generation whose texts have one length, as the forecast takes them."""
    text = TextConditioning(texts(*[7] * batch))
    settings = SamplingSettings(cfg_scale=cfg, temperature=1.0)
    model = tiny_infinity()
    return generate(model, text, schedule, settings, noise=SeededNoise(0, batch), policy=PRESETS[name])


@pytest.mark.parametrize("cfg", [3.0, 1.0], ids=["guided", "unguided"])
@pytest.mark.parametrize("schedule", [SQUARE, TALL], ids=["square", "tall"])
@pytest.mark.parametrize("name", PRESETS)
def test_no_run_needs_more_keys_than_forecast(name: str, schedule: ScaleSchedule, cfg: float) -> None:
    policy, config = PRESETS[name], tiny_infinity().config
    batch = 1 if policy.per_image else 2
    found = forecast(policy, info(schedule, config.depth, batch, cfg != 1.0), config.unit_costs, 7)
    trace = run(name, schedule, batch, cfg).trace
    assert 0 < trace.kv_peak_bytes <= kv_bytes(config, found.keys, rows=1, itemsize=4)
    assert sum(found.shares) == pytest.approx(1.0) and len(found.shares) == len(schedule)


@pytest.mark.parametrize("name", STAGED)
def test_work_that_is_planned_is_forecast(name: str) -> None:
    policy, config = PRESETS[name], tiny_infinity().config
    found = forecast(policy, info(SQUARE, config.depth), config.unit_costs, 7)
    for flops, scale in zip(found.flops, run(name, SQUARE, 1, 3.0).trace.scales, strict=True):
        assert (flops > 0) == scale.ran
        # Mixing tokens is left out, and spans of unequal budgets count by their mean.
        assert flops == pytest.approx(scale.flops.total - scale.flops.reduction, rel=0.03)


def any_schedule(random: Random) -> ScaleSchedule:
    """2 to 9 scales that grow by up to two tokens a side."""
    grids = [(random.randint(1, 3), random.randint(1, 3))]
    for _ in range(random.randint(1, 8)):
        height, width = grids[-1]
        grids.append((height + random.randint(0, 2), width + random.randint(0, 2)))
    return ScaleSchedule.of(grids, (64, 64))


def any_policy(random: Random) -> StagedPolicy | FastVAR:
    """A method with settings that nobody would choose, scales without tokens among them."""

    def share() -> float:
        return random.choice([0.0, 0.0, 1.0, round(random.random(), 2)])

    ends = sorted(random.choice([0.0, 0.1, 0.4, 1.0, round(random.random(), 2)]) for _ in range(2))
    boundaries = StageBoundaries(*ends)
    if random.random() < 0.25:
        parts = random.choice([("self", "cross", "ffn"), ("self",), ("cross",)])
        shares = tuple(share() for _ in range(random.randint(1, 3)))
        setting = PruningSetting(shares, random.randint(0, 2), random.choice([None, range(1, 3)]), parts)
        return FastVAR(setting, boundaries=boundaries)
    areas = sorted({round(random.random(), 2) for _ in range(random.randint(1, 4))})
    several = [share() for _ in range(random.randint(1, 4))]
    settings = changed(
        StageSettings(boundaries),
        tokens=random.choice(["dense", "gather", "projection"]),
        keep=[[area, random.choice([share(), several])] for area in areas],
        spans=random.choice([1, 1, 2, 3, 8]),
        kv=random.choice(["append", "none", 0.0, 0.1, 0.2, round(random.random(), 2)]),
        guidance=random.choice(["both", "conditional", "unconditional", "reuse"]),
        guidance_end=round(random.random(), 2),
        skip=random.choice([0, 0, 1, 2]),
        code_weight=random.choice([0.0, 1.0]),
        restoration=random.choice(["delta", "state", "anchor"]),
        attention=random.choice(["dense", "dense", "local"]),
    )
    return StagedPolicy("any", settings)


@pytest.mark.parametrize("block", [range(40), range(40, 80)], ids=str)
def test_the_forecast_is_an_upper_bound_whatever_the_settings(block: range) -> None:
    models = {depth: tiny_infinity(depth=depth) for depth in (1, 3, 5)}
    for seed in block:
        random = Random(seed)
        schedule, policy = any_schedule(random), any_policy(random)
        depth, batch = random.choice(list(models)), random.choice([1, 2])
        cfg, sequential = random.choice([1.0, 3.0, 3.0]), random.random() < 0.4
        config = models[depth].config
        found = forecast(
            policy,
            info(schedule, depth, batch, cfg != 1.0),
            config.unit_costs,
            7,
            sequential=sequential,
        )
        trace = generate(
            models[depth],
            TextConditioning(texts(*[7] * batch)),
            schedule,
            SamplingSettings(cfg_scale=cfg, temperature=1.0),
            noise=SeededNoise(0, batch),
            policy=policy,
            sequential=sequential,
        ).trace
        assert trace.kv_peak_bytes <= kv_bytes(config, found.keys, rows=1, itemsize=4), (seed, policy)
        assert [flops > 0 for flops in found.flops] == [scale.ran for scale in trace.scales], (seed, policy)


@pytest.mark.parametrize("spans", [1, 2])
def test_a_scale_without_tokens_leaves_the_cache_as_it_is(spans: int) -> None:
    """What it has of a budget for keys is then not spent, and later scales append to all of them."""
    schedule = ScaleSchedule.of([(1, 1), (4, 4), (6, 6), (6, 7), (8, 8)], (64, 64))
    none: list | float = 0.0 if spans == 1 else [0.0, 1.0]
    settings = changed(
        StageSettings(StageBoundaries(0.1, 0.25)),
        tokens="gather",
        keep=[[36 / 64, none], [42 / 64, 1.0], [1.0, 1.0]],
        spans=spans,
        kv=0.1,
    )
    policy, model = StagedPolicy("none in between", settings), tiny_infinity(depth=8)
    found = forecast(policy, info(schedule, 8, guided=False), model.config.unit_costs, 7)
    assert found.keys >= 1 + 16 + 42
    text = TextConditioning(texts(7))
    options = {"noise": SeededNoise(0, 1), "policy": policy}
    trace = generate(model, text, schedule, SamplingSettings(cfg_scale=1.0), **options).trace
    assert trace.kv_peak_bytes <= kv_bytes(model.config, found.keys, rows=1, itemsize=4)


def test_scales_that_do_not_run_have_no_share() -> None:
    config = tiny_infinity().config
    found = forecast(FirstScales(3), info(SQUARE, config.depth), config.unit_costs)
    assert [share > 0 for share in found.shares] == [True, True, True, False, False]
    assert max(load.stream for load in found.loads) == 2 * SQUARE[2].tokens


def test_fewer_rows_and_tokens_need_less_memory() -> None:
    """On the schedule that matters, against the dense run."""
    schedule = infinity_aspect_table().schedule(1.0, "1M")
    found = {
        name: forecast(PRESETS[name], info(schedule, INFINITY_2B.depth), INFINITY_2B.unit_costs)
        for name in ("off", "quality", "balanced", "fast")
    }
    keys = [forecast.keys for forecast in found.values()]
    assert keys == sorted(keys, reverse=True) and keys[2] < keys[0] / 3.5
    assert found["quality"].loads[-1].stream == found["off"].loads[-1].stream / 2
    assert found["balanced"].loads[-1].computed < 0.7 * found["quality"].loads[-1].computed


def test_help_page_has_the_counted_ratio_of_every_preset() -> None:
    """The table cannot go stale when a preset changes; the one of other families is tested beside theirs."""
    own = HELP.read_text(encoding="utf-8").partition("| preset | artwork |")[0]
    rows = re.findall(r"^\| ([\w-]+) \| .* \| ([\w. ]+) \|$", own, re.MULTILINE)
    table = {name: ratio for name, ratio in rows if name in PRESETS}
    assert set(table) == set(PRESETS)
    schedule = infinity_aspect_table().schedule(1.0, "1M")
    run_info = info(schedule, INFINITY_2B.depth)
    dense = sum(forecast(PRESETS["off"], run_info, INFINITY_2B.unit_costs).flops)
    for name in STAGED:
        ratio = dense / sum(forecast(PRESETS[name], run_info, INFINITY_2B.unit_costs).flops)
        assert float(table[name]) == pytest.approx(ratio, abs=0.011), name
