"""What the loop over scales hands to a model's blocks."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .cache import KVCache
from .layers import AttentionFn, TokenPruning
from .schedule import Scale


@dataclass
class ScaleContext:
    """What a model's blocks may use at one scale; made for one call, holds no state of its own."""

    scale: Scale
    positions: Tensor  # whatever the family's positions() returns for this scale
    conditioned: Any  # the family's own state of the conditioning
    dtype: torch.dtype
    attention: AttentionFn
    cache: KVCache
    pruning: TokenPruning | None = None
    after_block: Callable[[int, Tensor], Tensor] = field(default=lambda layer, x: x)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of the new tokens to all tokens so far; the cache keeps the new ones."""
        k, v = self.cache.append(layer, k, v)
        return self.attention(q, k, v, scale=1.0)

    def levels(self, table: Tensor) -> Tensor:
        """The level embedding of this scale from ``table`` (levels, C), (1, C)."""
        return table[self.scale.index : self.scale.index + 1]
