"""Linear layers of a CPU in bfloat16 with weights in the order that its matrix products read.

A product with a weight as stored sorts it into that order first, every time. The fewer tokens there are, the
larger its part of the time: about half at a scale of 8 tokens, a twentieth at a thousand.
"""

import torch
from torch import Tensor, nn

from ..devices import fast_bfloat16
from .eight_bit import EightBitLinear
from .layers import FeedForward

_OPERATIONS = ("_reorder_linear_weight", "_linear_pointwise")


class PackedLinear(nn.Module):
    """A linear layer with the same results, bit by bit, and a weight that only its product can read.

    ``activation``: what the product does to its sum before rounding it, 'none' or 'gelu' (by tanh).
    """

    def __init__(self, linear: nn.Linear, activation: str = "none") -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.activation = activation
        weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        self.register_buffer("weight", weight, persistent=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        product = torch.ops.mkldnn._linear_pointwise
        return product(x, self.weight, self.bias, self.activation, [], "tanh")


class PackedFeedForward(nn.Module):
    """``fc2(gelu_tanh(fc1(x)))`` with the GELU inside the first product; alone it takes a tenth of that."""

    def __init__(self, fc1: nn.Linear, fc2: nn.Linear) -> None:
        super().__init__()
        self.fc1, self.fc2 = PackedLinear(fc1, "gelu"), PackedLinear(fc2)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        return self.fc2(self.fc1(x))


def pack(module: nn.Module) -> nn.Module:
    """``module`` with its bfloat16 and 8-bit layers packed, in place, where this CPU and this torch can.

    Weights are taken over layer by layer, so that none is held twice. What is packed computes on the CPU only
    and leaves ``state_dict``: this is for a module that was loaded to be run.
    """
    if not available():
        return module
    for name, child in list(module.named_children()):
        if isinstance(child, FeedForward) and _packs(child.fc1) and _packs(child.fc2):
            setattr(module, name, PackedFeedForward(child.fc1, child.fc2))
        elif isinstance(child, nn.Linear) and _packs(child):
            setattr(module, name, PackedLinear(child))
        elif isinstance(child, EightBitLinear):
            child.pack()
        else:
            pack(child)
    return module


def available() -> bool:
    """Whether this CPU is fast in bfloat16, and this torch has what its own compiler packs weights with."""
    return fast_bfloat16() and all(hasattr(torch.ops.mkldnn, name) for name in _OPERATIONS)


def _packs(module: nn.Module) -> bool:
    """Whether it is a plain linear layer in bfloat16 on the CPU; others store their weights otherwise."""
    if type(module) is not nn.Linear:
        return False
    return module.weight.dtype == torch.bfloat16 and module.weight.device.type == "cpu"
