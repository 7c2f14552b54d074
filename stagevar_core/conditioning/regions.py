"""Prompts that hold in a part of the picture: which tokens of a text every token of a scale sees."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..schedule import Scale

_COARSE = Scale(0, 32, 32)  # tokens on which the shares of a picture are counted
_OVERALL = 0.75  # of the pooled text; the help of the sampler says what was measured


@dataclass(frozen=True, eq=False)  # masks are tensors, and the images of a batch share them
class Region:
    """A prompt of several that one image has, and where it holds.

    ``tokens``: its length; the prompts of an image follow each other in its text. ``mask``: (height, width)
    of any size, 0 to 1; None is everywhere. ``strength``: how much it counts where others hold as well.
    """

    tokens: int
    mask: Tensor | None = None
    strength: float = 1.0

    def cover(self, scale: Scale) -> Tensor:
        """The share of every token of a scale that it covers, (L,)."""
        if self.mask is None:
            return torch.ones(scale.tokens)
        return F.interpolate(self.mask[None, None].float(), size=scale.grid, mode="area").flatten().cpu()


Regions = tuple[Region, ...]
"""Those of one image, in the order of its text."""


def check_regions(texts: Sequence[Tensor], regions: Sequence[Regions | None]) -> None:
    """``ValueError`` where regions are given and are not those of the texts."""
    if regions and len(regions) != len(texts):
        raise ValueError(f"regions of {len(regions)} images for {len(texts)} texts; give them for each")
    for text, found in zip(texts, regions, strict=False):
        if found and sum(region.tokens for region in found) != len(text):
            lengths = [region.tokens for region in found]
            raise ValueError(
                f"regions of {lengths} tokens for a text of {len(text)}; a text is its prompts one after "
                "the other"
            )


@dataclass(frozen=True)
class Sight:
    """What the tokens of a scale see of the texts of all rows.

    ``rows``: the regions of each. ``longest``: tokens that the texts are padded to.
    """

    rows: tuple[Regions, ...]
    longest: int

    @classmethod
    def of(cls, texts: Sequence[Tensor], regions: Sequence[Regions | None]) -> "Sight | None":
        """None where no text has regions; a text without them is seen by all."""
        if not any(regions):
            return None
        rows = tuple(found or (Region(len(text)),) for text, found in zip(texts, regions, strict=True))
        return cls(rows, max(len(text) for text in texts))

    def narrow(self, rows: slice | Tensor) -> "Sight":
        """Only these rows, a slice or their places (n,)."""
        found = self.rows[rows] if isinstance(rows, slice) else tuple(self.rows[row] for row in rows.tolist())
        return Sight(found, self.longest)

    def prompts(self, texts: Sequence[Tensor]) -> list[Tensor]:
        """The prompts that the texts (tokens, width) of all rows are made of, one after the other."""
        return [
            prompt
            for text, regions in zip(texts, self.rows, strict=True)
            for prompt in text[: _length(regions)].split([region.tokens for region in regions])
        ]

    def pooled(self, prompts: Tensor) -> Tensor:
        """One vector per row (rows, C) from one per prompt, those of all rows one after the other.

        The mean over the picture; prompts that hold everywhere make up ``_OVERALL`` of it where there are any
        beside regions.
        """
        rows = zip(prompts.split([len(regions) for regions in self.rows]), self.rows, strict=True)
        return torch.stack([_shares(regions).to(each) @ each for each, regions in rows])

    def at(self, scale: Scale, like: Tensor) -> Tensor:
        """What is added to the scores of attention, (rows, 1, L, T), in the device and dtype of ``like``.

        It is the logarithm of a region's weight, so that a weight is a factor of the share of attention.
        """
        known: dict[Regions, Tensor] = {}
        for regions in set(self.rows):
            lengths = torch.tensor([region.tokens for region in regions])
            columns = _weights(regions, scale).T.repeat_interleave(lengths, dim=1)  # (L, T)
            known[regions] = F.pad(columns, (0, self.longest - columns.shape[1]))
        added = torch.stack([known[regions] for regions in self.rows]).log()
        return added.unsqueeze(1).to(device=like.device, dtype=like.dtype)


def _length(regions: Regions) -> int:
    """Tokens of the text that they make up."""
    return sum(region.tokens for region in regions)


def _weights(regions: Regions, scale: Scale) -> Tensor:
    """The weights of the regions for every token of a scale, (regions, L).

    Prompts that hold everywhere count where no region does; where nothing does, all count.
    """
    cover = torch.stack([region.cover(scale) for region in regions])
    limited = torch.tensor([region.mask is not None for region in regions])
    cover[~limited] *= 1.0 - cover[limited].sum(0).clamp(max=1.0)
    weights = torch.tensor([float(region.strength) for region in regions])[:, None] * cover
    return torch.where(weights.sum(0) > 0.0, weights, 1.0)


def _shares(regions: Regions) -> Tensor:
    """How much of the text in one vector comes from every prompt, (prompts,), together 1."""
    weights = _weights(regions, _COARSE)
    shares = (weights / weights.sum(0)).mean(1)
    overall = torch.tensor([region.mask is None for region in regions])
    if not overall.any() or overall.all():
        return shares
    strengths = torch.tensor([region.strength for region in regions]) * overall
    if not strengths.sum():
        return shares
    return (1.0 - _OVERALL) * shares + _OVERALL * strengths / strengths.sum()
