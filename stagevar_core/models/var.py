"""VAR (arXiv 2404.02905): the class-conditional next-scale transformer over a VQ codebook.

Arithmetic of models/{var,basic_var}.py of FoundationVision/VAR. Positions are learned, one row per token of
the trained schedule. Biases that the files keep apart are folded into the projections when a checkpoint is
converted; see ``checkpoints/families_var.py`` for the names.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..conditioning.types import ClassConditioning, require
from ..costs import UnitCosts
from ..network.attention import Attend, AttentionFn
from ..network.context import ScaleContext
from ..network.layers import (
    CosineAttention,
    FeedForward,
    cast,
    merge_heads,
    modulated_norm,
    queries_of,
    row_by_row,
    stacked,
    with_factors,
)
from ..schedule import SIDES_256, SIDES_512, Prefix, Scale, ScaleSchedule
from .config import Sizes
from .draws import TokenHead, refinement
from .family import OverCodebook, StartToken
from .guidance import ramped
from .states import ModulatedState


@dataclass(frozen=True)
class VARConfig(Sizes):
    """Shape of a VAR transformer.

    ``sides``: side lengths of the trained scales, which the positions belong to. ``classes``: without the
    unconditional row. ``vocab`` and ``dim``: codebook rows and latent channels of its tokenizer. ``shared``:
    one modulation layer for all blocks instead of one in each. ``cosine``: queries and keys are normalised.
    """

    sides: tuple[int, ...]
    classes: int = 1000
    vocab: int = 4096
    dim: int = 32
    shared: bool = False
    cosine: bool = True

    patch = 1  # latent pixels per token side
    text_width = 0  # it reads no text

    @classmethod
    def released(cls, depth: int, sides: tuple[int, ...], *, shared: bool = False) -> "VARConfig":
        """The family of published models: 64 channels per head, as many heads as blocks."""
        width = 64 * depth
        return cls(depth, width, depth, 4 * width, sides, shared=shared)

    @property
    def schedule(self) -> ScaleSchedule:
        """The schedule that the positions were trained on."""
        return ScaleSchedule.of([(side, side) for side in self.sides])

    @property
    def unit_costs(self) -> UnitCosts:
        """FLOPs per token and per query-key pair: four square matrices and the feed-forward."""
        return UnitCosts(
            depth=self.depth,
            branches={"self": 8.0 * self.width**2, "ffn": 4.0 * self.width * self.hidden},
            pair=4.0 * self.width,
            text_pair=0.0,
            head=2.0 * self.width * self.vocab,
        )

    def condition_flops(self, rows: int, text_tokens: int) -> float:
        """What is spent on the class once: the modulation of all blocks and of the head."""
        return rows * 2.0 * ((1 if self.shared else self.depth) * 6.0 + 2.0) * self.width**2

    @classmethod
    def from_dict(cls, values: dict) -> "VARConfig":
        """The inverse of :meth:`to_dict`."""
        return cls(**{**values, "sides": tuple(values["sides"])})


VAR_D16 = VARConfig.released(16, SIDES_256)
VAR_D20 = VARConfig.released(20, SIDES_256)
VAR_D24 = VARConfig.released(24, SIDES_256)
VAR_D30 = VARConfig.released(30, SIDES_256)
VAR_D36 = VARConfig.released(36, SIDES_512, shared=True)


@dataclass(kw_only=True)
class ClassState(ModulatedState):
    """What the blocks need of the labels, computed once per run; ``start``: the class embedding."""

    lengths: list[Tensor | None]  # per block those of queries and keys, (2, 2 * heads, 1)


class PlainAttention(nn.Module):
    """Attention over all tokens so far at the official scale without normalisation, ``1 / (4 sqrt(d))``."""

    def __init__(self, width: int, heads: int, *, operations=nn, dtype=None, device=None) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = operations.Linear(width, 3 * width, dtype=dtype, device=device)
        self.proj = operations.Linear(width, width, dtype=dtype, device=device)

    def lengths(self, device: torch.device) -> None:
        """None: they are as they come."""

    def forward(
        self,
        x: Tensor,
        attend: Attend,
        angles: Tensor | None,
        norm: Callable[[Tensor], Tensor],
        lengths: None,
    ) -> Tensor:
        """Attention of ``norm(x)``, ``x`` (rows, L, C), over all tokens so far, (rows, L, C)."""
        q, kv = queries_of(self.qkv(norm(x)).unflatten(-1, (3 * self.heads, -1)))
        return self.proj(merge_heads(attend(q * (0.25 / q.shape[-1] ** 0.5), kv)))


class Block(nn.Module):
    """Self-attention and feed-forward, each a residual branch.

    ``modulation`` is this block's own layer, ``ada`` what it adds to a layer that all blocks share.
    """

    def __init__(self, config: VARConfig, *, operations=nn, dtype=None, device=None) -> None:
        super().__init__()
        factory = {"operations": operations, "dtype": dtype, "device": device}
        width = config.width
        if config.shared:
            self.ada = nn.Parameter(torch.empty(6, width, dtype=torch.float32, device=device))
        else:
            self.modulation = operations.Linear(width, 6 * width, dtype=dtype, device=device)
        attention = CosineAttention if config.cosine else PlainAttention
        self.self_attn = attention(width, config.heads, **factory)
        self.ffn = FeedForward(width, config.hidden, width, **factory)

    def forward(self, x: Tensor, ctx: ScaleContext, layer: int) -> Tensor:
        """(rows, L, C) in float32 to the same; matrix products run in the context's dtype."""
        gate1, gate2, factor1, factor2, shift1, shift2 = ctx.conditioned.block_ada[layer].unbind(dim=2)
        lengths = ctx.conditioned.lengths[layer]

        def attend_self(h: Tensor, angles: Tensor | None) -> Tensor:
            return self.self_attn(
                h,
                ctx.attending(layer),
                angles,
                lambda part: modulated_norm(part, factor1, shift1, ctx.dtype),
                lengths,
            )

        def feed_forward(h: Tensor, angles: Tensor | None) -> Tensor:
            return self.ffn(modulated_norm(h, factor2, shift2, ctx.dtype))

        x = ctx.residual(x, attend_self, layer, "self", gate1)
        return ctx.residual(x, feed_forward, layer, "ffn", gate2)


