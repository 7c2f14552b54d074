"""Codes of the first scales that are given instead of drawn, all of them or where a mask says so."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Known(NamedTuple):
    """Codes of one scale that are given, where the mask is True (None: everywhere)."""

    codes: Tensor
    mask: Tensor | None

    def image(self, index: int) -> "Known":
        """Those of one image."""
        mask = self.mask
        if mask is not None and len(mask) > 1:
            mask = mask[index : index + 1]
        return Known(self.codes[index : index + 1], mask)

    def alone(self, quantizer: Any, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """The given codes (B, C, h, w) of a scale that does not run, and that they alone count."""
        codes = quantizer.codes(self.codes.to(device))
        return codes, None if self.mask is None else self.mask.to(codes).unsqueeze(1)

    def over(
        self, drawn: Tensor, codes: Tensor, weights: Tensor | None, quantizer: Any
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """What was drawn, its codes (B, C, h, w) and their weights, replaced where they are given."""
        given = self.codes.to(device=drawn.device, dtype=drawn.dtype).reshape(drawn.shape)
        if self.mask is None:
            return given, quantizer.codes(given), None
        mask = self.mask.to(device=drawn.device, dtype=torch.bool).unsqueeze(1)
        kept = mask.reshape(len(mask), *(1,) * (drawn.dim() - 3), *mask.shape[-2:])
        codes = torch.where(mask, quantizer.codes(given), codes)
        weights = None if weights is None else torch.where(mask, 1.0, weights)
        return torch.where(kept, given, drawn), codes, weights


def known_codes(known: Sequence[Tensor], masks: Sequence[Tensor], scales: int) -> list[Known]:
    """Pairs of given codes and masks; ``ValueError`` where their numbers do not fit."""
    if len(known) > scales or len(masks) not in (0, len(known)):
        raise ValueError(
            f"known codes of {len(known)} scales and {len(masks)} masks; this schedule has {scales} scales, "
            "give at most as many codes, and no masks or one for each"
        )
    return [Known(code, masks[index] if masks else None) for index, code in enumerate(known)]
