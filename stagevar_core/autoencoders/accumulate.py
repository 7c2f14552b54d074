"""What quantizers do with the draws of many scales, whatever a code is to them."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..schedule import Scale, ScaleSchedule


class _ByScale(Protocol):
    """What a quantizer does at one scale."""

    def empty(self, batch: int, schedule: ScaleSchedule, device: torch.device) -> Tensor: ...
    def codes(self, drawn: Tensor, /) -> Tensor: ...
    def add(self, f_hat: Tensor, codes: Tensor, schedule: ScaleSchedule, scale: Scale) -> Tensor: ...
    def next_input(self, f_hat: Tensor, scale: Scale) -> Tensor: ...


class Accumulating:
    """Draws that are known, scale by scale, to the accumulated latent."""

    def accumulate(self: _ByScale, drawn: Sequence[Tensor], schedule: ScaleSchedule) -> Tensor:
        """The accumulated latent of what was drawn at the first scales, at least one, (B, dim, H, W)."""
        f_hat = self.empty(drawn[0].shape[0], schedule, drawn[0].device)
        for level, scale in zip(drawn, schedule, strict=False):
            f_hat = self.add(f_hat, self.codes(level), schedule, scale)
        return f_hat

    def teacher_inputs(self: _ByScale, drawn: Sequence[Tensor], schedule: ScaleSchedule) -> Tensor:
        """Inputs of the scales after the first for known draws, concatenated to (B, L - L0, channels)."""
        f_hat, inputs = self.empty(drawn[0].shape[0], schedule, drawn[0].device), []
        for level, scale, following in zip(drawn[:-1], schedule, schedule.scales[1:], strict=False):
            f_hat = self.add(f_hat, self.codes(level), schedule, scale)
            inputs.append(self.next_input(f_hat, following))
        return torch.cat(inputs, dim=1)
