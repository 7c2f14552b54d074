"""A whole family in one file: it signs the contract, and nothing else knows of it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from stagevar_core.autoencoders.vq import VectorQuantizer
from stagevar_core.conditioning.types import ClassConditioning, Conditioning, require
from stagevar_core.costs import UnitCosts
from stagevar_core.models.draws import TokenHead, refinement
from stagevar_core.models.guidance import ramped
from stagevar_core.models.prefix import NoPrefix
from stagevar_core.network.attention import AttentionFn
from stagevar_core.network.cache import KVCache
from stagevar_core.network.context import ScaleContext
from stagevar_core.network.layers import CosineAttention, FeedForward, plain_norm, stacked
from stagevar_core.schedule import Prefix, Scale, ScaleSchedule


@dataclass(frozen=True)
class ToyConfig:
    depth: int = 2
    width: int = 16
    heads: int = 2
    hidden: int = 32
    vocab: int = 24
    dim: int = 4
    classes: int = 7
    longest: int = 6  # scales

    patch, text_width = 1, 0

    @property
    def unit_costs(self) -> UnitCosts:
        square = 2.0 * self.width**2
        branches = {"self": 4 * square, "ffn": 4.0 * self.width * self.hidden}
        return UnitCosts(self.depth, branches, 4.0 * self.width, 0.0, 2.0 * self.width * self.vocab)

    def condition_flops(self, rows: int, text_tokens: int) -> float:
        return 0.0

    def to_dict(self) -> dict:
        return asdict(self)


@dataclass
class ToyState:
    start: Tensor  # (rows, C)

    def seen(self, scale: Scale) -> None:
        return None

    def narrow(self, rows: slice) -> "ToyState":
        return ToyState(self.start[rows])


class ToyBlock(nn.Module):
    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.attention = CosineAttention(config.width, config.heads)
        self.ffn = FeedForward(config.width, config.hidden, config.width)

    def forward(self, x: Tensor, ctx: ScaleContext, layer: int) -> Tensor:
        def attend(h: Tensor, angles: Tensor | None) -> Tensor:
            return self.attention(
                h, ctx.attending(layer), angles, plain_norm, self.attention.lengths(h.device)
            )

        x = ctx.residual(x, attend, layer, "self")
        return ctx.residual(x, lambda h, angles: self.ffn(plain_norm(h)), layer, "ffn")


class Toy(NoPrefix, nn.Module):
    family, text_family, learned_null, longest_text, refinements = "toy", None, True, None, ()
    corrects = False

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.config, self.classes, self.compute_dtype = config, config.classes, torch.float32
        self.labels = nn.Embedding(config.classes + 1, config.width)
        self.words, self.out = nn.Linear(config.dim, config.width), nn.Linear(config.width, config.vocab)
        self.blocks = stacked(ToyBlock(config) for _ in range(config.depth))

    def check(self, schedule: ScaleSchedule) -> None:
        if len(schedule) > self.config.longest:
            raise ValueError(f"{len(schedule)} scales; expected {self.config.longest} at most")

    def guidance_weights(
        self, cfg_scale: float | Sequence[float], schedule: ScaleSchedule
    ) -> tuple[float, ...]:
        return ramped(cfg_scale, schedule)

    def quantizer(self) -> VectorQuantizer:
        raise ValueError("the codebook is the tokenizer's; pass its quantizer")

    def drawing_head(self, refine: str = "auto") -> TokenHead:
        refinement(self.family, self.refinements, refine)
        return TokenHead(self.config.vocab, smooth_filters=True, smooth_draws=1)

    def new_cache(self, rows: int, device: torch.device) -> KVCache:
        width = self.config.width // self.config.heads
        return KVCache(self.config.depth, rows, self.config.heads, width, dtype=torch.float32, device=device)

    def condition(
        self, given: Conditioning, guided: bool, device: torch.device, attention: AttentionFn
    ) -> ToyState:
        require(given, ClassConditioning, "Toy")
        negative = given.negative or (self.classes,) * given.batch
        rows = (*given.labels, *(negative if guided else ()))
        return ToyState(self.labels(torch.tensor(rows, device=device)))

    def positions(
        self, schedule: ScaleSchedule, scale: Scale, device: torch.device, prefix: Prefix | None = None
    ) -> None:
        return None

    def first_tokens(self, state: ToyState) -> Tensor:
        return state.start.unsqueeze(1)

    def embed(self, inputs: Tensor) -> Tensor:
        return self.words(inputs)

    def forward(self, x: Tensor, ctx: ScaleContext) -> Tensor:
        return ctx.run(self.blocks, x)

    def logits(self, x: Tensor, state: ToyState) -> Tensor:
        return self.out(plain_norm(x) + state.start.unsqueeze(1))
