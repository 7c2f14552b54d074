"""From logits to codes: the sampling rules, and the heads that draw by them."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..costs import UnitCosts
from ..schedule import Scale, ScaleSchedule
from .contract import Drawing, Drawn, Head, Noise, Transformer

NATS_PER_BIT = 0.6931471805599453  # ln 2


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


def choice_entropy(choices: Tensor) -> Tensor:
    """Entropy in bits of choices with logits (..., options), (...)."""
    logs = choices.float().log_softmax(dim=-1)
    return -(logs.exp() * logs).sum(dim=-1)


class BitHead:
    """Every token is a row of bits, each with a pair of logits: V is ``2 * bits``."""

    def __init__(self, bits: int) -> None:
        self.bits = bits

    def check(self, *, smooth: bool) -> None:
        """``ValueError`` for smooth sampling."""
        if smooth:
            raise ValueError("smooth sampling mixes the rows of a codebook, which bitwise models do not have")

    def draw(self, drawing: Drawing) -> Drawn:
        """Bits on the latent grid and their codes."""
        bits = sample_bits(
            drawing.guided, top_k=drawing.top_k, top_p=drawing.top_p, noise=drawing.exponential(self.bits, 2)
        )
        latent = drawing.quantizer.to_latent(bits, drawing.scale)
        return Drawn(latent, drawing.quantizer.codes(latent))

    def pass_over(
        self, scale: Scale, batch: int, noise: Noise, device: torch.device, *, smooth: bool
    ) -> None:
        """The draws of a scale that does not run."""
        noise.exponential(scale, (batch, scale.tokens, self.bits, 2), device)

    def choices(self, logits: Tensor) -> Tensor:
        """The likelier value of every bit, (rows, L, bits)."""
        return sample_bits(logits)

    def entropy(self, logits: Tensor) -> Tensor:
        """Mean entropy of the bits of a token, (rows, L)."""
        return choice_entropy(logits.unflatten(-1, (-1, 2))).mean(dim=-1) / NATS_PER_BIT

    def flops(self, scale: Scale) -> float:
        """0: all bits are drawn at once."""
        return 0.0


class TokenHead:
    """Every token is a row of a codebook: one logit for each of ``vocab``.

    ``smooth_filters``: smooth sampling goes by top-k and top-p, too. ``smooth_draws``: draws that it makes
    per scale, of which the last is its Gumbel noise; with 2 the token is drawn by one of its own, as always.
    """

    def __init__(self, vocab: int, *, smooth_filters: bool, smooth_draws: int) -> None:
        self.vocab, self.smooth_filters, self.smooth_draws = vocab, smooth_filters, smooth_draws

    def check(self, *, smooth: bool) -> None:
        """Both ways are known."""

    def draw(self, drawing: Drawing) -> Drawn:
        """Ids on the grid and their codes, with ``smooth`` mixtures of codes."""
        quantizer, scale = drawing.quantizer, drawing.scale
        rule = {"top_k": drawing.top_k, "top_p": drawing.top_p}
        draws = drawing.exponential(self.vocab)
        ids = quantizer.to_latent(sample_tokens(drawing.guided, **rule, noise=draws), scale)
        noise = drawing.exponential(self.vocab) if drawing.smooth and self.smooth_draws > 1 else draws
        if not drawing.smooth or noise is None:
            return Drawn(ids, quantizer.codes(ids))
        rule = rule if self.smooth_filters else {"top_k": 0, "top_p": 0.0}
        shares = smooth_shares(drawing.guided, **rule, progress=drawing.progress, noise=noise)
        return Drawn(ids, quantizer.mixture(shares, scale))

    def pass_over(
        self, scale: Scale, batch: int, noise: Noise, device: torch.device, *, smooth: bool
    ) -> None:
        """The draws of a scale that does not run."""
        for _ in range(self.smooth_draws if smooth else 1):
            noise.exponential(scale, (batch, scale.tokens, self.vocab), device)

    def choices(self, logits: Tensor) -> Tensor:
        """The most likely ids, (rows, L)."""
        return sample_tokens(logits)

    def entropy(self, logits: Tensor) -> Tensor:
        """Entropy of the choice of a token, (rows, L)."""
        return choice_entropy(logits) / NATS_PER_BIT

    def flops(self, scale: Scale) -> float:
        """0: all tokens are drawn at once."""
        return 0.0


def refinement(family: str, offered: Sequence[str], wanted: str) -> str | None:
    """How a model's own network draws the fine scales, of the ways ``offered``; None draws them at once.

    Raises ``ValueError`` for a way that the model does not have.
    """
    if wanted == "auto":
        return offered[0] if offered else None
    if wanted == "off":
        return None
    if wanted in offered:
        return wanted
    if not offered:
        raise ValueError(
            f"refine is {wanted!r}, but this {family} file has no sampler network; choose 'auto' or "
            "'off', or a file with one"
        )
    raise ValueError(f"refine is {wanted!r}; expected one of {['auto', 'off', *offered]}")


def run_costs(model: Transformer, schedule: ScaleSchedule, head: Head) -> UnitCosts:
    """A model's costs in a run, with those of the passes that its head makes."""
    passes = tuple(head.flops(scale) for scale in schedule)
    units = model.config.unit_costs
    return replace(units, refine=passes) if any(passes) else units
