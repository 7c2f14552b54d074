"""Zero-shot editing: which tokens of a picture stay, scale by scale, while the others are drawn anew.

The rules of VAR's demo (demo_zero_shot_edit.ipynb of FoundationVision/VAR); they need nothing of a family.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.contract import Quantizer
from ..schedule import Scale, ScaleSchedule
from .numbers import extremes, finite
from .result import ScaleCodes

ALL_GIVEN = "nothing is left to draw"
WHOLE = 3  # tokens of a scale up to which all of it stays: it is the tone of the picture


def scale_masks(keep: Tensor, schedule: ScaleSchedule, patch: int = 1) -> list[Tensor]:
    """Where each scale keeps its tokens, (B or 1, h, w) booleans on the latent grid, from a mask.

    ``keep``: (h, w) or (B, h, w), 0..1, of any size; a token stays where more than half of it is to be kept.
    ``patch``: latent pixels per token side, of the transformer's config. Raises ``ValueError`` for other
    shapes, and for NaN or infinity.
    """
    if keep.dim() not in (2, 3) or 0 in keep.shape:
        raise ValueError(f"the mask has the shape {tuple(keep.shape)}; expected (height, width) or a batch")
    if keep.is_floating_point() and not finite(keep):
        raise ValueError("the mask holds NaN or infinity; expected values from 0 to 1")
    whole = keep.float().reshape(-1, 1, *keep.shape[-2:])
    if tuple(whole.shape[-2:]) != schedule.final.grid:
        whole = F.interpolate(whole, size=schedule.final.grid, mode="area")

    def at(scale: Scale) -> Tensor:
        if scale.tokens <= WHOLE:
            tokens = torch.ones(len(whole), *scale.grid, dtype=torch.bool, device=keep.device)
        else:
            tokens = F.interpolate(whole, size=scale.grid, mode="bilinear", align_corners=False)[:, 0] > 0.5
        return tokens.repeat_interleave(patch, 1).repeat_interleave(patch, 2) if patch > 1 else tokens

    return [at(scale) for scale in schedule]


class Known(NamedTuple):
    """Codes of one scale, given where the mask (B or 1, h, w) is True."""

    codes: Tensor
    mask: Tensor

    def image(self, index: int) -> "Known":
        """Those of one image."""
        mask = self.mask[index : index + 1] if len(self.mask) > 1 else self.mask
        return Known(self.codes[index : index + 1], mask)

    def alone(self, quantizer: Quantizer, device: torch.device) -> tuple[Tensor, Tensor]:
        """The given codes (B, C, h, w) of a scale that does not run, and that they alone count."""
        codes = quantizer.codes(self.codes.to(device))
        return codes, self.mask.to(codes).unsqueeze(1)

    def over(
        self, drawn: Tensor, codes: Tensor, weights: Tensor | None, quantizer: Quantizer
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """What was drawn, its codes (B, C, h, w) and their weights, replaced where they are given."""
        given = self.codes.to(device=drawn.device, dtype=drawn.dtype).reshape(drawn.shape)
        mask = self.mask.to(device=drawn.device, dtype=torch.bool).unsqueeze(1)
        kept = mask.reshape(len(mask), *(1,) * (drawn.dim() - 3), *mask.shape[-2:])
        codes = torch.where(mask, quantizer.codes(given), codes)
        weights = None if weights is None else torch.where(mask, 1.0, weights)
        return torch.where(kept, given, drawn), codes, weights


class Source(Protocol):
    """What is given of the scales in one run."""

    @property
    def replayed(self) -> bool:
        """Whether settled scales are those of a run: nothing of them is drawn again."""
        ...

    def settled(self, scale: Scale) -> ScaleCodes | None:
        """All that a scale adds, where that is given whatever the run computes: nothing of it is drawn."""
        ...

    def at(self, scale: Scale, f_hat: Tensor, raw: Tensor | None) -> Known | ScaleCodes | None:
        """What is given of another scale, or of parts of it; None where nothing is.

        ``f_hat``: the latent before it (B, C, H, W). ``raw``: the logits (2B, L, V) of both rows of guidance,
        None where not both ran.
        """
        ...


class Given(Protocol):
    """What a caller gives of pictures, before it is known in which runs they are made."""

    @property
    def uniform(self) -> bool:
        """Whether the same is given of all pictures, so that they may be made in one run."""
        ...

    def lead(self, index: int) -> Sequence[ScaleCodes]:
        """The first scales of one picture, as far as they are settled."""
        ...

    def image(self, index: int) -> "Given":
        """That of one image."""
        ...

    def start(self, quantizer: Quantizer, device: torch.device) -> Source:
        """The same for one run."""
        ...


@dataclass(frozen=True)
class KnownCodes:
    """Codes of the first scales, given before the run: a :class:`Given` and, as it stands, a source."""

    scales: tuple[Known | ScaleCodes, ...] = ()
    replayed: bool = False
    uniform = True

    def lead(self, index: int) -> tuple[()]:
        """None: what the model would draw is looked at, image by image."""
        return ()

    def image(self, index: int) -> "KnownCodes":
        """Those of one image."""
        return KnownCodes(
            tuple(
                scale.image(index) if isinstance(scale, Known) else scale.images([index])
                for scale in self.scales
            )
        )

    def start(self, quantizer: Quantizer, device: torch.device) -> "KnownCodes":
        """Themselves: nothing of them depends on the run."""
        return self

    def settled(self, scale: Scale) -> ScaleCodes | None:
        """The codes of a scale, where no mask says that they are a part."""
        given = self._given(scale)
        return given if isinstance(given, ScaleCodes) else None

    def at(self, scale: Scale, f_hat: Tensor, raw: Tensor | None) -> Known | ScaleCodes | None:
        """The codes of a scale, None behind the last that is given."""
        return self._given(scale)

    def _given(self, scale: Scale) -> Known | ScaleCodes | None:
        return self.scales[scale.index] if scale.index < len(self.scales) else None


def known_codes(
    known: Sequence[Tensor],
    masks: Sequence[Tensor],
    schedule: ScaleSchedule,
    quantizer: Quantizer,
    batch: int,
) -> KnownCodes:
    """Pairs of given codes and masks; ``ValueError`` where they do not fit schedule or ``batch``."""
    if len(known) > len(schedule) or len(masks) not in (0, len(known)):
        raise ValueError(
            f"known codes of {len(known)} scales and {len(masks)} masks; this schedule has {len(schedule)} "
            "scales, give at most as many codes, and no masks or one for each"
        )
    for scale, *given in zip(schedule, known, masks or known, strict=False):
        grid = quantizer.latent_grid(scale)
        for what, tensor in zip(("codes of scale {} have", "mask of scale {} has"), given, strict=True):
            if tuple(tensor.shape[-2:]) != grid:
                raise ValueError(
                    f"the known {what.format(scale.index)} the grid {tuple(tensor.shape[-2:])}; this "
                    f"schedule has {grid} there. Encode the picture, and make its masks, for this schedule"
                )
        check_codes(
            given[0], (batch, *((quantizer.dim,) if quantizer.signs else ()), *grid), scale, quantizer
        )
        if masks and (given[1].dim() != 3 or len(given[1]) not in (1, batch)):
            raise ValueError(
                f"the known mask of scale {scale.index} has the shape {tuple(given[1].shape)}; expected "
                f"{(batch, *grid)}, or one for all images. Make the masks with scale_masks"
            )
    if not masks:
        return KnownCodes(tuple(map(ScaleCodes, known)))
    return KnownCodes(tuple(map(Known, known, masks)))


def check_codes(codes: Tensor, expected: tuple[int, ...], scale: Scale, quantizer: Quantizer) -> None:
    """``ValueError`` for codes of another tokenizer, or of another number of images."""
    if tuple(codes.shape) != expected:
        raise ValueError(
            f"the known codes of scale {scale.index} have the shape {tuple(codes.shape)}; this tokenizer has "
            f"{expected} for {expected[0]} images. Give codes for every image, of the tokenizer of this run"
        )
    choices = 2 if quantizer.signs else getattr(quantizer, "vocab", None)  # a bit, or a row of the codebook
    if choices is None:
        return
    low, high = extremes(codes).tolist()
    if not 0 <= low <= high < choices:
        raise ValueError(
            f"the known codes of scale {scale.index} go from {low:g} to {high:g}; expected 0 to "
            f"{choices - 1}. Encode the picture with the tokenizer of this run"
        )
