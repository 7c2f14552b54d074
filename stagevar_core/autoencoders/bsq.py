"""Infinity's bitwise tokenizer: binary spherical quantization over several scales.

Arithmetic of infinity/models/bsq_vae/{vae,multiscale_bsq}.py: a latent pixel is ``dim`` signs, a code is
``sign / sqrt(dim)``, scale after scale quantizes what the coarser ones left over.
"""

import math
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..schedule import Scale, ScaleSchedule
from .accumulate import Accumulating
from .conv import Decoder, Encoder, clamp_image


def resize_latent(latent: Tensor, grid: tuple[int, int]) -> Tensor:
    """Bilinear without antialiasing, both up and down.

    The official code resamples (B, C, 1, H, W) trilinearly, which for one frame is the same; the transformer
    was trained on inputs made this way, area resampling belongs to the encoder alone.
    """
    if tuple(latent.shape[-2:]) == tuple(grid):
        return latent
    return F.interpolate(latent.unsqueeze(2), size=(1, *grid), mode="trilinear").squeeze(2)


class BitwiseQuantizer(Accumulating):
    """Bits, codes and the accumulated latent of a bitwise tokenizer; it has no weights.

    ``dim``: bits per latent pixel. ``patch``: latent pixels per token side (2 for the patchified 8B layout,
    whose tokens carry ``4 * dim`` bits in ``pixel_shuffle`` order).
    """

    signs = True

    def __init__(self, dim: int, patch: int = 1) -> None:
        self.dim = dim
        self.patch = patch

    def latent_grid(self, scale: Scale) -> tuple[int, int]:
        """The grid of ``scale`` in latent pixels."""
        return scale.height * self.patch, scale.width * self.patch

    def empty(self, batch: int, schedule: ScaleSchedule, device: torch.device) -> Tensor:
        """The accumulated latent before the first scale, (B, dim, H, W) of zeros."""
        grid = self.latent_grid(schedule.final)
        return torch.zeros(batch, self.dim, *grid, dtype=torch.float32, device=device)

    def to_latent(self, tokens: Tensor, scale: Scale) -> Tensor:
        """Per-token values (B, L, bits) to the latent grid (B, dim, H, W)."""
        grid = tokens.transpose(1, 2).reshape(tokens.shape[0], -1, scale.height, scale.width)
        return F.pixel_shuffle(grid, self.patch) if self.patch > 1 else grid

    def to_tokens(self, latent: Tensor) -> Tensor:
        """The inverse of :meth:`to_latent`: (B, dim, H, W) to (B, L, bits)."""
        grid = F.pixel_unshuffle(latent, self.patch) if self.patch > 1 else latent
        return grid.flatten(2).transpose(1, 2)

    def spread(self, weights: Tensor, scale: Scale) -> Tensor:
        """One factor per token (B, L) to factors of the latent grid (B, 1, H, W)."""
        grid = weights.reshape(-1, 1, scale.height, scale.width)
        return grid.repeat_interleave(self.patch, 2).repeat_interleave(self.patch, 3)

    def codes(self, bits: Tensor) -> Tensor:
        """Bits {0, 1} on the latent grid (B, dim, H, W) to codes of magnitude ``1 / sqrt(dim)``."""
        if self.patch == 1:
            # Bits that were drawn lie this way. A sum over channels rounds by how they lie, so that bits that
            # were stored would else give other codes in the last bit.
            bits = bits.contiguous(memory_format=torch.channels_last)
        signs = (bits.to(torch.float32) * 2.0 - 1.0) / math.sqrt(self.dim)
        # The official decode path normalises once more, which only changes the last bits of the mantissa.
        return F.normalize(signs, dim=1)

    def mixture(self, weights: Tensor, scale: Scale) -> Tensor:
        """Raises ``ValueError``: there is no codebook whose rows could be mixed."""
        raise ValueError("smooth sampling mixes the rows of a codebook, which bitwise models do not have")

    def add(
        self,
        f_hat: Tensor,
        codes: Tensor,
        schedule: ScaleSchedule,
        scale: Scale,
        weights: Tensor | None = None,
    ) -> Tensor:
        """``f_hat`` plus the codes of one scale, times ``weights`` (B, 1, h, w), on the final grid."""
        counted = codes if weights is None else codes * weights.to(codes.dtype)
        return f_hat + resize_latent(counted, (f_hat.shape[2], f_hat.shape[3]))

    def next_input(self, f_hat: Tensor, scale: Scale) -> Tensor:
        """What the transformer sees at ``scale``: the accumulated latent there, as (B, L, bits)."""
        return self.to_tokens(resize_latent(f_hat, self.latent_grid(scale)))

    def encode(self, features: Tensor, schedule: ScaleSchedule) -> tuple[list[Tensor], Tensor]:
        """Encoder features (B, dim, H, W) to bits per scale and the accumulated latent.

        Bits are uint8 on the latent grid, (B, dim, h, w). Raises ``ValueError`` when the features do not have
        the final grid of the schedule.
        """
        final = self.latent_grid(schedule.final)
        if tuple(features.shape[-2:]) != final:
            raise ValueError(f"the features are {tuple(features.shape[-2:])}; this schedule ends at {final}")
        residual, f_hat, bits = features.float(), torch.zeros_like(features, dtype=torch.float32), []
        for scale in schedule:
            bits.append(self.requantized(residual, scale))
            codes = resize_latent((bits[-1].float() * 2.0 - 1.0) / math.sqrt(self.dim), final)
            residual, f_hat = residual - codes, f_hat + codes
        return bits, f_hat

    def requantized(self, residual: Tensor, scale: Scale) -> Tensor:
        """The bits (B, dim, h, w) of one scale for what the sum of codes still lacks, (B, dim, H, W)."""
        grid = self.latent_grid(scale)
        whole = grid == tuple(residual.shape[-2:])
        pooled = residual if whole else F.interpolate(residual, size=grid, mode="area")
        return (F.normalize(pooled, dim=1) > 0).to(torch.uint8)


