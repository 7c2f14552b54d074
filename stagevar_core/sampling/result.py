"""What a run gives, and what may be watched while it goes."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..schedule import Scale, ScaleSchedule
from .settings import SamplingSettings
from .trace import Trace


@dataclass(frozen=True)
class Generation:
    """Result of one run: the accumulated latent (B, C, H, W), the codes of each scale that ran, the trace.

    Where a policy damped codes or smooth sampling mixed them, they are stored as drawn; only ``f_hat`` has
    what was added.
    """

    f_hat: Tensor
    codes: list[Tensor | None]
    schedule: ScaleSchedule
    trace: Trace


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
