"""Shape of a HART transformer and of its residual-diffusion head."""

from dataclasses import dataclass

from ..costs import UnitCosts
from ..schedule import SIDES_1024
from .config import Sizes

MODULATIONS = ("none", "own", "shared")
POOLINGS = ("max", "avg")


@dataclass(frozen=True)
class HARTConfig(Sizes):
    """Shape of a HART transformer.

    ``sides``: side lengths of the scales. ``context``: tokens of every text, padding among them. ``vocab``,
    ``dim``: of the tokenizer's codebook. ``cosine``: queries and keys are normalised. ``modulation``: of the
    blocks by the text: 'none', by a layer of their 'own', or by the mean text and a table ('shared').
    ``level_table``: levels are looked up, else a network computes them. ``context_norm``: the text is
    normalised. ``pooling``: of the text for modulation by own layers. ``diff_width``, ``diff_depth``,
    ``diff_steps``: of the network that draws what the last scale's codes lack, and how often it runs.
    """

    sides: tuple[int, ...] = SIDES_1024
    context: int = 300
    text_width: int = 1536
    vocab: int = 4096
    dim: int = 32
    cosine: bool = False
    modulation: str = "none"
    level_table: bool = False
    context_norm: bool = True
    pooling: str = "max"
    diff_width: int = 1024
    diff_depth: int = 6
    diff_steps: int = 8

    patch = 1  # latent pixels per token side

    @property
    def unit_costs(self) -> UnitCosts:
        """FLOPs per token and per query-key pair: four square matrices and a gated feed-forward."""
        return UnitCosts(
            depth=self.depth,
            branches={"self": 8.0 * self.width**2, "ffn": 6.0 * self.width * self.hidden},
            pair=4.0 * self.width,
            text_pair=0.0,
            head=2.0 * self.width * self.vocab,
        )

    @property
    def residual_flops(self) -> float:
        """FLOPs per token of the last scale and row: the text once, the rest at every step."""
        width, dim = self.diff_width, self.dim
        step = 2.0 * dim * width + self.diff_depth * 10.0 * width**2 + 4.0 * width**2 + 4.0 * width * dim
        return 2.0 * width * self.width + self.diff_steps * step

    def condition_flops(self, rows: int, text_tokens: int) -> float:
        """What is spent on the text once: its embedding and the modulation."""
        layers = self.depth if self.modulation == "own" else 0
        modulation = 2.0 * (6.0 * layers + 2.0) * self.width**2
        return rows * (2.0 * self.context * self.text_width * self.width + modulation)

    @classmethod
    def from_dict(cls, values: dict) -> "HARTConfig":
        """The inverse of :meth:`to_dict`."""
        return cls(**{**values, "sides": tuple(values["sides"])})


HART_0_7B = HARTConfig(depth=24, width=1536, heads=24, hidden=4096)
