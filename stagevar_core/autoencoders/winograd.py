"""3x3 convolutions in bfloat16 on a CPU with half of their multiplications, or fewer.

Winograd's F(4, 3) (Lavin and Gray, arXiv:1509.09308) down the columns of a map: six 1x3 convolutions of sums
of rows give four rows, where twelve are defined. Its points are 0, +-NEAR, +-FAR and infinity; around 1, with
``NEAR * FAR = 1``, least is lost to rounding: 2.6 times as much as by storing the map in bfloat16.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS = 4  # that are computed together
CHANNELS = 128  # from here on the products that are saved take longer than the sums
NEAR, FAR = math.sqrt(0.5), math.sqrt(2.0)
# How much of a constant the products at NEAR, at FAR, at 0 and infinity carry, so that every row has it once.
_AT_NEAR, _AT_FAR = (FAR - 1) / (FAR - NEAR), (1 - NEAR) / (FAR - NEAR)
_AT_ENDS = 1 - _AT_NEAR * FAR - _AT_FAR * NEAR

Product = tuple[Tensor, Tensor | None]  # a 1x3 kernel and its bias


def fewer_products(x: Tensor, outputs: int) -> bool:
    """Whether a 3x3 convolution of ``x`` to so many channels runs this way."""
    half = x.device.type == "cpu" and x.dtype == torch.bfloat16
    return half and min(x.shape[1], outputs) >= CHANNELS


def products(weight: Tensor, bias: Tensor | None) -> list[Product]:
    """What :func:`four_rows` convolves with, of a kernel (out, in, 3, 3): at 0, +-NEAR, +-FAR and infinity.

    Those at a point are scaled by it, which leaves their sums fewer factors.
    """
    above, here, below = (row.unsqueeze(2) for row in weight.float().unbind(2))
    kernels = [above]
    for point, other in ((NEAR, FAR), (FAR, NEAR)):
        share = 0.5 / (point * (point**2 - other**2))
        even = above.add(below, alpha=point**2).mul_(share)
        kernels += [even.add(here, alpha=share * point), even.sub(here, alpha=share * point)]
    shares = (_AT_ENDS, _AT_NEAR, 0.0, _AT_FAR, 0.0, _AT_ENDS)
    biases = [bias * share if bias is not None and share else None for share in shares]
    return [(kernel.to(weight.dtype), part) for kernel, part in zip([*kernels, below], biases, strict=True)]


def four_rows(x: Tensor, kernels: Sequence[Product]) -> tuple[Tensor, ...]:
    """Rows 0, 4, ..., rows 1, 5, ..., and so on of a 3x3 convolution of ``x`` (B, in, 4 n + 2, W).

    ``x`` has the row above and the one below them; its columns are padded with zeros.
    """
    rows = [x[:, :, first : x.shape[2] - 5 + first : ROWS] for first in range(6)]
    # Sums over every other row that vanish at +-FAR, and those that vanish at +-NEAR.
    no_far = [rows[k + 2].sub(rows[k], alpha=FAR**2) for k in range(4)]
    no_near = [rows[k + 2].sub(rows[k], alpha=NEAR**2) for k in (1, 2)]

    def product(index: int, h: Tensor) -> Tensor:
        return F.conv2d(h, *kernels[index], padding=(0, 1))

    zero = product(0, no_far[2].sub(no_far[0], alpha=NEAR**2))
    infinity = product(5, no_far[3].sub(no_far[1], alpha=NEAR**2))
    near = product(1, no_far[2].add(no_far[1], alpha=NEAR))
    opposite = product(2, no_far[2].sub(no_far[1], alpha=NEAR))
    near_even, near_odd = near + opposite, near.sub_(opposite)
    far = product(3, no_near[1].add(no_near[0], alpha=FAR))
    opposite = product(4, no_near[1].sub(no_near[0], alpha=FAR))
    far_even, far_odd = far + opposite, far.sub_(opposite)
    return (
        zero.add_(near_even, alpha=FAR).add_(far_even, alpha=NEAR),
        near_odd + far_odd,
        near_even.add_(far_even, alpha=FAR**2).mul_(NEAR),
        infinity.add_(near_odd, alpha=NEAR**2).add_(far_odd, alpha=FAR**2),
    )


def upsampling_products(weight: Tensor) -> list[list[Tensor]]:
    """What :func:`upsampled_rows` multiplies with, of a kernel (out, in, 3, 3).

    Over rows and columns the sum of three taps, and what the outer ones add to it for the two parities.
    """

    def split(taps: Tensor, dim: int) -> tuple[Tensor, ...]:
        before, _, after = taps.unbind(dim)
        return taps.sum(dim), -before, after

    both = []
    for rows in split(weight.float(), 2):
        total, *outer = (part[..., None, None].to(weight.dtype) for part in split(rows, 2))
        both.append([total, torch.cat(outer)])
    return both


def upsampled_rows(x: Tensor, kernels: list[list[Tensor]], bias: Tensor, out: Tensor) -> None:
    """A 3x3 convolution after nearest 2x of ``x`` (B, in, n + 2, W) to ``out`` (B, out, 2 n, 2 W).

    Both rows that a pixel becomes see ``sum of taps * pixel``, and one outer tap each of what its neighbour
    differs by; so do its columns. That is 9 products instead of 16 with the taps summed by parity.
    """
    height, width = x.shape[2] - 2, x.shape[3]

    def across(h: Tensor) -> Tensor:  # the differences of neighbours in a row, its ends to zero
        return F.pad(h, (0, 1)).sub_(F.pad(h, (1, 0)))

    here = x[:, :, 1:-1]
    down = x[:, :, 1:] - x[:, :, :-1]
    corners = across(down)
    (total, sides), *outer = kernels
    middle, beside = F.conv2d(here, total, bias), F.conv2d(across(here), sides)
    for parity, (edge, corner) in enumerate(outer):
        lines = slice(parity, parity + height)
        plain = F.conv2d(down[:, :, lines], edge).add_(middle)
        turned = F.conv2d(corners[:, :, lines], corner).add_(beside)
        for column, part in enumerate(turned.chunk(2, dim=1)):
            torch.add(plain, part[..., column : column + width], out=out[:, :, parity::2, column::2])
