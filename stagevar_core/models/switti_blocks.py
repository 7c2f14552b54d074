"""Switti's blocks: attention normed over the full width, gated feed-forward, a norm before and after each."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..network.attention import Attend, AttentionFn
from ..network.context import ScaleContext
from ..network.layers import (
    GatedFeedForward,
    cast,
    merge_heads,
    modulated,
    plain_norm,
    queries_of,
    rms_norm,
    split_heads,
    with_first,
)
from ..network.rotary import rotate
from ..network.tokens import in_parts
from .switti_config import SwittiConfig


class SelfAttention(nn.Module):
    """Attention of queries and keys that are normed over the full width, before they are heads."""

    def __init__(self, config: SwittiConfig, *, operations=nn, dtype=None, device=None) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = operations.Linear(config.width, 3 * config.width, dtype=dtype, device=device)
        self.proj = operations.Linear(config.width, config.width, dtype=dtype, device=device)

    def forward(
        self, x: Tensor, attend: Attend, angles: Tensor | None, norm: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Attention of ``norm(x)``, ``x`` (rows, L, C), over all tokens that it sees, (rows, L, C)."""

        def compute(part: Tensor, at: Tensor | None) -> Tensor:
            qkv = self.qkv(norm(part)).unflatten(-1, (3, -1))  # (rows, L, 3, C)
            both = plain_norm(qkv[:, :, :2]).unflatten(-1, (self.heads, -1)).flatten(2, 3)
            if at is not None:
                both = rotate(both, at)
            both[:, :, : self.heads] *= (
                both.shape[-1] ** -0.5
            )  # the loop's attention to tokens has the scale 1
            return with_first(qkv.unflatten(-1, (self.heads, -1)).flatten(2, 3), both)

        return self.proj(merge_heads(attend(*queries_of(in_parts(compute, x, angles)))))


class CrossAttention(nn.Module):
    """The same to the text of each row, without positions."""

    def __init__(self, config: SwittiConfig, *, operations=nn, dtype=None, device=None) -> None:
        super().__init__()
        factory = {"dtype": dtype, "device": device}
        self.heads = config.heads
        self.norm = nn.Parameter(torch.empty(config.text_width, dtype=torch.float32, device=device))
        self.q = operations.Linear(config.width, config.width, **factory)
        self.kv = operations.Linear(config.text_width, 2 * config.width, **factory)
        self.proj = operations.Linear(config.width, config.width, **factory)

    def keys_values(self, text: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values (rows, heads, T, head_dim) in ``dtype`` of text features (rows, T, text_width)."""
        k, v = self.kv(rms_norm(text, self.norm).to(dtype)).chunk(2, dim=-1)
        return split_heads(plain_norm(k).to(v.dtype), self.heads), split_heads(v, self.heads)

    def forward(self, x: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, attend: AttentionFn) -> Tensor:
        """Attention of ``x`` (rows, L, C) to the text's keys and values, (rows, L, C)."""
        q = split_heads(plain_norm(self.q(x)).to(v.dtype), self.heads)
        return self.proj(merge_heads(attend(q, k, v, mask=mask)))


class Block(nn.Module):
    """Self-attention, cross-attention and feed-forward, each a residual branch between two norms."""

    def __init__(self, config: SwittiConfig, *, operations=nn, dtype=None, device=None) -> None:
        super().__init__()
        factory = {"operations": operations, "dtype": dtype, "device": device}
        width, precise = config.width, {"dtype": torch.float32, "device": device}
        self.self_norm_in, self.self_norm_out = (
            nn.Parameter(torch.empty(width, **precise)) for _ in range(2)
        )
        self.cross_norm_in, self.cross_norm_out = (
            nn.Parameter(torch.empty(width, **precise)) for _ in range(2)
        )
        self.ffn_norm_in, self.ffn_norm_out = (nn.Parameter(torch.empty(width, **precise)) for _ in range(2))
        self.modulation = operations.Linear(width, 6 * width, dtype=dtype, device=device)
        self.crop_scale = nn.Parameter(torch.empty(width, **precise)) if config.crop else None
        self.self_attn = SelfAttention(config, **factory)
        self.cross_attn = CrossAttention(config, **factory)
        self.ffn = GatedFeedForward(width, config.hidden, **factory)

    def forward(self, x: Tensor, ctx: ScaleContext, layer: int) -> Tensor:
        """(rows, L, C) in float32 to the same; matrix products run in the context's dtype."""
        gate1, gate2, factor1, factor2, shift1, shift2 = ctx.conditioned.block_ada[layer].unbind(dim=2)

        def normed(part: Tensor, weight: Tensor, factor: Tensor, shift: Tensor) -> Tensor:
            return modulated(rms_norm(part.float(), weight), factor, shift, ctx.dtype)

        def attend_self(h: Tensor, angles: Tensor | None) -> Tensor:
            mixed = self.self_attn(
                h,
                ctx.attending(layer),
                angles,
                lambda part: normed(part, self.self_norm_in, factor1, shift1),
            )
            return rms_norm(mixed, self.self_norm_out)

        def attend_text(h: Tensor, seen: Tensor | None) -> Tensor:
            state = ctx.conditioned
            asked = rms_norm(h.float(), self.cross_norm_in).to(ctx.dtype)
            mask = state.mask if seen is None else seen
            read = self.cross_attn(asked, *state.keys_values[layer], mask, ctx.attend_text)
            return rms_norm(read, self.cross_norm_out)

        def feed_forward(h: Tensor, angles: Tensor | None) -> Tensor:
            return rms_norm(self.ffn(normed(h, self.ffn_norm_in, factor2, shift2)), self.ffn_norm_out)

        x = ctx.residual(x, attend_self, layer, "self", gate1)
        x = ctx.residual(x, attend_text, layer, "cross")
        return ctx.residual(x, feed_forward, layer, "ffn", gate2)


class Crop(nn.Module):
    """Which part of a picture is drawn, four numbers, as one vector."""

    def __init__(self, width: int, *, operations=nn, device=None) -> None:
        super().__init__()
        self.frequencies = nn.Parameter(torch.empty(width // 8, dtype=torch.float32, device=device))
        self.proj = operations.Linear(width, width, dtype=torch.float32, device=device)

    def forward(self, numbers: Tensor) -> Tensor:
        """(rows, 4) in float32 to (rows, C): sines, then cosines of every number."""
        # In this order, as the official code: some turns are thousands of radians.
        turns = numbers.unsqueeze(-1) * cast(self.frequencies, numbers) * 2.0 * math.pi
        return self.proj(torch.cat((turns.sin(), turns.cos()), dim=-1).flatten(1))
