"""Linear layers in 8 bits: weights with one scale per output, tokens with one each that they get as they run.

A weight is a matrix (out, in + 16) of int8 whose rows end in the four bytes of their scale, so that whoever
moves, keeps or swaps the tensor has all of it. A CPU with 8-bit products gets it in the order that they read
when the layer first runs, CUDA multiplies it as it is. Elsewhere it becomes numbers of the input's dtype for
every product, which saves memory alone.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..devices import eight_bit_products
from .layers import FeedForward

TAIL = 16  # bytes behind the numbers of a row: its scale, and zeros that keep rows aligned
LARGEST = 127.0
PART = 2**21  # numbers in float32 that a CPU computes at once, so that they stay in its caches
FEWEST = 17  # rows that CUDA's product of whole numbers takes
_WHOLE = 2.0**23  # float32 of this size has no bits behind the point: what is added to it is rounded
_DIP = 0.1702  # a little more than the GELU goes below zero
_LEAST = 1e-30  # of what is divided by
_LOG = logging.getLogger(__name__)


def rows_of(weight: Tensor) -> Tensor:
    """A weight (out, in) of any float dtype as int8 rows (out, in + 16), each with a scale of its own."""
    wide = weight.detach().float()
    scale = (wide.abs().amax(1, keepdim=True) / LARGEST).clamp(min=_LEAST)
    return with_scales((wide / scale).round().clamp(-LARGEST, LARGEST).to(torch.int8), scale)


def with_scales(codes: Tensor, scale: Tensor) -> Tensor:
    """Rows (out, in + 16) of whole numbers (out, in) and one scale for each row."""
    tail = F.pad(scale.detach().float().reshape(-1, 1).contiguous().view(torch.int8), (0, TAIL - 4))
    return torch.cat((codes, tail), dim=1)


def codes_of(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The whole numbers (out, in), a view of rows, and their scales (out,) in float32."""
    return rows[:, :-TAIL], rows[:, -TAIL : 4 - TAIL].contiguous().view(torch.float32).squeeze(1)


