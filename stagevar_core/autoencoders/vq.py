"""VAR's tokenizer, which STAR shares: one codebook over all scales, and phi convolutions after resampling.

Arithmetic of models/{vqvae,quant,basic_vae}.py of FoundationVision/VAR: a token is a row of the codebook,
scale after scale quantizes what the coarser ones left over.
"""

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..network.layers import cast, row_by_row, stacked
from ..schedule import Scale, ScaleSchedule
from .accumulate import Accumulating
from .conv import Decoder, Encoder, clamp_image

PHI_SHARE = 0.5  # of the convolution in phi, in all released tokenizers


@dataclass(frozen=True)
class VQTokenizerConfig:
    """Shape of a VQ tokenizer: ``vocab`` rows of ``dim`` channels, stride ``2 ** (levels - 1)``.

    ``phis``: phi convolutions, which the scales of a schedule share. ``groups``: of the normalisation.
    """

    vocab: int = 4096
    dim: int = 32
    width: int = 160
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    blocks: int = 2
    phis: int = 4
    groups: int = 32

    @property
    def stride(self) -> int:
        """Image pixels per latent pixel and side."""
        return 2 ** (len(self.multipliers) - 1)

    def attention_flops(self, height: int, width: int) -> float:
        """FLOPs of the decoder beside its blocks: attention of the coarsest level, ``post_quant_conv``."""
        pixels, channels = height * width, self.width * self.multipliers[-1]
        once = 8.0 * channels**2 * pixels + 4.0 * channels * pixels**2
        return (self.blocks + 2) * once + 18.0 * self.dim**2 * pixels

    def to_dict(self) -> dict:
        """The fields as plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "VQTokenizerConfig":
        """The inverse of :meth:`to_dict`."""
        return cls(**{**values, "multipliers": tuple(values["multipliers"])})


def phi_index(schedule: ScaleSchedule, scale: Scale, phis: int) -> int:
    """Which phi convolution a scale uses: the one whose tick is nearest to its place in the schedule.

    Ticks are even from ``1 / 2n`` to ``1 - 1 / 2n``, for four of them from ``1 / 3n``. Float64 and the first
    minimum decide ties as in the official code, whose middle scale of an odd number takes index 2 of 4.
    """
    if phis == 1:
        return 0
    first = 1 / (3 if phis == 4 else 2) / phis
    step = ((1 - first) - first) / (phis - 1)
    ticks = [place * step + first for place in range(phis - 1)] + [1 - first]
    place = scale.index / max(len(schedule) - 1, 1)
    return min(range(phis), key=lambda index: abs(ticks[index] - place))


class VectorQuantizer(Accumulating, nn.Module):
    """Token ids, codes and the accumulated latent of a VQ tokenizer; all of it runs in float32.

    Ids are whole numbers on the token grid, (B, h, w); a token covers one latent pixel.
    """

    signs = False

    def __init__(self, vocab: int, dim: int, phis: int, *, device=None) -> None:
        super().__init__()
        self.codebook = nn.Parameter(torch.empty(vocab, dim, dtype=torch.float32, device=device))
        self.phi = stacked(
            nn.Conv2d(dim, dim, 3, padding=1, dtype=torch.float32, device=device) for _ in range(phis)
        )

    @property
    def vocab(self) -> int:
        """Rows of the codebook."""
        return self.codebook.shape[0]

    @property
    def dim(self) -> int:
        """Channels of a code."""
        return self.codebook.shape[1]

    def latent_grid(self, scale: Scale) -> tuple[int, int]:
        """The grid of ``scale`` in latent pixels."""
        return scale.grid

    def empty(self, batch: int, schedule: ScaleSchedule, device: torch.device) -> Tensor:
        """The accumulated latent before the first scale, (B, dim, H, W) of zeros."""
        return torch.zeros(batch, self.dim, *schedule.final.grid, dtype=torch.float32, device=device)

    def to_latent(self, tokens: Tensor, scale: Scale) -> Tensor:
        """Ids (B, L) to the grid (B, h, w)."""
        return tokens.unflatten(1, scale.grid)

    def spread(self, weights: Tensor, scale: Scale) -> Tensor:
        """One factor per token (B, L) to factors of the grid (B, 1, h, w)."""
        return weights.unflatten(1, scale.grid).unsqueeze(1)

    def codes(self, ids: Tensor) -> Tensor:
        """Ids (B, h, w) to rows of the codebook (B, dim, h, w)."""
        # The ids follow the codebook where the host left it, and the few codes come back.
        rows = F.embedding(ids.to(self.codebook.device).long(), self.codebook.float())
        return rows.movedim(-1, 1).to(ids.device)

    def mixture(self, weights: Tensor, scale: Scale) -> Tensor:
        """Shares of all rows (B, L, vocab) to their mean codes (B, dim, h, w)."""
        mixed = weights.float() @ cast(self.codebook, weights.float())
        return mixed.transpose(1, 2).unflatten(2, scale.grid)

    def phi_of(
        self, codes: Tensor, schedule: ScaleSchedule, scale: Scale, weights: Tensor | None = None
    ) -> Tensor:
        """``(1 - s) u + s conv(u)`` of resampled codes, with the convolution of this scale.

        ``weights``: on the same grid, of the convolution's bias, which is the share of every pixel's code.
        """
        conv = self.phi[phi_index(schedule, scale, len(self.phi))]
        weight, bias = cast(conv.weight, codes), None if conv.bias is None else cast(conv.bias, codes)

        def convolve(images: Tensor) -> Tensor:
            return F.conv2d(images, weight, bias if weights is None else None, padding=1)

        # Image by image and in one order of memory, both of which decide how a convolution rounds.
        convolved = row_by_row(convolve, codes.contiguous())
        if weights is not None:
            convolved = convolved if bias is None else convolved + bias.view(-1, 1, 1) * weights
        return codes * (1.0 - PHI_SHARE) + convolved * PHI_SHARE

    def add(
        self,
        f_hat: Tensor,
        codes: Tensor,
        schedule: ScaleSchedule,
        scale: Scale,
        weights: Tensor | None = None,
    ) -> Tensor:
        """``f_hat`` plus phi of the codes of one scale, which all but the last resample to the final grid.

        ``weights`` (B, 1, h, w): how much of each code counts. The sum is linear in them: where none counts
        nothing is added, as by a scale that does not run, and next to a code that counts its share of phi.
        """
        return f_hat + self._contribution(codes, schedule, scale, weights)

    def next_input(self, f_hat: Tensor, scale: Scale) -> Tensor:
        """What the transformer sees at ``scale``: the mean latent of each token's area, (B, L, dim)."""
        return F.interpolate(f_hat, size=scale.grid, mode="area").flatten(2).transpose(1, 2)

    def nearest(self, features: Tensor) -> Tensor:
        """Ids (B, h, w) of the codebook rows nearest to features (B, dim, h, w), the first one on ties."""
        wanted = features.float().movedim(1, -1).reshape(-1, self.dim)
        codebook = cast(self.codebook, wanted)
        lengths = wanted.square().sum(dim=1, keepdim=True) + codebook.square().sum(dim=1)
        distances = torch.addmm(lengths, wanted, codebook.T, alpha=-2)
        return distances.argmin(dim=1).view(features.shape[0], *features.shape[-2:])

    def encode(self, features: Tensor, schedule: ScaleSchedule) -> tuple[list[Tensor], Tensor]:
        """Encoder features (B, dim, H, W) to ids per scale and the accumulated latent.

        Raises ``ValueError`` when the features do not have the final grid of the schedule.
        """
        final = schedule.final
        if tuple(features.shape[-2:]) != final.grid:
            raise ValueError(
                f"the features are {tuple(features.shape[-2:])}; this schedule ends at {final.grid}"
            )
        residual, f_hat, ids = features.float(), torch.zeros_like(features, dtype=torch.float32), []
        for scale in schedule:
            ids.append(self.requantized(residual, scale))
            added = self._contribution(self.codes(ids[-1]), schedule, scale)
            residual, f_hat = residual - added, f_hat + added
        return ids, f_hat

    def requantized(self, residual: Tensor, scale: Scale) -> Tensor:
        """The ids (B, h, w) of one scale for what the sum of codes still lacks, (B, dim, H, W)."""
        whole = scale.grid == tuple(residual.shape[-2:])
        return self.nearest(residual if whole else F.interpolate(residual, size=scale.grid, mode="area"))

    def _contribution(
        self, codes: Tensor, schedule: ScaleSchedule, scale: Scale, weights: Tensor | None = None
    ) -> Tensor:
        final = schedule.final
        if weights is not None:
            weights = weights.to(codes.dtype)
            codes = codes * weights
        if scale != final:
            # Resampled even where a coarser scale has the final grid already, as in the official code.
            codes = F.interpolate(codes, size=final.grid, mode="bicubic")
            weights = None if weights is None else F.interpolate(weights, size=final.grid, mode="bicubic")
        return self.phi_of(codes, schedule, scale, weights)


