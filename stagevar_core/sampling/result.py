"""What a run gives, and what may be watched while it goes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..models.contract import Quantizer
from ..schedule import Scale, ScaleSchedule
from .settings import SamplingSettings
from .trace import Trace, joined


class ScaleCodes(NamedTuple):
    """All that a scale added: enough to add it again, bit for bit.

    ``drawn``: on the latent grid, None where the scale was skipped. ``mixed``: codes (B, C, h, w) where they
    are mixtures and not those of ``drawn``. ``weights``: (B or 1, 1, h, w) where a policy damped codes.
    """

    drawn: Tensor | None
    mixed: Tensor | None = None
    weights: Tensor | None = None

    def images(self, images: Sequence[int]) -> "ScaleCodes":
        """Those of these images, in this order; one may be wanted several times."""
        return ScaleCodes(*(None if part is None else part[list(images)] for part in self))

    def to(self, device: torch.device) -> "ScaleCodes":
        """The same on a device."""
        return ScaleCodes(*(None if part is None else part.to(device) for part in self))

    def add(self, f_hat: Tensor, quantizer: Quantizer, schedule: ScaleSchedule, scale: Scale) -> Tensor:
        """``f_hat`` (B, C, H, W) with what this scale adds."""
        if self.drawn is None:
            return f_hat
        if self.mixed is None:
            codes = quantizer.codes(self.drawn.to(f_hat.device))
        else:  # as mixtures lie where they are made, since resampling rounds by that
            codes = self.mixed.to(f_hat).contiguous(memory_format=torch.channels_last)
        weights = None if self.weights is None else self.weights.to(f_hat.device)
        return quantizer.add(f_hat, codes, schedule, scale, weights)


@dataclass(frozen=True)
class Generation:
    """Result of a call: the accumulated latent (B, C, H, W), what each scale added, the trace.

    ``scales``: those that the run went over, which may be the first ones only. ``parts``: where the images
    were made in runs of their own, those runs; a scale that some of them skipped has no codes in ``scales``.
    """

    f_hat: Tensor
    scales: list[ScaleCodes]
    schedule: ScaleSchedule
    trace: Trace
    parts: tuple["Generation", ...] = ()

    @property
    def codes(self) -> list[Tensor | None]:
        """What was drawn at every scale, None where it was skipped; damped or mixed codes as drawn."""
        return [scale.drawn for scale in self.scales]

    def image(self, index: int) -> tuple[ScaleCodes, ...]:
        """What each scale added to one image."""
        if self.parts:
            return self.parts[index].image(0)
        return tuple(scale.images([index]) for scale in self.scales)

    @classmethod
    def of(cls, parts: Sequence["Generation"]) -> "Generation":
        """Runs of one image each as one batch."""
        scales = [_joined(scales) for scales in zip(*(part.scales for part in parts), strict=True)]
        f_hat = torch.cat([part.f_hat for part in parts])
        trace = joined([part.trace for part in parts])
        return cls(f_hat, scales, parts[0].schedule, trace, tuple(parts))


def _joined(scales: Sequence[ScaleCodes]) -> ScaleCodes:
    """Of several runs as one batch."""
    if any(scale.drawn is None for scale in scales):
        return ScaleCodes(None)
    columns = ([part for part in parts if part is not None] for parts in zip(*scales, strict=True))
    return ScaleCodes(*(torch.cat(found) if len(found) == len(scales) else None for found in columns))


@dataclass(frozen=True)
class Pictures:
    """Result of a call.

    ``images``: (B, H, W, 3) uint8 on the CPU, those of a prompt next to each other. ``seeds``: one per image.
    ``seconds``: 'text', 'scales' (a list, the first includes the text's projections), 'decode' and 'total'.
    A scale that a policy skipped counts 0. ``steps``: images by index of the scale, where asked for.
    """

    images: Tensor
    seeds: tuple[int, ...]
    schedule: ScaleSchedule
    settings: SamplingSettings
    seconds: dict[str, Any]
    generation: Generation
    steps: dict[int, Tensor] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.images.shape[2], self.images.shape[1]


class Monitor:
    """What a caller may watch; raising from a method stops the run, and nothing of it stays behind."""

    def restart(self, runs: int) -> None:
        """Called when the images are made in ``runs`` runs, one after the other, from the first scale."""

    def block(self, scale: Scale, layer: int) -> None:
        """Called after every block; those over what precedes the scales count to the first one."""

    def logits(self, scale: Scale, raw: Tensor, guided: Tensor) -> None:
        """Called with the head's output (rows, L, V) and what is sampled from (B, L, V)."""

    def scale(self, scale: Scale, f_hat: Tensor) -> None:
        """Called after every scale with the accumulated latent (B, C, H, W)."""
