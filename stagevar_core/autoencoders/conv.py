"""The convolutional encoder and decoder that all tokenizers are built from.

Names follow the checkpoint files without their ``.conv`` / ``.norm`` wrapper levels (models/basic_vae.py of
VAR, infinity/models/bsq_vae/vae.py of Infinity). VAR's have attention at the coarsest level, Infinity's none.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..network.layers import stacked
from .bands import banded, empty_map, folded, normed_conv, pointwise_conv, upsampled_conv


def group_count(channels: int, groups: int = 32) -> int:
    """Groups of the normalisation: 32 where they divide the channels, else 24 as in the official code.

    ``groups``: instead of 32, for narrow networks; with one channel to a group an image loses its mean.
    """
    for count in (groups, 24):
        if channels % count == 0:
            return count
    raise ValueError(f"{channels} channels divide into neither {groups} nor 24 groups; choose a multiple")


def _activated(x: Tensor) -> Tensor:
    """SiLU, in place unless a graph needs what it was computed from."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


class ResBlock(nn.Module):
    """``conv2(silu(norm2(conv1(silu(norm1(x)))))) + shortcut(x)``."""

    def __init__(
        self, in_channels: int, out_channels: int, *, groups=32, operations=nn, dtype=None, device=None
    ) -> None:
        super().__init__()
        factory = {"dtype": dtype, "device": device}
        first, second = (group_count(channels, groups) for channels in (in_channels, out_channels))
        self.norm1 = operations.GroupNorm(first, in_channels, eps=1e-6, **factory)
        self.conv1 = operations.Conv2d(in_channels, out_channels, 3, padding=1, **factory)
        self.norm2 = operations.GroupNorm(second, out_channels, eps=1e-6, **factory)
        self.conv2 = operations.Conv2d(out_channels, out_channels, 3, padding=1, **factory)
        self.nin_shortcut = None
        if in_channels != out_channels:
            self.nin_shortcut = operations.Conv2d(in_channels, out_channels, 1, **factory)

    def forward(self, x: Tensor, work: Tensor | None = None) -> Tensor:
        """``x`` may be overwritten, unless gradients are recorded; ``work``: storage for what is between."""
        if banded(x):
            h = empty_map(x, self.conv1.out_channels) if work is None else work
            normed_conv(x, self.norm1, self.conv1, h)
            out = x if self.nin_shortcut is None else pointwise_conv(x, self.nin_shortcut)
            return normed_conv(h, self.norm2, self.conv2, out, add=True)
        h = self.conv1(_activated(self.norm1(x)))
        h = self.conv2(_activated(self.norm2(h)))
        return h.add_(x if self.nin_shortcut is None else self.nin_shortcut(x))


class PixelAttention(nn.Module):
    """``x + proj_out(attention(norm(x)))``: one head over all pixels."""

    def __init__(self, channels: int, *, groups=32, operations=nn, dtype=None, device=None) -> None:
        super().__init__()
        factory = {"dtype": dtype, "device": device}
        self.norm = operations.GroupNorm(group_count(channels, groups), channels, eps=1e-6, **factory)
        self.qkv = operations.Conv2d(channels, 3 * channels, 1, **factory)
        self.proj_out = operations.Conv2d(channels, channels, 1, **factory)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).mT.unsqueeze(1).chunk(3, dim=-1)  # (B, 1, h * w, C)
        mixed = F.scaled_dot_product_attention(q, k, v).squeeze(1)
        return x + self.proj_out(mixed.mT.unflatten(2, x.shape[-2:]))


class Downsample(nn.Module):
    """Stride-2 convolution after one pixel of zero padding at the right and the bottom."""

    def __init__(self, channels: int, *, operations=nn, dtype=None, device=None) -> None:
        super().__init__()
        self.conv = operations.Conv2d(channels, channels, 3, stride=2, dtype=dtype, device=device)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


def _upsampling(conv: type[nn.Conv2d]) -> type[nn.Conv2d]:
    """The Conv2d of ``operations`` after nearest 2x; it comes here with its weights cast and in place."""

    class UpsamplingConv2d(conv):
        def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            if bias is not None and folded(input):
                return upsampled_conv(input, weight, bias)
            return super()._conv_forward(F.interpolate(input, scale_factor=2.0, mode="nearest"), weight, bias)

    return UpsamplingConv2d


