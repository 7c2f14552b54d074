"""Tiny random HART models, texts with padding for them and the tokenizer that belongs to them."""

import torch
from torch import Tensor

from stagevar_core.autoencoders.hybrid import HybridTokenizer
from stagevar_core.autoencoders.vq import VQTokenizerConfig
from stagevar_core.conditioning.types import TextConditioning
from stagevar_core.models.hart import HART
from stagevar_core.models.hart_config import HARTConfig
from tests.support.tiny import NEAR, TEXT_WIDTH, randomize
from tests.support.tiny_var import DIM, VOCAB, squares

CONTEXT = 9
SIDES = (1, 2, 3, 4, 6)
SQUARES = squares(*SIDES)
MODULATED = {"cosine": True, "modulation": "own", "level_table": True, "pooling": "avg"}


def tiny_hart(
    sides: tuple[int, ...] = SIDES, *, depth: int = 3, dtype=None, spread: float = NEAR, **options
) -> HART:
    """A random transformer; the same options give the same weights in every dtype."""
    sizes = {"context": CONTEXT, "text_width": TEXT_WIDTH, "vocab": VOCAB, "dim": DIM, "diff_width": 16}
    config = HARTConfig(depth, 32, 2, 64, sides, **sizes, diff_depth=1, **options)
    model = HART(config, dtype=dtype)
    randomize(model, 3, spread)
    with torch.no_grad():  # variances beyond those of a trained model overflow within the steps
        model.diffusion.out.weight *= 0.05
        model.diffusion.out.bias *= 0.05
    return model.eval().requires_grad_(False)


def tiny_hybrid(seed: int = 0) -> HybridTokenizer:
    """A random tokenizer of stride 4."""
    tokenizer = HybridTokenizer(VQTokenizerConfig(VOCAB, DIM, width=32, multipliers=(1, 1, 1), blocks=1))
    randomize(tokenizer, seed)
    return tokenizer.eval().requires_grad_(False)


def padded(batch: int, *, negative: bool = False) -> TextConditioning:
    """A text for every image, padded to the same length; the first do not depend on their number."""
    against = (3, 0, 5, 1)[:batch] if negative else ()
    return TextConditioning(
        _texts(batch, 0), _texts(batch, 1) if negative else None, padding=(4, 0, 7, 2)[:batch],
        negative_padding=against,
    )  # fmt: skip


def _texts(count: int, seed: int) -> tuple[Tensor, ...]:
    """All of them with what stands for padding, which the model reads as well."""
    return tuple(
        torch.randn(CONTEXT, TEXT_WIDTH, generator=torch.Generator().manual_seed(1000 * seed + place))
        for place in range(count)
    )
