"""How near pictures are to each other, and how sure a mean or a difference of means is."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .checkpoints.files import read

PSNR_LIMIT = 100.0  # of equal pictures, so that means stay finite
Z95 = 1.959964
_PARTS = re.compile(r"(?:net\.slice\d\.|features\.)(\d+)\.(weight|bias)|lin(\d)\.(?:model\.1\.)?weight")

# c N: convolution N of torchvision's numbering with its ReLU; p: max pooling; t: features are compared here.
_ALEX = "c0 t p c3 t p c6 t c8 t c10 t"
_VGG = "c0 c2 t p c5 c7 t p c10 c12 c14 t p c17 c19 c21 t p c24 c26 c28 t"


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, (B,), of uint8 pictures (B, H, W, C); equal ones get 100."""
    _check(a, b)
    error = (a.int() - b.int()).square().float().flatten(1).mean(dim=1)
    return (10.0 * torch.log10(255.0**2 / error)).clamp(max=PSNR_LIMIT)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity (B,) of uint8 pictures (B, H, W, C), the mean over channels and places.

    Wang et al. 2004: Gaussian window 11 x 11 with sigma 1.5, K = (0.01, 0.03), range 255; only places where
    the whole window lies within the picture.
    """
    _check(a, b, smallest=11)
    offsets = torch.arange(-5, 6, device=a.device, dtype=torch.float32)
    window = torch.exp(-offsets.square() / (2 * 1.5**2))
    window = window / window.sum()

    def blurred(x: Tensor) -> Tensor:
        rows = F.conv2d(x.flatten(0, 1).unsqueeze(1), window.view(1, 1, -1, 1))
        return F.conv2d(rows, window.view(1, 1, 1, -1)).squeeze(1).unflatten(0, x.shape[:2])

    x, y = (picture.permute(0, 3, 1, 2).float() for picture in (a, b))
    mean_x, mean_y = blurred(x), blurred(y)
    var_x, var_y = blurred(x * x) - mean_x * mean_x, blurred(y * y) - mean_y * mean_y
    covariance = blurred(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x * mean_x + mean_y * mean_y + c1)
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    return (luminance * structure).flatten(1).mean(dim=1)


def _check(a: Tensor, b: Tensor, smallest: int = 1) -> None:
    if a.shape != b.shape or a.dim() != 4 or a.dtype != torch.uint8 or b.dtype != torch.uint8:
        raise ValueError(
            f"got {tuple(a.shape)} {a.dtype} and {tuple(b.shape)} {b.dtype}; expected two uint8 batches "
            "(B, H, W, C) of one shape"
        )
    if min(a.shape[1:3]) < smallest:
        raise ValueError(
            f"the pictures are {a.shape[2]} x {a.shape[1]}; expected at least {smallest} pixels a side"
        )


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
        plans = {(64, 3, 11, 11): _ALEX, (64, 3, 3, 3): _VGG}
        if shape not in plans:
            raise ValueError(
                f"{source}: the first convolution is {shape or 'missing'}; expected LPIPS on AlexNet or on "
                "VGG-16 (net.slice1.0.weight or features.0.weight)"
            )
        wanted = [int(step[1:]) for step in plans[shape].split() if step[0] == "c"]
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
        _check(a, b, smallest=32)
        total = torch.zeros(len(a), device=a.device)
        for x, y, head in zip(self._features(a), self._features(b), self._heads, strict=True):
            total += F.conv2d((x - y).square(), head).flatten(1).mean(dim=1)
        return total

    def _features(self, pictures: Tensor) -> list[Tensor]:
        """Features of unit norm at the five places."""
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


class Interval(NamedTuple):
    """A mean with its 95% interval, over ``n`` values."""

    mean: float
    low: float
    high: float
    n: int


def interval(values: np.ndarray, *, share: bool = False) -> Interval | None:
    """Of values (n,), without those that are NaN; None when there is none.

    Normal; with ``share`` Wilson's, for values from 0 to 1 (cautious where they are not all 0 or 1).
    """
    known = values[~np.isnan(values)]
    n = len(known)
    if n == 0:
        return None
    mean = float(known.mean())
    if share:
        middle = (mean + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
        half = Z95 / (1 + Z95**2 / n) * math.sqrt(mean * (1 - mean) / n + Z95**2 / (4 * n * n))
        return Interval(mean, max(0.0, middle - half), min(1.0, middle + half), n)
    half = Z95 * float(known.std(ddof=1)) / math.sqrt(n) if n > 1 else math.inf
    return Interval(mean, mean - half, mean + half, n)


def difference(a: np.ndarray, b: np.ndarray, *, share: bool = False) -> Interval | None:
    """Of the mean of ``a - b``, paired, over the pairs without NaN; None when there is none.

    Normal. With ``share``, for values from 0 to 1, after Agresti and Min 2005: half a pair more of each
    outcome (+1, -1 and two times 0), so that the interval never has width 0. The mean is as observed.
    """
    if a.shape != b.shape:
        raise ValueError(f"{len(a)} and {len(b)} values cannot be paired; expected as many")
    values = a - b
    if not share:
        return interval(values)
    values = values[~np.isnan(values)]
    n = len(values)
    if n == 0:
        return None
    middle = float(values.sum()) / (n + 2)
    spread = (float((values**2).sum()) + 1.0) / (n + 2) - middle**2
    half = Z95 * math.sqrt(spread / (n + 2))
    return Interval(float(values.mean()), max(-1.0, middle - half), min(1.0, middle + half), n)
