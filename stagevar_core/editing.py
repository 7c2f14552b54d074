"""Zero-shot editing: which tokens of a picture stay, scale by scale, while the others are drawn anew.

The rules of VAR's demo (demo_zero_shot_edit.ipynb of FoundationVision/VAR); they need nothing of a family.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .schedule import Scale, ScaleSchedule

WHOLE = 3  # tokens of a scale up to which all of it stays: it is the tone of the picture


def rectangle(
    grid: tuple[int, int], top: float, left: float, bottom: float, right: float, *, inside: bool
) -> Tensor:
    """A mask (h, w) that is 1 inside a rectangle, or outside of it, given in fractions of the sides."""
    height, width = grid
    mask = torch.zeros(grid)
    mask[round(top * height) : round(bottom * height), round(left * width) : round(right * width)] = 1.0
    return mask if inside else 1.0 - mask


def scale_masks(keep: Tensor, schedule: ScaleSchedule) -> list[Tensor]:
    """Where each scale keeps its tokens, (B or 1, h, w) booleans, from a mask of what to keep.

    ``keep``: (h, w) or (B, h, w), 0..1, of any size; a token stays where more than half of it is to be kept.
    Raises ``ValueError`` for other shapes.
    """
    if keep.dim() not in (2, 3) or 0 in keep.shape:
        raise ValueError(f"the mask has the shape {tuple(keep.shape)}; expected (height, width) or a batch")
    whole = keep.float().reshape(-1, 1, *keep.shape[-2:])
    if tuple(whole.shape[-2:]) != schedule.final.grid:
        whole = F.interpolate(whole, size=schedule.final.grid, mode="area")

    def at(scale: Scale) -> Tensor:
        if scale.tokens <= WHOLE:
            return torch.ones(len(whole), *scale.grid, dtype=torch.bool, device=keep.device)
        return F.interpolate(whole, size=scale.grid, mode="bilinear", align_corners=False)[:, 0] > 0.5

    return [at(scale) for scale in schedule]


def source_codes(tokenizer: Any, image: Tensor, schedule: ScaleSchedule, patch: int = 1) -> list[Tensor]:
    """The codes of an image (B, 3, H, W) in [-1, 1] at every scale, as ``generate`` takes known ones."""
    return tokenizer.quantizer(patch).encode(tokenizer.encode(image).float(), schedule)[0]
