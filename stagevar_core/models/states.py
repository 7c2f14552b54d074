"""What a conditioning is computed to once per run, in the families that it modulates."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from torch import Tensor

from ..conditioning.regions import Sight
from ..schedule import Scale

_State = TypeVar("_State", bound="ModulatedState")
_Text = TypeVar("_Text", bound="TextState")


@dataclass(kw_only=True)
class ModulatedState:
    """Where nothing beside self-attention reads it; rows are conditional, then unconditional."""

    start: Tensor  # (rows, C), or (rows, T, C) where it precedes the scales as tokens
    block_ada: list[Tensor]  # per block (rows, 1, 6, C), scales as 1 + scale, see with_factors
    head_ada: Tensor  # (rows, 1, 2, C), the same

    def seen(self, scale: Scale) -> Tensor | None:
        """None: there is no text that is attended to."""

    def narrow(self: _State, rows: slice) -> _State:
        """Only these rows."""
        return self._of(rows)

    def pick(self: _State, images: Sequence[int], rows: Tensor) -> _State:
        """That of other images."""
        return self._of(rows)

    def _of(self: _State, rows: slice | Tensor) -> _State:
        block_ada = [ada[rows] for ada in self.block_ada]
        return replace(self, start=self.start[rows], block_ada=block_ada, head_ada=self.head_ada[rows])


@dataclass(kw_only=True)
class TextState(ModulatedState):
    """That of texts, which the blocks attend to as well; ``start`` is the text as one vector."""

    keys_values: list[tuple[Tensor, Tensor]]  # per block (rows, heads, T, head_dim)
    mask: Tensor | None  # (rows, 1, 1, T), True = a token of the row's text; None when all texts are as long
    regions: Sight | None = None  # where the prompts hold that the texts are made of

    def seen(self, scale: Scale) -> Tensor | None:
        """What is added to the scores of the text at a scale, (rows, 1, L, T); None: all see it all."""
        return None if self.regions is None else self.regions.at(scale, self.keys_values[0][0])

    def _of(self: _Text, rows: slice | Tensor) -> _Text:
        return replace(
            super()._of(rows),
            keys_values=[(k[rows], v[rows]) for k, v in self.keys_values],
            mask=None if self.mask is None else self.mask[rows],
            regions=None if self.regions is None else self.regions.narrow(rows),
        )
