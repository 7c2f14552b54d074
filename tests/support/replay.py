"""Stored draws in place of seeded ones."""

from collections.abc import Sequence

import torch
from torch import Tensor

from stagevar_core.schedule import Scale


class ReplayedNoise:
    """Stored draws (B, ...) per scale index, for parity with a recorded run."""

    def __init__(self, draws: Sequence[Tensor], images: slice = slice(None)) -> None:
        self._draws, self._images = draws, images

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(range(self._draws[0].shape[0]))[self._images]

    def exponential(self, scale: Scale, shape: Sequence[int], device: torch.device) -> Tensor:
        return self._draws[scale.index][self._images].reshape(*shape).to(device)

    def image(self, index: int) -> "ReplayedNoise":
        place = self.seeds[index]
        return ReplayedNoise(self._draws, slice(place, place + 1))
