"""A small classifier that reads which class a picture shows, and how far two sets of pictures lie apart."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoints import header as headers
from ..checkpoints.errors import CheckpointError
from ..checkpoints.files import read
from ..network.layers import stacked

SIDE = 64  # pixels that it looks at
_STEPS = (2, 4, 6)  # widths after each halving
_MEAN, _COVARIANCE = "real.mean", "real.covariance"  # of the features of real pictures, in its file


class Moments(NamedTuple):
    """A normal distribution of features: mean (C,) and covariance (C, C)."""

    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "Moments":
        """Of features (N, C); of few of them it is too wide."""
        wide = features.double()
        return cls(wide.mean(dim=0), torch.cov(wide.T))

    def tensors(self) -> dict[str, Tensor]:
        """As a file has them: of the covariance, the half that is not repeated."""
        rows, columns = torch.triu_indices(*self.covariance.shape)
        return {_MEAN: self.mean.float(), _COVARIANCE: self.covariance[rows, columns].float()}

    @classmethod
    def taken(cls, tensors: dict[str, Tensor], width: int) -> "Moments | None":
        """Those of a file, taken out of its tensors; None where it has none of ``width`` features."""
        shapes = {_MEAN: (width,), _COVARIANCE: (width * (width + 1) // 2,)}
        if any(tuple(getattr(tensors.get(name), "shape", ())) != shape for name, shape in shapes.items()):
            return None
        mean, half = tensors.pop(_MEAN).double(), tensors.pop(_COVARIANCE).double()
        rows, columns = torch.triu_indices(width, width)
        covariance = torch.zeros(width, width, dtype=torch.float64)
        covariance[rows, columns] = covariance[columns, rows] = half
        return cls(mean, covariance)


@dataclass(frozen=True)
class JudgeConfig:
    """Shape of a judge: channels of its first layer, and classes."""

    width: int = 20
    classes: int = 150

    def to_dict(self) -> dict:
        """The fields as plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "JudgeConfig":
        """The inverse of :meth:`to_dict`."""
        return cls(**values)


class _Step(nn.Module):
    """Half the resolution, then a residual convolution."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(into, out, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(4, out)
        self.conv = nn.Conv2d(out, out, 3, padding=1)
        self.norm2 = nn.GroupNorm(4, out)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.norm(self.down(x)))
        return x + F.silu(self.norm2(self.conv(x)))


class Judge(nn.Module):
    """Convolutions on a picture of ``SIDE`` pixels, their mean over all places, a linear layer.

    ``real``: what its features of real pictures are like, where its file says so.
    """

    def __init__(self, config: JudgeConfig, names: Sequence[str] = ()) -> None:
        super().__init__()
        self.config, self.names = config, tuple(names)
        self.real: Moments | None = None
        widths = [config.width, *(config.width * step for step in _STEPS)]
        self.stem = nn.Conv2d(3, config.width, 3, padding=1)
        self.norm = nn.GroupNorm(4, config.width)
        self.steps = stacked(_Step(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True))
        self.head = nn.Linear(widths[-1], config.classes)

    @classmethod
    def load(cls, path: str | Path) -> "Judge":
        """The judge of a file; :class:`CheckpointError` for what is none."""
        raw = read(path)
        header = headers.parse(raw.metadata, raw.source)
        if header is None or header.kind != "judge":
            raise CheckpointError(
                f"{path}: this is no judge (its metadata does not say so); expected one that "
                "scripts/train_artwork wrote. Choose another file"
            )
        config = headers.read_config(JudgeConfig, header.config, raw.source)
        judge, tensors = cls(config, header.classes), dict(raw.tensors)
        judge.real = Moments.taken(tensors, judge.head.in_features)
        expected = {name: tuple(tensor.shape) for name, tensor in judge.state_dict().items()}
        found = {name: tuple(getattr(tensor, "shape", ())) for name, tensor in tensors.items()}
        if found != expected:
            raise CheckpointError(
                f"{path}: its tensors are not those of a judge of width {config.width} for {config.classes} "
                "classes; expected a complete file. Get it again"
            )
        judge.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
        return judge.eval().requires_grad_(False)

    def features(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] of any size to features (B, C)."""
        x = (
            pictures
            if pictures.shape[-1] == SIDE
            else F.interpolate(pictures, size=(SIDE, SIDE), mode="area")
        )
        x = F.silu(self.norm(self.stem(x)))
        for step in self.steps:
            x = step(x)
        return x.mean(dim=(2, 3))

    def forward(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] to logits (B, classes)."""
        return self.head(self.features(pictures))

    @torch.inference_mode()
    def read(self, images: Tensor, batch: int = 100) -> tuple[Tensor, Tensor]:
        """Pictures (N, H, W, 3) in bytes to logits (N, classes) and features (N, C)."""
        found = []
        for part in images.split(batch):
            features = self.features(part.permute(0, 3, 1, 2).float() / 127.5 - 1.0)
            found.append((self.head(features), features))
        logits, features = zip(*found, strict=True)
        return torch.cat(logits), torch.cat(features)

    def distance(self, features: np.ndarray | Tensor) -> float | None:
        """The Frechet distance of pictures with these features (N, C) to real ones; None where unknown.

        With few pictures it is too large.
        """
        if self.real is None or len(features) < 2:
            return None
        return frechet_distance(Moments.of(torch.as_tensor(features)), self.real)


def frechet_distance(a: Moments, b: Moments) -> float:
    """The Frechet distance of two normal distributions."""
    values, vectors = torch.linalg.eigh(a.covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ b.covariance @ root).clamp(min=0).sqrt().sum()
    means = (a.mean - b.mean).square().sum()
    return float(means + a.covariance.trace() + b.covariance.trace() - 2 * cross)
