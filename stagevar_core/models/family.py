"""What the transformers of several families have in common, as bases; see contract.py for the members."""

from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from ..autoencoders.vq import VectorQuantizer
from ..conditioning.types import TextConditioning
from ..network.cache import KVCache
from ..network.layers import cast
from ..network.rotary import normalised_angles
from ..schedule import Prefix, Scale, ScaleSchedule
from .config import Config
from .prefix import NoPrefix
from .star_config import STARConfig
from .switti_config import SwittiConfig

ConfigT = TypeVar("ConfigT", bound=Config)
ClipConfigT = TypeVar("ClipConfigT", bound=STARConfig | SwittiConfig)


class NextScale(nn.Module, Generic[ConfigT]):
    """All of them: sizes, dtype of the products, KV cache, and the layer ``word_embed`` for inputs of scales.

    ``compute_dtype``: of the blocks' matrix products; float32 where nothing says it.
    """

    word_embed: nn.Module

    def __init__(self, config: ConfigT, compute_dtype: torch.dtype | None) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype = compute_dtype or torch.float32

    def new_cache(self, rows: int, device: torch.device) -> KVCache:
        """An empty cache for ``rows`` rows."""
        config = self.config
        return KVCache(
            config.depth, rows, config.heads, config.head_dim, dtype=self.compute_dtype, device=device
        )

    def embed(self, inputs: Tensor) -> Tensor:
        """What the quantizer gives (B, L, channels) to hidden states (B, L, C), without level or position."""
        return self.word_embed(inputs)


class StartToken(NextScale[ConfigT]):
    """Those whose first scale is the conditioning as one vector, and a learned one."""

    start: nn.Parameter  # (C,)

    def first_tokens(self, state: Any) -> Tensor:
        """The start token of every row, (rows, 1, C), without level or position; ``state`` has ``start``."""
        return (state.start + cast(self.start, state.start)).unsqueeze(1)


class OverCodebook(NoPrefix):
    """Those over tokenizers of VAR's kind, whose codebook is not in the transformer's file."""

    title: str
    """The name of the family in errors."""

    def quantizer(self) -> VectorQuantizer:
        """Raises: the codebook is part of the tokenizer."""
        raise ValueError(
            f"{self.title} needs the codebook of its tokenizer; pass quantizer=tokenizer.quantizer()"
        )


class ClipText(OverCodebook, StartToken[ClipConfigT]):
    """Those that read CLIPs, with the encoded empty prompt as null text, and have a number of levels."""

    learned_null = False
    classes = None
    longest_text = None

    def check(self, schedule: ScaleSchedule) -> None:
        """Raise ``ValueError`` for more scales than the model has levels of."""
        if len(schedule) > self.config.levels:
            raise ValueError(
                f"the schedule has {len(schedule)} scales; this model was trained on {self.config.levels}. "
                "Choose the size that it was trained on"
            )

    def positions(
        self, schedule: ScaleSchedule, scale: Scale, device: torch.device, prefix: Prefix | None = None
    ) -> Tensor:
        """Rotary angles of one scale."""
        config = self.config
        return normalised_angles(scale, config.head_dim, config.rope_norm, config.rope_base, device)

    def counterparts(self, conditioning: TextConditioning) -> Sequence[Tensor]:
        """What stands against the prompts: the negative texts, or the encoded empty prompt for each."""
        if conditioning.negative is not None:
            return conditioning.negative
        if conditioning.null is None:
            raise ValueError(
                f"{self.title} has no null text of its own and got none; encode the empty prompt and pass it "
                "as `null`"
            )
        return [conditioning.null] * conditioning.batch
