"""What families have in common that let no tokens precede their scales."""

import torch
from torch import Tensor

from ..conditioning.types import Conditioning, check_task
from ..schedule import Prefix, ScaleSchedule


class NoPrefix:
    """The members about a prefix of families that have none: they edit no picture."""

    family: str
    edits = False

    def prefix(self, conditioning: Conditioning, schedule: ScaleSchedule) -> Prefix | None:
        """None; ``ValueError`` for a picture to edit."""
        check_task(conditioning, edits=False, family=self.family)

    def prefix_tokens(self, conditioning: Conditioning, prefix: Prefix, device: torch.device) -> Tensor:
        """Raises ``ValueError``: there is no prefix."""
        raise ValueError(f"{self.family} has no tokens that precede the scales")
