"""The contract alone is enough for a family; what does not keep it is refused before the first scale."""

import pytest
import torch
from torch import nn

from stagevar_core.acceleration.policy import RunInfo
from stagevar_core.acceleration.presets import PRESETS
from stagevar_core.models.contract import signed
from stagevar_core.models.draws import run_costs
from stagevar_core.plots.timeline import timeline
from stagevar_core.sampling.forecast import forecast
from stagevar_core.sampling.generate import generate
from stagevar_core.sampling.noise import SeededNoise
from stagevar_core.sampling.settings import SamplingSettings
from tests.support.capability import Bench, Family, check_policy, codebook
from tests.support.tiny import prompts, randomize
from tests.support.tiny_var import labels, squares, tiny_vq
from tests.support.toy_family import Toy, ToyConfig

SCHEDULE = squares(1, 2, 3, 4, 6, 8)
SETTINGS = SamplingSettings(cfg_scale=2.0, temperature=1.0)


def toy() -> Toy:
    """A random one."""
    model = Toy(ToyConfig())
    randomize(model, 0)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("name", PRESETS)
def test_a_family_that_signs_runs_under_every_preset(name: str) -> None:
    family = Family("toy", lambda schedule: toy(), labels, codebook, unguided=0.0)
    check_policy(Bench(family, SCHEDULE), PRESETS[name])


@pytest.mark.parametrize("name", ["off", "balanced", "paper"])
def test_its_work_is_forecast_and_reported(name: str) -> None:
    model = toy()
    info = RunInfo(SCHEDULE, model.config.depth, 1, True, False, (3,), corrects=model.corrects)
    planned = forecast(PRESETS[name], info, run_costs(model, SCHEDULE, model.drawing_head()), 0).flops
    trace = generate(model, labels(1), SCHEDULE, SETTINGS, **drawing(), policy=PRESETS[name]).trace
    assert sum(planned) == pytest.approx(trace.flops, rel=0.1)
    assert timeline(trace.to_dict()).size[0] >= 900


def drawing() -> dict:
    """What every run needs."""
    return {"noise": SeededNoise(0, 1), "quantizer": tiny_vq().quantizer()}


class NoFamily(nn.Module):
    """Has the arithmetic and not the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.config = ToyConfig()


def refused(model, schedule=SCHEDULE, settings=SETTINGS, **options) -> str:
    """What is said, with nothing computed."""
    seen = []
    for module in model.modules():
        module.register_forward_hook(lambda *call: seen.append(call))
    with pytest.raises(ValueError) as error:
        generate(model, labels(1), schedule, settings, **drawing(), **options)
    assert not seen
    return str(error.value)


def test_a_model_that_lacks_members_is_refused_by_their_names() -> None:
    said = refused(NoFamily())
    lacks = "NoFamily lacks check, classes, compute_dtype, condition, corrects, drawing_head, edits"
    assert said.startswith(lacks)
    assert "models/contract.py" in said
    assert signed(toy()).family == "toy"


def test_schedules_settings_and_codes_that_cannot_be_are_refused() -> None:
    assert refused(toy(), squares(*range(1, 9))) == "8 scales; expected 6 at most"
    assert "temperature is 0" in refused(toy(), settings=SamplingSettings(temperature=0.0))
    assert "refine is 'full', but this toy file has no" in refused(
        toy(), settings=SamplingSettings(refine="full")
    )
    known = [torch.zeros(1, 1, 1, dtype=torch.long), torch.zeros(1, 3, 3, dtype=torch.long)]
    assert "codes of scale 1 have the grid (3, 3); this schedule has (2, 2)" in refused(toy(), known=known)
    masks = [torch.ones(1, 1, 1, dtype=torch.bool), torch.ones(1, 4, 4, dtype=torch.bool)]
    known[1] = torch.zeros(1, 2, 2, dtype=torch.long)
    assert "mask of scale 1 has the grid (4, 4)" in refused(toy(), known=known, masks=masks)


def test_the_wrong_kind_of_conditioning_is_named() -> None:
    with pytest.raises(ValueError, match="Toy is conditioned on a class label, got an encoded text"):
        generate(toy(), prompts(3), SCHEDULE, SETTINGS, **drawing())
