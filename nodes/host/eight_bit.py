"""The core's layers in 8 bits, moved and patched by ComfyUI as its own are."""

from collections.abc import Callable
from typing import Any

import comfy.model_management as mm
import torch
from comfy.model_patcher import LowVramPatch
from torch import Tensor, nn

from ...stagevar_core.network.eight_bit import (
    EightBitFeedForward,
    EightBitLinear,
    IntegerProducts,
    Products,
    eight_bit,
    plain_weight,
    rows_of,
    warn_of_plain,
)

# Older hosts' patches change rows by convert_weight and set_weight; newer ones change what they are given.
_PATCHES_CONVERT = not hasattr(LowVramPatch, "is_lowvram_patch")


class HostEightBit(EightBitLinear):
    """The layer with what ComfyUI's patcher asks of one.

    ``comfy_cast_weights`` and the functions are set by the patcher: where the layer stays in RAM, the
    functions change what is moved for each product. LoRAs change numbers, which are rounded to rows again.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        self.comfy_cast_weights = False
        self.weight_function: list[Callable[[Tensor], Tensor]] = []
        self.bias_function: list[Callable[[Tensor], Tensor]] = []

    def rows(self, device: torch.device) -> Tensor:
        """The rows on a device, with the patches of layers that stay where they are."""
        rows = mm.cast_to(self.weight, None, device, copy=bool(self.weight_function))
        if _PATCHES_CONVERT or not self.weight_function:
            return _changed(rows, self.weight_function)
        return rows_of(_changed(plain_weight(rows), self.weight_function))

    def offset(self, device: torch.device) -> Tensor | None:
        """The bias on a device, likewise."""
        if self.bias is None:
            return None
        return _changed(
            mm.cast_to(self.bias, None, device, copy=bool(self.bias_function)), self.bias_function
        )

    def products(self, like: Tensor) -> Products:
        """What multiplies; rows that are patched for every product are not worth packing."""
        if self.weight_function and like.device.type == "cpu":
            return IntegerProducts(self.rows(like.device), self.offset(like.device))
        return super().products(like)

    def convert_weight(self, weight: Tensor, **_: Any) -> Tensor:
        """The numbers (out, in) of rows, which come as int8 or as what those are in a float dtype."""
        return plain_weight(weight.to(torch.int8))

    def set_weight(self, weight: Tensor, *, return_weight: bool = False, **_: Any) -> Tensor | None:
        """Keep numbers (out, in), or give their rows back."""
        rows = rows_of(weight)
        if return_weight:
            return rows
        self.register_parameter("weight", nn.Parameter(rows, requires_grad=False))
        return None


def narrow(network: nn.Module, plain: nn.Module, device: torch.device) -> None:
    """Put layers in 8 bits into the blocks of both; ``plain`` is the network of torch.nn layers on meta."""
    warn_of_plain(device)
    for path, part in eight_bit(plain, HostEightBit).named_modules():
        if isinstance(part, EightBitLinear | EightBitFeedForward):
            parent, _, name = path.rpartition(".")
            setattr(network.get_submodule(parent), name, part)


def _changed(tensor: Tensor, functions: list[Callable[[Tensor], Tensor]]) -> Tensor:
    for function in functions:
        tensor = function(tensor)
    return tensor
