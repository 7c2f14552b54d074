"""Convolutions of large feature maps, on the CPU a band of rows at a time.

At a megapixel a feature map has hundreds of megabytes. Layer by layer each of them goes through memory for
every operation, and mapping the pages of a new one takes longer than reading it. A band of rows stays in the
cache from its normalisation to the sum with the residual; only what the next layer reads leaves it.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..network.layers import cast
from .winograd import ROWS, fewer_products, four_rows, products, upsampled_rows, upsampling_products

BAND_BYTES = 2**23  # of input; few enough for the cache, enough for a dozen cores
NARROW = 128  # channels
FOLDED_PIXELS = 2**10  # from here on folding the kernels of an upsampling takes less than it saves

# Nearest 2x repeats each pixel, so two taps of a 3x3 kernel meet the same one. By parity of the output row,
# which of the three fall on each of the two rows of the small map that it sees; columns alike.
_TAPS = (((1.0, 0.0, 0.0), (0.0, 1.0, 1.0)), ((1.0, 1.0, 0.0), (0.0, 0.0, 1.0)))


def banded(x: Tensor) -> bool:
    """Whether ``x`` runs in bands: a large map on the CPU, without a graph, as it is changed in place."""
    return in_bands(x.numel() * x.element_size(), x.device) and not torch.is_grad_enabled()


def in_bands(size: int, device: torch.device) -> bool:
    """Whether a map of ``size`` bytes is a large one on a CPU."""
    return size > BAND_BYTES and device.type == "cpu"


def folded(x: Tensor) -> bool:
    """Whether a convolution after an upsampling of ``x`` runs as :func:`upsampled_conv`."""
    return x[:, 0].numel() >= FOLDED_PIXELS and not torch.is_grad_enabled()


def empty_map(x: Tensor, channels: int, factor: int = 1) -> Tensor:
    """An uninitialised map in the layout of ``x``, with ``factor`` times its height and width."""
    last = x.is_contiguous(memory_format=torch.channels_last)
    size = (x.shape[0], channels, x.shape[2] * factor, x.shape[3] * factor)
    layout = torch.channels_last if last else torch.contiguous_format
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=layout)


def _front(x: Tensor, channels: int) -> Tensor:
    """A map of fewer channels in the memory of ``x``; none of its rows lies behind where those of ``x`` end.

    Written in order, rows overwrite only what came before them. With its channels last, a map lies in the
    first part of the memory without gaps; else each image in its own first channels.
    """
    if not x.is_contiguous(memory_format=torch.channels_last):
        return x[:, :channels]
    count, _, height, width = x.shape
    row = width * channels
    return x.as_strided((count, channels, height, width), (height * row, 1, row, channels))


def normed_conv(x: Tensor, norm: nn.GroupNorm, conv: nn.Conv2d, out: Tensor, *, add: bool = False) -> Tensor:
    """``conv(silu(norm(x)))`` of a 3x3 convolution, written to ``out`` or added to it."""
    weight, bias = cast(conv.weight, x), None if conv.bias is None else cast(conv.bias, x)
    kernels = products(weight, bias) if fewer_products(x, len(weight)) else None
    for image, target in zip(x.split(1), out.split(1), strict=True):
        scale, shift = _group_affine(image, norm)
        zero, one = torch.zeros_like(scale), torch.ones_like(scale)
        for band in _bands(image, ROWS if kernels else 1):
            rows, missing = _with_neighbours(image, band)
            # With moments 0 and 1 one pass of float32 arithmetic over an input of any dtype.
            h = F.silu(F.batch_norm(rows, zero, one, scale, shift, eps=0.0), inplace=True)
            if kernels is None:
                parts = (F.conv2d(_zero_rows(h, missing), weight, bias, padding=(0, 1)),)
            else:
                beyond = (band.start - band.stop) % ROWS
                parts = four_rows(_zero_rows(h, (missing[0], missing[1] + beyond)), kernels)
            for first, part in enumerate(parts):
                lines = target[:, :, band.start + first : band.stop : len(parts)]
                part = part[:, :, : lines.shape[2]]
                lines.add_(part) if add else lines.copy_(part)
    return out


def pointwise_conv(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """A 1x1 convolution, in the memory of ``x`` where it leaves fewer channels."""
    out = _front(x, conv.out_channels) if conv.out_channels < x.shape[1] else empty_map(x, conv.out_channels)
    for image, target in zip(x.split(1), out.split(1), strict=True):
        for band in _bands(image):
            target[:, :, band].copy_(conv(image[:, :, band]))
    return out


def upsampled_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A 3x3 convolution of ``x`` after nearest 2x; at most 4 of 9 multiplications, no large map to read."""
    out, in_bands = empty_map(x, len(weight), 2), banded(x)
    fewest = in_bands and fewer_products(x, len(weight))  # small maps may be compiled, which writes no parts
    write = _nine_products(weight, bias) if fewest else _by_parity(weight, bias, x)
    for image, target in zip(x.split(1), out.split(1), strict=True) if in_bands else ((x, out),):
        for band in _bands(image) if in_bands else (slice(0, x.shape[2]),):
            rows = _zero_rows(*_with_neighbours(image, band))
            write(rows, target[:, :, 2 * band.start : 2 * band.stop])
    return out


