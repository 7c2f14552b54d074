"""STAR (arXiv 2406.10797): next-scale text-to-image over VAR's tokenizer.

Arithmetic of models/{var_drop,basic_var,embed_rope}.py of Davinci-XLab/STAR-T2I with the settings of all
released models. A text enters twice: pooled as the start token, and through cross-attention, whose official
code hands the output of batch row 0 to every row. For one prompt that is: both guidance halves get what the
conditional row read, and differ by their start token alone. Here this holds for every prompt of a batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..conditioning.regions import Sight
from ..conditioning.types import TextConditioning, pad_rows, require
from ..network.attention import AttentionFn
from ..network.context import ScaleContext
from ..network.layers import (
    CosineAttention,
    FeedForward,
    cast,
    head_lengths,
    merge_heads,
    plain_norm,
    row_by_row,
    split_heads,
    stacked,
    to_lengths,
    unit,
)
from ..schedule import Scale, ScaleSchedule
from .draws import TokenHead, refinement
from .family import ClipText
from .guidance import ramped
from .star_config import STARConfig
from .star_sampler import MODES, InnerSampler, SamplerHead


@dataclass
class TextState:
    """What the blocks need of the text, computed once per run.

    ``start``: (rows, C), conditional rows, then unconditional ones; ``sampler_text`` likewise. The others
    have one row per image: both rows of an image read the text of its prompt.
    """

    start: Tensor
    sampler_text: Tensor | None  # text token of the inner sampler; None without the network
    keys_values: list[tuple[Tensor, Tensor]]  # per block (images, heads, T, head_dim), keys of unit length
    lengths: list[tuple[Tensor, Tensor]]  # per block of queries and keys, and of those that ask the text
    mask: Tensor | None  # (images, 1, 1, T), True = a token of the text; None when all texts are as long
    images: int
    regions: Sight | None = None  # where the prompts hold that the texts are made of, of every image

    def seen(self, scale: Scale) -> Tensor | None:
        """What is added to the scores of the text at a scale, (images, 1, L, T); None: all see it all."""
        return None if self.regions is None else self.regions.at(scale, self.keys_values[0][0])

    def narrow(self, rows: slice) -> "TextState":
        """Only these rows."""
        text = self.sampler_text
        return replace(self, start=self.start[rows], sampler_text=None if text is None else text[rows])

    def pick(self, images: Sequence[int], rows: Tensor) -> "TextState":
        """That of other images."""
        places, text = list(images), self.sampler_text
        return replace(
            self,
            start=self.start[rows],
            sampler_text=None if text is None else text[rows],
            keys_values=[(k[places], v[places]) for k, v in self.keys_values],
            mask=None if self.mask is None else self.mask[places],
            images=len(places),
            regions=None if self.regions is None else self.regions.narrow(torch.tensor(places)),
        )


class CrossAttention(nn.Module):
    """Cosine attention to the text of an image, with a scale of its own."""

    def __init__(self, config: STARConfig, *, operations=nn, dtype=None, device=None) -> None:
        super().__init__()
        factory = {"dtype": dtype, "device": device}
        self.heads = config.heads
        self.q = operations.Linear(config.width, config.width, **factory)
        self.kv = operations.Linear(config.text_width, 2 * config.width, **factory)
        self.proj = operations.Linear(config.width, config.width, **factory)
        self.log_scale = nn.Parameter(torch.empty(config.heads, dtype=torch.float32, device=device))

    def keys_values(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (images, heads, T, head_dim) of text features (images, T, text_width)."""
        k, v = (split_heads(part, self.heads) for part in self.kv(text).chunk(2, dim=-1))
        return unit(k).to(v.dtype), v

    def lengths(self, device: torch.device) -> Tensor:
        """Those of queries, (2, heads, 1) in float32."""
        return head_lengths(self.log_scale, device, keys=False)

    def forward(
        self, x: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, attend: AttentionFn, lengths: Tensor
    ) -> Tensor:
        """Attention of ``x`` (images, L, C) to the text's keys and values, (images, L, C)."""
        q = to_lengths(self.q(x).unflatten(-1, (self.heads, -1)), lengths).to(v.dtype).transpose(1, 2)
        return self.proj(merge_heads(attend(q, k, v, scale=1.0, mask=mask)))


class Block(nn.Module):
    """Self-attention, cross-attention and feed-forward, each a residual branch; no gates, no modulation."""

    def __init__(self, config: STARConfig, *, operations=nn, dtype=None, device=None) -> None:
        super().__init__()
        factory = {"operations": operations, "dtype": dtype, "device": device}
        self.self_attn = CosineAttention(config.width, config.heads, **factory)
        self.cross_attn = CrossAttention(config, **factory)
        self.ffn = FeedForward(config.width, config.hidden, config.width, **factory)

    def forward(self, x: Tensor, ctx: ScaleContext, layer: int) -> Tensor:
        """(rows, L, C) in float32 to the same; matrix products run in the context's dtype."""
        lengths, text_lengths = ctx.conditioned.lengths[layer]

        def attend_self(h: Tensor, angles: Tensor | None) -> Tensor:
            return self.self_attn(
                h, ctx.attending(layer), angles, lambda part: plain_norm(part).to(ctx.dtype), lengths
            )

        def attend_text(h: Tensor, seen: Tensor | None) -> Tensor:
            state = ctx.conditioned
            # The conditional rows come first; where they stopped running, the others read the prompt.
            first = plain_norm(h[: state.images]).to(ctx.dtype)
            mask = state.mask if seen is None else seen
            return self.cross_attn(first, *state.keys_values[layer], mask, ctx.attend_text, text_lengths)

        def feed_forward(h: Tensor, angles: Tensor | None) -> Tensor:
            return self.ffn(plain_norm(h).to(ctx.dtype))

        x = ctx.residual(x, attend_self, layer, "self")
        x = ctx.residual(x, attend_text, layer, "cross")
        return ctx.residual(x, feed_forward, layer, "ffn")


