"""The page about the families says of HART what the code counts."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from stagevar_core.acceleration.policy import RunInfo
from stagevar_core.acceleration.presets import PRESETS
from stagevar_core.models.hart_config import HART_0_7B
from stagevar_core.sampling.forecast import forecast
from stagevar_core.schedule import Prefix
from tests.support.tiny_var import squares

PAGE = (Path(__file__).parents[2] / "docs" / "families.md").read_text(encoding="utf-8")
COLUMNS = ("off", "quality", "balanced", "fast", "turbo", "paper", "paper-released")
SCHEDULE = squares(*HART_0_7B.sides)


def work(preset: str) -> float:
    """Counted FLOPs of a guided picture."""
    last = SCHEDULE.final.tokens * HART_0_7B.residual_flops
    units = replace(HART_0_7B.unit_costs, refine=(0.0,) * (len(SCHEDULE) - 1) + (last,))
    prefix = Prefix(0, 1, HART_0_7B.context, opens=True)
    info = RunInfo(SCHEDULE, HART_0_7B.depth, 1, True, False, (0,), prefix, corrects=False)
    return sum(forecast(PRESETS[preset], info, units).flops)


def test_the_table_has_the_counted_work() -> None:
    row = next(line for line in PAGE.splitlines() if line.startswith("| HART-0.7B, 1024 px |"))
    found = [float(number) for number in re.findall(r"\| (\d+\.\d+)(?: TFLOP)? (?=\|)", row)]
    counted = [work(preset) for preset in COLUMNS]
    assert found == pytest.approx(
        [counted[0] / 1e12, *(counted[0] / each for each in counted[1:])], abs=0.0051
    )


@pytest.mark.parametrize(("preset", "said"), [("faster-hart", "2.50"), ("fastvar", "1.96")])
def test_the_page_says_what_the_methods_for_it_save(preset: str, said: str) -> None:
    assert f"`{preset}`" in PAGE and f"{work('off') / work(preset):.2f}" == said and said in PAGE
