"""What a generation is conditioned on, independent of who encoded it."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class TextConditioning:
    """Encoded prompts of a batch: one (tokens, width) tensor per image, without padding.

    ``negative`` replaces the model's own null text in the unconditional rows; None keeps the null text.
    """

    features: tuple[Tensor, ...]
    negative: tuple[Tensor, ...] | None = None

    def __post_init__(self) -> None:
        if not self.features:
            raise ValueError("conditioning needs at least one prompt, got none")
        if self.negative is not None and len(self.negative) != len(self.features):
            raise ValueError(
                f"{len(self.negative)} negative prompts for {len(self.features)} prompts; give one for each"
            )

    @property
    def batch(self) -> int:
        return len(self.features)


def pad_rows(texts: list[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Texts (tokens, width) as one padded (rows, T, width) tensor and the mask of real tokens.

    The mask (rows, 1, 1, T) is None when all texts are as long, so that attention runs without one.
    """
    longest = max(len(text) for text in texts)
    padded = torch.stack([F.pad(text, (0, 0, 0, longest - len(text))) for text in texts])
    if all(len(text) == longest for text in texts):
        return padded, None
    lengths = torch.tensor([len(text) for text in texts], device=padded.device)
    mask = torch.arange(longest, device=padded.device)[None, :] < lengths[:, None]
    return padded, mask[:, None, None, :]