@dataclass(frozen=True)
class BSQTokenizerConfig:
    """Shape of a bitwise tokenizer: ``dim`` bits per latent pixel, stride ``2 ** (levels - 1)``.

    ``groups``: of the normalisation, 32 in all released tokenizers.
    """

    dim: int
    width: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4, 4, 4)
    blocks: int = 2
    groups: int = 32

    @property
    def stride(self) -> int:
        """Image pixels per latent pixel and side."""
        return 2 ** (len(self.multipliers) - 1)

    def attention_flops(self, height: int, width: int) -> float:
        """FLOPs of the decoder that are no convolutions of its blocks: none."""
        return 0.0

    def to_dict(self) -> dict:
        """The fields as plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "BSQTokenizerConfig":
        """The inverse of :meth:`to_dict`."""
        return cls(**{**values, "multipliers": tuple(values["multipliers"])})


class BSQTokenizer(nn.Module):
    """Convolutional encoder and decoder around a :class:`BitwiseQuantizer`."""

    family = "infinity"

    def __init__(self, config: BSQTokenizerConfig, *, operations=nn, dtype=None, device=None) -> None:
        super().__init__()
        self.config = config
        shape = (config.width, config.multipliers)
        factory = {"groups": config.groups, "operations": operations, "dtype": dtype, "device": device}
        self.encoder = Encoder(*shape, config.blocks, config.dim, **factory)
        self.decoder = Decoder(*shape, config.blocks + 1, config.dim, **factory)

    def quantizer(self, patch: int = 1) -> BitwiseQuantizer:
        """The quantizer over this tokenizer's latents for tokens of ``patch`` x ``patch`` latent pixels."""
        return BitwiseQuantizer(self.config.dim, patch)

    @property
    def decoding(self) -> tuple[nn.Module, ...]:
        """What :meth:`decode` runs; it may have another dtype than the rest."""
        return (self.decoder,)

    def encode(self, image: Tensor) -> Tensor:
        """Image (B, 3, H, W) in [-1, 1] to features (B, dim, H / stride, W / stride) before quantization."""
        return self.encoder(image)

    def decode(self, f_hat: Tensor) -> Tensor:
        """Accumulated codes (B, dim, h, w) to an image (B, 3, H, W) in [-1, 1]."""
        return clamp_image(self.decoder(f_hat))
