"""Tiny random Infinity models for tests that need a working model, not a good one."""

import functools
import gc
from dataclasses import replace

import torch
from torch import Tensor, nn

from stagevar_core.autoencoders.bsq import BSQTokenizer, BSQTokenizerConfig
from stagevar_core.conditioning.types import TextConditioning
from stagevar_core.models.infinity import Infinity, InfinityConfig
from stagevar_core.sampling.generate import generate
from stagevar_core.sampling.result import Monitor
from stagevar_core.sampling.settings import SamplingSettings
from stagevar_core.schedule import Scale, ScaleSchedule

TEXT_WIDTH, NULL_ROWS = 24, 16
SQUARE = ScaleSchedule.of([(1, 1), (2, 2), (3, 3), (4, 4), (6, 6)], (64, 64))
TALL = ScaleSchedule.of([(1, 1), (2, 1), (4, 3), (7, 4)], (80, 48))
GREEDY = SamplingSettings(cfg_scale=3.0, temperature=1.0, greedy=True)
# Spreads of weights: rounding is not amplified, or rows and tokens differ in what they draw.
NEAR, FAR = 1.2, 4.0
# What all tokens share, and the head: with a spread of FAR these would drown the tokens and leave no choice.
CALM = ("text_pool", "text_mlp", "ada", "modulation", "cross_attn.proj", "head")
SHARP = 3.0  # logarithm of the scale of attention that looks at few tokens, as in trained models


def randomize(module: nn.Module, seed: int, spread: float = NEAR) -> None:
    """Weights that keep activations alive, drawn without the global random state.

    ``spread``: what a matrix makes of unit values, as a standard deviation. Beyond NEAR it is that of the
    weights which tell tokens and rows apart, and attention is sharp.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            values = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                calm = any(part in name for part in CALM)
                values *= (min(spread, NEAR) if calm else spread) / parameter[0].numel() ** 0.5
            elif "norm" in name and not name.endswith("bias"):
                values = 1.0 + 0.1 * values
            else:
                values *= 0.3
            if name.endswith("log_scale") and spread > NEAR:
                values += SHARP
            parameter.copy_(values)


def tiny_infinity(
    seed: int = 0,
    *,
    bits: int = 4,
    patch: int = 1,
    depth: int = 3,
    dtype=None,
    spread: float = NEAR,
    edits: bool = False,
) -> Infinity:
    """A random transformer; the same seed gives the same weights in every dtype."""
    config = InfinityConfig(
        depth=depth,
        width=32,
        heads=2,
        hidden=64,
        bits=bits * patch**2,
        patch=patch,
        text_width=TEXT_WIDTH,
        null_rows=NULL_ROWS,
        pool_heads=2,
        edits=edits,
    )
    model = Infinity(config, dtype=dtype)
    randomize(model, seed, spread)
    return model.eval()


def tiny_tokenizer(seed: int = 0, *, dim: int = 4) -> BSQTokenizer:
    """A random tokenizer of stride 4."""
    tokenizer = BSQTokenizer(BSQTokenizerConfig(dim=dim, width=32, multipliers=(1, 1, 1), blocks=1))
    randomize(tokenizer, seed)
    return tokenizer.eval()


def texts(*lengths: int, seed: int = 0) -> tuple[Tensor, ...]:
    """Random encoded prompts; each depends on its place alone, not on how many there are."""
    return tuple(
        torch.randn(length, TEXT_WIDTH, generator=torch.Generator().manual_seed(1000 * seed + place))
        for place, length in enumerate(lengths)
    )


def prompts(*lengths: int, negative: tuple[int, ...] | None = None) -> TextConditioning:
    """Conditioning of random prompts with these lengths in tokens."""
    return TextConditioning(texts(*lengths), texts(*negative, seed=1) if negative else None)


def edits(*lengths: int, negative: tuple[int, ...] | None = None, dim: int = 4) -> TextConditioning:
    """The same with a random picture for each, of 8 x 8 latent pixels."""
    pictures = [
        torch.randn(dim, 8, 8, generator=torch.Generator().manual_seed(77 + place))
        for place in range(len(lengths))
    ]
    return replace(prompts(*lengths, negative=negative), source=torch.stack(pictures))


def plain_attention(q, k, v, *, scale=None, mask=None):
    """Matrix products that PyTorch's counter of work sees on every device."""
    return (q @ k.transpose(-1, -2) * (scale or q.shape[-1] ** -0.5)).softmax(dim=-1) @ v


class Logits(Monitor):
    """Keeps what every scale sampled from."""

    def __init__(self) -> None:
        self.raw: list[Tensor] = []
        self.guided: list[Tensor] = []

    def logits(self, scale: Scale, raw: Tensor, guided: Tensor) -> None:
        self.raw.append(raw)
        self.guided.append(guided)


class Interrupted(Exception):
    pass


class InterruptAt(Monitor):
    """Stops in the middle of a block sequence, like a host's cancel button."""

    def __init__(self, index: int, layer: int) -> None:
        self.at = index, layer

    def block(self, scale: Scale, layer: int) -> None:
        if (scale.index, layer) == self.at:
            raise Interrupted


@functools.cache
def set_aside() -> None:
    """Spare the collector what is there already, the many objects of imported libraries above all."""
    gc.collect()
    gc.freeze()


def live_tensors() -> int:
    """How many tensors the process holds of those that were made since this was first asked."""
    set_aside()
    gc.collect()
    # By type: isinstance would wake up lazy objects of other libraries.
    return sum(issubclass(type(candidate), Tensor) for candidate in gc.get_objects())


def run(model: Infinity, conditioning: TextConditioning, schedule: ScaleSchedule = SQUARE, **options):
    """``generate`` with greedy guided sampling unless told otherwise."""
    options.setdefault("noise", None)
    return generate(model, conditioning, schedule, options.pop("settings", GREEDY), **options)


def same_codes(first, second, image: slice = slice(None)) -> bool:
    """Whether two generations ran the same scales and drew the same codes there, for these images of both."""
    pairs = zip(first.codes, second.codes, strict=True)
    return all(
        a is b is None or (a is not None and b is not None and torch.equal(a[image], b[image]))
        for a, b in pairs
    )
