"""Pictures of bytes and ComfyUI's, which are floats in 0..1."""

from collections.abc import Sequence

import comfy.utils
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor


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


def fitted_mask(mask: Tensor, image: Tensor, size: tuple[int, int]) -> Tensor:
    """A mask (H, W) or (B, H, W) as (B, height, width), with the same cuts as its image."""
    whole = mask.float().reshape(-1, 1, *mask.shape[-2:])
    if whole.shape[-2:] != image.shape[1:3]:  # Load Image gives a small one where there is no mask
        whole = F.interpolate(whole, size=tuple(image.shape[1:3]), mode="bilinear", align_corners=False)
    return _scaled(whole, size, "area" if image.shape[1] > size[0] else "bilinear")[:, 0]


def _scaled(channels: Tensor, size: tuple[int, int], method: str) -> Tensor:
    """(B, C, H, W) in 0..1 to (B, C, height, width): core's cut in the middle, which leaves a pixel."""
    height, width = channels.shape[-2:]
    shape, wanted = width / height, size[1] / size[0]
    beside = round((width - width * (wanted / shape)) / 2) if shape > wanted else 0
    above = round((height - height * (shape / wanted)) / 2) if shape < wanted else 0
    beside, above = min(beside, (width - 1) // 2), min(above, (height - 1) // 2)
    seen = channels[..., above : height - above, beside : width - beside]
    return comfy.utils.common_upscale(seen, size[1], size[0], method, "disabled").clamp(0.0, 1.0)
