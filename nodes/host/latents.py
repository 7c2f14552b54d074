"""Core latents from the page: which part of them is a tokenizer's, how large they are, and their masks."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...stagevar_core.sampling.numbers import finite
from . import sockets
from .carried import visible
from .vae import TokenizerVAE

_EMPTY_RATIO = 8  # pixels per latent pixel of core's empty latents, where they do not say it
_RATIO = "downscale_ratio_spacial"  # newer releases' word for it, spelled so


def samples_of(name: str, value: object) -> Tensor:
    """What a core latent holds (B, channels, h, w), of whatever kind; ``ValueError`` for anything else."""
    samples = sockets.latent(name, value)["samples"]
    if samples.dim() != 4 or 0 in samples.shape or samples.is_complex():
        raise ValueError(
            f"{name}: found samples of shape {tuple(samples.shape)}; expected pictures, (batch, channels, "
            "height, width); connect VAE Encode or Empty Latent Image"
        )
    if not finite(samples.float()):
        raise ValueError(f"{name}: its samples hold NaN or infinity; connect another {name}")
    return samples


def is_empty(samples: Tensor) -> bool:
    """Whether it is one of core's empty latents, which say a size and nothing else."""
    return not bool(samples.any())


def empty_size(name: str, value: Mapping[str, Any]) -> tuple[int, int]:
    """(height, width) in pixels that an empty latent stands for."""
    ratio = value.get(_RATIO, _EMPTY_RATIO)
    if isinstance(ratio, bool) or not isinstance(ratio, int) or ratio < 1:
        sockets.refuse(f"{name}, its {_RATIO}", ratio, "a whole number from 1", "Empty Latent Image")
    height, width = value["samples"].shape[-2:]
    return height * ratio, width * ratio


def accumulated(name: str, samples: Tensor, vae: TokenizerVAE) -> Tensor:
    """The tokenizer's own latent in ``samples``, (B, C, h, w); ``ValueError`` where it is another's."""
    samples = visible(samples, vae.config.dim)
    if samples.shape[1] != vae.config.dim:
        raise ValueError(
            f"{name}: found {samples.shape[1]} channels; the tokenizer {vae.checkpoint.source!r} of this "
            f"sampler has {vae.config.dim}. Encode the picture with the same VAE"
        )
    return samples.float()


def noise_mask(value: Mapping[str, Any]) -> Tensor | None:
    """The mask (rows, height, width) of a latent, 1 where it is drawn anew; None without one."""
    mask = value.get("noise_mask")
    if mask is None:
        return None
    if isinstance(mask, Tensor) and mask.dim() > 3 and mask.numel():
        mask = mask.reshape(-1, *mask.shape[-2:])  # as core does, whatever stands before the rows
    return sockets.mask("the latent's noise_mask", mask)
