"""Drawings of other sizes, at other places, mirrored, on plain and patterned backgrounds."""

from __future__ import annotations

import colorsys
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .sources import Artwork, class_names

SIDE = 256
SMALLEST, LARGEST = 0.60, 0.90  # of the picture's side
# Of the model's own pictures: few colours and few patterned ones. A pattern lives in the late scales alone,
# and a large model's late scales repeat what is there already.
HUES = (0.0, 0.08, 0.14, 0.3, 0.45, 0.55, 0.65, 0.78, 0.9)
PATTERNS = (*["plain"] * 12, *["gradient"] * 3, "dots", "stripes", "checks", "grid")
UNSEEN = ("zigzag", "rings")  # on which classifiers are tested alone
FIXED = frozenset({"alarm clock", "bus"})  # not mirrored: they carry signs


def pastel(hue: float, saturation: float, value: float = 0.97) -> np.ndarray:
    """A colour (3,) in 0 to 255."""
    return 255 * np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value))


def shares(pattern: str, side: int, period: float, phase: tuple[float, float]) -> np.ndarray:
    """How much of the second colour lies at every pixel (side, side, 1), softened over about two pixels."""
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) + 0.5
    u, v = x + phase[0] * period, y + phase[1] * period
    soft = 1.0 / max(side / 128, 1)

    def within(distance: np.ndarray) -> np.ndarray:
        return np.clip(0.5 + distance * soft / 1.5, 0, 1)

    def wave(t: np.ndarray) -> np.ndarray:  # distance to the edge of stripes of one period
        return period / 4 - np.abs(t % period - period / 2)

    if pattern == "plain":
        found = np.zeros_like(u)
    elif pattern == "gradient":
        found = y / side
    elif pattern == "dots":
        found = within(0.28 * period - np.hypot(u % period - period / 2, v % period - period / 2))
    elif pattern == "stripes":
        found = within(wave((u + v) / np.sqrt(2)))
    elif pattern == "checks":
        a, b = within(wave(u)), within(wave(v))
        found = a * b + (1 - a) * (1 - b)
    elif pattern == "grid":
        found = np.maximum(*(within(0.08 * period - np.abs(t % period - period / 2)) for t in (u, v)))
    elif pattern == "zigzag":
        found = within(wave(v + np.abs(u % period - period / 2)))
    else:
        found = within(wave(np.hypot(x - side / 2, y - side / 2) + phase[0] * period))
    return found[..., None].astype(np.float32)


@lru_cache(maxsize=512)
def own_background(side: int, hue: int, pattern: str) -> np.ndarray:
    """One of the backgrounds that the model draws, (side, side, 3) in 0 to 255."""
    first, second = pastel(HUES[hue], 0.16), pastel(HUES[hue], 0.28, 0.94)
    found = shares(pattern, side, side / 8, (0.0, 0.0))
    return first * (1 - found) + second * found


def any_background(rng: np.random.Generator, side: int, patterns: tuple[str, ...]) -> np.ndarray:
    """A background of any colours, period and phase, for classifiers."""
    colours = [pastel(rng.random(), rng.uniform(0.0, 0.6), rng.uniform(0.6, 1.0)) for _ in range(2)]
    pattern = patterns[rng.integers(len(patterns))]
    found = shares(pattern, side, side * rng.uniform(0.06, 0.3), tuple(rng.random(2)))
    return colours[0] * (1 - found) + colours[1] * found


def place(
    drawing: np.ndarray, background: np.ndarray, rng: np.random.Generator, mirrored: bool
) -> np.ndarray:
    """A drawing (h, w, 4) on a background (side, side, 3) at a random size and place, in bytes."""
    side = background.shape[0]
    size = int(round(side * rng.uniform(SMALLEST, LARGEST)))
    left, top = rng.integers(0, side - size + 1, 2)
    picture = Image.fromarray(drawing).convert("RGBa").resize((size, size), Image.Resampling.BILINEAR)
    values = np.asarray(picture, np.float32)
    values = values[:, ::-1] if mirrored else values
    canvas = background.astype(np.float32, copy=True)
    part = canvas[top : top + size, left : left + size]
    part *= 1 - values[..., 3:] / 255
    part += values[..., :3]
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8)


class Composer:
    """Pictures of artwork; ``kind``: 'model' for what it draws, 'any' and 'unseen' for classifiers."""

    def __init__(self, artwork: Artwork, side: int = SIDE, kind: str = "model") -> None:
        self.artwork, self.side, self.kind = artwork, side, kind
        names = class_names()
        self.fixed = {number for number, name in enumerate(names) if name in FIXED}

    def one(self, rng: np.random.Generator, index: int | None = None) -> tuple[np.ndarray, int]:
        """A picture (side, side, 3) uint8 and its class; of drawing ``index``, or any."""
        index = int(rng.integers(len(self.artwork.labels))) if index is None else index
        label = int(self.artwork.labels[index])
        if self.kind == "model":
            pattern = PATTERNS[rng.integers(len(PATTERNS))]
            background = own_background(self.side, int(rng.integers(len(HUES))), pattern)
        else:
            known = tuple(dict.fromkeys(PATTERNS))
            background = any_background(rng, self.side, UNSEEN if self.kind == "unseen" else known)
        mirrored = label not in self.fixed and bool(rng.random() < 0.5)
        return place(self.artwork.pictures[index], background, rng, mirrored), label

    def batch(self, rng: np.random.Generator, size: int) -> tuple[Tensor, Tensor]:
        """``size`` pictures (B, side, side, 3) uint8 and their classes (B,)."""
        pictures, labels = zip(*(self.one(rng) for _ in range(size)), strict=True)
        return torch.from_numpy(np.stack(pictures)), torch.tensor(labels)


def to_tensor(pictures: Tensor) -> Tensor:
    """(B, H, W, 3) uint8 to (B, 3, H, W) in [-1, 1]."""
    return pictures.permute(0, 3, 1, 2).float() / 127.5 - 1.0
