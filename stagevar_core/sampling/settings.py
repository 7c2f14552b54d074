"""What a generation is asked for."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeGuard

from ..acceleration.stages import STAGES, per_stage
from ..checks import number, whole
from ..models.guidance import per_scale
from ..schedule import ScaleSchedule

_SMALLEST = 5e-324  # above 0
_EXPECTED = {
    "cfg": "a finite number, 0 or more",
    "temperature": "a finite number above 0, for example 0.5",
}


@dataclass(frozen=True)
class SamplingSettings:
    """Settings of one generation.

    ``cfg_scale`` and ``temperature``: one number, 0 or more, one per scale, or three, one per stage (see
    :meth:`on`). ``top_k``, ``top_p``: 0
    switches off. ``cfg_layers``: 0 mixes the logits; a negative number mixes the hidden states after that
    block, counted from the end (-1 is the last). ``greedy``: the most likely code instead of a draw.
    ``smooth``: a mixture of codes instead of the drawn one, for models with a codebook. ``refine``: 'auto'
    draws the fine scales with a sampler network where the file has one, 'off' does not, other names say in
    which of its ways.
    """

    cfg_scale: float | Sequence[float] = 3.0
    temperature: float | Sequence[float] = 0.5
    top_k: int = 900
    top_p: float = 0.97
    cfg_layers: tuple[int, ...] = (0,)
    greedy: bool = False
    smooth: bool = False
    refine: str = "auto"

    def on(self, schedule: ScaleSchedule) -> "SamplingSettings":
        """The same with one number per scale in place of three, one per stage, where there are more scales.

        The stages are those of :class:`~stagevar_core.acceleration.stages.StageBoundaries`.
        """

        def spread(value: float | Sequence[float]) -> float | Sequence[float]:
            return per_stage(value, schedule) if _by_stage(value, len(schedule)) else value

        return replace(self, cfg_scale=spread(self.cfg_scale), temperature=spread(self.temperature))

    def validate(self, scales: int, depth: int) -> None:
        """Raise ``ValueError`` naming the first setting that cannot be used."""
        for name, value, low in (("cfg", self.cfg_scale, 0.0), ("temperature", self.temperature, _SMALLEST)):
            if not isinstance(value, Sequence) or isinstance(value, str):
                number(name, value, low, what=_EXPECTED[name])
                continue
            for each in value:  # a list says what it means: with -1 VAR follows the unconditional row alone
                number(name, each, -math.inf if name == "cfg" else low, what=_EXPECTED[name])
            if not _by_stage(value, scales):
                per_scale(name, value, scales)
        number("top_p", self.top_p, 0.0, 1.0, what="0 (off) to 1")
        whole("top_k", self.top_k, 0, what="0 (off) or a positive whole number")
        for layer in self.cfg_layers:
            if not -depth < layer <= 0:
                raise ValueError(f"cfg_layers holds {layer}; expected 0 (logits) or -1 to {1 - depth}")
        if self.smooth and self.greedy:
            raise ValueError("smooth and greedy are both on; smooth sampling needs noise, switch one off")


def _by_stage(value: float | Sequence[float], scales: int) -> TypeGuard[Sequence[float]]:
    """Whether there is a number for every stage and not for every scale."""
    return isinstance(value, Sequence) and len(value) == len(STAGES) < scales
