"""STAR's inner sampler: the tokens of the fine scales drawn in passes, each seeing what is decided so far.

Arithmetic of models/{var_drop,mask_utils}.py of Davinci-XLab/STAR-T2I ("causal-driven stable sampling"). A
file may have this network or not; without it every scale is drawn at once.
"""

import math

import torch
from torch import Tensor, nn

from ..network.attention import AttentionFn
from ..network.layers import CosineAttention, FeedForward, cast, merge_heads, plain_norm, row_by_row, stacked
from ..schedule import Scale
from .contract import Drawing, Drawn, Noise
from .draws import TokenHead, filter_logits
from .star_config import STARConfig

FIRST_SCALE = 9  # the scales from this one on are drawn in passes
MODES = ("mixed", "full")
"""``mixed``: below scale 13 the first passes draw from the transformer's own head (the official version
"1024"). ``full``: every pass runs the network (any other version)."""
_LATE, _EARLY_PASSES = 13, 5


def passes(scale_index: int, mode: str) -> int:
    """How many passes a scale takes."""
    return 15 if mode == "mixed" and scale_index >= _LATE else 8


def own_pass(place: int, scale_index: int, mode: str) -> bool:
    """Whether a pass runs the network; else it draws from the transformer's own head."""
    return mode != "mixed" or place >= _EARLY_PASSES or scale_index >= _LATE


def pass_counts(tokens: int, count: int) -> list[int]:
    """Tokens that each of ``count`` passes decides, few first; together all of them, at least one each."""
    rising = torch.linspace(1, 0, count).arccos() / (math.pi * 0.5)
    shares = (rising / rising.sum() * tokens).round().int().clamp(min=1)
    shares[-1] += tokens - shares.sum()
    return shares.tolist()


def refine_flops(config: STARConfig, scale: Scale, mode: str) -> float:
    """FLOPs per row of the passes of one scale, 0 for those that are drawn at once.

    Per token and pass ``4 C^2`` to merge, ``8 C^2 + 4 C F`` and ``4 C`` per visible token in every block, and
    the head; the text token comes on top.
    """
    if scale.index < FIRST_SCALE:
        return 0.0
    count = sum(own_pass(place, scale.index, mode) for place in range(passes(scale.index, mode)))
    tokens, width = 1 + scale.tokens, config.width
    block = 8.0 * width**2 + 4.0 * width * config.hidden + 4.0 * width * tokens
    return count * tokens * (4.0 * width**2 + config.sampler_depth * block + 2.0 * width * config.vocab)


class SamplerBlock(nn.Module):
    """Self-attention within one scale and feed-forward."""

    def __init__(self, config: STARConfig, *, operations=nn, dtype=None, device=None) -> None:
        super().__init__()
        factory = {"operations": operations, "dtype": dtype, "device": device}
        self.self_attn = CosineAttention(config.width, config.heads, **factory)
        self.ffn = FeedForward(config.width, config.hidden, config.width, **factory)

    def forward(self, x: Tensor, angles: Tensor, attention: AttentionFn, dtype: torch.dtype) -> Tensor:
        """(rows, 1 + L, C) in float32 to the same."""
        lengths = self.self_attn.lengths(x.device)
        q, kv = self.self_attn.project(x, angles, lambda part: plain_norm(part).to(dtype), lengths)
        mixed = attention(q, *kv, scale=1.0)
        x = x + self.self_attn.proj(merge_heads(mixed))
        return x + self.ffn(plain_norm(x).to(dtype))