def plain_weight(rows: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weight (out, in) that rows stand for."""
    codes, scale = codes_of(rows)
    return (codes.float() * scale[:, None]).to(dtype)


class EightBitLinear(nn.Module):
    """A linear layer whose weight is int8 rows; a token's result does not depend on those beside it.

    ``weight`` reads as rows in any case. The parameter of that name may hold them in the order of the CPU's
    products; ``scale`` and ``total`` (out,) then belong to it.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        if linear.weight.is_meta:
            shape = (self.out_features, self.in_features + TAIL)
            rows = torch.empty(shape, dtype=torch.int8, device="meta")
        else:
            rows = rows_of(linear.weight)
        self._parameters["weight"] = nn.Parameter(rows, requires_grad=False)
        self.bias = linear.bias
        for name in ("scale", "total"):
            self.register_buffer(name, None, persistent=False)

    @property
    def weight(self) -> Tensor:
        """The rows (out, in + 16)."""
        held = self._held()
        return held if held.layout == torch.strided else with_scales(held.to_dense().t(), self._scale())

    def rows(self, device: torch.device) -> Tensor:
        """The rows on a device, to be multiplied."""
        return self.weight.to(device)

    def offset(self, device: torch.device) -> Tensor | None:
        """The bias on a device, to be added."""
        return None if self.bias is None else self.bias.to(device)

    def products(self, like: Tensor) -> "Products":
        """What multiplies inputs like this one with the weight."""
        kind, bias = eight_bit_products(like.device), self.offset(like.device)
        if kind == "vnni":
            return SortedProducts(self.pack(), self._scale(), cast(Tensor, self.total), bias)
        rows = self.rows(like.device)
        if kind == "cuda" and not (self.in_features % 8 or self.out_features % 8):
            return IntegerProducts(rows, bias)
        return PlainProducts(rows, bias, like.dtype)

    def pack(self) -> Tensor:
        """The parameter, put into the order of the CPU's products where it has one; its rows are given up."""
        held = self._held()
        if held.layout == torch.strided and held.device.type == "cpu" and eight_bit_products(held.device):
            codes, self.scale = codes_of(held)
            self.total = codes.sum(1, dtype=torch.int32) * self.scale
            held = torch.ops.onednn.qlinear_prepack(codes.contiguous(), None)
            self._parameters["weight"] = nn.Parameter(held, requires_grad=False)
        return held

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        return in_rows(x, self.out_features, self.products(x))

    def _held(self) -> Tensor:
        return cast(Tensor, self._parameters["weight"])

    def _scale(self) -> Tensor:
        return cast(Tensor, self.scale)


class EightBitFeedForward(nn.Module):
    """``fc2(gelu_tanh(fc1(x)))``; on a CPU what is between them never leaves its caches."""

    def __init__(self, fc1: EightBitLinear, fc2: EightBitLinear) -> None:
        super().__init__()
        self.fc1, self.fc2 = fc1, fc2

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        first, second = self.fc1.products(x), self.fc2.products(x)
        hidden, out = self.fc1.out_features, self.fc2.out_features
        return in_rows(x, hidden, lambda part: second.of_gelu(first(part)), out)


def eight_bit(module: nn.Module, kind: Callable[[nn.Linear], EightBitLinear] = EightBitLinear) -> nn.Module:
    """``module`` with the linear layers of its blocks in 8 bits, in place; modulation stays as it is.

    Without storage it stays so: the layers then want rows where they wanted weights. ``kind``: the layer.
    """
    blocks = getattr(module, "blocks", None)
    if not isinstance(blocks, nn.Module):
        raise ValueError(f"{type(module).__name__} has no blocks to compute in 8 bits; load it in bfloat16")
    _exchange(blocks, kind)
    return module


def warn_of_plain(device: torch.device) -> None:
    """Say in the log where a device multiplies no whole numbers of 8 bits, and what that means."""
    if eight_bit_products(device) is None:
        _LOG.warning(
            "weights in int8: %s has no fast products of 8 bits (CPUs with AVX-512 VNNI and NVIDIA GPUs "
            "since Turing have), so they save memory but take longer; choose bfloat16 for speed",
            device,
        )


def _exchange(module: nn.Module, kind: Callable[[nn.Linear], EightBitLinear]) -> None:
    for name, child in list(module.named_children()):
        if isinstance(child, FeedForward):
            setattr(module, name, EightBitFeedForward(kind(child.fc1), kind(child.fc2)))
        elif isinstance(child, nn.Linear):
            if name != "modulation":
                setattr(module, name, kind(child))
        else:
            _exchange(child, kind)


def in_rows(x: Tensor, widest: int, compute: Callable[[Tensor], Tensor], out: int | None = None) -> Tensor:
    """``compute`` of the rows of ``x`` (..., in), on a CPU some at a time; (..., out) in the dtype of ``x``.

    ``widest``: numbers of a row at most meanwhile. ``out``: None is as many.
    """
    flat, out = x.reshape(-1, x.shape[-1]), widest if out is None else out
    if x.device.type != "cpu":
        return compute(flat).to(x.dtype).view(*x.shape[:-1], out)
    found = x.new_empty(len(flat), out)
    step = max(1, PART // max(widest, x.shape[-1]))
    for start in range(0, len(flat), step):
        found[start : start + step] = compute(flat[start : start + step])
    return found.view(*x.shape[:-1], out)


class Products(ABC):
    """Rows (n, in) times a weight, and its bias; float32 or the dtype of the rows."""

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """Of (n, in), (n, out)."""

    def of_gelu(self, x: Tensor) -> Tensor:
        """Of the GELU (by tanh) of ``x``, which may be overwritten."""
        return self(F.gelu(x, approximate="tanh"))


class PlainProducts(Products):
    """With numbers of a float dtype, made of the rows."""

    def __init__(self, rows: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        self.plain = plain_weight(rows, dtype)
        self.bias = None if bias is None else bias.to(dtype)

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self.plain.dtype), self.plain, self.bias)


class IntegerProducts(Products):
    """``torch._int_mm``, which takes at least 17 rows."""

    def __init__(self, rows: Tensor, bias: Tensor | None) -> None:
        self.codes, self.scale = codes_of(rows)
        self.bias = torch.zeros_like(self.scale) if bias is None else bias.float()

    def __call__(self, x: Tensor) -> Tensor:
        wide = x.float()
        scale = (wide.abs().amax(1, keepdim=True) / LARGEST).clamp(min=_LEAST)
        codes = (wide / scale).round().to(torch.int8)
        missing = -len(x) % 8 if len(x) >= FEWEST else FEWEST - len(x) + 7
        sums = torch.ops.aten._int_mm(F.pad(codes, (0, 0, 0, missing)), self.codes.t())[: len(x)]
        return torch.addcmul(self.bias, sums * self.scale, scale)


class SortedProducts(Products):
    """oneDNN's, of bytes without a sign: on CPUs before AMX it has no fast product of two with signs."""

    def __init__(self, codes: Tensor, scale: Tensor, total: Tensor, bias: Tensor | None) -> None:
        self.codes, self.scale, self.total = codes, scale, total
        self.bias = torch.zeros_like(scale) if bias is None else bias.float()
        self.zeros = torch.zeros(len(scale), dtype=torch.int64)

    def __call__(self, x: Tensor) -> Tensor:
        wide = x.float()
        largest = torch.maximum(wide.amax(1, keepdim=True), -wide.amin(1, keepdim=True)).clamp_(min=_LEAST)
        codes = _bytes(wide, LARGEST / largest, 128)
        return self._sums(codes, 128, self.bias, largest / LARGEST)

    def of_gelu(self, x: Tensor) -> Tensor:
        # Nearly all of it is positive. With the dip added it fills all 256 steps instead of half of them.
        y = _gelu(x)
        largest = y.amax(1, keepdim=True)
        return self._sums(_bytes(y, 255.0 / largest, 0), 0, self.bias - _DIP * self.total, largest / 255.0)

    def _sums(self, codes: Tensor, zero: int, bias: Tensor, scale: Tensor) -> Tensor:
        """The product of bytes whose ``zero`` stands for none, times the scales of the rows, and the bias."""
        product = torch.ops.onednn.qlinear_pointwise
        rest = (None, 1.0, 0, torch.float32, "none", [], "")
        y = product(codes, 1.0, zero, self.codes, self.scale, self.zeros, *rest)
        return torch.addcmul(bias, y, scale, out=y)


def _bytes(x: Tensor, factor: Tensor, zero: int) -> Tensor:
    """``x * factor + zero`` rounded, for results of 0 to 255: three passes in which no conversion is slow."""
    base = x.new_full((x.shape[1],), _WHOLE + zero)
    return torch.addcmul(base, x, factor).view(torch.int32).to(torch.uint8)


def _gelu(x: Tensor) -> Tensor:
    """The GELU by tanh and the dip, in place of ``x``: as ``x * sigmoid``, half the time of PyTorch's."""
    inner = torch.square(x).mul_(0.0713548162726).add_(1.5957691216057308).mul_(x).sigmoid_()
    return torch.addcmul(x.new_full((x.shape[1],), _DIP), x, inner, out=x)
