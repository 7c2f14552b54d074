"""Sums of residual branches: the same in parts and in place, and in place only what nobody else keeps."""

import pytest
import torch
from torch import Tensor

from stagevar_core.acceleration.presets import preset
from stagevar_core.network import tokens
from stagevar_core.network.context import ScaleContext
from stagevar_core.network.tokens import added
from stagevar_core.sampling.generate import generate
from stagevar_core.sampling.noise import SeededNoise
from stagevar_core.sampling.settings import SamplingSettings
from stagevar_core.schedule import ScaleSchedule
from tests.support.capability import FAMILIES, Family


@pytest.mark.parametrize("gates", [0, 1, 50], ids=["no gate", "a gate", "gates of tokens"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_sums_are_the_same_in_parts_and_in_place(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, gates: int
) -> None:
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(2, 50, 16, generator=generator) for _ in range(2))
    y, gate = y.to(dtype), torch.randn(2, gates, 16, generator=generator) if gates else None
    whole = x + y if gate is None else torch.addcmul(x, y, gate)
    monkeypatch.setattr(tokens, "PART", 7 * 32)
    with torch.inference_mode():
        apart, before = added(x, y, gate), x.clone()
        assert torch.equal(apart, whole) and torch.equal(x, before)
        assert added(x, y, gate, into=x) is x and torch.equal(x, whole)


def test_sums_are_differentiable() -> None:
    x, y = (torch.ones(1, 3, 2, requires_grad=True) for _ in range(2))
    added(x, y, torch.full((1, 1, 2), 3.0)).sum().backward()
    assert x.grad is not None and y.grad is not None and y.grad.unique().item() == 3.0


@pytest.mark.parametrize("name", ["off", "balanced", "fastvar", "paper"])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_what_a_block_reads_and_leaves_stays_as_it_is(
    monkeypatch: pytest.MonkeyPatch, family: Family, name: str
) -> None:
    """Nothing is overwritten but what a branch of the same block left."""
    seen: list[tuple[Tensor, Tensor]] = []
    block = ScaleContext._block

    def watched(self: ScaleContext, module: torch.nn.Module, layer: int, x: Tensor) -> Tensor:
        seen.append((x, x.clone()))
        y = block(self, module, layer, x)
        assert self.fresh is None
        seen.append((y, y.clone()))
        return y

    monkeypatch.setattr(ScaleContext, "_block", watched)
    schedule = ScaleSchedule.of(family.grids[0])
    generate(
        family.build(schedule),
        family.condition(2),
        schedule,
        SamplingSettings(cfg_scale=3.0, temperature=1.0),
        noise=SeededNoise(5, 2),
        quantizer=family.quantizer(schedule),
        policy=preset(name),
    )
    assert seen and all(torch.equal(tensor, copy) for tensor, copy in seen)
