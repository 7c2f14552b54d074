"""HART (arXiv 2410.10812): next-scale text-to-image whose last scale is completed by a small diffusion.

Arithmetic of hart_transformer_t2i.py and basic_hart.py of mit-han-lab/hart. A text of fixed length, padding
among it, precedes the scales as tokens; its last one stands for the single token of the first scale. Rotary
positions of the scales go on behind the text, so that they differ by row.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..conditioning.types import Conditioning, TextConditioning, check_task, require
from ..network.attention import Attend, AttentionFn
from ..network.context import ScaleContext
from ..network.layers import (
    GatedFeedForward,
    cast,
    head_lengths,
    merge_heads,
    modulated,
    queries_of,
    rms_norm,
    row_by_row,
    stacked,
    to_lengths,
    with_factors,
    with_first,
)
from ..network.rotary import grid_turns, line_turns, turn_halves
from ..network.tokens import in_parts
from ..schedule import Prefix, Scale, ScaleSchedule
from .draws import TokenHead, refinement
from .family import NextScale, OverCodebook
from .guidance import ramped
from .hart_config import HARTConfig
from .residual_diffusion import MODES, Embedder, ResidualDiffusion, ResidualHead
from .states import ModulatedState


@dataclass(kw_only=True)
class TextState(ModulatedState):
    """What the blocks need of the texts, which precede the scales; without modulation no ``block_ada``."""

    places: Tensor  # (rows, T), the rotary positions of their tokens
    lengths: list[Tensor]  # per block what queries and keys are brought to

    def placed(self, like: "TextState") -> "TextState":
        """The same at the positions of the rows of another state."""
        return replace(self, places=like.places)

    def _of(self, rows: slice | Tensor) -> "TextState":
        return replace(super()._of(rows), places=self.places[rows])


class Attention(nn.Module):
    """Self-attention over text and scales with rotary positions.

    Queries and keys are normalised with a learned length per head, or the scores have the official scale
    ``1 / (4 sqrt(d))``.
    """

    def __init__(
        self, width: int, heads: int, cosine: bool, *, operations=nn, dtype=None, device=None
    ) -> None:
        super().__init__()
        self.heads, self.cosine = heads, cosine
        self.qkv = operations.Linear(width, 3 * width, dtype=dtype, device=device)
        self.proj = operations.Linear(width, width, dtype=dtype, device=device)
        if cosine:
            self.log_scale = nn.Parameter(torch.empty(heads, dtype=torch.float32, device=device))

    def lengths(self, device: torch.device) -> Tensor:
        """Those of queries and keys, (2, 2 * heads, 1) in float32, or what both are multiplied with."""
        if self.cosine:
            return head_lengths(self.log_scale, device)
        factors = torch.ones(2 * self.heads, 1, device=device)
        factors[: self.heads] = 0.25 / math.sqrt(self.proj.in_features // self.heads)
        return factors

    def forward(
        self,
        x: Tensor,
        attend: Attend,
        angles: Tensor | None,
        norm: Callable[[Tensor], Tensor],
        lengths: Tensor,
    ) -> Tensor:
        """Attention of ``norm(x)``, ``x`` (rows, L, C), over all tokens so far, (rows, L, C)."""

        def compute(part: Tensor, at: Tensor | None) -> Tensor:
            qkv = self.qkv(norm(part)).unflatten(-1, (3 * self.heads, -1))
            both = qkv[:, :, : 2 * self.heads]
            both = to_lengths(both, lengths) if self.cosine else both * lengths  # in float32
            return with_first(qkv, both if at is None else turn_halves(both, at))

        return self.proj(merge_heads(attend(*queries_of(in_parts(compute, x, angles)))))


class Block(nn.Module):
    """Self-attention and feed-forward, each a residual branch behind the same norm.

    ``modulation`` is this block's own layer, ``ada`` what it adds to the mean text.
    """

    def __init__(self, config: HARTConfig, *, operations=nn, dtype=None, device=None) -> None:
        super().__init__()
        factory = {"operations": operations, "dtype": dtype, "device": device}
        width = config.width
        self.norm = nn.Parameter(torch.empty(width, dtype=torch.float32, device=device))
        if config.modulation == "shared":
            self.ada = nn.Parameter(torch.empty(6, width, dtype=torch.float32, device=device))
        elif config.modulation == "own":
            self.modulation = operations.Linear(width, 6 * width, dtype=dtype, device=device)
        self.self_attn = Attention(width, config.heads, config.cosine, **factory)
        self.ffn = GatedFeedForward(width, config.hidden, **factory)

    def forward(self, x: Tensor, ctx: ScaleContext, layer: int) -> Tensor:
        """(rows, L, C) in float32 to the same; matrix products run in the context's dtype."""
        ada = ctx.conditioned.block_ada[layer].unbind(dim=2) if ctx.conditioned.block_ada else (None,) * 6
        gate1, gate2, factor1, factor2, shift1, shift2 = ada
        lengths = ctx.conditioned.lengths[layer]

        def attend_self(h: Tensor, angles: Tensor | None) -> Tensor:
            def norm(part: Tensor) -> Tensor:
                return self._normed(part, factor1, shift1, ctx.dtype)

            return self.self_attn(h, ctx.attending(layer), angles, norm, lengths)

        def feed_forward(h: Tensor, angles: Tensor | None) -> Tensor:
            return self.ffn(self._normed(h, factor2, shift2, ctx.dtype))

        x = ctx.residual(x, attend_self, layer, "self", gate1)
        return ctx.residual(x, feed_forward, layer, "ffn", gate2)

    def _normed(self, x: Tensor, factor: Tensor | None, shift: Tensor | None, dtype: torch.dtype) -> Tensor:
        normed = rms_norm(x, self.norm)
        if factor is None or shift is None:
            return normed.to(dtype)
        return modulated(normed, factor, shift, dtype)


