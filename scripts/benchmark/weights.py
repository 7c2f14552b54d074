"""Weights of the full-size models of the bench: random ones, in one byte where that is asked for."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stagevar_core.network.eight_bit import TAIL, rows_of

FP8, INT8 = torch.float8_e4m3fn, torch.int8
STORED = {"fp8": FP8, "int8": INT8}
"""What weights may be stored as besides the dtype of the run, by the name of the option."""


class Fp8Linear(nn.Linear):
    """A linear layer that keeps its weight in one byte per element and computes in the dtype of its input.

    Asked for another dtype it is a plain one. ``bias_dtype``: of the bias, which one byte would ruin.
    """

    bias_dtype = torch.bfloat16

    def __init__(self, inputs: int, outputs: int, bias: bool = True, *, dtype=None, device=None) -> None:
        narrow = dtype == FP8
        super().__init__(inputs, outputs, bias, device=device, dtype=self.bias_dtype if narrow else dtype)
        if narrow:
            self.weight = nn.Parameter(self.weight.detach().to(FP8), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) to (..., outputs) in the dtype of ``x``."""
        if self.weight.dtype != FP8:
            return super().forward(x)
        return F.linear(x, self.weight.to(x.dtype), self.bias)


class Fp8Operations:
    """Layers for a transformer of ``dtype=FP8`` with another compute dtype."""

    Linear, LayerNorm = Fp8Linear, nn.LayerNorm


def fill(module: nn.Module, device: torch.device, seed: int = 0) -> nn.Module:
    """Storage and random weights for a module built on meta; no weight is ever held twice.

    Values come from one block of normal numbers, repeated: drawing 8 billion takes minutes and changes no
    time. Its odd length keeps rows from being equal.
    """
    module.to_empty(device=device)
    block = torch.randn(2**20 + 7, generator=torch.Generator().manual_seed(seed)).to(device)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.dtype == INT8:
                _fill_rows(parameter, block)
                continue
            flat = parameter.view(-1)
            spread = 1.0 / math.sqrt(parameter[0].numel()) if parameter.dim() > 1 else 0.02
            for start in range(0, flat.numel(), len(block)):
                part = flat[start : start + len(block)]
                part.copy_(block[: len(part)] * spread)
            if parameter.dim() == 1 and "norm" in name and not name.endswith("bias"):
                parameter.add_(1.0)
    return module.eval().requires_grad_(False)


def _fill_rows(rows: Tensor, block: Tensor) -> None:
    """A weight in 8 bits, of the values that :func:`fill` has for it, some rows at a time."""
    inputs = rows.shape[1] - TAIL
    for start in range(0, len(rows), 256):
        part = rows[start : start + 256]
        places = torch.arange(start * inputs, (start + len(part)) * inputs, device=block.device) % len(block)
        part.copy_(rows_of(block[places].view(-1, inputs) / math.sqrt(inputs)))


def weight_bytes(module: nn.Module) -> int:
    """Memory of all weights, packed ones included."""
    return sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))