class STAR(ClipText[STARConfig]):
    """The transformer: blocks in ``dtype``, everything around them (text, embeddings, head) in float32.

    ``operations`` supplies Linear (``torch.nn`` or the host's), ``compute_dtype`` the dtype of the blocks'
    matrix products where it differs from the storage dtype.
    """

    family = "star"
    text_family = "clip"
    title = "STAR"
    corrects = False

    def __init__(
        self, config: STARConfig, *, operations=nn, dtype=None, device=None, compute_dtype=None
    ) -> None:
        super().__init__(config, compute_dtype or dtype)
        width, precise = config.width, {"dtype": torch.float32, "device": device}
        self.start = nn.Parameter(torch.empty(width, **precise))
        self.level_embed = nn.Parameter(torch.empty(config.levels, width, **precise))
        self.text_proj = operations.Linear(config.text_width, width, **precise)
        self.word_embed = operations.Linear(config.dim, width, **precise)
        self.blocks = stacked(
            Block(config, operations=operations, dtype=dtype, device=device) for _ in range(config.depth)
        )
        self.head = operations.Linear(width, config.vocab, **precise)
        self.sampler = None
        if config.sampler_depth:
            self.sampler = InnerSampler(config, operations=operations, dtype=dtype, device=device)

    def guidance_weights(
        self, cfg_scale: float | Sequence[float], schedule: ScaleSchedule
    ) -> tuple[float, ...]:
        """The weight ``w`` of ``w * c + (1 - w) * u`` at every scale; 1 is unguided."""
        return ramped(cfg_scale, schedule)

    def condition(
        self, conditioning: TextConditioning, guided: bool, device: torch.device, attention: AttentionFn
    ) -> TextState:
        """Everything that depends on the text alone. Rows: prompts, then (when guided) their counterparts.

        The counterpart of a prompt is the encoded empty prompt, or the negative text.
        """
        require(conditioning, TextConditioning, self.title)
        texts = self._checked(conditioning.features, device)
        sight = Sight.of(texts, conditioning.regions or (None,) * len(texts))
        pooled = self.pooled(texts, sight)
        if guided:
            against = self._checked(self.counterparts(conditioning), device)
            regions = conditioning.negative_regions or (None,) * len(against)
            pooled = torch.cat((pooled, self.pooled(against, Sight.of(against, regions))))
        padded, mask = pad_rows(texts)
        padded = padded.to(self.compute_dtype)
        return TextState(
            start=row_by_row(self.text_proj, pooled),
            sampler_text=None if self.sampler is None else self.sampler.text(pooled),
            keys_values=[block.cross_attn.keys_values(padded) for block in self.blocks],
            lengths=[
                (block.self_attn.lengths(device), block.cross_attn.lengths(device)) for block in self.blocks
            ],
            mask=mask,
            images=len(texts),
            regions=sight,
        )

    def pooled(self, texts: Sequence[Tensor], sight: Sight | None = None) -> Tensor:
        """Texts as one vector each, (rows, text_width): the features of the end token, which comes last.

        Those of regions as the mean of their prompts.
        """
        if sight is None:
            return torch.stack([text[-1] for text in texts])
        return sight.pooled(torch.stack([prompt[-1] for prompt in sight.prompts(texts)]))

    def forward(self, x: Tensor, ctx: ScaleContext) -> Tensor:
        """All blocks over the tokens of one scale, (rows, L, C)."""
        return ctx.run(self.blocks, x + ctx.levels(cast(self.level_embed, x)))

    def logits(self, x: Tensor, state: TextState) -> Tensor:
        """Logits of the codebook's rows, (rows, L, vocab), in float32."""
        return self.head(plain_norm(x))

    @property
    def refinements(self) -> tuple[str, ...]:
        """Ways in which the inner sampler network can draw the fine scales; none without it."""
        return () if self.sampler is None else MODES

    def drawing_head(self, refine: str = "auto") -> TokenHead | SamplerHead:
        """Draws tokens, unfiltered where smooth; fine scales by the sampler network where there is one."""
        plain = TokenHead(self.config.vocab, smooth_filters=False, smooth_draws=1)
        way = refinement(self.family, self.refinements, refine)
        if way is None or self.sampler is None:
            return plain
        return SamplerHead(plain, self.sampler, self.config, way)

    def _checked(self, texts: Sequence[Tensor], device: torch.device) -> list[Tensor]:
        for text in texts:
            if text.dim() != 2 or not len(text) or text.shape[1] != self.config.text_width:
                raise ValueError(
                    f"the text features have shape {tuple(text.shape)}; this transformer was trained on "
                    f"(tokens, {self.config.text_width}). Load the text encoder that belongs to it"
                )
        return [text.to(device=device, dtype=torch.float32) for text in texts]
