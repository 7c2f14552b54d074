"""Running means and deviations of what is measured picture by picture."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..acceleration.schedule_reader import Curve


class Moments:
    """Running mean and deviation of arrays of one shape, entry by entry; NaN entries do not count."""

    def __init__(self) -> None:
        self.count = self.mean = self.squares = np.zeros(0)

    def add(self, values: np.ndarray) -> None:
        """One more array."""
        if not self.count.size:
            self.count, self.mean, self.squares = (np.zeros_like(values) for _ in range(3))
        there = ~np.isnan(values)
        self.count = self.count + there
        step = np.where(there, values - self.mean, 0.0)
        self.mean = self.mean + step / np.maximum(self.count, 1)
        self.squares = self.squares + step * np.where(there, values - self.mean, 0.0)

    def curve(self) -> Curve:
        """Mean and sample standard deviation as (nested) lists; None where nothing was measured."""
        deviation = np.sqrt(self.squares / np.maximum(self.count - 1, 1))
        return {"mean": self._listed(self.mean), "std": self._listed(deviation)}

    def state(self) -> dict[str, list[Any]]:
        """For :meth:`restore`, as plain values for JSON."""
        arrays = {"count": self.count, "mean": self.mean, "squares": self.squares}
        return {name: array.tolist() for name, array in arrays.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state; ``ValueError``, ``KeyError`` or ``TypeError`` where it is none."""
        arrays = [np.array(state[name], float) for name in ("count", "mean", "squares")]
        if len({array.shape for array in arrays}) != 1 or not np.isfinite(arrays).all():
            raise ValueError("arrays of different shapes or without numbers")
        self.count, self.mean, self.squares = arrays

    def _listed(self, values: np.ndarray) -> list[Any]:
        listed = np.round(values, 6).astype(object)
        listed[(self.count == 0) | np.isnan(values)] = None
        return listed.tolist()
