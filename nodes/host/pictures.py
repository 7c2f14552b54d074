"""Pictures of bytes and ComfyUI's, which are floats in 0..1."""

from collections.abc import Sequence

import numpy as np
import torch
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
