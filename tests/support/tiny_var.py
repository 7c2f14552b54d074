"""Tiny random VAR models and the VQ tokenizer that belongs to them."""

from stagevar_core.autoencoders.vq import VQTokenizer, VQTokenizerConfig
from stagevar_core.conditioning.types import ClassConditioning
from stagevar_core.models.var import VAR, VARConfig
from stagevar_core.schedule import SIDES_256, ScaleSchedule
from tests.support.tiny import NEAR, randomize

SIDES = (1, 2, 3, 4, 6)
VOCAB, DIM, CLASSES = 24, 4, 7


def squares(*sides: int) -> ScaleSchedule:
    """Square scales with these sides."""
    return ScaleSchedule.of([(side, side) for side in sides])


SQUARES = squares(*SIDES)
PUBLISHED = squares(*SIDES_256)


def tiny_var(
    sides: tuple[int, ...] = SIDES, *, depth: int = 3, dtype=None, spread: float = NEAR, **options
) -> VAR:
    """A random transformer; the same options give the same weights in every dtype."""
    config = VARConfig(depth, 32, 2, 64, sides, CLASSES, VOCAB, DIM, **options)
    model = VAR(config, dtype=dtype)
    randomize(model, 0, spread)
    return model.eval().requires_grad_(False)


def tiny_vq(seed: int = 0, *, phis: int = 4) -> VQTokenizer:
    """A random tokenizer of stride 4."""
    config = VQTokenizerConfig(VOCAB, DIM, width=32, multipliers=(1, 1, 1), blocks=1, phis=phis)
    tokenizer = VQTokenizer(config)
    randomize(tokenizer, seed)
    return tokenizer.eval().requires_grad_(False)


def labels(batch: int, *, negative: bool = False) -> ClassConditioning:
    """A class for every image; the first do not depend on their number."""
    wanted, unwanted = (tuple((first + 3 * index) % CLASSES for index in range(batch)) for first in (2, 3))
    return ClassConditioning(wanted, unwanted if negative else None)
