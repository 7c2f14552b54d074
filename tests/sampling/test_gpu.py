"""Generations on a CUDA device: everything a run makes is there, and it begins as on the CPU."""

import pytest
import torch

from stagevar_core.acceleration.presets import PRESETS
from stagevar_core.sampling.generate import generate
from stagevar_core.sampling.noise import SeededNoise
from stagevar_core.sampling.settings import SamplingSettings
from stagevar_core.schedule import ScaleSchedule
from tests.support.capability import FAMILIES, Family

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_preset_runs_on_the_gpu(family: Family, name: str) -> None:
    schedule, found = ScaleSchedule.of(family.grids[0]), []
    for device in ("cpu", "cuda"):
        quantizer = family.quantizer(schedule)
        result = generate(
            *(family.build(schedule).to(device), family.condition(2), schedule),
            SamplingSettings(cfg_scale=3.0, temperature=1.0),
            noise=SeededNoise(11, 2),
            quantizer=None if quantizer is None else quantizer.to(device),
            policy=PRESETS[name],
            device=device,
        )
        assert result.f_hat.device.type == device and result.f_hat.isfinite().all()
        found.append(result.codes[0].cpu())
    assert torch.equal(*found)  # later scales grow from what another device rounds otherwise
