"""Families whose prompts hold in regions, or change with the scale; for the tester of policies."""

from dataclasses import replace
from typing import Any

import torch

from stagevar_core.conditioning.changing import ChangingConditioning
from stagevar_core.conditioning.regions import Region, Regions
from stagevar_core.conditioning.types import TextConditioning
from tests.support.capability import FAMILIES, Family

LEFT = torch.zeros(8, 8)
LEFT[:, :4] = 1.0
CIRCLE = torch.hypot(*torch.meshgrid(torch.arange(20.0) - 9.5, torch.arange(20.0) - 9.5, indexing="ij")) < 6.0


def regions(texts: tuple[torch.Tensor, ...]) -> tuple[Regions, ...]:
    """Of every text two prompts or one: sharp, soft, with one for the whole picture, weighted."""
    found = []
    for index, text in enumerate(texts):
        first = max(1, len(text) // 2)
        rest = len(text) - first
        masks = ((LEFT, 1.0 - LEFT), (CIRCLE.float(), None), (0.3 * LEFT, LEFT), (None, None))[index % 4]
        kinds = [Region(first, masks[0], 0.5), Region(rest, masks[1], 2.0)]
        found.append(tuple(kind for kind in kinds if kind.tokens))
    return tuple(found)


def in_regions(family: Family) -> Family:
    """Its texts and negative texts in regions."""

    def condition(batch: int, *, negative: bool = False) -> TextConditioning:
        plain = family.condition(batch, negative=negative)
        against = () if plain.negative is None else regions(plain.negative)
        return replace(plain, regions=regions(plain.features), negative_regions=against)

    return replace(family, name=f"{family.name} in regions", condition=condition)


def changing(family: Family) -> Family:
    """From the fourth scale on the prompts are those of the other images, with a negative where asked for."""

    def condition(batch: int, *, negative: bool = False) -> Any:
        first, second = family.condition(batch), family.condition(batch, negative=negative)
        if isinstance(second, TextConditioning):
            second = replace(second, features=tuple(text.flip(0) for text in second.features))
        else:
            second = replace(second, labels=tuple((label + 1) % 7 for label in second.labels))
        return ChangingConditioning((first, second), (0, 0, 0, 1))

    return replace(family, name=f"{family.name} that changes", condition=condition)


NAMED = {family.name: family for family in FAMILIES}
TEXTS = ("infinity", "infinity patchified", "star")
STEERED = (
    *(in_regions(NAMED[name]) for name in TEXTS),
    *(changing(NAMED[name]) for name in (*TEXTS, "var")),
    changing(in_regions(NAMED["infinity"])),
)
