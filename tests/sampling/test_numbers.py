"""NaN or infinity anywhere ends a run with an error that names the part; nothing of it becomes a picture."""

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from stagevar_core.acceleration.presets import PRESETS
from stagevar_core.conditioning.types import TextConditioning
from stagevar_core.pipeline import Pipeline
from stagevar_core.sampling.generate import generate
from stagevar_core.sampling.noise import SeededNoise
from stagevar_core.sampling.numbers import extremes, finite
from stagevar_core.sampling.settings import SamplingSettings
from stagevar_core.schedule import ScaleSchedule
from tests.support.capability import FAMILIES, Bench, Family
from tests.support.tiny import prompts, run, tiny_infinity
from tests.support.tiny_var import tiny_vq

VALUES = (float("nan"), float("inf"), -float("inf"))
BY_NAME = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


def spoiled(tensor: Tensor, draw: random.Random) -> Iterator[float]:
    """Each of ``VALUES`` in turn at a place of a tensor, which is as before afterwards."""
    flat = tensor.data.view(-1)
    for value in VALUES:
        place = draw.randrange(flat.numel())
        before = flat[place].item()
        flat[place] = value
        yield value
        flat[place] = before


@pytest.mark.parametrize("value", VALUES)
def test_extremes_show_every_place(value: float) -> None:
    for count in (1, 7, 33, 1001):
        for place in range(0, count, 1 + count // 19):
            numbers = torch.linspace(-3, 3, count)
            assert finite(numbers) and extremes(numbers).tolist() == [numbers.min(), numbers.max()]
            numbers[place] = value
            assert not finite(numbers)
    assert finite(torch.empty(0))


@BY_NAME
def test_spoiled_weight_of_a_transformer_is_an_error_or_changes_nothing(family: Family) -> None:
    bench, draw = Bench(family, ScaleSchedule.of(family.grids[0])), random.Random(0)
    expected = bench.dense().f_hat
    for name, weight in bench.model.named_parameters():
        if weight.dim() < 2:
            continue  # lengths of queries are limited, and shifts of keys may hide them: see the loaders
        for value in spoiled(weight, draw):
            try:
                assert torch.equal(bench.run(None).f_hat, expected), f"{name} with {value}"
            except ValueError as error:
                assert "of the transformer hold NaN or infinity" in str(error), error


@BY_NAME
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_stops_at_the_first_scale(family: Family, name: str) -> None:
    bench = Bench(family, ScaleSchedule.of(family.grids[0]))
    next(bench.model.parameters()).data.fill_(torch.nan)
    bench.model.level_embed.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="scale 1 of .*transformer"):
        bench.run(PRESETS[name])


@BY_NAME
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_stops_at_a_later_scale(family: Family, name: str) -> None:
    bench = Bench(family, ScaleSchedule.of(family.grids[0]))
    level = len(bench.schedule) // 2
    bench.model.level_embed.data.view(-1, bench.model.config.width)[level] = torch.nan
    with pytest.raises(ValueError, match=f"scale {level + 1} of .*transformer"):
        bench.run(PRESETS[name])


@BY_NAME
def test_spoiled_features_are_named(family: Family) -> None:
    bench = Bench(family, ScaleSchedule.of(family.grids[0]))
    texts = family.condition(2, negative=True)
    if not isinstance(texts, TextConditioning) or texts.negative is None:
        pytest.skip("conditioned on classes")
    for part, name in ((texts.features, "prompt 2"), (texts.negative, "negative prompt 2")):
        before = part[1][0, 0].item()
        for value in VALUES:
            part[1][0, 0] = value
            with pytest.raises(ValueError, match=f"scale 1 of .*features of {name} hold.*text encoder"):
                settings = SamplingSettings(temperature=1.0)
                noise = SeededNoise(1, 2)
                generate(bench.model, texts, bench.schedule, settings, noise=noise, quantizer=bench.quantizer)
        part[1][0, 0] = before


@pytest.mark.parametrize("smooth", [False, True])
def test_spoiled_codebook_is_named(smooth: bool) -> None:
    family = next(family for family in FAMILIES if family.name == "var")
    bench = Bench(family, ScaleSchedule.of(family.grids[0]))
    for part in ("codebook", "phi"):
        quantizer = tiny_vq().quantizer()
        spoil = quantizer.codebook if part == "codebook" else quantizer.phi[-1].weight
        spoil.data[...] = torch.nan
        with pytest.raises(ValueError, match="the tokenizer's codes hold NaN or infinity"):
            settings = SamplingSettings(temperature=1.0, smooth=smooth)
            texts, noise = family.condition(1), SeededNoise(1, 1)
            generate(bench.model, texts, bench.schedule, settings, noise=noise, quantizer=quantizer)


def test_cfg_beyond_all_range_is_named() -> None:
    bench = Bench(FAMILIES[0], ScaleSchedule.of(FAMILIES[0].grids[0]))
    noise = SeededNoise(1, 1)
    for wrong in ({"cfg_scale": 1e38}, {"temperature": 1e-45}):
        settings = SamplingSettings(**wrong)
        with pytest.raises(ValueError, match="guided logits hold.*cfg or temperature"):
            generate(bench.model, FAMILIES[0].condition(1), bench.schedule, settings, noise=noise)


@pytest.mark.parametrize("part", ["conv_in", "norm_out", "conv_out"])
@pytest.mark.parametrize("value", VALUES)
def test_spoiled_decoder_is_named(part: str, value: float) -> None:
    pipeline = Pipeline.embedded(device="cpu", dtype=torch.float32)
    latent = torch.zeros(1, pipeline.quantizer.dim, 8, 8)
    before = pipeline.decode(latent)
    getattr(pipeline.tokenizer.decoder, part).bias.data[0] = value
    with pytest.raises(ValueError, match="the tokenizer: the decoder gave NaN or infinity"):
        pipeline.decode(latent)
    getattr(pipeline.tokenizer.decoder, part).bias.data[0] = 0.0
    assert pipeline.decode(latent).shape == before.shape
    latent[0, 0, 3, 3] = value
    with pytest.raises(ValueError, match="samples: the latent holds NaN or infinity"):
        pipeline.decode(latent)


@pytest.mark.parametrize("factor", [1e16, -1e20, 1e30])
@pytest.mark.parametrize("negative", [False, True])
def test_huge_text_features_are_named_as_norms_would_make_nothing_of_them(
    factor: float, negative: bool
) -> None:
    texts, huge = prompts(3, 5).features, prompts(3, 5, negative=(2, 4))
    spoiled = replace(huge, negative=tuple(text * factor for text in texts)) if negative else None
    spoiled = spoiled or replace(huge, features=tuple(text * factor for text in texts))
    which = "negative prompt" if negative else "prompt"
    with pytest.raises(ValueError, match=rf"features of {which} 1 hold .*; expected at most 1e\+15"):
        run(tiny_infinity(), spoiled)
