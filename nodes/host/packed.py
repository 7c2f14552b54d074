"""Linear layers of a CPU in bfloat16 with packed weights, which ComfyUI still finds under their names.

The core packs a network once it is loaded, and gives its plain weights up. Here ComfyUI may patch them later,
so a packed weight says what it held wherever anything but its product asks for it. What it held is not kept.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ...stagevar_core.network.layers import FeedForward
from ...stagevar_core.network.packing import available

# What is the same of a packed weight and of the plain one, and needs no values.
_ABOUT = {
    Tensor.dim,
    Tensor.nelement,
    Tensor.numel,
    Tensor.element_size,
    Tensor.size,
    Tensor.is_floating_point,
}
_ABOUT |= {Tensor.requires_grad_, Tensor.detach}
_ABOUT |= {
    getattr(Tensor, name).__get__ for name in ("data", "shape", "dtype", "device", "ndim", "requires_grad")
}


class PackedWeight(Tensor):
    """A weight (out, in) in the order that its product reads; everything else gets it in the order it had.

    ``F.linear`` with one has the same result, bit by bit. It cannot be changed in place, only replaced.
    """

    packed: Tensor

    @staticmethod
    def __new__(cls, packed: Tensor) -> "PackedWeight":
        """Of what was packed; see :meth:`of`."""
        made = Tensor._make_wrapper_subclass(cls, packed.shape, dtype=packed.dtype, device=packed.device)
        made.packed = packed
        return made

    @classmethod
    def of(cls, weight: Tensor) -> "PackedWeight":
        """The same weight, packed."""
        return cls(torch.ops.mkldnn._reorder_linear_weight(weight.detach()))

    @classmethod
    def __torch_function__(
        cls, func: Callable, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping | None = None
    ) -> Any:
        """What torch calls in place of a function that is given one of these."""
        options = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            if func in _ABOUT:
                return func(*args, **options)
            if func is F.linear and not options and isinstance(args[1], cls):
                return product(args[0], args[1], *args[2:])
            if func is Tensor.__deepcopy__:  # nothing changes what was packed
                return nn.Parameter(cls(args[0].packed), requires_grad=False)
            if func is Tensor.to and isinstance(args[0], cls):
                like = torch.empty(0, dtype=args[0].dtype, device=args[0].device)
                if like.to(*args[1:], **options) is like:  # nothing to do
                    return args[0]
            return cls.__torch_dispatch__(func, types, args, options)

    @classmethod
    def __torch_dispatch__(
        cls, func: Callable, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping | None = None
    ) -> Any:
        """The same for functions below Python: with plain weights."""
        if func is torch.ops.aten.detach.default:
            return cls(args[0].packed)
        name = str(getattr(func, "__name__", ""))
        if name.partition(".")[0].endswith("_") and not name.endswith("__"):
            raise RuntimeError(f"{name}: a packed weight cannot be changed in place; replace it")
        return func(*tree_map(plain, tuple(args)), **tree_map(plain, dict(kwargs or {})))


class PackedFeedForward(FeedForward):
    """The same layers under the same names; where they are packed, with the GELU inside the first product."""

    def __init__(self, layers: FeedForward) -> None:
        nn.Module.__init__(self)
        self.fc1, self.fc2 = layers.fc1, layers.fc2

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        weight = self.fc1.weight
        if not isinstance(weight, PackedWeight):
            return super().forward(x)
        return self.fc2(product(x, weight, self.fc1.bias, "gelu"))


def product(x: Tensor, weight: PackedWeight, bias: Tensor | None = None, activation: str = "none") -> Tensor:
    """(..., in) to (..., out); ``activation``: 'none' or 'gelu' (by tanh)."""
    return torch.ops.mkldnn._linear_pointwise(x, weight.packed, bias, activation, [], "tanh")


def plain(value: Any) -> Any:
    """A packed weight in the order it had; anything else as it is."""
    return value.packed.to_dense() if isinstance(value, PackedWeight) else value


def pack(network: nn.Module, device: torch.device) -> None:
    """Pack every weight of ``network`` that this CPU can, in place, layer by layer, if it runs on one.

    After the host has loaded it: what its patches replaced since is packed as well.
    """
    if device.type != "cpu" or not available():
        return
    for module in list(network.modules()):
        for name, child in module.named_children():
            if type(child) is FeedForward:
                setattr(module, name, PackedFeedForward(child))
        if isinstance(module, nn.Linear) and _packs(module):
            module.weight = nn.Parameter(PackedWeight.of(module.weight), requires_grad=False)


def unpack(network: nn.Module) -> None:
    """Plain weights again, for what reads them otherwise, such as a compiler."""
    for module in network.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, PackedWeight):
            module.weight = nn.Parameter(cast(Tensor, plain(weight)), requires_grad=False)


def _packs(layer: nn.Linear) -> bool:
    """Whether it computes with its weight as it is, a plain one in bfloat16 on the CPU."""
    weight = layer.weight
    if type(weight) is not nn.Parameter or getattr(layer, "comfy_cast_weights", False):
        return False
    return weight.dtype == torch.bfloat16 and weight.device.type == "cpu"
