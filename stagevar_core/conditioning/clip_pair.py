"""Prompts to features with two CLIP text encoders side by side, which Switti was trained on.

OpenAI's CLIP-L and OpenCLIP's bigG, the pair of Stable Diffusion XL; both give what their last layer says,
after the final norm.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .clip import MAX_TOKENS, CLIPTextEncoder


class CLIPPair:
    """Two frozen encoders that read the same tokens: one (tokens, width) float32 tensor per prompt.

    The narrower one comes first on the channels. Raises ``ValueError`` for two of one width.
    """

    family = "clip pair"

    def __init__(self, encoders: Sequence[CLIPTextEncoder]) -> None:
        first, second = sorted(encoders, key=lambda encoder: encoder.width)
        if first.width == second.width:
            raise ValueError(
                f"both text encoders have {first.width} channels; expected two different ones, CLIP-L with "
                "768 and CLIP-bigG with 1280"
            )
        self.first, self.second = first, second
        self.model = nn.ModuleList((first.model, second.model))

    @property
    def width(self) -> int:
        """Channels of the features of both."""
        return self.first.width + self.second.width

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.second.device

    def encode(self, prompts: Sequence[str], max_tokens: int = MAX_TOKENS) -> tuple[Tensor, ...]:
        """Features of each prompt, (tokens, width) in float32 on the encoders' device, without padding.

        ``ValueError`` where the vocabularies cut a prompt into different numbers of tokens.
        """
        pairs = zip(*(each.encode(prompts, max_tokens) for each in (self.first, self.second)), strict=True)
        features = []
        for prompt, (one, other) in zip(prompts, pairs, strict=True):
            if len(one) != len(other):
                raise ValueError(
                    f"the first text encoder reads {prompt[:40]!r} as {len(one)} tokens, the second as "
                    f"{len(other)}; expected both with CLIP's vocabulary. Load the one that belongs to each"
                )
            features.append(torch.cat((one, other.to(one.device)), dim=-1))
        return tuple(features)
