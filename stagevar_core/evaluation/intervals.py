"""How sure a mean or a difference of means is."""

import math
from typing import NamedTuple

import numpy as np

Z95 = 1.959964  # of a normal variable, 95% are within so many deviations


class Interval(NamedTuple):
    """A mean with its 95% interval, over ``n`` values."""

    mean: float
    low: float
    high: float
    n: int


def interval(values: np.ndarray, *, share: bool = False) -> Interval | None:
    """Of values (n,), without those that are NaN; None when there is none.

    Normal; with ``share`` Wilson's (1927), for values from 0 to 1 (cautious where not all are 0 or 1).
    """
    known = values[~np.isnan(values)]
    n = len(known)
    if n == 0:
        return None
    mean = float(known.mean())
    if share:
        middle = (mean + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
        half = Z95 / (1 + Z95**2 / n) * math.sqrt(mean * (1 - mean) / n + Z95**2 / (4 * n * n))
        return Interval(mean, max(0.0, middle - half), min(1.0, middle + half), n)
    half = Z95 * float(known.std(ddof=1)) / math.sqrt(n) if n > 1 else math.inf
    return Interval(mean, mean - half, mean + half, n)


def difference(a: np.ndarray, b: np.ndarray, *, share: bool = False) -> Interval | None:
    """Of the mean of ``a - b``, paired, over the pairs without NaN; None when there is none.

    Normal. With ``share``, for values from 0 to 1, after Agresti and Min 2005: half a pair more of each
    outcome (+1, -1 and two times 0), so that the interval never has width 0. The mean is as observed.
    """
    if a.shape != b.shape:
        raise ValueError(f"{len(a)} and {len(b)} values cannot be paired; expected as many")
    values = a - b
    if not share:
        return interval(values)
    values = values[~np.isnan(values)]
    n = len(values)
    if n == 0:
        return None
    middle = float(values.sum()) / (n + 2)
    spread = (float((values**2).sum()) + 1.0) / (n + 2) - middle**2
    half = Z95 * math.sqrt(spread / (n + 2))
    return Interval(float(values.mean()), max(-1.0, middle - half), min(1.0, middle + half), n)
