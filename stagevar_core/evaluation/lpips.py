"""The learned perceptual distance LPIPS."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checkpoints.files import read
from .metrics import check_pictures

_PARTS = re.compile(r"(?:net\.slice\d\.|features\.)(\d+)\.(weight|bias)|lin(\d)\.(?:model\.1\.)?weight")


# c N: convolution N of torchvision's numbering with its ReLU; p: max pooling; t: features are compared here.
_ALEX = "c0 t p c3 t p c6 t c8 t c10 t"


_VGG = "c0 c2 t p c5 c7 t p c10 c12 c14 t p c17 c19 c21 t p c24 c26 c28 t"


class LPIPS:
    """Learned perceptual distance (Zhang et al. 2018, version 0.1) on AlexNet or VGG-16; 0 is equal.

    ``layers``: convolution number -> (weight, bias). ``heads``: the five weightings (1, C, 1, 1).
    """

    def __init__(self, layers: Mapping[int, tuple[Tensor, Tensor]], heads: Sequence[Tensor]) -> None:
        self._layers, self._heads = dict(layers), list(heads)
        self.net = "alex" if self._layers[0][0].shape[-1] == 11 else "vgg"

    @classmethod
    def load(cls, *paths: Path | str) -> "LPIPS":
        """From a saved state dict, or from the network's and the weightings' own files together."""
        layers: dict[int, dict[str, Tensor]] = {}
        heads: dict[int, Tensor] = {}
        for path in paths:
            for name, value in read(path).tensors.items():
                found = _PARTS.fullmatch(name)
                if found is None or not isinstance(value, Tensor):
                    continue
                value = value.float()
                if found[3] is not None:
                    heads[int(found[3])] = value
                else:
                    layers.setdefault(int(found[1]), {})[found[2]] = value
        source = " and ".join(str(path) for path in paths)
        first = layers.get(0, {}).get("weight")
        shape = None if first is None else tuple(first.shape)
        plans: dict[tuple[int, ...], str] = {(64, 3, 11, 11): _ALEX, (64, 3, 3, 3): _VGG}
        plan = None if shape is None else plans.get(shape)
        if plan is None:
            raise ValueError(
                f"{source}: the first convolution is {shape or 'missing'}; expected LPIPS on AlexNet or on "
                "VGG-16 (net.slice1.0.weight or features.0.weight)"
            )
        wanted = [int(step[1:]) for step in plan.split() if step[0] == "c"]
        absent = [f"convolution {n}" for n in wanted if len(layers.get(n, ())) < 2]
        absent += [f"lin{n}.model.1.weight" for n in range(5) if n not in heads]
        if absent:
            raise ValueError(f"{source}: {absent[0]} is missing; expected a whole LPIPS state dict")
        return cls(
            {n: (layers[n]["weight"], layers[n]["bias"]) for n in wanted}, [heads[n] for n in range(5)]
        )

    def to(self, device: torch.device | str) -> "LPIPS":
        """The same on another device."""
        layers = {n: (weight.to(device), bias.to(device)) for n, (weight, bias) in self._layers.items()}
        return LPIPS(layers, [head.to(device) for head in self._heads])

    @torch.inference_mode()
    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """Distances (B,) of uint8 pictures (B, H, W, 3)."""
        check_pictures(a, b, smallest=32)
        total = torch.zeros(len(a), device=a.device)
        for x, y, head in zip(self._features(a), self._features(b), self._heads, strict=True):
            total += F.conv2d((x - y).square(), head).flatten(1).mean(dim=1)
        return total

    def _features(self, pictures: Tensor) -> list[Tensor]:
        """Features (B, C, h, w) of unit norm at the five places."""
        # The scaling layer of the published package: the statistics of ImageNet for pictures from -1 to 1.
        shift = torch.tensor([-0.030, -0.088, -0.188], device=pictures.device).view(1, 3, 1, 1)
        spread = torch.tensor([0.458, 0.448, 0.450], device=pictures.device).view(1, 3, 1, 1)
        x = (pictures.permute(0, 3, 1, 2).float() / 127.5 - 1.0 - shift) / spread
        found = []
        for step in (_ALEX if self.net == "alex" else _VGG).split():
            if step == "p":
                x = F.max_pool2d(x, 3 if self.net == "alex" else 2, stride=2)
            elif step == "t":
                found.append(x / (x.square().sum(dim=1, keepdim=True).sqrt() + 1e-10))
            else:
                weight, bias = self._layers[int(step[1:])]
                wide = weight.shape[-1] == 11
                x = F.conv2d(x, weight, bias, stride=4 if wide else 1, padding=2 if wide else "same").relu()
        return found
