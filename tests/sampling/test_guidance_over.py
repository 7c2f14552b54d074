"""Families whose conditional rows run alone once nothing is guided any more, under every preset."""

import pytest
import torch

from stagevar_core.acceleration.presets import PRESETS
from stagevar_core.schedule import ScaleSchedule
from tests.support.capability import FAMILIES, Bench, Way, check_policy
from tests.support.tiny import Logits

NARROWING = [family for family in FAMILIES if family.name.startswith("switti")]


def ending(family, grids, left: int = 2) -> Way:
    """Guidance at all but the last scales."""
    unguided = family.unguided
    return Way(cfg=(unguided + 2.0,) * (len(grids) - left) + (unguided,) * left)


@pytest.mark.parametrize("family", NARROWING, ids=lambda family: family.name)
def test_the_others_stop_and_change_nothing(family) -> None:
    grids = family.grids[0]
    made, way = Bench(family, ScaleSchedule.of(grids)), ending(family, family.grids[0])
    seen, guided = Logits(), Logits()
    result = made.run(None, way, monitor=seen)
    assert [scale.rows for scale in result.trace.scales] == [4] * (len(grids) - 2) + [2] * 2
    assert [scale.guidance for scale in result.trace.scales][-2:] == ["conditional"] * 2
    assert result.trace.flops == pytest.approx(result.trace.dense_flops)
    # With a last scale that is guided both rows run to the end; the conditional ones are the same.
    cfg = (*way.cfg[:-1], family.unguided + 1.0)
    whole = made.run(None, Way(cfg=cfg), known=result.codes, monitor=guided)
    assert {scale.rows for scale in whole.trace.scales} == {4}
    for alone, both in zip(seen.raw[-2:], guided.raw[-2:], strict=True):
        assert torch.allclose(alone, both[:2], atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("family", NARROWING, ids=lambda family: family.name)
@pytest.mark.parametrize("left", [1, 2, 3])
def test_every_policy_goes_on_with_the_conditional_rows(family, name: str, left: int) -> None:
    grids = family.grids[0]
    check_policy(Bench(family, ScaleSchedule.of(grids)), PRESETS[name], ending(family, grids, left))


def test_a_preset_of_the_null_text_says_that_guidance_is_over() -> None:
    family = NARROWING[0]
    made = Bench(family, ScaleSchedule.of(family.grids[0]))
    result = made.run(PRESETS["paper"], ending(family, family.grids[0]))
    assert any("guidance is over after 4 of 6 scales" in note for note in result.trace.notes)
    assert "unconditional" not in {scale.guidance for scale in result.trace.scales}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_the_rows_of_others_run_to_the_end(family) -> None:
    grids = family.grids[0]
    made, way = Bench(family, ScaleSchedule.of(grids)), ending(family, grids)
    rows = {scale.rows for scale in made.run(None, way).trace.scales}
    assert (rows == {4}) == (family not in NARROWING)
