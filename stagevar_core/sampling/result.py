"""What a run gives, and what may be watched while it goes."""

from dataclasses import dataclass

from torch import Tensor

from ..schedule import Scale, ScaleSchedule
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
