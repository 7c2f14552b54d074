"""Times the scales of a run from outside, and keeps what they came to."""

import time

import torch
from torch import Tensor

from ..devices import synchronise
from ..schedule import Scale
from .result import Monitor


class Clock(Monitor):
    """Times the scales, keeps their latents where asked for, and passes everything on."""

    def __init__(self, device: torch.device, keep: bool, monitor: Monitor | None) -> None:
        self.device, self.keep, self.monitor = device, keep, monitor or Monitor()
        self.seconds: dict[int, float] = {}
        self._runs: list[dict[int, Tensor]] = []
        self._last = self._now()

    @property
    def latents(self) -> dict[int, Tensor]:
        """Latents (B, C, H, W) by scale; an image that skipped a scale has there what it had before."""
        scales = sorted({index for run in self._runs for index in run})
        return {
            scale: torch.cat([run[max(index for index in run if index <= scale)] for run in self._runs])
            for scale in scales
        }

    def restart(self, runs: int) -> None:
        self.monitor.restart(runs)

    def block(self, scale: Scale, layer: int) -> None:
        self.monitor.block(scale, layer)

    def logits(self, scale: Scale, raw: Tensor, guided: Tensor) -> None:
        self.monitor.logits(scale, raw, guided)

    def scale(self, scale: Scale, f_hat: Tensor) -> None:
        now = self._now()
        self.seconds[scale.index] = self.seconds.get(scale.index, 0.0) + now - self._last
        if self.keep:
            if not self._runs or scale.index <= max(self._runs[-1]):  # the next image of the batch
                self._runs.append({})
            self._runs[-1][scale.index] = f_hat
        self.monitor.scale(scale, f_hat)
        self._last = self._now()  # what the caller does with the latent is not the model's time

    def _now(self) -> float:
        synchronise(self.device)
        return time.perf_counter()