class Upsample(nn.Module):
    """Nearest 2x, then a 3x3 convolution."""

    def __init__(self, channels: int, *, operations=nn, dtype=None, device=None) -> None:
        super().__init__()
        self.conv = _upsampling(operations.Conv2d)(
            channels, channels, 3, padding=1, dtype=dtype, device=device
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class _Level(nn.Module):
    """The residual blocks of one resolution; ``downsample`` / ``upsample`` is attached where there is one."""

    downsample: "Downsample | None"
    upsample: "Upsample | None"

    def __init__(self, blocks: Sequence[ResBlock], attentions: Sequence[PixelAttention] = ()) -> None:
        super().__init__()
        self.block = stacked(blocks)
        self.attn = stacked(attentions)  # none, or one after every block
        self.downsample = self.upsample = None

    def forward(self, h: Tensor) -> Tensor:
        work = empty_map(h, self.block[0].conv1.out_channels) if banded(h) else None
        for index, block in enumerate(self.block):
            h = block(h, work)
            if self.attn:
                h = self.attn[index](h)
        return h


class _Middle(nn.Module):
    def __init__(self, channels: int, attention: bool, **factory) -> None:
        super().__init__()
        self.block_1 = ResBlock(channels, channels, **factory)
        self.attn_1 = PixelAttention(channels, **factory) if attention else None
        self.block_2 = ResBlock(channels, channels, **factory)

    def forward(self, x: Tensor) -> Tensor:
        h = self.block_1(x)
        return self.block_2(h if self.attn_1 is None else self.attn_1(h))


def _level(count: int, into: int, out: int, attention: bool, **factory) -> _Level:
    """``count`` blocks, the first of which changes the width."""
    blocks = [ResBlock(into if j == 0 else out, out, **factory) for j in range(count)]
    return _Level(blocks, [PixelAttention(out, **factory) for _ in blocks] if attention else ())


class Encoder(nn.Module):
    """Image (B, 3, H, W) in [-1, 1] to features (B, z, H / stride, W / stride)."""

    def __init__(
        self,
        width: int,
        multipliers: Sequence[int],
        blocks: int,
        z_channels: int,
        *,
        attention=False,
        groups=32,
        operations=nn,
        **factory,
    ) -> None:
        super().__init__()
        parts = {"operations": operations, **factory}
        normed = {"groups": groups, **parts}
        self.conv_in = operations.Conv2d(3, width, 3, padding=1, **factory)
        levels, channels = [], width
        for index, multiplier in enumerate(multipliers):
            out, deepest = width * multiplier, index == len(multipliers) - 1
            level = _level(blocks, channels, out, attention and deepest, **normed)
            channels = out
            if not deepest:
                level.downsample = Downsample(channels, **parts)
            levels.append(level)
        self.down = stacked(levels)
        self.mid = _Middle(channels, attention, **normed)
        self.norm_out = operations.GroupNorm(group_count(channels, groups), channels, eps=1e-6, **factory)
        self.conv_out = operations.Conv2d(channels, z_channels, 3, padding=1, **factory)

    def forward(self, image: Tensor) -> Tensor:
        h = self.conv_in(image)
        for level in self.down:
            h = level(h)
            if level.downsample is not None:
                h = level.downsample(h)
        return self.conv_out(_activated(self.norm_out(self.mid(h))))


class Decoder(nn.Module):
    """Accumulated codes (B, z, h, w) to an image (B, 3, h * stride, w * stride), not clamped."""

    def __init__(
        self,
        width: int,
        multipliers: Sequence[int],
        blocks: int,
        z_channels: int,
        *,
        attention=False,
        groups=32,
        operations=nn,
        **factory,
    ) -> None:
        super().__init__()
        parts = {"operations": operations, **factory}
        normed = {"groups": groups, **parts}
        channels = width * multipliers[-1]
        self.conv_in = operations.Conv2d(z_channels, channels, 3, padding=1, **factory)
        self.mid = _Middle(channels, attention, **normed)
        levels = []
        for index in reversed(range(len(multipliers))):
            out, deepest = width * multipliers[index], index == len(multipliers) - 1
            level = _level(blocks, channels, out, attention and deepest, **normed)
            channels = out
            if index > 0:
                level.upsample = Upsample(channels, **parts)
            levels.append(level)
        # Stored by resolution as in the files: index 0 is the finest level, which runs last.
        self.up = stacked(reversed(levels))
        self.norm_out = operations.GroupNorm(group_count(channels, groups), channels, eps=1e-6, **factory)
        self.conv_out = operations.Conv2d(channels, 3, 3, padding=1, **factory)

    def forward(self, f_hat: Tensor) -> Tensor:
        if f_hat.device.type == "cpu" and f_hat.dtype != torch.float32:
            # Here the CPU is 1.4 times as fast; in float32 it is not, and sums its products less exactly.
            f_hat = f_hat.contiguous(memory_format=torch.channels_last)
        h = self.mid(self.conv_in(f_hat))
        for level in reversed(self.up):
            h = level(h)
            if level.upsample is not None:
                h = level.upsample(h)
        if banded(h):
            return normed_conv(h, self.norm_out, self.conv_out, empty_map(h, 3))
        return self.conv_out(_activated(self.norm_out(h)))


def clamp_image(image: Tensor) -> Tensor:
    """Decoder output limited to the image range [-1, 1]; NaN where it is infinite, which is not white."""
    return torch.where(image.abs() == torch.inf, torch.nan, image.clamp(-1.0, 1.0))
