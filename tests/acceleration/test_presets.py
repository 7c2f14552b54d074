"""Our presets go by whether a model was trained to correct itself; published methods do not."""

import pytest
import torch

from stagevar_core.acceleration.changes import flat
from stagevar_core.acceleration.policy import RunInfo
from stagevar_core.acceleration.presets import BALANCED, PRESETS, adjusted, preset
from stagevar_core.acceleration.schedule_file import StageSchedule
from stagevar_core.acceleration.staged import StagedPolicy
from stagevar_core.evaluation.metrics import psnr
from stagevar_core.models.hart import HART
from stagevar_core.models.infinity import Infinity
from stagevar_core.models.star import STAR
from stagevar_core.models.switti import Switti
from stagevar_core.models.var import VAR
from stagevar_core.pipeline import Pipeline
from stagevar_core.schedule import SIDES_256, SIDES_512, SIDES_1024, ScaleSchedule
from tests.support.tiny_var import squares

OURS = ("quality", "balanced", "fast", "turbo")
STAGED = {name: policy for name, policy in PRESETS.items() if isinstance(policy, StagedPolicy)}
SCHEDULES = pytest.mark.parametrize("sides", [SIDES_256, SIDES_512, SIDES_1024], ids=["256", "512", "1024"])


def plans(policy: StagedPolicy, schedule: ScaleSchedule, *, corrects: bool) -> list:
    """Of every scale of a guided run."""
    run = policy.start(RunInfo(schedule, 8, 1, True, False, (0,), corrects=corrects))
    return [run.plan(scale) for scale in schedule]


def test_families_say_how_they_were_trained() -> None:
    assert Infinity.corrects
    assert not any(family.corrects for family in (VAR, STAR, HART, Switti))


@SCHEDULES
@pytest.mark.parametrize("name", OURS)
def test_models_that_do_not_correct_themselves_are_guided_to_the_end(name: str, sides: tuple) -> None:
    schedule = squares(*sides)
    found = plans(STAGED[name], schedule, corrects=False)
    ran = [plan.run for plan in found]
    assert all(plan.rows == "both" for plan in found if plan.run)
    assert ran == sorted(ran, reverse=True)  # what is left out is left out at the end
    assert ran.count(False) == {"quality": 0, "balanced": 1, "fast": 1, "turbo": 2}[name]
    shares = [
        plan.budget[0] / scale.tokens for plan, scale in zip(found, schedule, strict=True) if plan.budget
    ]
    assert shares == sorted(shares, reverse=True)


@SCHEDULES
@pytest.mark.parametrize("name", OURS)
def test_models_that_correct_themselves_keep_their_last_scale(name: str, sides: tuple) -> None:
    last = plans(STAGED[name], squares(*sides), corrects=True)[-1]
    assert last.run and last.rows == "conditional"


@pytest.mark.parametrize("name", [name for name in STAGED if name not in OURS])
def test_published_methods_are_the_same_for_all(name: str) -> None:
    assert STAGED[name].uncorrected is None and STAGED[name].of(False) is STAGED[name].of(True)


@pytest.mark.parametrize("name", OURS)
def test_changes_reach_both_settings(name: str) -> None:
    given = {"keep": 0.3, "structure_end": 0.5, "skip": 1, "guidance": "conditional"}
    kept = {"keep": -1, "code_weight": "auto"}
    made = preset(name, **given)
    written = StageSchedule(keep=0.3, settings={"structure_end": 0.5, "skip": 1, "guidance": "conditional"})
    for corrects in (True, False):
        own, found = STAGED[name].of(corrects), flat(made.of(corrects))
        changed = {"tokens", "score", "evenness", "spans", "restoration", "code_weight", "resize", "reuse"}
        assert found["keep"] == 0.3 and found["skip"] == 1 and found["guidance"] == "conditional"
        assert found["boundaries"].structure_end == 0.5
        assert all(found[key] == flat(own)[key] for key in changed)
        assert written.apply(STAGED[name]).of(corrects) == made.of(corrects)
    assert adjusted(STAGED[name], kept) is STAGED[name]


@pytest.fixture(scope="module")
def artwork() -> Pipeline:
    return Pipeline.embedded(model="artwork", dtype=torch.float32, device="cpu")


def test_what_the_presets_save_on_the_artwork_model(artwork: Pipeline) -> None:
    traces = [artwork("7", policy=PRESETS[name]).generation.trace for name in OURS]
    ratios = [trace.ratio for trace in traces]
    assert all(scale.guidance.startswith("cfg") for trace in traces for scale in trace.scales if scale.ran)
    assert ratios == sorted(ratios) and ratios[1] >= 3.2 and ratios[2] >= 4.0


def test_balanced_stays_near_the_pictures_of_the_artwork_model(artwork: Pipeline) -> None:
    words = ("3", "40", "77")
    dense, near, far = (
        artwork(words, seed=(1, 2, 3), policy=policy).images
        for policy in (None, BALANCED, StagedPolicy("the other settings", BALANCED.of(True)))
    )
    assert min(psnr(dense, near)) > max(24.0, min(psnr(dense, far)))
    assert sum(psnr(dense, near)) > sum(psnr(dense, far)) + 3 * 2.0
