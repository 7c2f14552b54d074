"""Counted work and memory of a generation; a multiply and an add are two FLOPs.

Only matrix products count. Norms, rotary positions and sampling are memory-bound and below 1% of the FLOPs.
"""

from dataclasses import dataclass, fields

from .autoencoders.bsq import BSQTokenizerConfig
from .models.infinity import InfinityConfig
from .schedule import ScaleSchedule


@dataclass(frozen=True)
class Flops:
    """FLOPs of one scale, all rows together.

    ``linear``: projections and feed-forward of all blocks. ``attention``: self-attention over the cache.
    ``text``: cross-attention. ``head``: logits; the word embedding, less than that, is left out.
    """

    linear: float = 0.0
    attention: float = 0.0
    text: float = 0.0
    head: float = 0.0

    @property
    def total(self) -> float:
        return self.linear + self.attention + self.text + self.head

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


def scale_flops(
    config: InfinityConfig, tokens: int, visible: int, *, rows: int = 2, text_tokens: int = 64
) -> Flops:
    """One scale of ``tokens`` new tokens that attend to ``visible`` ones, themselves included.

    Per token and layer ``12 C^2 + 4 C F`` for the matrices (28 C^2 when F = 4 C) and ``4 visible C`` for
    scores and mixing; ``rows`` is 2 per image with guidance.
    """
    width, count = config.width, rows * tokens
    return Flops(
        linear=count * config.depth * (12.0 * width**2 + 4.0 * width * config.hidden),
        attention=count * config.depth * 4.0 * visible * width,
        text=count * config.depth * 4.0 * text_tokens * width,
        head=count * 2.0 * width * 2.0 * config.bits,
    )


def schedule_flops(
    config: InfinityConfig, schedule: ScaleSchedule, *, rows: int = 2, text_tokens: int = 64
) -> list[Flops]:
    """The dense cost of every scale of ``schedule``, for cost-weighted progress and achieved rates."""
    costs, visible = [], 0
    for scale in schedule:
        visible += scale.tokens
        costs.append(scale_flops(config, scale.tokens, visible, rows=rows, text_tokens=text_tokens))
    return costs


def condition_flops(config: InfinityConfig, *, rows: int = 2, text_tokens: int = 64) -> float:
    """What a run spends on the text once: pooling, its projection and the keys and values of all blocks."""
    width, count = config.width, rows * text_tokens
    shared = count * 2.0 * (config.text_width * 3.0 * width + width**2)
    modulation = rows * 2.0 * 9.0 * width**2  # pooled projection, 6 C of the blocks, 2 C of the head
    return shared + modulation + count * config.depth * 4.0 * width**2


def kv_bytes(config: InfinityConfig, tokens: int, *, rows: int = 2, itemsize: int = 2) -> int:
    """Size of the KV cache that holds ``tokens`` tokens per row in every layer."""
    return 2 * config.depth * rows * tokens * config.width * itemsize


def decode_flops(config: BSQTokenizerConfig, latent: tuple[int, int], *, batch: int = 1) -> float:
    """FLOPs of the convolutional decoder for a latent grid (height, width); convolutions only."""

    def conv(inputs: int, outputs: int, pixels: int, kernel: int = 3) -> float:
        return 2.0 * kernel**2 * inputs * outputs * pixels

    def block(inputs: int, outputs: int, pixels: int) -> float:
        shortcut = conv(inputs, outputs, pixels, 1) if inputs != outputs else 0.0
        return conv(inputs, outputs, pixels) + conv(outputs, outputs, pixels) + shortcut

    pixels = latent[0] * latent[1]
    channels = config.width * config.multipliers[-1]
    total = conv(config.dim, channels, pixels) + 2 * block(channels, channels, pixels)
    for index in reversed(range(len(config.multipliers))):
        out = config.width * config.multipliers[index]
        total += block(channels, out, pixels) + config.blocks * block(out, out, pixels)
        channels = out
        if index > 0:
            pixels *= 4
            total += conv(channels, channels, pixels)
    return batch * (total + conv(channels, 3, pixels))
