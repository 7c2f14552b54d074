"""Anti-aliased drawing of scenes from signed distances; patterns are fixed in canvas coordinates."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import numpy as np

from .grammar import CANVAS, PATTERNS, SHAPES, Scene, SceneObject

PERIOD = 12  # of every pattern, px
SHADE = 0.5  # brightness of the dark half of an object's pattern

# Saturated and at least 25 degrees of hue apart.
RGB = {
    "red": (228, 26, 26),
    "orange": (250, 128, 0),
    "yellow": (240, 225, 20),
    "green": (30, 190, 40),
    "cyan": (20, 205, 215),
    "blue": (35, 70, 235),
    "purple": (135, 35, 220),
    "pink": (250, 70, 180),
}
# The two greys of a background pattern; the first alone is the plain background.
GREYS = {"white": (238, 172), "grey": (150, 92), "black": (16, 74)}


def _pattern_weights() -> dict[str, np.ndarray]:
    """How much of the second shade each canvas pixel takes, per pattern, in [0, 1]."""
    c = np.arange(CANVAS)
    half = (c // (PERIOD // 2)) % 2
    centred = (c + 0.5) % PERIOD - PERIOD / 2
    distance = np.hypot(centred[:, None], centred[None, :])
    weights = {
        "plain": np.zeros((CANVAS, CANVAS)),
        "striped": np.repeat(half[:, None], CANVAS, axis=1),
        "checkered": half[:, None] ^ half[None, :],
        "dotted": np.clip(3.7 - distance, 0, 1),
    }
    return {name: w.astype(np.float32) for name, w in weights.items()}


PATTERN_WEIGHTS = _pattern_weights()
PATTERN_MEANS = {name: float(w.mean()) for name, w in PATTERN_WEIGHTS.items()}


def signed_distance(shape: str, x: np.ndarray, y: np.ndarray, r: float) -> np.ndarray:
    """Distance in pixels to the outline of a shape of radius r around the origin, negative inside."""
    ax, ay = np.abs(x), np.abs(y)
    if shape == "circle":
        return np.hypot(x, y) - r
    if shape == "square":
        return np.maximum(ax, ay) - 0.88 * r
    if shape == "diamond":
        return (ax + ay - r) * np.float32(0.7071)
    if shape == "ring":
        return np.abs(np.hypot(x, y) - 0.75 * r) - 0.25 * r
    if shape == "cross":  # thick arms: thin ones read as a diamond once blurred
        arm = 0.36 * r
        return np.minimum(np.maximum(ax - r, ay - arm), np.maximum(ax - arm, ay - r))
    if shape == "triangle":  # corners (0, -0.88 r) and (+-r, 0.88 r)
        nx, ny = 0.8695, 0.4940  # normal of the right side
        return np.maximum(y - 0.88 * r, ax * nx - (y + 0.88 * r) * ny)
    raise ValueError(f"shape is {shape!r}, expected one of {SHAPES}")


def _window(o: SceneObject) -> tuple[slice, slice, np.ndarray]:
    """Rows and columns an object may touch, and its coverage in [0, 1] there."""
    reach = o.radius + 1.5
    x0, x1 = max(int(o.x - reach), 0), min(int(o.x + reach) + 1, CANVAS)
    y0, y1 = max(int(o.y - reach), 0), min(int(o.y + reach) + 1, CANVAS)
    x = (np.arange(x0, x1, dtype=np.float32) + 0.5 - o.x)[None, :]
    y = (np.arange(y0, y1, dtype=np.float32) + 0.5 - o.y)[:, None]
    return slice(y0, y1), slice(x0, x1), np.clip(0.5 - signed_distance(o.shape, x, y, o.radius), 0, 1)


@lru_cache(maxsize=64)
def _background(name: str, pattern: str, flat: bool) -> np.ndarray:
    bright, dark = GREYS[name]
    weight = np.float32(PATTERN_MEANS[pattern]) if flat else PATTERN_WEIGHTS[pattern]
    grey = bright + (dark - bright) * weight
    image = np.empty((CANVAS, CANVAS, 3), np.float32)
    image[:] = np.asarray(grey)[..., None]
    return image


def render(scene: Scene, flat: bool = False) -> np.ndarray:
    """The scene as uint8 (128, 128, 3); `flat` replaces every pattern by its mean colour."""
    image = _background(scene.background, scene.background_pattern, flat).copy()
    for o in scene.objects:
        rows, columns, cover = _window(o)
        weight = PATTERN_MEANS[o.pattern] if flat else PATTERN_WEIGHTS[o.pattern][rows, columns, None]
        colour = np.asarray(RGB[o.colour], np.float32) * (1 - (1 - SHADE) * weight)
        part = image[rows, columns]
        part += (colour - part) * cover[..., None]
    return (image + 0.5).astype(np.uint8)


def render_batch(scenes: Iterable[Scene], flat: bool = False) -> np.ndarray:
    """Several scenes as uint8 (N, 128, 128, 3)."""
    return np.stack([render(s, flat) for s in scenes])


def shape_map(scene: Scene) -> np.ndarray:
    """Which shape covers each pixel: 0 for background, else 1 + its index in SHAPES; uint8 (128, 128)."""
    labels = np.zeros((CANVAS, CANVAS), np.uint8)
    for o in scene.objects:
        rows, columns, cover = _window(o)
        labels[rows, columns][cover > 0.5] = 1 + SHAPES.index(o.shape)
    return labels


assert tuple(PATTERN_WEIGHTS) == PATTERNS