class VAR(OverCodebook, StartToken[VARConfig]):
    """The transformer: blocks in ``dtype``, everything around them (embeddings, head) in float32.

    ``operations`` supplies Linear (``torch.nn`` or the host's), ``compute_dtype`` the dtype of the blocks'
    matrix products where it differs from the storage dtype.
    """

    family = "var"
    title = "VAR"
    text_family = None
    learned_null = True
    longest_text = None
    refinements = ()
    corrects = False

    def __init__(
        self, config: VARConfig, *, operations=nn, dtype=None, device=None, compute_dtype=None
    ) -> None:
        if not config.sides:
            raise ValueError("the side lengths of its scales are not known")
        super().__init__(config, compute_dtype or dtype)
        width, precise = config.width, {"dtype": torch.float32, "device": device}
        self.class_embed = nn.Parameter(torch.empty(config.classes + 1, width, **precise))
        self.start = nn.Parameter(torch.empty(width, **precise))
        self.position_embed = nn.Parameter(torch.empty(config.schedule.tokens, width, **precise))
        self.level_embed = nn.Parameter(torch.empty(len(config.sides), width, **precise))
        self.word_embed = operations.Linear(config.dim, width, **precise)
        if config.shared:
            self.block_ada = operations.Linear(width, 6 * width, **precise)
        self.blocks = stacked(
            Block(config, operations=operations, dtype=dtype, device=device) for _ in range(config.depth)
        )
        self.head_ada = operations.Linear(width, 2 * width, **precise)
        self.head = operations.Linear(width, config.vocab, **precise)

    def guidance_weights(
        self, cfg_scale: float | Sequence[float], schedule: ScaleSchedule
    ) -> tuple[float, ...]:
        """The weight ``w`` of ``w * c + (1 - w) * u`` at every scale; 1 is unguided."""
        return ramped(cfg_scale, schedule)

    @property
    def classes(self) -> int:
        """Classes that it knows."""
        return self.config.classes

    def check(self, schedule: ScaleSchedule) -> None:
        """Raise ``ValueError`` for scales that the learned positions do not have."""
        sides = self.config.sides
        for scale in schedule:
            if scale.index >= len(sides) or scale.grid != (sides[scale.index],) * 2:
                raise ValueError(
                    f"scale {scale.index} is {scale.height} x {scale.width} tokens; this model was trained "
                    f"on squares with the sides {list(sides)} only. Choose the size that it was trained on"
                )

    def drawing_head(self, refine: str = "auto") -> TokenHead:
        """Draws a token, and for smooth sampling its mixture by a draw of its own, filtered alike."""
        refinement(self.family, self.refinements, refine)
        return TokenHead(self.config.vocab, smooth_filters=True, smooth_draws=2)

    def condition(
        self, conditioning: ClassConditioning, guided: bool, device: torch.device, attention: AttentionFn
    ) -> ClassState:
        """Everything that depends on the labels alone. Rows: labels, then (when guided) their counterparts.

        The counterpart of a label is the unconditional row, or the negative label.
        """
        require(conditioning, ClassConditioning, self.title)
        labels = list(conditioning.labels)
        if guided:
            labels += conditioning.negative or [-1] * conditioning.batch
        start = self.class_embed.to(device=device, dtype=torch.float32)[self._rows(labels)]
        active = F.silu(start)
        head_ada = with_factors(row_by_row(self.head_ada, active).unflatten(-1, (1, 2, -1)))
        lengths = [block.self_attn.lengths(device) for block in self.blocks]
        block_ada = [*map(with_factors, self._modulations(active))]
        return ClassState(start=start, block_ada=block_ada, head_ada=head_ada, lengths=lengths)

    def positions(
        self, schedule: ScaleSchedule, scale: Scale, device: torch.device, prefix: Prefix | None = None
    ) -> None:
        """None: positions are learned and added to the tokens."""

    def forward(self, x: Tensor, ctx: ScaleContext) -> Tensor:
        """All blocks over the tokens of one scale, (rows, L, C)."""
        places = ctx.levels(cast(self.level_embed, x)) + ctx.learned(cast(self.position_embed, x))
        return ctx.run(self.blocks, x + places)

    def logits(self, x: Tensor, state: ClassState) -> Tensor:
        """Logits of all rows of the codebook (rows, L, vocab) in float32."""
        factor, shift = state.head_ada.unbind(dim=2)
        return self.head(modulated_norm(x, factor, shift))

    def _rows(self, labels: list[int]) -> list[int]:
        classes = self.config.classes
        for label in labels:
            if not -1 <= label < classes:
                raise ValueError(
                    f"the class label is {label}; this model knows 0 to {classes - 1}, and -1 for no class"
                )
        return [classes if label == -1 else label for label in labels]

    def _modulations(self, active: Tensor) -> list[Tensor]:
        """Gates, scales and shifts of every block, (rows, 1, 6, C), from ``silu`` of the class embedding."""
        if self.config.shared:
            common = row_by_row(self.block_ada, active).unflatten(-1, (1, 6, -1))
            return [common + cast(block.ada, common) for block in self.blocks]
        narrow = active.to(self.compute_dtype)
        return [
            row_by_row(block.modulation, narrow).float().unflatten(-1, (1, 6, -1)) for block in self.blocks
        ]