def _nine_products(weight: Tensor, bias: Tensor) -> Callable[[Tensor, Tensor], None]:
    """What writes the convolution of rows with their neighbours to twice as many, by the fewest products."""
    kernels = upsampling_products(weight)
    return lambda rows, lines: upsampled_rows(rows, kernels, bias, lines)


def _by_parity(weight: Tensor, bias: Tensor, x: Tensor) -> Callable[[Tensor, Tensor], None]:
    """Taps that meet the same pixel summed: a 2x2 convolution per parity of row and column."""
    taps = torch.tensor(_TAPS, device=x.device)
    kernels = torch.einsum("apr,bqs,oirs->aboipq", taps, taps, weight.float()).to(x.dtype)
    kernels, bias = kernels.flatten(1, 2), bias.repeat(2)

    def write(rows: Tensor, lines: Tensor) -> None:
        for parity in (0, 1):
            seen = rows[:, :, parity : rows.shape[2] - 1 + parity]
            h = F.conv2d(seen, kernels[parity], bias, padding=(0, 1))
            for column, part in enumerate(h.chunk(2, dim=1)):
                lines[:, :, parity::2, column::2].copy_(part[..., column : column + rows.shape[3]])

    return write


def _bands(x: Tensor, multiple: int = 1) -> Iterator[slice]:
    """The rows of each band of an image (1, C, H, W).

    ``multiple``: of rows that are computed together. Their sums need room beside the band, so that one of few
    channels has half the size; with many, whose kernels are laid out anew for every band, it does not pay.
    """
    height = x.shape[2]
    size = BAND_BYTES // 2 if multiple > 1 and x.shape[1] <= NARROW else BAND_BYTES
    rows = max(1, size * height // (x.numel() * x.element_size()))
    rows -= rows % multiple if rows > multiple else 0
    return (slice(top, min(top + rows, height)) for top in range(0, height, rows))


def _with_neighbours(x: Tensor, band: slice) -> tuple[Tensor, tuple[int, int]]:
    """A band and the row on either side; how many of these the map lacks above and below."""
    above, below = int(band.start == 0), int(band.stop == x.shape[2])
    return x[:, :, band.start - 1 + above : band.stop + 1 - below], (above, below)


def _zero_rows(x: Tensor, missing: tuple[int, int]) -> Tensor:
    return F.pad(x, (0, 0, *missing)) if any(missing) else x


def _group_affine(x: Tensor, norm: nn.GroupNorm) -> tuple[Tensor, Tensor]:
    """Group normalisation of one image as a float32 scale and shift per channel.

    Moments of bands are combined by their means' distances, not by sums of squares.
    """
    unknown = torch.zeros(x.shape[1])  # float32 moments of any input
    parts, sizes = [], []
    for band in _bands(x):
        moments = torch.batch_norm_update_stats(x[:, :, band], unknown.clone(), unknown.clone(), 0.0)
        parts.append(torch.stack(moments))
        sizes.append(band.stop - band.start)
    mean, var = torch.stack(parts).unflatten(2, (norm.num_groups, -1)).unbind(1)  # (bands, groups, channels)
    width = mean.shape[2]
    share = torch.tensor(sizes).view(-1, 1, 1) / (x.shape[2] * width)
    centre = (share * mean).sum(dim=(0, 2), keepdim=True)
    spread = (share * (var + (mean - centre).square())).sum(dim=(0, 2))
    scale = torch.rsqrt(spread + norm.eps).repeat_interleave(width) * cast(norm.weight, unknown)
    return scale, cast(norm.bias, unknown) - scale * centre.flatten().repeat_interleave(width)
