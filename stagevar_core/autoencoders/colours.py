"""A linear map from latents to colours: a small picture of a latent without the decoder."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_RIDGE = 0.1  # of the mean square of an input, so that few pictures do
_SIDE = 3  # latent pixels, side of the square that decides about the colour of its middle
_DETAILS = (1, 2, 4, 8, 16)  # cells per side of the layers of a smooth picture


def smooth_pictures(count: int, side: int) -> Tensor:
    """Pictures (count, 3, side, side) in -1..1 of soft patches in all colours, always the same ones."""
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(count, 3, side, side)
    for cells in _DETAILS:
        layer = torch.randn(count, 3, cells, cells, generator=generator)
        weight = 0.5 if cells < _DETAILS[2] else 0.3
        total += weight * F.interpolate(layer, size=(side, side), mode="bicubic")
    return total.clamp(-1.0, 1.0)


@dataclass(frozen=True)
class LinearColours:
    """One colour per latent pixel, from it and its neighbours, which evens out what one code lacks.

    ``weights``: (9 C + 1, 3), the last row for all pixels alike.
    """

    weights: Tensor

    @classmethod
    def fit(cls, latents: Tensor, pictures: Tensor) -> "LinearColours":
        """What comes nearest to ``pictures`` (B, 3, H, W) in -1..1 of their latents (B, C, h, w)."""
        pixels = F.interpolate(pictures.float(), size=tuple(latents.shape[-2:]), mode="area")
        known, wanted = _rows(latents.float().cpu()), pixels.cpu().movedim(1, -1).reshape(-1, 3)
        square = known.T @ known
        ridge = _RIDGE * square.diagonal().mean() * torch.eye(len(square))
        return cls(torch.linalg.solve(square + ridge, known.T @ wanted))

    def __call__(self, latent: Tensor) -> Tensor:
        """A latent (B, C, h, w) as pictures (B, 3, h, w) in -1..1 on its device."""
        batch, _, height, width = latent.shape
        colours = _rows(latent.float()) @ self.weights.to(latent.device)
        return colours.reshape(batch, height, width, 3).movedim(-1, 1).clamp(-1.0, 1.0)


def _rows(latent: Tensor) -> Tensor:
    """The squares around the pixels of a latent (B, C, h, w) with a one behind them, (B h w, 9 C + 1)."""
    edge = _SIDE // 2
    squares = F.unfold(F.pad(latent, (edge,) * 4, mode="replicate"), _SIDE)  # (B, 9 C, h w)
    return F.pad(squares.transpose(1, 2).flatten(0, 1), (0, 1), value=1.0)
