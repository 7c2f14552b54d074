"""A conditioning that changes from scale to scale: layout from one prompt, texture from another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ..schedule import Prefix
from .types import Conditioning


@dataclass(frozen=True)
class ChangingConditioning:
    """Conditionings of the same images that take turns.

    ``parts``: all of them, texts or classes. ``turns``: which one holds at each scale. Keys and values of
    earlier scales stay as they are.
    """

    parts: tuple[Conditioning, ...]
    turns: tuple[int, ...]

    source = None

    def __post_init__(self) -> None:
        if not self.turns or not all(0 <= turn < len(self.parts) for turn in self.turns):
            raise ValueError(
                f"turns are {self.turns} of {len(self.parts)} conditionings; expected one of them per scale"
            )
        if len({(type(part), part.batch) for part in self.parts}) > 1:
            found = [f"{part.batch} of {type(part).__name__}" for part in self.parts]
            raise ValueError(f"conditionings of {found} take turns; expected one kind and as many images")
        if any(part.source is not None for part in self.parts):
            raise ValueError("a prompt that changes and a picture to edit do not go together; leave one out")

    @classmethod
    def of(cls, holding: Sequence[Conditioning]) -> RunConditioning:
        """From what holds at each scale; the one itself where all are the same."""
        parts = tuple(dict.fromkeys(map(id, holding)))
        if len(parts) == 1:
            return holding[0]
        known = {id(part): part for part in holding}
        turns = tuple(parts.index(id(part)) for part in holding)
        return cls(tuple(known[key] for key in parts), turns)

    def at(self, scale: int) -> Conditioning:
        """What holds at the scale of that number; behind the last, what held there."""
        return self.parts[self.turns[min(scale, len(self.turns) - 1)]]

    @property
    def batch(self) -> int:
        """Images."""
        return self.parts[0].batch

    @property
    def device(self) -> torch.device:
        """Where the first of them is."""
        return self.parts[0].device

    @property
    def tokens(self) -> int:
        """Tokens of the longest text."""
        return max(part.tokens for part in self.parts)

    @property
    def negative(self) -> object:
        """Those of the first part that has any, None where the null text or class does at all scales."""
        return next((part.negative for part in self.parts if part.negative is not None), None)

    def images(self, images: Sequence[int]) -> ChangingConditioning:
        """That of these images of the batch, in this order."""
        return ChangingConditioning(tuple(part.images(images) for part in self.parts), self.turns)

    def image(self, index: int) -> ChangingConditioning:
        """That of one image of the batch."""
        return self.images([index])


RunConditioning = Conditioning | ChangingConditioning
"""What a whole run is conditioned on."""


def from_stages(
    first: Conditioning, later: Mapping[str, Conditioning], stages: Sequence[str]
) -> RunConditioning:
    """``first``, from a stage on what ``later`` has for it; ``stages``: the name of that of every scale."""
    holding: list[Conditioning] = []
    current, before = first, ""
    for stage in stages:
        if stage != before:
            current, before = later.get(stage, current), stage
        holding.append(current)
    return ChangingConditioning.of(holding)


def check_once(conditioning: RunConditioning, prefix: Prefix | None) -> None:
    """Raise ``ValueError`` for a text that changes where a model reads it once, before the first scale."""
    if prefix is not None and prefix.opens and isinstance(conditioning, ChangingConditioning):
        raise ValueError(
            "the prompt changes from one stage to another, but this model reads its text once, before the "
            "first scale; use one prompt for all stages"
        )


def tokens_of(conditioning: RunConditioning, scales: int) -> tuple[int, ...]:
    """Tokens of the longest text at every scale."""
    return tuple(conditioning.at(scale).tokens for scale in range(scales))
