"""From logits to codes: the sampling rules of the output heads."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from ..costs import UnitCosts
from ..network.attention import AttentionFn
from ..schedule import Scale, ScaleSchedule


class Noise(Protocol):
    """Unit-rate exponential draws for the sampling race ``argmax(p / e)``.

    ``seeds``: one per image, for other draws that belong to the run.
    """

    seeds: tuple[int, ...]

    def exponential(self, scale: Scale, shape: Sequence[int], device: torch.device) -> Tensor:
        """Draws of ``shape`` (B, ...) in float32 for one scale."""

    def uniform(self, scale: Scale, shape: Sequence[int], device: torch.device) -> Tensor:
        """Draws of ``shape`` (B, ...) from 0 to 1 out of a second stream, for heads that ask for them."""

    def image(self, index: int) -> "Noise":
        """The draws of one image alone."""


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


def filter_logits(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Logits (..., V) with minus infinity for what top-k, then top-p remove; 0 switches either off.

    Values equal to the k-th largest all stay. Top-p removes the least likely ones that together have at most
    ``1 - top_p``, never the most likely (models/helpers.py of FoundationVision/VAR).
    """
    logits = logits.float()
    if top_k > 0:
        smallest = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    if top_p > 0:
        ascending, order = logits.sort(dim=-1)
        removed = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1.0 - top_p
        removed[..., -1] = False
        logits = logits.masked_fill(removed.scatter(-1, order, removed), -torch.inf)
    return logits


def sample_tokens(
    logits: Tensor, *, top_k: int = 0, top_p: float = 0.0, noise: Tensor | None = None
) -> Tensor:
    """Token ids (B, L) from logits (B, L, V).

    ``noise``: exponential draws of the logits' shape, with which the race equals one ``torch.multinomial``;
    None takes the largest logit.
    """
    if noise is None:
        return logits.argmax(dim=-1)
    return (filter_logits(logits, top_k, top_p).softmax(dim=-1) / noise).argmax(dim=-1)


def smooth_shares(logits: Tensor, *, top_k: int, top_p: float, progress: float, noise: Tensor) -> Tensor:
    """Shares (B, L, V) of all tokens instead of one draw: ``softmax((l (1 + r) + G) / tau)``.

    ``progress`` r: place of the scale, 0..1; ``tau = max(0.27 (1 - 0.95 r), 0.005)``. G is Gumbel noise,
    ``-log`` of the exponential draws ``noise`` (models/{var,helpers}.py of FoundationVision/VAR).
    """
    tau = max(0.27 * (1.0 - progress * 0.95), 0.005)
    filtered = filter_logits(logits, top_k, top_p)
    return ((filtered * (1.0 + progress) - noise.log()) / tau).softmax(dim=-1)


def refinement(model: Any, wanted: str) -> str | None:
    """How a model's own network draws the fine scales; None draws them at once.

    Raises ``ValueError`` for a way that the model does not have.
    """
    offered = getattr(model, "refinements", ())
    if wanted == "auto":
        return offered[0] if offered else None
    if wanted == "off":
        return None
    if wanted in offered:
        return wanted
    if not offered:
        raise ValueError(
            f"refine is {wanted!r}, but this {model.family} file has no sampler network; choose 'auto' or "
            "'off', or a file with one"
        )
    raise ValueError(f"refine is {wanted!r}; expected one of {['auto', 'off', *offered]}")


def run_costs(model: Any, schedule: ScaleSchedule, wanted: str) -> UnitCosts:
    """A model's costs in a run, with those of the network that draws the fine scales where it does."""
    units, way = model.config.unit_costs, refinement(model, wanted)
    if way is None:
        return units
    return replace(units, refine=tuple(model.refine_flops(scale, way) for scale in schedule))


@dataclass(frozen=True)
class HeadContext:
    """What a head may use that draws the tokens of one scale in several passes of its own.

    ``hidden``: the blocks' output (rows, L, C). ``guided``: what is sampled from otherwise (B, L, V).
    ``guide``: logits of all rows to guided ones, with the strength of the last scale. ``codes``: ids (B, L)
    to codes (B, L, dim). ``noise`` None: greedy.
    """

    scale: Scale
    positions: Tensor | None
    conditioned: Any
    hidden: Tensor
    guided: Tensor
    guide: Callable[[Tensor], Tensor]
    codes: Callable[[Tensor], Tensor]
    dtype: torch.dtype
    attention: AttentionFn
    top_k: int
    top_p: float
    noise: Noise | None

    def exponential(self, shape: Sequence[int]) -> Tensor:
        """Draws of ``shape`` (B, ...) for one pass."""
        return self.noise.exponential(self.scale, shape, self.guided.device)

    def uniform(self, shape: Sequence[int]) -> Tensor | None:
        """Draws of ``shape`` per image, (B, *shape); None where greedy."""
        if self.noise is None:
            return None
        return self.noise.uniform(self.scale, (len(self.guided), *shape), self.guided.device)
