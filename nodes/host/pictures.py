"""Pictures of bytes and ComfyUI's, which are floats in 0..1."""

from collections.abc import Sequence

import comfy.utils
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

FITTED = (
    "It is scaled to the nearest size the model was trained on; what sticks out of its shape is cut off "
    "evenly."
)
"""What ``fitted`` does, for the tooltips of inputs."""


def to_image(picture: Image.Image) -> Tensor:
    """(1, height, width, 3) in 0..1."""
    return torch.from_numpy(np.array(picture.convert("RGB"), dtype=np.float32) / 255.0).unsqueeze(0)


def to_bytes(image: Tensor) -> np.ndarray:
    """Pictures of any shape in 0..1 as bytes of the same shape; what is none becomes 0 or its nearest end."""
    return image.nan_to_num().clamp(0.0, 1.0).mul(255.0).round().to(torch.uint8).cpu().numpy()


def stacked(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures one below the other on white."""
    width = max(picture.width for picture in pictures)
    whole = Image.new("RGB", (width, sum(picture.height for picture in pictures)), "white")
    top = 0
    for picture in pictures:
        whole.paste(picture.convert("RGB"), ((width - picture.width) // 2, top))
        top += picture.height
    return whole


def fitted(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Images (B, H, W, C) in 0..1 scaled to ``size``, cut evenly where their shape differs."""
    method = "area" if image.shape[1] > size[0] else "bicubic"
    return _scaled(image[..., :3].movedim(-1, 1), size, method).movedim(1, -1)


def mask_of(mask: Tensor, image: Sequence[int]) -> Tensor:
    """A mask (H, W) or (B, H, W) of any size as (B, height, width) of its ``image``, as core does."""
    whole = mask.float().reshape(-1, 1, *mask.shape[-2:])
    if tuple(whole.shape[-2:]) != tuple(image):  # Load Image gives a small one where there is no mask
        whole = F.interpolate(whole, size=tuple(image), mode="bilinear", align_corners=False)
    return whole[:, 0]


def fitted_mask(mask: Tensor, image: Sequence[int], size: tuple[int, int]) -> Tensor:
    """A mask as (B, height, width), with the same cuts as its ``image`` of (height, width)."""
    whole = mask_of(mask, image).unsqueeze(1)
    return _scaled(whole, size, "area" if image[0] > size[0] else "bilinear")[:, 0]


def seen(image: Sequence[int], size: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of an ``image`` of (height, width) that are not cut where it is fitted to ``size``.

    Core's cut in the middle, which leaves a pixel.
    """
    height, width = image
    shape, wanted = width / height, size[1] / size[0]
    beside = round((width - width * (wanted / shape)) / 2) if shape > wanted else 0
    above = round((height - height * (shape / wanted)) / 2) if shape < wanted else 0
    beside, above = min(beside, (width - 1) // 2), min(above, (height - 1) // 2)
    return slice(above, height - above), slice(beside, width - beside)


def placed(part: Tensor, image: Tensor, *, smooth: bool = True) -> Tensor:
    """Images (B, h, w, C) back where :func:`fitted` took them from, in ``image`` (B, H, W, C), at its size.

    ``smooth`` False repeats pixels, for masks whose edges are to stay.
    """
    rows, columns = seen(image.shape[1:3], (part.shape[1], part.shape[2]))
    height, width = rows.stop - rows.start, columns.stop - columns.start
    method = "nearest-exact" if not smooth else "area" if part.shape[1] > height else "bicubic"
    channels = comfy.utils.common_upscale(part.movedim(-1, 1), width, height, method, "disabled")
    whole = image.clone()
    whole[:, rows, columns] = channels.clamp(0.0, 1.0).movedim(1, -1)
    return whole


def repeated(pictures: Tensor, count: int) -> Tensor:
    """The first ``count`` of pictures or masks, in turn where there are fewer, as core repeats batches."""
    return comfy.utils.repeat_to_batch_size(pictures, count)


def _scaled(channels: Tensor, size: tuple[int, int], method: str) -> Tensor:
    """(B, C, H, W) in 0..1 to (B, C, height, width), cut where their shape differs."""
    rows, columns = seen(channels.shape[-2:], size)
    part = channels[..., rows, columns]
    return comfy.utils.common_upscale(part, size[1], size[0], method, "disabled").clamp(0.0, 1.0)
