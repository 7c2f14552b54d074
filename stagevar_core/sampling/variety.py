"""Which of several pictures are the most different ones, by what is seen from afar."""

import torch
import torch.nn.functional as F
from torch import Tensor

THUMB = 16  # px per side; layout and colours, no texture


def most_different(pictures: Tensor, count: int) -> list[int]:
    """Places, ascending, of ``count`` of the pictures (N, H, W, C) that look least alike; all where fewer.

    The first one stays, then the one that is farthest from all that were chosen joins them, and so on. They
    are compared as thumbnails. ``ValueError`` for no pictures, NaN or infinity, and a count below 1.
    """
    if pictures.dim() != 4 or not pictures.numel():
        raise ValueError(
            f"the pictures have the shape {list(pictures.shape)}; expected (N, H, W, C), not empty"
        )
    if count < 1:
        raise ValueError(f"count is {count}; expected 1 or more pictures to pick")
    seen = F.interpolate(pictures.movedim(-1, 1).float(), size=(THUMB, THUMB), mode="area").flatten(1)
    if not torch.isfinite(seen).all():
        raise ValueError("the pictures hold NaN or infinity, which cannot be compared; make them anew")
    picked = [0]
    nearest = (seen - seen[0]).norm(dim=1)  # distance of each to the nearest that was chosen
    while len(picked) < min(count, len(seen)):
        nearest[picked] = -1.0  # equal pictures have distance 0, chosen ones come last
        picked.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, (seen - seen[picked[-1]]).norm(dim=1))
    return sorted(picked)
