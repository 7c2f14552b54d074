"""Infinity (arXiv 2412.04431): a bitwise next-scale text-to-image transformer.

Arithmetic of infinity/models/{infinity,basic}.py of FoundationVision/Infinity with the settings of all
released models. Biases that the files keep apart (query, zero key, value) are folded into the projections
when a checkpoint is converted; see ``checkpoints/families_infinity.py`` for the names.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..autoencoders.bsq import BitwiseQuantizer
from ..conditioning.regions import Sight
from ..conditioning.types import TextConditioning, check_task, pad_rows, require
from ..network.attention import AttentionFn
from ..network.context import ScaleContext
from ..network.layers import (
    CosineAttention,
    FeedForward,
    cast,
    merge_heads,
    modulated_norm,
    rms_norm,
    row_by_row,
    split_heads,
    stacked,
    with_factors,
)
from ..network.rotary import prefixed_angles, rotary_angles
from ..schedule import Prefix, Scale, ScaleSchedule
from . import states
from .draws import BitHead, refinement
from .family import StartToken
from .guidance import per_scale
from .infinity_config import InfinityConfig


@dataclass(kw_only=True)
class TextState(states.TextState):
    """What the blocks need of the text, computed once per run; rows are conditional, then unconditional."""

    lengths: list[Tensor]  # per block those of queries and keys, (2, 2 * heads, 1)


class CrossAttention(nn.Module):
    """Scaled dot-product attention to the text of each row."""

    def __init__(self, config: InfinityConfig, *, operations=nn, dtype=None, device=None) -> None:
        super().__init__()
        self.heads = config.heads
        self.q = operations.Linear(config.width, config.width, dtype=dtype, device=device)
        self.kv = operations.Linear(config.width, 2 * config.width, dtype=dtype, device=device)
        self.proj = operations.Linear(config.width, config.width, dtype=dtype, device=device)

    def keys_values(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (rows, heads, T, head_dim) of projected text (rows, T, C)."""
        k, v = self.kv(text).chunk(2, dim=-1)
        return split_heads(k, self.heads), split_heads(v, self.heads)

    def forward(self, x: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, attend: AttentionFn) -> Tensor:
        """Attention of ``x`` (rows, L, C) to the text's keys and values, (rows, L, C)."""
        return self.proj(merge_heads(attend(split_heads(self.q(x), self.heads), k, v, mask=mask)))


class Block(nn.Module):
    """Self-attention, cross-attention and feed-forward, each a residual branch."""

    def __init__(self, config: InfinityConfig, *, operations=nn, dtype=None, device=None) -> None:
        super().__init__()
        factory = {"operations": operations, "dtype": dtype, "device": device}
        self.ada = nn.Parameter(torch.empty(6, config.width, dtype=torch.float32, device=device))
        self.self_attn = CosineAttention(config.width, config.heads, **factory)
        self.cross_norm = operations.LayerNorm(config.width, eps=1e-6, dtype=torch.float32, device=device)
        self.cross_attn = CrossAttention(config, **factory)
        self.ffn = FeedForward(config.width, config.hidden, config.width, **factory)

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

        def attend_text(h: Tensor, seen: Tensor | None) -> Tensor:
            state = ctx.conditioned
            text = self.cross_norm(h.float()).to(ctx.dtype)
            mask = state.mask if seen is None else seen
            return self.cross_attn(text, *state.keys_values[layer], mask, ctx.attend_text)

        def feed_forward(h: Tensor, angles: Tensor | None) -> Tensor:
            return self.ffn(modulated_norm(h, factor2, shift2, ctx.dtype))

        x = ctx.residual(x, attend_self, layer, "self", gate1)
        x = ctx.residual(x, attend_text, layer, "cross")
        return ctx.residual(x, feed_forward, layer, "ffn", gate2)


class TextPool(nn.Module):
    """Attention of one learned query per head over the text: (rows, T, text) to (rows, C)."""

    def __init__(self, config: InfinityConfig, *, operations=nn, device=None) -> None:
        super().__init__()
        factory = {"dtype": torch.float32, "device": device}
        head_dim = config.width // config.pool_heads
        self.query = nn.Parameter(torch.empty(config.pool_heads, head_dim, **factory))
        self.kv = operations.Linear(config.text_width, 2 * config.width, **factory)
        self.proj = operations.Linear(config.width, config.width, **factory)

    def forward(self, text: Tensor, mask: Tensor | None, attention: AttentionFn) -> Tensor:
        heads = self.query.shape[0]
        k, v = (split_heads(part, heads) for part in self.kv(text).chunk(2, dim=-1))
        q = cast(self.query, k)[None, :, None].expand(text.shape[0], -1, -1, -1)
        return row_by_row(self.proj, merge_heads(attention(q, k, v, mask=mask)).squeeze(1))


