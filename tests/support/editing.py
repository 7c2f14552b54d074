"""Pictures to edit, as the fixtures and the tests state them."""

import torch
from torch import Tensor

from stagevar_core.models.companions import Tokenizer
from stagevar_core.schedule import ScaleSchedule


def rectangle(
    grid: tuple[int, int], top: float, left: float, bottom: float, right: float, *, inside: bool
) -> Tensor:
    """A mask (h, w) that is 1 inside a rectangle, or outside of it, given in fractions of the sides."""
    height, width = grid
    mask = torch.zeros(grid)
    mask[round(top * height) : round(bottom * height), round(left * width) : round(right * width)] = 1.0
    return mask if inside else 1.0 - mask


def source_codes(
    tokenizer: Tokenizer, image: Tensor, schedule: ScaleSchedule, patch: int = 1
) -> list[Tensor]:
    """The codes of an image (B, 3, H, W) in [-1, 1] at every scale, as ``generate`` takes known ones."""
    return tokenizer.quantizer(patch).encode(tokenizer.encode(image).float(), schedule)[0]
