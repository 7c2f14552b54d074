"""Shape of a STAR transformer."""

from dataclasses import asdict, dataclass

from ..costs import UnitCosts
from ..schedule import SIDES_256, SIDES_512, SIDES_1024
from .config import Sizes


@dataclass(frozen=True)
class STARConfig(Sizes):
    """Shape of a STAR transformer.

    ``vocab``, ``dim``: of the tokenizer's codebook. ``hidden``: width of the feed-forward. ``levels``: scales
    of its schedule. ``sides``: their side lengths, empty where a file does not say (256 and 512 px have the
    same shapes). ``sampler_depth``: blocks of the inner sampler network, 0 where the file has none.
    ``rope_norm``, ``rope_base``: reach and base of the rotary positions.
    """

    levels: int
    vocab: int = 4096
    dim: int = 32
    text_width: int = 1024
    sampler_depth: int = 0
    sides: tuple[int, ...] = ()
    rope_norm: float = 64.0
    rope_base: float = 10000.0

    patch = 1  # latent pixels per token side

    @classmethod
    def released(cls, depth: int, sides: tuple[int, ...], *, sampler: bool = False) -> "STARConfig":
        """The family of published models: 64 channels per head, as many heads as blocks."""
        width = 64 * depth
        return cls(depth, width, depth, 4 * width, len(sides), sampler_depth=3 if sampler else 0, sides=sides)

    @property
    def unit_costs(self) -> UnitCosts:
        """FLOPs per token and per query-key pair; text is read once per image, whatever the rows."""
        square = 2.0 * self.width**2
        return UnitCosts(
            depth=self.depth,
            branches={"self": 4 * square, "cross": 2 * square, "ffn": 4.0 * self.width * self.hidden},
            pair=4.0 * self.width,
            text_pair=4.0 * self.width,
            head=2.0 * self.width * self.vocab,
            per_image=("cross",),
        )

    def condition_flops(self, rows: int, text_tokens: int) -> float:
        """What is spent on the text once: start tokens, and keys and values of all blocks per image."""
        images = max(1, rows // 2)
        return 2.0 * self.text_width * self.width * (rows + 2.0 * images * text_tokens * self.depth)

    def to_dict(self) -> dict:
        """Without what a file does not have or does not say."""
        return {name: value for name, value in asdict(self).items() if value}

    @classmethod
    def from_dict(cls, values: dict) -> "STARConfig":
        """The inverse of :meth:`to_dict`."""
        return cls(**{**values, "sides": tuple(values.get("sides", ()))})


STAR_256 = STARConfig.released(30, SIDES_256)


STAR_512 = STARConfig.released(30, SIDES_512)


STAR_1024 = STARConfig.released(30, SIDES_1024)
