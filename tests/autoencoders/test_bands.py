"""The decoder in bands and with convolutions folded over the upsampling, against its layers one by one."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from stagevar_core.autoencoders import bands
from stagevar_core.autoencoders.bsq import BSQTokenizer, BSQTokenizerConfig
from stagevar_core.autoencoders.conv import Decoder, Upsample
from tests.support.tiny import randomize

ONE_ROW = 1  # bytes: a band has one row at least


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch) -> None:
    monkeypatch.setattr(bands, "BAND_BYTES", ONE_ROW)
    monkeypatch.setattr(bands, "FOLDED_PIXELS", 1)


def decoder(*, operations=nn, attention: bool = False) -> Decoder:
    """Two levels, one of which changes its width."""
    module = Decoder(32, (1, 2), 2, 4, attention=attention, operations=operations)
    randomize(module, 0)
    return module.eval().requires_grad_(False)


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def decoded(module: Decoder, f_hat: Tensor) -> Tensor:
    return module(f_hat)


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("size", [ONE_ROW, 3 * 7 * 64 * 4, 2**30])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_bands_of_any_size_give_the_image_of_the_layers(size, layout, attention, monkeypatch) -> None:
    module, f_hat = decoder(attention=attention), normal(2, 4, 5, 7)
    expected = module.double()(f_hat.double())  # with gradients every layer runs as it is defined
    monkeypatch.setattr(bands, "BAND_BYTES", size)
    image = decoded(module.float(), f_hat.to(memory_format=layout))
    assert image.shape == (2, 3, 10, 14)
    assert (image - expected).abs().max() < 1e-5


def test_bfloat16_is_as_near_to_float64_as_the_layers_are() -> None:
    module, f_hat = decoder(), normal(2, 4, 8, 6).bfloat16()
    exact = module.bfloat16().double()(f_hat.double())  # weights already rounded
    layers = module.bfloat16()(f_hat)
    image = decoded(module, f_hat)
    assert image.dtype == torch.bfloat16

    def error(found: Tensor) -> float:
        return (found.double() - exact).square().mean().sqrt().item()

    assert error(image) < 1.25 * error(layers) < 0.05


def test_an_image_does_not_depend_on_its_batch() -> None:
    module, f_hat = decoder(), normal(3, 4, 6, 6)
    together = decoded(module, f_hat)
    for index, image in enumerate(together):
        assert (decoded(module, f_hat[index : index + 1])[0] - image).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_latent_is_left_alone(dtype: torch.dtype) -> None:
    module, f_hat = decoder().to(dtype), normal(1, 4, 5, 5).to(dtype)
    for latent in (f_hat.clone(), f_hat.to(memory_format=torch.channels_last, copy=True)):
        decoded(module, latent)
        assert torch.equal(latent, f_hat)


def test_encoder_features_are_those_of_the_layers() -> None:
    tokenizer = BSQTokenizer(BSQTokenizerConfig(4, width=32, multipliers=(1, 2), blocks=1))
    randomize(tokenizer, 0)
    image = normal(1, 3, 12, 10)
    with torch.inference_mode():
        features = tokenizer.encode(image)
    assert (features - tokenizer.encode(image)).abs().max() < 1e-5


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("channels", [3, 8, 9, 12])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_fewer_channels_take_the_memory_of_what_they_are_made_of(
    layout: torch.memory_format, channels: int, images: int
) -> None:
    """At a megapixel the wider map has half a gigabyte, which would stay beside all that follows."""
    x = normal(images, 9, 7, 5).contiguous(memory_format=layout)
    conv, where = nn.Conv2d(9, channels, 1).requires_grad_(False), x.data_ptr()
    randomize(conv, 3)
    with torch.inference_mode():
        expected, found = conv(x), bands.pointwise_conv(x, conv)
    assert torch.allclose(found, expected, rtol=0, atol=1e-6)
    assert (found.data_ptr() == where) is (channels < 9)
    if layout is torch.channels_last:
        assert found.is_contiguous(memory_format=layout)


def test_statistics_survive_a_mean_far_above_the_spread(monkeypatch) -> None:
    norm, conv = nn.GroupNorm(4, 8, eps=1e-6), nn.Conv2d(8, 8, 3, padding=1)
    x = normal(1, 8, 64, 64) + 300.0
    exact = F.conv2d(F.silu(norm.double()(x.double())), conv.double().weight, conv.bias, padding=1)
    norm, conv = norm.float(), conv.float()
    monkeypatch.setattr(bands, "BAND_BYTES", 8 * 64 * 5 * 4)  # 5 rows, the last band has 4
    with torch.inference_mode():
        found = bands.normed_conv(x, norm, conv, torch.empty_like(x))
    assert (found - exact).abs().max() < 5e-4


def test_upsampling_takes_four_ninths_of_the_work() -> None:
    layer, x = Upsample(32), normal(1, 32, 12, 400)
    with FlopCounterMode(display=False) as defined:
        expected = layer(x)
    with FlopCounterMode(display=False) as folded, torch.inference_mode():
        found = layer(x)
    assert (found - expected).abs().max() < 1e-5
    # What the padding adds is a column, here one of 400; the folding of the weights is counted as well.
    assert folded.get_total_flops() / defined.get_total_flops() == pytest.approx(4 / 9, rel=0.01)


class CastingConv(nn.Conv2d):
    """Like a host's layer: keeps its weights in another dtype than it computes in."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


class CastingNorm(nn.GroupNorm):
    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


def test_layers_of_a_host_may_keep_their_weights_in_another_dtype() -> None:
    f_hat = normal(1, 4, 5, 6)
    host = decoder(operations=SimpleNamespace(Conv2d=CastingConv, GroupNorm=CastingNorm)).bfloat16()
    assert isinstance(host.up[1].upsample.conv, CastingConv)
    own = decoder().bfloat16().float()
    assert (decoded(host, f_hat) - decoded(own, f_hat)).abs().max() < 1e-5


def test_training_reaches_every_weight() -> None:
    module = decoder(attention=True).requires_grad_(True)
    module(normal(1, 4, 4, 4)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
