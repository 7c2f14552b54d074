"""Restoring pictures: the codes of a poor picture to those of a better one, in one pass over all scales."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..conditioning.types import TextConditioning
from ..models.contract import Noise, Quantizer, Transformer
from ..models.draws import sample_bits
from ..models.restoring import RestoringLayout, restoring_inputs, restoring_logits
from ..network.attention import AttentionFn, attend
from .forecast import Forecast, Load
from .memory import MemoryEstimate, estimate_memory

NULL_TOKENS = 32  # of the null text that stands for a prompt; in training it was as long as the prompt


class Restored(NamedTuple):
    """``f_hat``: the latent (B, C, H, W). ``codes``: what was drawn at every scale, on its latent grid."""

    f_hat: Tensor
    codes: list[Tensor]


class Restorer:
    """What does not change from tile to tile: model, sizes, the state of the text.

    ``conditioning``: one text for all tiles; None is the model's own null text. ``device``: where to run.
    Raises ``ValueError`` for models that do not draw bits and for texts that do not fit.
    """

    def __init__(
        self,
        model: Transformer,
        layout: RestoringLayout,
        quantizer: Quantizer,
        conditioning: TextConditioning | None,
        *,
        attention: AttentionFn = attend,
        device: torch.device | str = "cpu",
    ) -> None:
        if not quantizer.signs:
            raise ValueError(f"a {model.family} model draws no bits; only Infinity's restore pictures")
        self.model, self.layout, self.quantizer, self.attention = model, layout, quantizer, attention
        self.device = torch.device(device)
        with torch.inference_mode():
            if conditioning is None:
                text = torch.zeros(_null_tokens(model), model.config.text_width, device=self.device)
                both = model.condition(TextConditioning((text,)), True, self.device, attention)
                self.conditioned = both.narrow(slice(1, None))
            else:
                first = conditioning.image(0).nulled(None)
                self.conditioned = model.condition(first, False, self.device, attention)

    @torch.inference_mode()
    def __call__(
        self, features: Tensor, noise: Noise | None, after_block: Callable[[int], object] = lambda layer: None
    ) -> Restored:
        """The latent of a tile (1, C, H, W) from its features of the same shape.

        ``noise``: draws of the bits, scale after scale; None takes the likelier ones. ``after_block``: see
        :func:`..models.restoring.restoring_logits`.
        """
        schedule, quantizer = self.layout.schedule, self.quantizer
        features = features.to(self.device)
        inputs = restoring_inputs(quantizer, features, schedule)
        logits = restoring_logits(
            self.model, self.conditioned, inputs, self.layout, self.attention, after_block
        )
        f_hat, start = quantizer.empty(len(features), schedule, self.device), 0
        drawn = []
        for scale in schedule:
            part = logits[:, start : start + scale.tokens]
            start += scale.tokens
            shape = (*part.shape[:2], part.shape[2] // 2, 2)
            draws = None if noise is None else noise.exponential(scale, shape, self.device)
            drawn.append(quantizer.to_latent(sample_bits(part, noise=draws), scale))
            f_hat = quantizer.add(f_hat, quantizer.codes(drawn[-1]), schedule, scale)
        return Restored(f_hat, drawn)


def restoring_memory(model: Transformer, layout: RestoringLayout, text_tokens: int) -> MemoryEstimate:
    """What a tile needs beside the weights."""
    tokens = layout.tokens
    expected = Forecast(keys=0, loads=(Load(tokens, tokens, tokens),), remembered=0, flops=())
    return estimate_memory(model.config, expected, text_tokens or _null_tokens(model), model.compute_dtype)


def _null_tokens(model: Transformer) -> int:
    return min(NULL_TOKENS, model.longest_text or NULL_TOKENS)
