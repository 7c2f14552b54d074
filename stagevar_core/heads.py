"""From logits to codes: the sampling rules of the output heads, and where their noise comes from."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from .schedule import Scale


class Noise(Protocol):
    """Unit-rate exponential draws for the sampling race ``argmax(p / e)``."""

    def exponential(self, scale: Scale, shape: Sequence[int], device: torch.device) -> Tensor:
        """Draws of ``shape`` (B, ...) in float32 for one scale."""


class SeededNoise:
    """One generator per image, seeded ``seed + index``, so that batch size never changes an image.

    On the CPU (the default) a seed gives the same draws whatever device the model runs on. For one image the
    stream equals that of the official ``torch.multinomial`` call on that device.
    """

    def __init__(self, seed: int, batch: int, device: str | torch.device = "cpu") -> None:
        # Seeds wrap at 64 bits, the range of the host's seed widget.
        self._generators = [
            torch.Generator(device).manual_seed((seed + index) % 2**64) for index in range(batch)
        ]

    def exponential(self, scale: Scale, shape: Sequence[int], device: torch.device) -> Tensor:
        draws = [
            torch.empty(*shape[1:], dtype=torch.float32, device=generator.device).exponential_(
                generator=generator
            )
            for generator in self._generators
        ]
        return torch.stack(draws).to(device)


class ReplayedNoise:
    """Stored draws per scale index, for parity with a recorded run."""

    def __init__(self, draws: Sequence[Tensor]) -> None:
        self._draws = draws

    def exponential(self, scale: Scale, shape: Sequence[int], device: torch.device) -> Tensor:
        return self._draws[scale.index].reshape(*shape).to(device)


def bit_probabilities(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Probabilities (..., 2) of each bit after top-k and top-p, unnormalised where a value was removed.

    ``top_k`` 1 keeps the larger logit; ``top_p`` removes the smaller value when its probability is at most
    ``1 - top_p``; 0 switches either off (infinity/utils/misc or models/infinity.py, sampling helpers).
    """
    probabilities = logits.float().softmax(dim=-1)
    smaller = probabilities < probabilities.flip(-1)
    removed = torch.zeros_like(smaller)
    if top_k == 1:
        removed = smaller
    if top_p > 0:
        removed = removed | (smaller & (probabilities <= 1.0 - top_p))
    return torch.where(removed, 0.0, probabilities)


def sample_bits(logits: Tensor, *, top_k: int = 0, top_p: float = 0.0, noise: Tensor | None = None) -> Tensor:
    """Bits (B, L, bits) in {0, 1} from logits (B, L, 2 * bits), channel-major pairs (bit 0, bit 1).

    ``noise``: exponential draws (B, L, bits, 2); None takes the larger logit of each pair.
    """
    pairs = logits.unflatten(-1, (-1, 2))
    if noise is None:
        return (pairs[..., 1] > pairs[..., 0]).to(torch.uint8)
    race = bit_probabilities(pairs, top_k, top_p) / noise
    return (race[..., 1] > race[..., 0]).to(torch.uint8)
