"""How different the layouts of several pictures of one caption are, read back from the pixels.

Only pictures that show what the caption says count: a broken picture differs from all others, but it is no
layout of what was asked for.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.optimize import linear_sum_assignment

from ..scenes import parse, read
from ..scenes.scorer import Reading, compare
from .intervals import Interval, interval

SAME = 3.0  # px; layouts with no object farther off than this, and the same background, are one layout


def distances(first: Reading, second: Reading) -> np.ndarray:
    """How far each object is from its counterpart (n,), in px of x, y and radius together.

    Counterparts have the same shape and colour and are as near in all as they can be. ``ValueError`` where
    the two do not hold the same objects.
    """
    kinds = [[(found.shape, found.colour) for found in reading.objects] for reading in (first, second)]
    if sorted(kinds[0]) != sorted(kinds[1]):
        raise ValueError(f"the readings hold {kinds[0]} and {kinds[1]}; expected the same objects in both")
    places = [
        np.array([(found.x, found.y, found.radius) for found in reading.objects]).reshape(-1, 3)
        for reading in (first, second)
    ]
    apart = np.linalg.norm(places[0][:, None] - places[1][None], axis=-1)
    same = np.array([[a == b for b in kinds[1]] for a in kinds[0]], bool).reshape(apart.shape)
    rows, columns = linear_sum_assignment(np.where(same, apart, 1e6))
    return apart[rows, columns]


@dataclass(frozen=True)
class Diversity:
    """Of the pictures of one caption.

    ``right``: how many of ``count`` show what the caption says (strict). ``spread``: mean distance of objects
    in px over all pairs of right pictures; None with fewer than two. ``backgrounds``: share of those pairs
    with different backgrounds; None where the caption names one, too. ``distinct``: layouts among the right
    pictures that differ from each other by more than :data:`SAME` or in their background.
    """

    count: int
    right: int
    spread: float | None
    backgrounds: float | None
    distinct: int


def diversity(caption: str, images: Sequence[np.ndarray]) -> Diversity:
    """Of pictures (128, 128, 3) in bytes of one caption; ``ValueError`` for no caption of the grammar."""
    spec = parse(caption)
    if spec is None:
        raise ValueError(f"not a caption of the scene grammar: {caption!r}; see sample_caption()")
    readings = [read(image) for image in images]
    right = [reading for reading in readings if compare(spec, reading).strict]
    pairs = list(combinations(right, 2))
    spread = float(np.mean([distances(*pair).mean() for pair in pairs])) if pairs else None
    free = spec.background is None and bool(pairs)
    differs = float(np.mean([a.background != b.background for a, b in pairs])) if free else None
    kept: list[Reading] = []
    for reading in right:
        if not any(_same(reading, earlier) for earlier in kept):
            kept.append(reading)
    return Diversity(len(readings), len(right), spread, differs, len(kept))


def _same(first: Reading, second: Reading) -> bool:
    return first.background == second.background and float(distances(first, second).max()) <= SAME


def summarise(found: Sequence[Diversity]) -> dict[str, dict[str, float] | None]:
    """Means over captions with their 95% intervals: strict, spread, backgrounds, distinct.

    ``strict`` is over all pictures. A mean is a dict of mean, low, high and n; None where no caption has one.
    """
    strict = [1.0] * sum(one.right for one in found)
    strict += [0.0] * (sum(one.count for one in found) - len(strict))
    values = {name: [getattr(one, name) for one in found] for name in ("spread", "backgrounds", "distinct")}
    report = {"strict": _plain(interval(np.array(strict, float), share=True))}
    for name, column in values.items():
        known = np.array([math.nan if value is None else value for value in column], float)
        report[name] = _plain(interval(known, share=name == "backgrounds"))
    return report


def _plain(value: Interval | None) -> dict[str, float] | None:
    return None if value is None else value._asdict()
