"""Where numbers stop being finite: an error that names the part, instead of a picture made of NaN."""

import math

import torch
from torch import Tensor

from ..conditioning.changing import ChangingConditioning, RunConditioning
from ..conditioning.types import TextConditioning

_TEXTS = {"features": "prompt", "negative": "negative prompt"}
_AGAIN = "Download the file again, and load it with another weight_dtype: default, bfloat16 or float32"
_ENCODER = (
    "The text encoder overflowed (T5 does in float16), its file is damaged, or a weight in the prompt is no "
    f"number or a huge one; write weights as (word:1.2). {_AGAIN}"
)
_TRANSFORMER = f"Its weights are damaged or overflow. {_AGAIN}"
_GUIDANCE = "Those of the transformer are finite, so cfg or temperature is out of all range; set both to auto"
_LARGEST = 1e15  # of text features: encoders give hundreds, and norms of float32 square what they are given
_CODEBOOK = "The codebook in the tokenizer's file is damaged. Download the file again"


def extremes(numbers: Tensor) -> Tensor:
    """(smallest, largest) on the numbers' device; either is NaN or infinite where one of the numbers is."""
    return torch.stack((numbers.amin(), numbers.amax())).float()


def finite(numbers: Tensor) -> bool:
    """Whether all numbers are finite; waits for their device."""
    return not numbers.numel() or all(map(math.isfinite, extremes(numbers).tolist()))


def to_uint8(image: Tensor) -> Tensor:
    """Decoder output (B, 3, H, W) in [-1, 1] to (B, H, W, 3) uint8, truncated like the official code."""
    return ((image.float() + 1.0) / 2.0 * 255.0).permute(0, 2, 3, 1).to(torch.uint8).contiguous()


def check_decoded(found: Tensor, latent: Tensor, source: str = "the tokenizer") -> None:
    """Raise ``ValueError`` where the extremes of pictures are not finite; ``source``: whose decoder it is."""
    if all(map(math.isfinite, found.tolist())):
        return
    if not finite(latent):
        raise ValueError(
            "samples: the latent holds NaN or infinity; expected one of StageVAR Sampler or VAE Encode"
        )
    low, high = extremes(latent).tolist()
    raise ValueError(
        f"{source}: the decoder gave NaN or infinity for a latent of {low:.3g} to {high:.3g}. Its weights "
        "are damaged or overflow; download the file again, and decode in bfloat16 or float32"
    )


class Watch:
    """Looks at what a run computes, and raises where the run waits for its device anyway.

    Looking is a pass over the numbers and no wait: their extremes stay on the device until :meth:`read`.
    """

    def __init__(self, conditioning: RunConditioning) -> None:
        self._seen: list[tuple[str, str, float, Tensor]] = []
        for part in conditioning.parts if isinstance(conditioning, ChangingConditioning) else (conditioning,):
            if isinstance(part, TextConditioning):
                self._texts(part)

    def _texts(self, conditioning: TextConditioning) -> None:
        for field, name in _TEXTS.items():
            texts = dict.fromkeys(getattr(conditioning, field) or ())  # images that share one count once
            for index, text in enumerate(texts):
                self._see(f"the text features of {name} {index + 1}", _ENCODER, text, _LARGEST)
        if conditioning.null is not None:
            self._see("the text features of the empty prompt", _ENCODER, conditioning.null, _LARGEST)

    def logits(self, raw: Tensor, guided: Tensor) -> Tensor:
        """The head's output (rows, L, V) and what is sampled from (B, L, V), which is given back."""
        self._see("the logits of the transformer", _TRANSFORMER, raw)
        self._see("the guided logits", _GUIDANCE, guided)
        return guided

    def found(self, numbers: Tensor) -> Tensor:
        """What a network of the head's own gives, which is given back."""
        self._see("the residuals of the transformer", _TRANSFORMER, numbers)
        return numbers

    def latent(self, f_hat: Tensor) -> None:
        """The accumulated latent (B, C, H, W)."""
        self._see("the tokenizer's codes", _CODEBOOK, f_hat)

    def read(self, scale: int, scales: int) -> None:
        """Raise ``ValueError`` naming the first part that was not finite, and what to do about it."""
        if not self._seen:
            return
        device = self._seen[-1][-1].device  # that of the run; texts may have come from another one
        found = torch.stack([extreme.to(device) for *_, extreme in self._seen]).tolist()
        for (name, advice, largest, _), numbers in zip(self._seen, found, strict=True):
            if not all(map(math.isfinite, numbers)):
                raise ValueError(f"scale {scale + 1} of {scales}: {name} hold NaN or infinity. {advice}")
            if max(map(abs, numbers)) > largest:
                held = f"hold {max(numbers, key=abs):.3g}; expected at most {largest:g}"
                raise ValueError(f"scale {scale + 1} of {scales}: {name} {held}. {advice}")
        self._seen.clear()

    def _see(self, name: str, advice: str, numbers: Tensor, largest: float = math.inf) -> None:
        if not numbers.is_meta:  # shapes alone: nothing to read
            self._seen.append((name, advice, largest, extremes(numbers)))
