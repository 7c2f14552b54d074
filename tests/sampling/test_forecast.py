"""What is known of a run before its first scale, against what the run then does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from stagevar_core.acceleration.policy import FirstScales, RunInfo
from stagevar_core.acceleration.presets import PRESETS
from stagevar_core.acceleration.staged import StagedPolicy
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
    """The table cannot go stale when a preset changes."""
    rows = re.findall(r"^\| ([\w-]+) \| .* \| ([\w. ]+) \|$", HELP.read_text(encoding="utf-8"), re.MULTILINE)
    table = {name: ratio for name, ratio in rows if name in PRESETS}
    assert set(table) == set(PRESETS)
    schedule = infinity_aspect_table().schedule(1.0, "1M")
    run_info = info(schedule, INFINITY_2B.depth)
    dense = sum(forecast(PRESETS["off"], run_info, INFINITY_2B.unit_costs).flops)
    for name in STAGED:
        ratio = dense / sum(forecast(PRESETS[name], run_info, INFINITY_2B.unit_costs).flops)
        assert float(table[name]) == pytest.approx(ratio, abs=0.011), name
