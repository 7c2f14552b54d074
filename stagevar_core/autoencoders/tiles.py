"""Pictures in overlapping square tiles, and back without seams."""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..checks import number

MAX_SCALE = 8.0
MAX_OVERLAP = 256
MAX_PIXELS = 2**30  # of one picture: 12 GB in float32
NARROW = 0.02  # of the bell, in squares of a tile's side: what lies at a tile's edge counts next to nothing


def restored_size(size: tuple[int, ...], scale: float) -> tuple[int, int]:
    """(height, width) in pixels of a picture of ``size``, ``scale`` times as large.

    Raises ``ValueError`` for a scale that is none, and where more would come out than can be held.
    """
    scale = number("scale", scale, 1.0, MAX_SCALE)
    height, width = (max(1, round(side * scale)) for side in size)
    if height * width > MAX_PIXELS:
        raise ValueError(
            f"scale is {scale:g}; a picture of {size[1]}x{size[0]} would become {width}x{height}, expected "
            f"at most {MAX_PIXELS // 10**6} megapixels. Choose a smaller scale, or crop the picture"
        )
    return height, width


def enlarged(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A picture (H, W) or (H, W, 3) uint8 resampled to (height, width) with Lanczos' filter."""
    if picture.shape[:2] == size:
        return picture
    return np.asarray(Image.fromarray(picture).resize((size[1], size[0]), Image.Resampling.LANCZOS))


def tile_starts(length: int, side: int, overlap: int) -> list[int]:
    """Where tiles of ``side`` begin that cover ``length`` (at least a side), evenly and with an overlap."""
    count = 1 + math.ceil((length - side) / (side - overlap))
    return [round(index * (length - side) / max(count - 1, 1)) for index in range(count)]


def tile_count(size: tuple[int, int], side: int, overlap: int) -> int:
    """How many tiles :func:`in_tiles` makes of a picture of (height, width)."""
    return math.prod(len(tile_starts(max(length, side), side, overlap)) for length in size)


def in_tiles(
    picture: np.ndarray, side: int, overlap: int, change: Callable[[Tensor], Tensor], out: Tensor
) -> None:
    """``change`` every tile of a picture (H, W, 3) uint8 and blend what comes back into ``out``.

    ``change`` takes and gives (1, side, side, 3) in 0..1. ``out`` (H, W, 3), float32 on the CPU, is all that
    is held of the whole beside one row of tiles. Pictures smaller than a tile are continued by their mirror
    image. The tiles' weights are the bell of the official code (tools/run_varestorer.py).
    """
    height, width = picture.shape[:2]
    missing = [(0, max(0, side - length)) for length in (height, width)]
    padded = np.pad(picture, (*missing, (0, 0)), mode="symmetric") if any(map(any, missing)) else picture
    lefts = tile_starts(padded.shape[1], side, overlap)
    bell = _bell(side)[..., None]
    sums, weights = torch.zeros(side, padded.shape[1], 3), torch.zeros(side, padded.shape[1], 1)
    for top, done in _rows(padded.shape[0], side, overlap):
        for left in lefts:
            tile = torch.from_numpy(padded[top : top + side, left : left + side].astype(np.float32) / 255.0)
            changed = change(tile[None])[0].float().cpu()
            sums[:, left : left + side] += changed * bell
            weights[:, left : left + side] += bell
        shown = out[top : min(top + done, height)]
        shown.copy_((sums / weights)[: len(shown), :width])
        for part in (sums, weights):
            part[: side - done] = part[done:].clone()
            part[side - done :] = 0.0


def _rows(length: int, side: int, overlap: int) -> Iterator[tuple[int, int]]:
    """The top of every row of tiles, and how many of its lines no later row changes."""
    tops = tile_starts(length, side, overlap)
    for top, following in pairwise([*tops, length]):
        yield top, following - top


def _bell(side: int) -> Tensor:
    """The weights of a tile (side, side), 1 at its middle."""
    place = torch.arange(side, dtype=torch.float32) - (side - 1) / 2
    line = torch.exp(-((place / side) ** 2) / NARROW)
    return torch.outer(line, line) / line.max() ** 2
