"""The way of a picture into an editing model and back: padded to a white square, and cropped again.

As VAREdit's infer.py prepares pictures; PIL's Lanczos works on bytes.
"""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

WHITE = (255, 255, 255)


def to_square(picture: np.ndarray, side: int) -> np.ndarray:
    """A picture (H, W, 3 or 4) in bytes as (side, side, 3): at the top left of a white square, resized.

    Transparency is dropped.
    """
    _check(picture)
    image = Image.fromarray(np.ascontiguousarray(picture[..., :3]))
    longest = max(image.size)
    square = Image.new("RGB", (longest, longest), WHITE)
    square.paste(image, (0, 0))
    return np.asarray(square.resize((side, side), Image.Resampling.LANCZOS))


def stretched(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A picture (H, W, 3 or 4) in bytes as (height, width, 3), all of it; transparency is dropped."""
    _check(picture)
    image = Image.fromarray(np.ascontiguousarray(picture[..., :3]))
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.LANCZOS))


def _check(picture: np.ndarray) -> None:
    """``ValueError`` for what is no picture in bytes."""
    if picture.ndim != 3 or picture.shape[2] not in (3, 4) or picture.dtype != np.uint8 or 0 in picture.shape:
        raise ValueError(
            f"the picture to edit has the shape {list(picture.shape)} in {picture.dtype}; expected (height, "
            "width, 3 or 4) in bytes"
        )


def from_square(edited: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The inverse: an edited square (side, side, 3) in bytes as the picture of ``size`` (height, width)."""
    height, width = size
    longest = max(size)
    square = Image.fromarray(np.ascontiguousarray(edited))
    whole = square.resize((longest, longest), Image.Resampling.LANCZOS)
    return np.asarray(whole.crop((0, 0, width, height)))


def encoder_input(square: np.ndarray) -> Tensor:
    """Bytes (H, W, 3) as (1, 3, H, W) from -1 to 1, in the official order of operations."""
    values = torch.from_numpy(np.array(square)).permute(2, 0, 1).unsqueeze(0).float() / 255.0
    return values + values - 1.0
