"""Sizes of an Infinity transformer, and what they cost."""

from dataclasses import asdict, dataclass

from ..costs import UnitCosts
from .config import Sizes


@dataclass(frozen=True)
class InfinityConfig(Sizes):
    """Shape of an Infinity transformer.

    ``bits``: bits per token (``dim * patch ** 2``). ``hidden``: width of the feed-forward. ``null_rows``:
    learned unconditional text rows, the longest prompt in tokens. ``pool_heads``: heads of the text pooling.
    ``edits``: the weights change a picture (VAREdit), which no tensor shows. ``moved_source``: the rotary
    positions of that picture are those of the last scale, moved; else they come from VAREdit's table.
    ``restores``: the weights make a poor picture better (VARestorer), in a pass of their own.
    """

    bits: int
    patch: int = 1
    text_width: int = 2048
    null_rows: int = 512
    pool_heads: int = 16
    levels: int = 15
    edits: bool = False
    moved_source: bool = False
    restores: bool = False

    @property
    def dim(self) -> int:
        """Bits per latent pixel of the tokenizer that belongs to this transformer."""
        return self.bits // self.patch**2

    @property
    def unit_costs(self) -> UnitCosts:
        """FLOPs per token and per query-key pair: four square matrices, two for text, the feed-forward."""
        square = 2.0 * self.width**2
        return UnitCosts(
            depth=self.depth,
            branches={"self": 4 * square, "cross": 2 * square, "ffn": 4.0 * self.width * self.hidden},
            pair=4.0 * self.width,
            text_pair=4.0 * self.width,
            head=4.0 * self.width * self.bits,
        )

    def condition_flops(self, rows: int, text_tokens: int) -> float:
        """What is spent on the text once: pooling, its projection, the keys and values of all blocks."""
        width, count = self.width, rows * text_tokens
        shared = count * 2.0 * (self.text_width * 3.0 * width + width**2)
        modulation = rows * 2.0 * 9.0 * width**2  # pooled projection, 6 C of the blocks, 2 C of the head
        return shared + modulation + count * self.depth * 4.0 * width**2

    def to_dict(self) -> dict:
        """The fields as plain values for JSON; of the task only what is not the usual one."""
        return {name: value for name, value in asdict(self).items() if value is not False}

    @classmethod
    def from_dict(cls, values: dict) -> "InfinityConfig":
        """The inverse of :meth:`to_dict`."""
        return cls(**values)


INFINITY_125M = InfinityConfig(depth=12, width=768, heads=8, hidden=3072, bits=16)
INFINITY_2B = InfinityConfig(depth=32, width=2048, heads=16, hidden=8192, bits=32)
INFINITY_8B = InfinityConfig(depth=40, width=3584, heads=28, hidden=14336, bits=56, patch=2)
