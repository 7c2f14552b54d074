"""What a run needs beside the weights, in bytes."""

from dataclasses import dataclass

import torch

from ..costs import kv_bytes
from ..models.contract import Config
from .forecast import Forecast, Load

MARGIN = 1.1  # what an allocator cannot use, and what is too small to list here


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one run beside the weights."""

    cache: int
    activations: int

    @property
    def total(self) -> int:
        """Bytes of both."""
        return self.cache + self.activations


def estimate_memory(
    config: Config, expected: Forecast, text_tokens: int, compute: torch.dtype
) -> MemoryEstimate:
    """What a run on a GPU holds at its peak; ``text_tokens`` of all rows together.

    Every term was counted tensor by tensor, see ``tests/sampling/test_memory.py``. A CPU needs less.
    """
    cache = kv_bytes(config, expected.keys + text_tokens, rows=1, itemsize=compute.itemsize)
    most = max(_load(config, load, compute.itemsize) for load in expected.loads)
    most += 4 * config.width * expected.remembered  # of the residual stream
    most += 4 * 4 * config.text_width * text_tokens  # float32 features, what they become
    return MemoryEstimate(cache, int(MARGIN * most))


def _load(config: Config, load: Load, itemsize: int) -> int:
    """The largest of what one scale holds at once: in its blocks, when they are restored, at its head."""
    width, hidden, logits = config.width, config.hidden, round(config.unit_costs.head / (2 * config.width))
    # The stream in float32 as it entered the model, the region and the block.
    stream = 3 * 4 * width * load.stream
    # Queries, keys and values, of which the first two are turned in float32; or both sides of the GELU beside
    # their input, after the stream has moved on by one branch.
    attention = (3 * itemsize + 4 * 4) * width
    feed_forward = itemsize * width + 2 * hidden * itemsize
    inside = stream + load.computed * (4 * width + max(attention, feed_forward) // load.turns)
    # What entered the model and the region, what is remembered on its grid, the output, its change.
    restoring = 5 * 4 * width * load.stream + 2 * 4 * width * load.computed if load.reduced else 0
    # What the head gives, tempered; of what is drawn from: sorted, as shares, their sums, and the noise.
    head = 4 * width * load.stream + 4 * logits * (3 * load.stream + 6 * load.drawn)
    before = 4 * logits * load.stream  # the head's output at the last scale with guidance
    return max(before + inside, before + restoring, head)
