"""Seeded draws of a run, one stream per image."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..schedule import Scale


class SeededNoise:
    """One generator per image, seeded ``seed + index``, so that batch size never changes an image.

    On the CPU (the default) a seed gives the same draws whatever device the model runs on. For one image the
    stream equals that of the official ``torch.multinomial`` call on that device.
    """

    def __init__(self, seed: int, batch: int, device: str | torch.device = "cpu") -> None:
        self._begin([seed + index for index in range(batch)], device)

    @classmethod
    def of(cls, seeds: Sequence[int], device: str | torch.device = "cpu") -> "SeededNoise":
        """Streams of any seeds, one per image."""
        noise = cls(0, 0, device)
        noise._begin(seeds, device)
        return noise

    def _begin(self, seeds: Sequence[int], device: str | torch.device) -> None:
        # Seeds wrap at 64 bits, the range of the host's seed widget.
        self.seeds = tuple(seed % 2**64 for seed in seeds)
        self._generators = [torch.Generator(device).manual_seed(each) for each in self.seeds]
        self._second = [torch.Generator(device).manual_seed(each) for each in self.seeds]
        self._device = device

    def exponential(self, scale: Scale, shape: Sequence[int], device: torch.device) -> Tensor:
        """Unit-rate exponential draws of ``shape`` (B, ...) in float32."""
        draws = [
            torch.empty(*shape[1:], dtype=torch.float32, device=generator.device).exponential_(
                generator=generator
            )
            for generator in self._generators
        ]
        return torch.stack(draws).to(device)

    def uniform(self, scale: Scale, shape: Sequence[int], device: torch.device) -> Tensor:
        """Draws of ``shape`` (B, ...) from 0 to 1 out of the second stream."""
        draws = [
            torch.rand(*shape[1:], generator=generator, device=generator.device) for generator in self._second
        ]
        return torch.stack(draws).to(device)

    def normal(self, scale: Scale, shape: Sequence[int], device: torch.device) -> Tensor:
        """Normal draws of ``shape`` (B, ...) in float32 out of the second stream."""
        draws = [
            torch.randn(*shape[1:], generator=generator, device=generator.device)
            for generator in self._second
        ]
        return torch.stack(draws).to(device)

    def image(self, index: int) -> "SeededNoise":
        """The draws of one image alone."""
        return SeededNoise(self.seeds[index], 1, self._device)
