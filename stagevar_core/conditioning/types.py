"""What a generation is conditioned on, independent of who encoded it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .regions import Regions, check_regions


@dataclass(frozen=True)
class TextConditioning:
    """Encoded prompts of a batch: one (tokens, width) tensor per image, without padding.

    ``negative`` replaces the null text in the unconditional rows; None keeps it. ``null``: the encoded empty
    prompt (tokens, width), for models without a learned null text. ``source``: the pictures to edit, one per
    image, as the tokenizer's features before quantization (B, dim, h, w); None where nothing is edited.
    ``regions``: per image where the prompts hold that its text is made of, None: its text is one prompt,
    which holds everywhere. ``negative_regions``: the same of ``negative``. ``padding``: for models that read
    it as well, how many tokens at the end of every text are padding; empty: none. ``negative_padding``: those
    of ``negative``.
    """

    features: tuple[Tensor, ...]
    negative: tuple[Tensor, ...] | None = None
    null: Tensor | None = None
    source: Tensor | None = None
    regions: tuple[Regions | None, ...] = ()
    negative_regions: tuple[Regions | None, ...] = ()
    padding: tuple[int, ...] = ()
    negative_padding: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.features:
            raise ValueError("conditioning needs at least one prompt, got none")
        if self.negative is not None and len(self.negative) != len(self.features):
            raise ValueError(
                f"{len(self.negative)} negative prompts for {len(self.features)} prompts; give one for each"
            )
        if self.source is not None and (self.source.dim() != 4 or len(self.source) != len(self.features)):
            raise ValueError(
                f"the features of the pictures to edit have the shape {list(self.source.shape)}; expected "
                f"({len(self.features)}, channels, height, width), one picture for each prompt"
            )
        check_regions(self.features, self.regions)
        check_regions(self.negative or (), self.negative_regions)
        for texts, counts in ((self.features, self.padding), (self.negative or (), self.negative_padding)):
            if counts and not all(0 <= n <= len(text) for n, text in zip(counts, texts, strict=True)):
                raise ValueError(
                    f"texts of {[len(text) for text in texts]} tokens have {list(counts)} of padding; "
                    "expected at most all of them, for every text"
                )

    @property
    def batch(self) -> int:
        """Images."""
        return len(self.features)

    @property
    def device(self) -> torch.device:
        """Where the features are."""
        return self.features[0].device

    @property
    def tokens(self) -> int:
        """Tokens of the longest text."""
        return max(len(text) for text in (*self.features, *(self.negative or ())))

    def at(self, scale: int) -> "TextConditioning":
        """What holds at the scale of that number: the same at all."""
        return self

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of every text; of one with regions those of its longest prompt."""
        regions = self.regions or (None,) * self.batch
        return tuple(
            max(region.tokens for region in found) if found else len(text)
            for text, found in zip(self.features, regions, strict=True)
        )

    def nulled(self, longest: int | None) -> "TextConditioning":
        """Without negative texts; prompts at most as long as the null text that takes their place."""
        lengths = (length if longest is None else min(length, longest) for length in self.lengths)
        features = tuple(text[:length] for text, length in zip(self.features, lengths, strict=True))
        plain = replace(self, negative=None, negative_padding=(), regions=(), negative_regions=())
        return replace(plain, features=features)

    def images(self, images: Sequence[int]) -> "TextConditioning":
        """That of these images of the batch, in this order."""
        negative = None if self.negative is None else tuple(self.negative[index] for index in images)
        source = None if self.source is None else self.source[list(images)]

        def picked(each: tuple[Any, ...]) -> tuple[Any, ...]:
            return tuple(each[index] for index in images) if each else ()

        return replace(
            self,
            features=tuple(self.features[index] for index in images),
            negative=negative,
            source=source,
            regions=picked(self.regions),
            negative_regions=picked(self.negative_regions),
            padding=picked(self.padding),
            negative_padding=picked(self.negative_padding),
        )

    def image(self, index: int) -> "TextConditioning":
        """That of one image of the batch."""
        return self.images([index])


@dataclass(frozen=True)
class ClassConditioning:
    """Class labels of a batch, one per image; -1 is no class, the model's own unconditional row.

    ``negative`` replaces that row where guidance pushes away from it. ``device``: where to run when
    ``generate`` is not told.
    """

    labels: tuple[int, ...]
    negative: tuple[int, ...] | None = None
    device: torch.device = torch.device("cpu")

    tokens = 0  # a class is no sequence to attend to
    source = None  # and edits no picture

    def __post_init__(self) -> None:
        if not self.labels:
            raise ValueError("conditioning needs at least one class label, got none")
        if self.negative is not None and len(self.negative) != len(self.labels):
            raise ValueError(
                f"{len(self.negative)} negative labels for {len(self.labels)} labels; give one for each"
            )

    @property
    def batch(self) -> int:
        """Images."""
        return len(self.labels)

    def at(self, scale: int) -> "ClassConditioning":
        """What holds at the scale of that number: the same at all."""
        return self

    def nulled(self, longest: int | None) -> "ClassConditioning":
        """Without negative labels."""
        return replace(self, negative=None)

    def images(self, images: Sequence[int]) -> "ClassConditioning":
        """That of these images of the batch, in this order."""
        negative = None if self.negative is None else tuple(self.negative[index] for index in images)
        return replace(self, labels=tuple(self.labels[index] for index in images), negative=negative)

    def image(self, index: int) -> "ClassConditioning":
        """That of one image of the batch."""
        return self.images([index])


Conditioning = TextConditioning | ClassConditioning


def require(conditioning: object, kind: type, family: str) -> None:
    """Raise ``ValueError`` when a model gets the other kind of conditioning."""
    names = {TextConditioning: "an encoded text", ClassConditioning: "a class label"}
    if not isinstance(conditioning, kind):
        found = names.get(type(conditioning), type(conditioning).__name__)
        raise ValueError(
            f"{family} is conditioned on {names[kind]}, got {found}; connect {names[kind]} instead"
        )


def check_task(conditioning: Conditioning, *, edits: bool, family: str) -> None:
    """Raise ``ValueError`` where weights that edit a picture have none, or others have one.

    ``edits``: what the weights were trained for. Both run without complaint and give nonsense.
    """
    if conditioning.source is not None and not edits:
        raise ValueError(
            f"a picture to edit is connected, but these {family} weights were not trained to edit one; load "
            "editing weights (if these are, choose their task in the loader), or take the picture away"
        )
    if conditioning.source is None and edits:
        raise ValueError(
            f"these {family} weights edit a picture and none is connected; connect one with its instruction, "
            "or load generating weights (if these are, choose their task in the loader)"
        )


def pad_rows(texts: list[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Texts (tokens, width) as one padded (rows, T, width) tensor and the mask of real tokens.

    The mask (rows, 1, 1, T) is None when all texts are as long, so that attention runs without one.
    """
    longest = max(len(text) for text in texts)
    padded = torch.stack([F.pad(text, (0, 0, 0, longest - len(text))) for text in texts])
    if all(len(text) == longest for text in texts):
        return padded, None
    lengths = torch.tensor([len(text) for text in texts], device=padded.device)
    mask = torch.arange(longest, device=padded.device)[None, :] < lengths[:, None]
    return padded, mask[:, None, None, :]
