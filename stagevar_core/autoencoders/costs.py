"""Counted work of the decoders; a multiply and an add are two FLOPs."""

from typing import Protocol


class Decoder(Protocol):
    """Sizes of a convolutional decoder.

    ``dim``: channels of the latent. ``width``, ``multipliers``, ``blocks``: channels of the finest level,
    their factors by level, residual blocks.
    """

    @property
    def dim(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def multipliers(self) -> tuple[int, ...]: ...
    @property
    def blocks(self) -> int: ...

    def attention_flops(self, height: int, width: int) -> float:
        """FLOPs beside the convolutional blocks, for a latent of this grid."""
        ...


def decode_flops(config: Decoder, latent: tuple[int, int], *, batch: int = 1) -> float:
    """FLOPs of the convolutional decoder for a latent grid (height, width), with its attention if any.

    Those of the network as it is defined; ``autoencoders/bands.py`` gets the same result for 16% less, and
    ``autoencoders/winograd.py`` in bfloat16 on a CPU for 55% less at 1024 px.
    """

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
    return batch * (total + conv(channels, 3, pixels) + config.attention_flops(*latent))
