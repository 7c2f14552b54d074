"""What a generation is asked for."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..models.guidance import per_scale


@dataclass(frozen=True)
class SamplingSettings:
    """Settings of one generation.

    ``cfg_scale`` and ``temperature``: one number or one per scale. ``top_k``, ``top_p``: 0 switches off.
    ``cfg_layers``: 0 mixes the logits; a negative number mixes the hidden states after that block, counted
    from the end (-1 is the last). ``greedy``: the most likely code instead of a draw. ``smooth``: a mixture
    of codes instead of the drawn one, for models with a codebook. ``refine``: 'auto' draws the fine scales
    with a sampler network where the file has one, 'off' does not, other names say in which of its ways.
    """

    cfg_scale: float | Sequence[float] = 3.0
    temperature: float | Sequence[float] = 0.5
    top_k: int = 900
    top_p: float = 0.97
    cfg_layers: tuple[int, ...] = (0,)
    greedy: bool = False
    smooth: bool = False
    refine: str = "auto"

    def validate(self, scales: int, depth: int) -> None:
        """Raise ``ValueError`` naming the first setting that cannot be used."""
        for name, value in (("cfg", self.cfg_scale), ("temperature", self.temperature)):
            for number in per_scale(name, value, scales):
                if not math.isfinite(number):
                    raise ValueError(f"{name} is {number}; expected a finite number")
                if name == "temperature" and number <= 0:
                    raise ValueError(f"temperature is {number}; expected a number above 0, for example 0.5")
        if not math.isfinite(self.top_p) or not 0 <= self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; expected 0 (off) to 1")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; expected 0 (off) or a positive number")
        for layer in self.cfg_layers:
            if not -depth < layer <= 0:
                raise ValueError(f"cfg_layers holds {layer}; expected 0 (logits) or -1 to {1 - depth}")
        if self.smooth and self.greedy:
            raise ValueError("smooth and greedy are both on; smooth sampling needs noise, switch one off")