class InnerSampler(nn.Module):
    """Logits of a scale's tokens from the blocks' output and the tokens that are decided already."""

    def __init__(self, config: STARConfig, *, operations=nn, dtype=None, device=None) -> None:
        super().__init__()
        width, precise = config.width, {"dtype": torch.float32, "device": device}
        self.start = nn.Parameter(torch.empty(width, **precise))
        self.level_embed = nn.Parameter(torch.empty(config.levels, width, **precise))
        self.text_proj = operations.Linear(config.text_width, width, **precise)
        self.word_embed = operations.Linear(config.dim, width, **precise)
        self.merge = operations.Linear(2 * width, width, **precise)
        self.blocks = stacked(
            SamplerBlock(config, operations=operations, dtype=dtype, device=device)
            for _ in range(config.sampler_depth)
        )
        self.head = operations.Linear(width, config.vocab, **precise)

    def text(self, pooled: Tensor) -> Tensor:
        """The text token (rows, C) of pooled texts (rows, text_width)."""
        start = row_by_row(self.text_proj, pooled)
        return start + cast(self.start, start)

    def forward(self, ctx: Drawing, text: Tensor, codes: Tensor) -> Tensor:
        """Logits (rows, L, vocab). ``codes``: of the decided tokens (B, L, dim), zero where undecided."""
        rows, text = len(ctx.hidden), text.unsqueeze(1)
        level = cast(self.level_embed, text)[ctx.scale.index]
        decided = self.word_embed(codes).repeat(rows // len(codes), 1, 1) + level
        # The text token stands in front, at the position of the 1 x 1 scale, which is not rotated.
        if ctx.positions is None:
            raise ValueError("the sampler network needs the rotary positions of its scale, got none")
        angles = torch.cat((torch.zeros_like(ctx.positions[:, :1]), ctx.positions), dim=1)
        angles[0, 0] = 1.0
        drawn, known = torch.cat((text, decided), dim=1), torch.cat((text, ctx.hidden), dim=1)
        x = self.merge(torch.cat((drawn, known), dim=-1))
        for block in self.blocks:
            x = block(x, angles, ctx.attention, ctx.dtype)
        return self.head(plain_norm(x))[:, 1:]

    def draw(self, ctx: Drawing, text: Tensor, mode: str) -> Tensor:
        """Token ids (B, L) of one scale, decided over several passes.

        The first passes fix random tokens, the later ones those drawn with the highest probability. Without
        noise all of them go by probability.
        """
        batch, length = ctx.guided.shape[:2]
        chosen = torch.zeros(batch, length, dtype=torch.long, device=ctx.guided.device)
        decided = torch.zeros(batch, length, dtype=torch.bool, device=ctx.guided.device)
        for place, count in enumerate(pass_counts(length, passes(ctx.scale.index, mode))):
            early = place < _EARLY_PASSES
            ctx.uniform(2, length)  # the official code draws a mask here that it never uses
            if own_pass(place, ctx.scale.index, mode):
                codes = codes_of(ctx, chosen) * decided.unsqueeze(-1)
                ids, confidence = _draw(ctx, ctx.guide(self(ctx, text, codes)))
            else:
                ids, confidence = _draw(ctx, ctx.guided)
                chosen, decided = _decide(ids, confidence, count, chosen, decided)
            drawn = ctx.uniform(length) if early else None
            wanted = confidence if drawn is None else drawn
            chosen, decided = _decide(ids, wanted.masked_fill(decided, -1.0), count, chosen, decided)
        return chosen


def codes_of(ctx: Drawing, ids: Tensor) -> Tensor:
    """Ids (B, L) to codes (B, L, dim)."""
    quantizer = ctx.quantizer
    return quantizer.codes(quantizer.to_latent(ids, ctx.scale)).flatten(2).transpose(1, 2)


def _draw(ctx: Drawing, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Ids (B, L) and their probabilities after filtering, (B, L)."""
    draws = ctx.exponential(logits.shape[-1])
    if draws is None:
        race = shares = logits.softmax(dim=-1)  # after filtering all greedy choices would be equally sure
    else:
        shares = filter_logits(logits, ctx.top_k, ctx.top_p).softmax(dim=-1)
        race = shares / draws
    ids = race.argmax(dim=-1, keepdim=True)
    return ids.squeeze(-1), shares.gather(-1, ids).squeeze(-1)


def _decide(
    ids: Tensor, wanted: Tensor, count: int, chosen: Tensor, decided: Tensor
) -> tuple[Tensor, Tensor]:
    """The ``count`` most wanted positions of every image take their id, where none is decided yet."""
    picked = torch.zeros_like(decided).scatter(1, wanted.topk(count, dim=1).indices, True)
    return torch.where(picked & ~decided, ids, chosen), decided | picked


class SamplerHead:
    """Draws the coarse scales at once, by ``plain``, and those from ``FIRST_SCALE`` on by the network."""

    def __init__(self, plain: TokenHead, network: InnerSampler, config: STARConfig, mode: str) -> None:
        self.plain, self.network, self.config, self.mode = plain, network, config, mode

    def check(self, *, smooth: bool) -> None:
        """Both ways are known; the network's scales are never smooth."""

    def draw(self, drawing: Drawing) -> Drawn:
        """Ids on the grid and their codes."""
        if drawing.scale.index < FIRST_SCALE:
            return self.plain.draw(drawing)
        ids = self.network.draw(drawing, drawing.conditioned.sampler_text, self.mode)
        latent = drawing.quantizer.to_latent(ids, drawing.scale)
        return Drawn(latent, drawing.quantizer.codes(latent))

    def pass_over(
        self, scale: Scale, batch: int, noise: Noise, device: torch.device, *, smooth: bool
    ) -> None:
        """The draws of a scale that does not run, pass by pass."""
        if scale.index < FIRST_SCALE:
            self.plain.pass_over(scale, batch, noise, device, smooth=smooth)
            return
        for place in range(passes(scale.index, self.mode)):
            noise.uniform(scale, (batch, 2, scale.tokens), device)
            noise.exponential(scale, (batch, scale.tokens, self.config.vocab), device)
            if place < _EARLY_PASSES:
                noise.uniform(scale, (batch, scale.tokens), device)

    def choices(self, logits: Tensor) -> Tensor:
        """The most likely ids of the transformer's own head, (rows, L)."""
        return self.plain.choices(logits)

    def entropy(self, logits: Tensor) -> Tensor:
        """Entropy of the choice of a token by the transformer's own head, (rows, L)."""
        return self.plain.entropy(logits)

    def flops(self, scale: Scale) -> float:
        """FLOPs per row of the passes of a scale, 0 for those that are drawn at once."""
        return refine_flops(self.config, scale, self.mode)