class Infinity(StartToken[InfinityConfig]):
    """The transformer: blocks in ``dtype``, everything around them (text, modulation, head) in float32.

    ``operations`` supplies Linear and LayerNorm (``torch.nn`` or the host's), ``compute_dtype`` the dtype of
    the blocks' matrix products where it differs from the storage dtype.
    """

    family = "infinity"
    text_family = "t5"
    learned_null = True
    classes = None
    refinements = ()
    corrects = True

    def __init__(
        self, config: InfinityConfig, *, operations=nn, dtype=None, device=None, compute_dtype=None
    ) -> None:
        super().__init__(config, compute_dtype or dtype)
        width, precise = config.width, {"dtype": torch.float32, "device": device}
        self.null_text = nn.Parameter(torch.empty(config.null_rows, config.text_width, **precise))
        self.text_norm = nn.Parameter(torch.empty(config.text_width, **precise))
        self.text_pool = TextPool(config, operations=operations, device=device)
        self.text_mlp = FeedForward(config.text_width, width, width, operations=operations, **precise)
        self.start = nn.Parameter(torch.empty(width, **precise))
        self.level_embed = nn.Parameter(torch.empty(config.levels, width, **precise))
        self.word_embed = operations.Linear(config.bits, width, **precise)
        self.block_ada = operations.Linear(width, 6 * width, **precise)
        self.blocks = stacked(
            Block(config, operations=operations, dtype=dtype, device=device) for _ in range(config.depth)
        )
        self.head_ada = operations.Linear(width, 2 * width, **precise)
        self.head = operations.Linear(width, 2 * config.bits, **precise)

    def guidance_weights(
        self, cfg_scale: float | Sequence[float], schedule: ScaleSchedule
    ) -> tuple[float, ...]:
        """The weight ``w`` of ``w * c + (1 - w) * u`` at every scale; 1 is unguided."""
        return per_scale("cfg", cfg_scale, len(schedule))

    @property
    def edits(self) -> bool:
        """Whether it was trained to change a picture."""
        return self.config.edits

    @property
    def longest_text(self) -> int:
        """Tokens of the learned null text, which stands against a prompt token by token."""
        return self.config.null_rows

    def check(self, schedule: ScaleSchedule) -> None:
        """Raise ``ValueError`` for more scales than there are level embeddings."""
        if len(schedule) > self.config.levels:
            raise ValueError(
                f"the schedule has {len(schedule)} scales; this model was trained on up to "
                f"{self.config.levels}. Choose one of the sizes that it was trained on"
            )

    def drawing_head(self, refine: str = "auto") -> BitHead:
        """Draws all bits of a scale at once."""
        refinement(self.family, self.refinements, refine)
        return BitHead(self.config.bits)

    def quantizer(self) -> BitwiseQuantizer:
        """The quantizer whose bits this transformer predicts."""
        return BitwiseQuantizer(self.config.dim, self.config.patch)

    def condition(
        self, conditioning: TextConditioning, guided: bool, device: torch.device, attention: AttentionFn
    ) -> TextState:
        """Everything that depends on the text alone. Rows: prompts, then (when guided) their counterparts.

        The counterpart of a prompt is the first ``len`` learned null rows, or the negative text.
        """
        require(conditioning, TextConditioning, "Infinity")
        texts = [text.to(device=device, dtype=torch.float32) for text in conditioning.features]
        # Only the null text has a fixed number of rows; like the official code, this takes longer texts where
        # it is not used: without guidance, and with a negative text.
        nulled, lengths = guided and conditioning.negative is None, conditioning.lengths
        self._check_texts(texts, lengths, longest=self.config.null_rows if nulled else None)
        regions = list(conditioning.regions or (None,) * len(texts))
        if guided and conditioning.negative is not None:
            negative = [text.to(device=device, dtype=torch.float32) for text in conditioning.negative]
            self._check_texts(negative, [len(text) for text in negative])
            texts = texts + negative
            regions += conditioning.negative_regions or (None,) * len(negative)
        elif guided:
            null = self.null_text.to(device=device, dtype=torch.float32)
            texts = texts + [null[:length] for length in lengths]
            regions += [None] * len(lengths)
        padded, mask = pad_rows(texts)
        text, sight = rms_norm(padded, self.text_norm), Sight.of(texts, regions)
        pooled = self._pooled(text, mask, sight, attention)
        projected = self.text_mlp(text).to(self.compute_dtype)
        shared = row_by_row(self.block_ada, F.silu(pooled)).unflatten(-1, (1, 6, -1))
        return TextState(
            start=pooled,
            block_ada=[with_factors(shared + cast(block.ada, shared)) for block in self.blocks],
            head_ada=with_factors(row_by_row(self.head_ada, F.silu(pooled)).unflatten(-1, (1, 2, -1))),
            keys_values=[block.cross_attn.keys_values(projected) for block in self.blocks],
            lengths=[block.self_attn.lengths(device) for block in self.blocks],
            mask=mask,
            regions=sight,
        )

    def prefix(self, conditioning: TextConditioning, schedule: ScaleSchedule) -> Prefix | None:
        """The picture to edit, on the grid of the last scale; the first block sees it on that of every scale.

        ``ValueError`` where these weights have no use for one or lack it, and for sizes that are not square.
        """
        require(conditioning, TextConditioning, "Infinity")
        if self.config.restores:
            raise ValueError("these Infinity weights restore pictures in one pass; they cannot make any")
        check_task(conditioning, edits=self.edits, family="Infinity")
        if conditioning.source is None:
            return None
        if conditioning.source.shape[1] != self.config.dim:
            raise ValueError(
                f"the features of the picture to edit have {conditioning.source.shape[1]} channels; this "
                f"transformer was trained on {self.config.dim}. Use the tokenizer that belongs to it"
            )
        final = schedule.final
        if any(height != width for height, width in schedule.grids):
            raise ValueError(
                f"the schedule ends at {final.height} x {final.width} tokens; editing weights were trained "
                "on squares only. Pad the picture to a square"
            )
        return Prefix(final.index, final.height, final.width, aligned=(0,))

    def prefix_tokens(self, conditioning: TextConditioning, prefix: Prefix, device: torch.device) -> Tensor:
        """The picture's continuous features as tokens of the last scale, (B, L, C)."""
        assert conditioning.source is not None, "without a picture there is no prefix"
        features = conditioning.source.to(device=device, dtype=torch.float32)
        grid = (prefix.height * self.config.patch, prefix.width * self.config.patch)
        if tuple(features.shape[-2:]) != grid:
            features = F.interpolate(features, size=grid, mode="area")
        return self.embed(self.quantizer().to_tokens(features))

    def positions(
        self, schedule: ScaleSchedule, scale: Scale, device: torch.device, prefix: Prefix | None = None
    ) -> Tensor:
        """Rotary angles of one scale, or of the prefix."""
        if prefix is None:
            return rotary_angles(schedule, scale, self.config.head_dim, device=device)
        head_dim, moved = self.config.head_dim, self.config.moved_source
        return prefixed_angles(schedule, scale, prefix, head_dim, moved=moved, device=device)

    def forward(self, x: Tensor, ctx: ScaleContext) -> Tensor:
        """All blocks over the tokens of one scale, (rows, L, C)."""
        return ctx.run(self.blocks, x + ctx.levels(cast(self.level_embed, x)))

    def logits(self, x: Tensor, state: TextState) -> Tensor:
        """Bit logits (rows, L, 2 * bits) in float32; the pair of a bit is (bit 0, bit 1)."""
        factor, shift = state.head_ada.unbind(dim=2)
        return self.head(modulated_norm(x, factor, shift))

    def _pooled(
        self, text: Tensor, mask: Tensor | None, sight: Sight | None, attention: AttentionFn
    ) -> Tensor:
        """The texts (rows, T, text) as one vector each, (rows, C); with regions the mean of their prompts."""
        if sight is None:
            return self.text_pool(text, mask, attention)
        prompts = sight.prompts(list(text))
        return sight.pooled(self.text_pool(*pad_rows(prompts), attention))

    def _check_texts(self, texts: list[Tensor], lengths: Sequence[int], longest: int | None = None) -> None:
        for text, length in zip(texts, lengths, strict=True):
            if text.dim() != 2 or text.shape[1] != self.config.text_width:
                raise ValueError(
                    f"the text features have shape {tuple(text.shape)}; this transformer was trained on "
                    f"(tokens, {self.config.text_width}). Load the text encoder that belongs to it"
                )
            if len(text) < 1 or (longest is not None and length > longest):
                raise ValueError(
                    f"the text has {length} tokens; this transformer takes 1 to {self.config.null_rows}"
                )
