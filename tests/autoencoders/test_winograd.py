"""Convolutions with fewer products against convolutions as they are defined."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from stagevar_core.autoencoders import bands, winograd
from stagevar_core.autoencoders.conv import Decoder, clamp_image
from stagevar_core.pipeline import Pipeline
from stagevar_core.scenes.grammar import sample_scene
from stagevar_core.scenes.render import render
from tests.support.tiny import randomize

WIDE = winograd.CHANNELS


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def everything_is_large(monkeypatch) -> None:
    monkeypatch.setattr(bands, "BAND_BYTES", 1)
    monkeypatch.setattr(bands, "FOLDED_PIXELS", 1)


@pytest.mark.parametrize("bias", [True, False])
def test_four_rows_are_those_of_the_convolution(bias: bool) -> None:
    x, conv = normal(2, 5, 14, 9), nn.Conv2d(5, 7, 3, bias=bias)
    with FlopCounterMode(display=False) as defined, torch.inference_mode():
        expected = conv(F.pad(x, (1, 1)))
    with FlopCounterMode(display=False) as counted, torch.inference_mode():
        parts = winograd.four_rows(x, winograd.products(conv.weight, conv.bias))
    for first, part in enumerate(parts):
        assert (part - expected[:, :, first :: winograd.ROWS]).abs().max() < 1e-5
    assert counted.get_total_flops() * 2 == defined.get_total_flops()


def test_rows_after_an_upsampling_take_nine_products_of_thirty_six() -> None:
    x, conv = normal(2, 5, 400, 300), nn.Conv2d(5, 7, 3, padding=1)
    with FlopCounterMode(display=False) as defined, torch.inference_mode():
        expected = conv(F.interpolate(x, scale_factor=2.0))
    out = torch.empty_like(expected)
    with FlopCounterMode(display=False) as counted, torch.inference_mode():
        kernels = winograd.upsampling_products(conv.weight)
        winograd.upsampled_rows(F.pad(x, (0, 0, 1, 1)), kernels, conv.bias, out)
    assert (out - expected).abs().max() < 1e-5
    assert counted.get_total_flops() / defined.get_total_flops() == pytest.approx(9 / 36, rel=0.01)


@pytest.mark.parametrize(
    ("dtype", "inputs", "outputs", "fewer"),
    [
        (torch.bfloat16, WIDE, WIDE, True),
        (torch.bfloat16, WIDE, 3, False),
        (torch.bfloat16, WIDE - 1, WIDE, False),
        (torch.float32, WIDE, WIDE, False),  # whose sums are compared with the official code's
    ],
)
def test_what_runs_with_fewer_products(dtype, inputs: int, outputs: int, fewer: bool) -> None:
    assert winograd.fewer_products(torch.empty(1, inputs, 2, 2, dtype=dtype), outputs) is fewer
    on_gpu = torch.empty(1, inputs, 2, 2, dtype=dtype, device="meta")
    assert not winograd.fewer_products(on_gpu, outputs)


@pytest.mark.parametrize("rows", [1, 3, 4, 6, 8, 30])
@pytest.mark.usefixtures("everything_is_large")
def test_bands_and_heights_of_any_number_of_rows(rows: int, monkeypatch) -> None:
    x = normal(2, WIDE, 11, 5).bfloat16().contiguous(memory_format=torch.channels_last)
    monkeypatch.setattr(bands, "BAND_BYTES", rows * 5 * WIDE * 2)
    norm, conv = nn.GroupNorm(32, WIDE).bfloat16(), nn.Conv2d(WIDE, WIDE, 3, padding=1).bfloat16()
    exact = F.silu(F.group_norm(x.double(), 32, eps=norm.eps))
    exact = F.conv2d(exact, conv.weight.double(), conv.bias.double(), padding=1)
    with torch.inference_mode():
        for before in (0.0, 1.0):
            out = torch.full_like(x, before)
            bands.normed_conv(x, norm, conv, out, add=before > 0)
            assert (out.double() - before - exact).abs().max() < 0.02
        doubled = F.interpolate(x.double(), scale_factor=2.0)
        exact = F.conv2d(doubled, conv.weight.double(), conv.bias.double(), padding=1)
        assert (bands.upsampled_conv(x, conv.weight, conv.bias).double() - exact).abs().max() < 0.05


@pytest.mark.usefixtures("everything_is_large")
def test_a_decoder_of_full_width_loses_no_more_than_twice_what_bfloat16_does() -> None:
    module, f_hat = Decoder(WIDE, (1, 2), 2, 4), normal(1, 4, 8, 6).bfloat16()
    randomize(module, 0)
    exact = module.bfloat16().double()(f_hat.double())
    layers = module.bfloat16()(f_hat)  # with gradients every layer runs as it is defined
    with torch.inference_mode():
        image = module(f_hat)

    def error(found: Tensor) -> float:
        return (found.double() - exact).square().mean().sqrt().item()

    assert not torch.equal(image, layers)
    assert error(image) < 2 * error(layers)


@pytest.mark.usefixtures("everything_is_large")
def test_pictures_of_a_trained_tokenizer_keep_their_levels(monkeypatch) -> None:
    pipeline = Pipeline.embedded(dtype=torch.float32, device="cpu")
    picture = (
        torch.from_numpy(render(sample_scene(np.random.default_rng(7))[0])).movedim(-1, 0)[None] / 127.5 - 1
    )
    schedule = pipeline.schedule(128, 128)
    with torch.inference_mode():
        _, f_hat = pipeline.quantizer.encode(pipeline.tokenizer.encode(picture), schedule)
        expected = pipeline.tokenizer.decode(f_hat)
    decoder = pipeline.tokenizer.decoder.bfloat16()
    layers = clamp_image(decoder(f_hat.bfloat16()))
    monkeypatch.setattr(winograd, "CHANNELS", 1)
    with torch.inference_mode():
        image = clamp_image(decoder(f_hat.bfloat16()))
    assert not torch.equal(image, layers)
    for other in (expected, layers):
        levels = (image.float() - other.float()).abs() * 127.5
        assert levels.mean() < 0.5
        assert levels.max() < 4
