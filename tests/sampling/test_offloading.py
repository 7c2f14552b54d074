"""Weights that a host keeps elsewhere: its layers move their own, raw parameters follow what they meet."""

import pytest
import torch
from torch import nn

from stagevar_core.acceleration.presets import PRESETS
from stagevar_core.sampling.generate import generate
from stagevar_core.sampling.settings import SamplingSettings
from stagevar_core.schedule import ScaleSchedule
from tests.support.capability import FAMILIES, Family

pytestmark = pytest.mark.slow
# Parameters outside of layers, where a family has others than the rest.
RAW = {
    "switti": {"start", "level_embed", "crop_scale", "frequencies"},
    "hart": {"norm", "level_embed", "text_norm", "head_norm", "residual_norm", "norm_weight", "norm_bias"},
}


@pytest.mark.parametrize("preset", ["off", "balanced", "paper", "fastvar"])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_raw_parameters_may_be_on_another_device(family: Family, preset: str) -> None:
    """As under ComfyUI's partial loading; the meta device mixes with no other, as a GPU does not."""
    schedule = ScaleSchedule.of(family.grids[0])
    model, quantizer = family.build(schedule), family.quantizer(schedule)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.LayerNorm):
            module.to("meta")
    left = {name.split(".")[-1] for name, parameter in model.named_parameters() if not parameter.is_meta}
    assert RAW.get(family.name.split()[0], {"start", "level_embed", "log_scale"}) <= left
    generation = generate(
        *(model, family.condition(2), schedule, SamplingSettings(cfg_scale=3.0, greedy=True)),
        noise=None,
        quantizer=None if quantizer is None else quantizer.to("meta"),
        policy=PRESETS[preset],
        device="meta",
    )
    assert generation.f_hat.device == torch.device("meta")