class VQTokenizer(nn.Module):
    """Convolutional encoder and decoder with attention at the coarsest level, around the quantizer."""

    family = "var"
    quantizer_type = VectorQuantizer

    def __init__(self, config: VQTokenizerConfig, *, operations=nn, dtype=None, device=None) -> None:
        super().__init__()
        self.config = config
        shape, parts = (config.width, config.multipliers), {"operations": operations}
        parts |= {"dtype": dtype, "device": device}
        factory = {"groups": config.groups, "attention": True, **parts}
        self.encoder = Encoder(*shape, config.blocks, config.dim, **factory)
        self.decoder = Decoder(*shape, config.blocks + 1, config.dim, **factory)
        factory = {"dtype": dtype, "device": device}
        self.quant_conv = operations.Conv2d(config.dim, config.dim, 3, padding=1, **factory)
        self.post_quant_conv = operations.Conv2d(config.dim, config.dim, 3, padding=1, **factory)
        self.quantize = self.quantizer_type(config.vocab, config.dim, config.phis, device=device)

    def quantizer(self, patch: int = 1) -> VectorQuantizer:
        """The quantizer; it has weights, so what generates needs this one and not just one of its shape."""
        if patch != 1:
            raise ValueError(f"a token of this tokenizer is one latent pixel, got patches of {patch}")
        return self.quantize

    @property
    def decoding(self) -> tuple[nn.Module, ...]:
        """What :meth:`decode` runs; it may have another dtype than the rest."""
        return self.post_quant_conv, self.decoder

    def encode(self, image: Tensor) -> Tensor:
        """Image (B, 3, H, W) in [-1, 1] to features (B, dim, H / stride, W / stride) before quantization."""
        return self.quant_conv(self.encoder(image))

    def decode(self, f_hat: Tensor) -> Tensor:
        """Accumulated codes (B, dim, h, w) to an image (B, 3, H, W) in [-1, 1]."""
        return clamp_image(self.decoder(self.post_quant_conv(f_hat)))
