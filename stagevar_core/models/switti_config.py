"""Shape of a Switti transformer."""

from dataclasses import dataclass

from ..costs import UnitCosts
from ..schedule import SIDES_512, SIDES_1024
from .config import Sizes

GUIDED = 10  # scales with guidance unless a list says otherwise: all at 512 px, ten of fourteen at 1024 px


@dataclass(frozen=True)
class SwittiConfig(Sizes):
    """Shape of a Switti transformer.

    ``ar``: tokens see the scales before theirs; without it each scale sees itself alone. ``sides``: side
    lengths of the trained scales, empty where a file does not say. ``hidden``: width of the gated
    feed-forward. ``vocab``, ``dim``: of the tokenizer's codebook. ``pooled_width``: of the text as one
    vector, the last channels of its end token. ``crop``: it is told which part of a picture it draws.
    ``guided``: scales that a plain strength of guidance is for. ``rope_norm``, ``rope_base``: reach and base
    of the rotary positions.
    """

    levels: int
    ar: bool
    sides: tuple[int, ...] = ()
    vocab: int = 4096
    dim: int = 32
    text_width: int = 2048
    pooled_width: int = 1280
    crop: bool = True
    guided: int = GUIDED
    rope_norm: float = 128.0
    rope_base: float = 10000.0

    patch = 1  # latent pixels per token side

    @classmethod
    def released(cls, depth: int, sides: tuple[int, ...], *, ar: bool) -> "SwittiConfig":
        """The family of published models: 64 channels per head, as many heads as blocks."""
        width = 64 * depth
        return cls(depth, width, depth, 8 * width // 3, len(sides), ar, sides)

    @property
    def unit_costs(self) -> UnitCosts:
        """FLOPs per token and per query-key pair; the feed-forward has three matrices."""
        square = 2.0 * self.width**2
        return UnitCosts(
            depth=self.depth,
            branches={"self": 4 * square, "cross": 2 * square, "ffn": 6.0 * self.width * self.hidden},
            pair=4.0 * self.width,
            text_pair=4.0 * self.width,
            head=2.0 * self.width * self.vocab,
            history=self.ar,
            narrows=True,
        )

    def condition_flops(self, rows: int, text_tokens: int) -> float:
        """What is spent on the text once: its vector, all modulations, keys and values of all blocks."""
        squares = 6.0 * self.depth + 2.0 + (1.0 if self.crop else 0.0)
        texts = self.pooled_width + 2.0 * self.text_width * text_tokens * self.depth
        return rows * 2.0 * self.width * (squares * self.width + texts)

    @classmethod
    def from_dict(cls, values: dict) -> "SwittiConfig":
        """The inverse of :meth:`to_dict`."""
        return cls(**{**values, "sides": tuple(values.get("sides", ()))})


SWITTI_512 = SwittiConfig.released(30, SIDES_512, ar=False)
SWITTI_512_AR = SwittiConfig.released(30, SIDES_512, ar=True)
SWITTI_1024 = SwittiConfig.released(30, SIDES_1024, ar=False)
SWITTI_1024_AR = SwittiConfig.released(30, SIDES_1024, ar=True)