class HART(OverCodebook, NextScale[HARTConfig]):
    """The transformer: blocks in ``dtype``, everything around them (embeddings, head) in float32.

    ``operations`` supplies Linear (``torch.nn`` or the host's), ``compute_dtype`` the dtype of the matrix
    products of blocks and residual diffusion where it differs from the storage dtype.
    """

    family = "hart"
    title = "HART"
    text_family = "qwen2"
    learned_null = True
    classes = None
    refinements = MODES
    corrects = False

    def __init__(
        self, config: HARTConfig, *, operations=nn, dtype=None, device=None, compute_dtype=None
    ) -> None:
        super().__init__(config, compute_dtype or dtype)
        width, precise = config.width, {"dtype": torch.float32, "device": device}
        factory = {"operations": operations, "dtype": dtype, "device": device}
        if config.context_norm:
            self.text_norm = nn.Parameter(torch.empty(config.text_width, **precise))
        self.text_proj = operations.Linear(config.text_width, width, **precise)
        self.word_embed = operations.Linear(config.dim, width, **precise)
        if config.level_table:
            self.level_embed = nn.Parameter(torch.empty(len(config.sides), width, **precise))
        else:
            self.level_net = Embedder(width, operations=operations, device=device)
        self.blocks = stacked(Block(config, **factory) for _ in range(config.depth))
        self.head_norm = nn.Parameter(torch.empty(width, **precise))
        self.head_ada = operations.Linear(width, 2 * width, **precise)
        self.head = operations.Linear(width, config.vocab, **precise)
        self.residual_norm = nn.Parameter(torch.empty(width, **precise))
        self.diffusion = ResidualDiffusion(config, **factory)

    def guidance_weights(
        self, cfg_scale: float | Sequence[float], schedule: ScaleSchedule
    ) -> tuple[float, ...]:
        """The weight ``w`` of ``w * c + (1 - w) * u`` at every scale; the last has that of the one before."""
        weights = ramped(cfg_scale, schedule)
        if not isinstance(cfg_scale, int | float) or len(schedule) < 2:
            return weights
        return (*weights[:-1], last_weight(cfg_scale, len(schedule)))

    @property
    def longest_text(self) -> int:
        """Tokens of every text, padding among them."""
        return self.config.context

    def check(self, schedule: ScaleSchedule) -> None:
        """Raise ``ValueError`` for other scales than the trained ones."""
        sides = self.config.sides
        if schedule.grids != tuple((side, side) for side in sides):
            raise ValueError(
                f"the schedule has {len(schedule)} scales up to {schedule.final.height} x "
                f"{schedule.final.width} tokens; this model was trained on squares with the sides "
                f"{list(sides)} only. Choose the size that it was trained on"
            )

    def drawing_head(self, refine: str = "auto") -> ResidualHead:
        """Draws tokens as VAR does, and at the last scale what their codes lack."""
        way = refinement(self.family, self.refinements, refine)
        plain = TokenHead(self.config.vocab, smooth_filters=True, smooth_draws=2)
        network = None if way is None else self.diffusion
        return ResidualHead(plain, self.config, network, self.word_embed, self.residual_norm)

    def condition(
        self, conditioning: TextConditioning, guided: bool, device: torch.device, attention: AttentionFn
    ) -> TextState:
        """Everything that depends on the texts alone. Rows: prompts, then (when guided) their counterparts.

        The counterpart of a prompt is a text of zeros with one token, or the negative text.
        """
        require(conditioning, TextConditioning, self.title)
        texts, counts = self._texts(conditioning.features, conditioning.padding, device)
        if guided and conditioning.negative is not None:
            others = self._texts(conditioning.negative, conditioning.negative_padding, device)
            texts, counts = torch.cat((texts, others[0])), counts + others[1]
        elif guided:
            texts, counts = torch.cat((texts, torch.zeros_like(texts))), counts + [1] * len(texts)
        if any((*conditioning.regions, *conditioning.negative_regions)):
            raise ValueError(
                "HART reads its text as tokens that every part of the picture sees; prompts that hold in a "
                "region need cross-attention. Use one prompt, or another model"
            )
        normed = rms_norm(texts, self.text_norm) if self.config.context_norm else texts
        tokens = self.text_proj(normed)
        owned = torch.tensor(counts, device=device)
        places = torch.arange(self.config.context, device=device).minimum(owned[:, None] - 1)
        active = F.silu(tokens.amax(dim=1))
        head_ada = with_factors(row_by_row(self.head_ada, active).unflatten(-1, (1, 2, -1)))
        block_ada = [*map(with_factors, self._modulations(tokens, owned))]
        lengths = [block.self_attn.lengths(device) for block in self.blocks]
        return TextState(start=tokens, block_ada=block_ada, head_ada=head_ada, places=places, lengths=lengths)

    def prefix(self, conditioning: Conditioning, schedule: ScaleSchedule) -> Prefix:
        """The text, whose last token the first scale is drawn from; ``ValueError`` for a picture to edit."""
        require(conditioning, TextConditioning, self.title)
        check_task(conditioning, edits=False, family="HART")
        return Prefix(0, 1, self.config.context, opens=True)

    def positions(
        self, schedule: ScaleSchedule, scale: Scale, device: torch.device, prefix: Prefix | None = None
    ) -> None:
        """None: they go on behind the text of every row, see :meth:`forward`."""

    def first_tokens(self, state: TextState) -> Tensor:
        """The texts, (rows, T, C), without level embedding."""
        return state.start

    def forward(self, x: Tensor, ctx: ScaleContext) -> Tensor:
        """All blocks over the tokens of one scale, (rows, L, C)."""
        if self.config.level_table:
            table = cast(self.level_embed, x)
        else:
            table = self.level_net(torch.arange(len(self.config.sides), device=x.device))
        places, reference = ctx.conditioned.places, ctx.schedule.reference
        turns = [
            line_turns(places, self.config.head_dim)
            if isinstance(part, Prefix)
            else grid_turns(part, reference, places[:, -1], self.config.head_dim)
            for part in ctx.parts
        ]
        ctx = replace(ctx, positions=torch.cat(turns, dim=2))  # (2, rows, L, head_dim)
        return ctx.run(self.blocks, x + ctx.levels(table))

    def logits(self, x: Tensor, state: TextState) -> Tensor:
        """Logits of all rows of the codebook (rows, L, vocab) in float32."""
        factor, shift = state.head_ada.unbind(dim=2)
        return self.head(torch.addcmul(shift, rms_norm(x.float(), self.head_norm), factor))

    def _texts(
        self, texts: Sequence[Tensor], padding: Sequence[int], device: torch.device
    ) -> tuple[Tensor, list[int]]:
        """Texts as one float32 tensor (rows, T, text_width), and how many of their tokens are their own."""
        config = self.config
        for text in texts:
            if tuple(text.shape) != (config.context, config.text_width):
                raise ValueError(
                    f"the text features have the shape {tuple(text.shape)}; this transformer was trained on "
                    f"{(config.context, config.text_width)}, with padding. Load the text encoder that "
                    "belongs to it"
                )
        stacked_texts = torch.stack([text.to(device=device, dtype=torch.float32) for text in texts])
        return stacked_texts, [config.context - each for each in padding or [0] * len(texts)]

    def _modulations(self, tokens: Tensor, owned: Tensor) -> list[Tensor]:
        """Gates, scales and shifts of every block, (rows, 1, 6, C); none where nothing modulates."""
        config = self.config
        if config.modulation == "none":
            return []
        inside = torch.arange(config.context, device=tokens.device) < owned[:, None]  # (rows, T)
        mean = (tokens * inside[:, :, None] / owned.clamp(min=1)[:, None, None]).sum(dim=1)
        if config.modulation == "shared":
            return [(cast(block.ada, mean) + mean[:, None]).unsqueeze(1) for block in self.blocks]
        pooled = mean if config.pooling == "avg" else tokens.amax(dim=1)
        narrow = F.silu(pooled).to(self.compute_dtype)
        return [
            row_by_row(block.modulation, narrow).float().unflatten(-1, (1, 6, -1)) for block in self.blocks
        ]


def last_weight(cfg_scale: float, scales: int) -> float:
    """The weight ``1 + t`` of the last scale, whose strength t is that of the scale before it.

    The residual diffusion takes t of exactly 1 for no guidance, so a t next to 1 must not round to it.
    """
    strength = cfg_scale * ((scales - 2) / (scales - 1))
    weight = 1.0 + strength
    if weight == 2.0 and strength != 1.0:
        return math.nextafter(weight, math.inf if strength > 1.0 else 0.0)
    return weight
