"""What a generation is asked for, and how its images are divided into runs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .acceleration.policy import AccelerationPolicy, DensePolicy
from .attention import AttentionFn, attend
from .conditioning import ClassConditioning, TextConditioning
from .guidance import per_scale
from .heads import Noise
from .known import known_codes
from .run import Generation, Monitor, Run
from .schedule import ScaleSchedule
from .trace import joined


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


@torch.inference_mode()
def generate(  # noqa: PLR0913 - independent collaborators, each with one owner
    model: Any,
    conditioning: TextConditioning | ClassConditioning,
    schedule: ScaleSchedule,
    settings: SamplingSettings,
    *,
    noise: Noise | None,
    quantizer: Any = None,
    policy: AccelerationPolicy | None = None,
    attention: AttentionFn = attend,
    monitor: Monitor | None = None,
    known: Sequence[Tensor] = (),
    masks: Sequence[Tensor] = (),
    device: torch.device | str | None = None,
    sequential: bool = False,
    offload: torch.device | str | None = None,
) -> Generation:
    """Generate one image per prompt or class.

    ``noise`` may be None for greedy sampling. ``quantizer`` defaults to the model's own; it is the
    tokenizer's where that has a codebook. ``known``: codes of the first scales on the latent grid, which
    replace the sampled ones (the sampler still draws for them). ``masks``: where they do, (B or 1, h, w)
    booleans of as many scales; everywhere without. ``device``: where to run; the host passes it because
    weights may be offloaded. ``sequential``: less memory for the same result: under guidance every block
    runs on the conditional rows and then on the unconditional ones. ``offload``: where the keys and values of
    the latter wait meanwhile, one layer at a time on the device; about half of the cache less there. Raises
    ``ValueError`` for settings that cannot be used.
    """
    if offload is not None and not sequential:
        raise ValueError(f"offload is {str(offload)!r}, but all rows run together; pass sequential=True, too")
    settings.validate(len(schedule), model.config.depth)
    if noise is None and not settings.greedy:
        raise ValueError("sampling needs a noise source; pass one, or settings with greedy=True")
    policy, monitor = policy or DensePolicy(), monitor or Monitor()
    quantizer = quantizer or model.quantizer()
    if settings.smooth and model.bitwise:
        raise ValueError("smooth sampling mixes the rows of a codebook, which bitwise models do not have")
    given, batch = known_codes(known, masks, len(schedule)), conditioning.batch
    images = [(conditioning, noise, given)]
    if policy.per_image and batch > 1:
        monitor.restart(batch)
        images = [
            (conditioning.image(i), noise and noise.image(i), [each.image(i) for each in given])
            for i in range(batch)
        ]
    parts = []
    for texts, draws, fixed in images:
        run = Run(
            model,
            texts,
            schedule,
            settings,
            attention,
            device,
            sequential=sequential,
            offload=offload,
        )
        parts.append(run.generate(draws, quantizer, policy, monitor, fixed))
    return parts[0] if len(parts) == 1 else _joined(parts)


def _joined(parts: Sequence[Generation]) -> Generation:
    """Generations of one image each as one batch; codes only of scales that all of them ran."""
    scales = zip(*(part.codes for part in parts), strict=True)
    return Generation(
        torch.cat([part.f_hat for part in parts]),
        [None if any(c is None for c in codes) else torch.cat(codes) for codes in scales],
        parts[0].schedule,
        joined([part.trace for part in parts]),
    )
