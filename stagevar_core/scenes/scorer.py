"""Reads a picture of a scene back from its pixels and compares it with what the caption asked for."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .grammar import COLOURS, PATTERNS, SHAPES, SceneSpec, parse
from .render import GREYS, PATTERN_WEIGHTS, RGB, signed_distance

CHROMA_THRESHOLD = 48.0  # a pixel above it belongs to an object; the darkest object shade has about 80
SPECK_PIXELS, SPECK_SHARE = 8, 0.01  # smaller than either (share: of the largest object) is ignored
MIN_SHAPE_OVERLAP = 0.6  # intersection over union with the best template; below it the shape is 'unknown'
MIN_MODULATION, MIN_BACKGROUND_MODULATION = 0.18, 18.0  # drawn: 0.5 of the colour, 58 grey levels
MIN_PATTERN_CORRELATION = 0.4  # two different patterns correlate by less than 0.04
SIZE_BOUNDARY = 27.0  # radius between small (20-24) and large (30-36)


@dataclass(frozen=True)
class ReadObject:
    """One object found in a picture; x, y, area in pixels, overlap is that of the shape template."""

    shape: str
    colour: str
    x: float
    y: float
    area: int
    radius: float
    pattern: str
    overlap: float


@dataclass(frozen=True)
class Reading:
    """All that was found; `specks` counts the coloured spots too small to be objects."""

    objects: tuple[ReadObject, ...]
    background: str
    background_pattern: str
    specks: int


@dataclass(frozen=True)
class Score:
    """Which parts of a caption hold; None where the caption does not say.

    `strict` is shape, colour, count and position together, every object paired with its own colour, and no
    extra object (specks aside). `texture`: every pattern that is named is read back.
    """

    task: str
    shape: bool
    colour: bool
    count: bool
    position: bool | None
    size: bool | None
    background: bool | None
    texture: bool | None
    strict: bool


# ---- segmentation -----------------------------------------------------------------------------------------


def _opponent(rgb: np.ndarray) -> np.ndarray:
    """Chroma vector (..., 2): linear in RGB and zero for greys, so mixing with grey keeps its angle."""
    r, g, b = (rgb[..., i] for i in range(3))
    return np.stack([r - 0.5 * (g + b), 0.8660254 * (g - b)], axis=-1)


_PALETTE = _opponent(np.asarray([RGB[c] for c in COLOURS], np.float32))
_PALETTE /= np.linalg.norm(_PALETTE, axis=-1, keepdims=True)


def _runs(row: np.ndarray) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate(([0], row, [0])).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def components(mask: np.ndarray) -> list[np.ndarray]:
    """4-connected components of a boolean mask, each as a boolean mask, largest first."""
    parent: list[int] = []

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    runs: list[tuple[int, int, int]] = []
    previous: list[int] = []
    for y in np.flatnonzero(mask.any(axis=1)).tolist():
        current = []
        for start, stop in _runs(mask[y]):
            index = len(runs)
            runs.append((y, start, stop))
            parent.append(index)
            current.append(index)
            for other in previous:
                oy, o_start, o_stop = runs[other]
                if oy == y - 1 and o_start < stop and start < o_stop:
                    parent[root(other)] = root(index)
        previous = current
    found: dict[int, np.ndarray] = {}
    for index, (y, start, stop) in enumerate(runs):
        found.setdefault(root(index), np.zeros_like(mask))[y, start:stop] = True
    return sorted(found.values(), key=lambda m: -int(m.sum()))


def _shift_all(mask: np.ndarray, steps: int, outside: bool) -> np.ndarray:
    """Erosion (outside=True: the frame counts as set) over a 3x3 cross, repeated."""
    for _ in range(steps):
        p = np.pad(mask, 1, constant_values=outside)
        mask = mask & p[:-2, 1:-1] & p[2:, 1:-1] & p[1:-1, :-2] & p[1:-1, 2:]
    return mask


# ---- attributes -------------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def _template(shape: str, height: int, width: int) -> np.ndarray:
    """The shape stretched to a bounding box, boolean (height, width)."""
    top = 1.0 if shape not in ("square", "triangle") else 0.88
    side = 0.88 if shape == "square" else 1.0
    y = ((np.arange(height) + 0.5) / height * 2 - 1)[:, None] * top
    x = ((np.arange(width) + 0.5) / width * 2 - 1)[None, :] * side
    return signed_distance(shape, x, y, 1.0) <= 0


_AREA_PER_RADIUS = {
    "circle": 3.14,
    "square": 3.1,
    "triangle": 1.76,
    "cross": 2.36,
    "ring": 2.36,
    "diamond": 2.0,
}


def _read_shape(mask: np.ndarray) -> tuple[str, float]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    crop = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width = crop.shape
    if not 0.6 < width / height < 1.67:
        return "unknown", 0.0
    overlaps = {}
    for shape in SHAPES:
        template = _template(shape, height, width)
        overlaps[shape] = float((crop & template).sum() / (crop | template).sum())
    best = max(overlaps, key=overlaps.__getitem__)
    return (best if overlaps[best] >= MIN_SHAPE_OVERLAP else "unknown"), overlaps[best]


def _read_pattern(level: np.ndarray, mask: np.ndarray) -> tuple[str, float]:
    """Best fitting pattern inside a mask and the depth of its modulation (the phase is known)."""
    values = level[mask]
    if values.size < 30:
        return "plain", 0.0
    values = values - values.mean()
    norm = float(np.sqrt((values**2).sum())) + 1e-6
    best, best_fit, best_depth = "plain", MIN_PATTERN_CORRELATION, 0.0
    for name in PATTERNS[1:]:
        weight = PATTERN_WEIGHTS[name][mask]
        weight = weight - weight.mean()
        energy = float((weight**2).sum())
        product = float(values @ weight)
        fit = abs(product) / (norm * math.sqrt(energy) + 1e-6)
        if fit > best_fit:
            best, best_fit, best_depth = name, fit, product / (energy + 1e-6)
    return best, best_depth


def _read_object(pixels: np.ndarray, chroma: np.ndarray, mask: np.ndarray) -> ReadObject:
    hue = chroma[mask].sum(axis=0)
    colour = COLOURS[int(np.argmax(_PALETTE @ hue))]
    shape, overlap = _read_shape(mask)
    inner = _shift_all(mask, 2, outside=False)
    # Brightness of the two strongest channels: what the pattern scales, little touched by the background.
    level = np.sort(pixels, axis=-1)[..., 1:].sum(axis=-1)
    pattern, depth = _read_pattern(level, inner)
    mean = float(level[inner].mean()) if inner.any() else 1.0
    if -depth < MIN_MODULATION * mean:
        pattern = "plain"
    y, x = np.nonzero(mask)
    area = int(mask.sum())
    radius = math.sqrt(area / _AREA_PER_RADIUS.get(shape, 2.5))
    return ReadObject(
        shape, colour, float(x.mean()) + 0.5, float(y.mean()) + 0.5, area, radius, pattern, overlap
    )


def _read_background(pixels: np.ndarray, coloured: np.ndarray) -> tuple[str, str]:
    mask = _shift_all(~coloured, 3, outside=True)
    if not mask.any():
        return "unknown", "plain"
    level = pixels.mean(axis=-1)
    pattern, depth = _read_pattern(level, mask)
    mean = float(level[mask].mean())
    middle = {c: 0.75 * a + 0.25 * b for c, (a, b) in GREYS.items()}
    name = min(middle, key=lambda c: abs(middle[c] - mean))
    drawn = GREYS[name][1] - GREYS[name][0]
    if depth * math.copysign(1.0, drawn) < MIN_BACKGROUND_MODULATION:
        pattern = "plain"
    return name, pattern


def read(image: np.ndarray) -> Reading:
    """Find the objects and the background of a uint8 (128, 128, 3) picture, from its pixels alone."""
    if image.shape != PATTERN_WEIGHTS["plain"].shape + (3,):
        raise ValueError(f"image has shape {image.shape}, expected {PATTERN_WEIGHTS['plain'].shape + (3,)}")
    pixels = image.astype(np.float32)
    chroma = _opponent(pixels)
    coloured = np.hypot(chroma[..., 0], chroma[..., 1]) > CHROMA_THRESHOLD
    found = components(coloured)
    smallest = max(SPECK_PIXELS, SPECK_SHARE * found[0].sum()) if found else 0
    objects = tuple(_read_object(pixels, chroma, m) for m in found if m.sum() >= smallest)
    background, pattern = _read_background(pixels, coloured)
    return Reading(objects, background, pattern, len(found) - len(objects))


# ---- comparison -------------------------------------------------------------------------------------------


def _same(wanted: list, got: list) -> bool:
    """Equal as multisets, or as sets when the number of objects is wrong (that is counted elsewhere)."""
    return Counter(wanted) == Counter(got) if len(wanted) == len(got) else set(wanted) == set(got)


def _position(spec: SceneSpec, objects: tuple[ReadObject, ...]) -> bool | None:
    if spec.relation is None:
        return None
    by_colour = [[o for o in objects if o.colour == wanted.colour] for wanted in spec.objects]
    if not all(by_colour):
        return False
    first, second = (found[0] for found in by_colour)
    right, down = first.x - second.x, first.y - second.y
    along, across = (right, down) if spec.relation in ("left", "right") else (down, right)
    if spec.relation in ("left", "above"):
        along = -along
    return along > 12 and along > abs(across)


def _texture(spec: SceneSpec, reading: Reading) -> bool | None:
    checks = []
    for wanted in set(spec.objects):
        if wanted.pattern != "plain":
            found = [o.pattern == wanted.pattern for o in reading.objects if o.colour == wanted.colour]
            checks.append(sum(found) * 2 > len(found))  # most of them, when there are several
    if spec.background_pattern not in (None, "plain"):
        checks.append(reading.background_pattern == spec.background_pattern)
    return all(checks) if checks else None


def compare(spec: SceneSpec, reading: Reading) -> Score:
    """Score a reading against a parsed caption."""
    objects = reading.objects
    count = len(objects) == spec.count
    position = _position(spec, objects)
    bound = _same([(o.shape, o.colour) for o in spec.objects], [(o.shape, o.colour) for o in objects])
    size = spec.objects[0].size
    return Score(
        task=spec.task,
        shape=_same([o.shape for o in spec.objects], [o.shape for o in objects]),
        colour=_same([o.colour for o in spec.objects], [o.colour for o in objects]),
        count=count,
        position=position,
        size=None
        if size is None
        else bool(objects) and (objects[0].radius > SIZE_BOUNDARY) == (size == "large"),
        background=None if spec.background is None else reading.background == spec.background,
        texture=_texture(spec, reading),
        strict=count and bound and position is not False,
    )


def score(caption: str, image: np.ndarray) -> Score:
    """Score a picture against its caption."""
    spec = parse(caption)
    if spec is None:
        raise ValueError(f"not a caption of the scene grammar: {caption!r}; see sample_caption()")
    return compare(spec, read(image))
