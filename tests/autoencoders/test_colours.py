"""The linear map from latents to colours: what it recovers, and what it shows of the built-in model."""

import pytest
import torch
import torch.nn.functional as F

from stagevar_core.autoencoders.colours import LinearColours, smooth_pictures
from stagevar_core.pipeline import Pipeline
from stagevar_core.sampling.generate import generate
from stagevar_core.sampling.noise import SeededNoise


def test_the_pictures_are_always_the_same_and_leave_the_global_draws_alone() -> None:
    state = torch.get_rng_state()
    pictures = smooth_pictures(4, 32)
    assert torch.equal(pictures, smooth_pictures(4, 32)) and torch.equal(state, torch.get_rng_state())
    assert pictures.shape == (4, 3, 32, 32) and pictures.min() >= -1 and pictures.max() <= 1
    assert pictures.std() > 0.3


@pytest.mark.parametrize("channels", [8, 16, 32])
def test_a_linear_code_is_read_back(channels: int) -> None:
    pictures = smooth_pictures(8, 64)
    mixing = torch.randn(channels, 3, generator=torch.Generator().manual_seed(1))

    def coded(images: torch.Tensor) -> torch.Tensor:
        pooled = F.avg_pool2d(images, 8)
        return torch.einsum("kc,bchw->bkhw", mixing, pooled) + 0.3

    colours = LinearColours.fit(coded(pictures), pictures)
    other = pictures.flip(1, 2) * 0.7
    assert (colours(coded(other)) - F.avg_pool2d(other, 8)).abs().mean() < 0.05


def test_latents_of_any_number_shape_and_dtype_have_colours() -> None:
    colours = LinearColours(torch.randn(9 * 16 + 1, 3))
    for shape in ((1, 16, 1, 1), (3, 16, 5, 9)):
        found = colours(torch.randn(shape).half())
        assert found.shape == (shape[0], 3, *shape[2:]) and found.dtype == torch.float32
        assert found.abs().max() <= 1


def test_the_colours_of_the_built_in_model_resemble_its_pictures() -> None:
    """Within 4 dB of what the best linear map of these very pictures reaches."""
    pipeline = Pipeline.embedded()
    texts = ["a red circle on a white background", "a dotted blue cross on a black background"]
    texts += ["two small green squares", "a yellow ring above a purple diamond on a grey background"]
    with torch.inference_mode():
        latent = generate(
            pipeline.transformer,
            pipeline.encode(texts),
            pipeline.schedule(),
            pipeline.settings(),
            noise=SeededNoise(3, 4),
            quantizer=pipeline.quantizer,
        ).f_hat
        whole = pipeline.tokenizer.decode(latent).float().clamp(-1, 1)
        smooth = smooth_pictures(16, 64)
        fitted = LinearColours.fit(pipeline.tokenizer.encode(smooth), smooth)
        best = LinearColours.fit(latent, whole)

    def psnr(colours: LinearColours) -> float:
        error = (colours(latent) - F.interpolate(whole, size=(16, 16), mode="area")).square().mean()
        return float(10 * torch.log10(4 / error))

    assert psnr(fitted) > 21 and psnr(best) - psnr(fitted) < 4, (psnr(fitted), psnr(best))
