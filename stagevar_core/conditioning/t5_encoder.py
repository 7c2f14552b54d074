"""The encoder of T5 (Raffel et al. 2020, arXiv:1910.10683), version 1.1's gated layers included.

Its modules have the names of the Hugging Face files. The library's own model would cost every start of this
package two seconds, all of it for the import.
"""

import math
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .encoder import EncoderConfig


@dataclass(frozen=True)
class T5EncoderConfig(EncoderConfig):
    """Shape of a T5 encoder, in the names of its ``config.json``; the defaults are Flan-T5-XL."""

    vocab_size: int = 32128
    d_model: int = 2048
    d_ff: int = 5120
    d_kv: int = 64
    num_heads: int = 32
    num_layers: int = 24
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    feed_forward_proj: str = "gated-gelu"
    layer_norm_epsilon: float = 1e-6

    @property
    def width(self) -> int:
        """Channels of the features."""
        return self.d_model


def _gelu(x: Tensor) -> Tensor:
    """GELU by its hyperbolic tangent, term by term as T5's checkpoints were published with."""
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


# By ``feed_forward_proj``; 'gated-gelu' has always meant the approximation.
ACTIVATIONS = {
    "gated-gelu": _gelu,
    "gated-silu": F.silu,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_new": _gelu,
    "silu": F.silu,
}


class T5Encoder(nn.Module):
    """Token ids (B, L), without padding, to features (B, L, width) in the dtype of the weights."""

    def __init__(self, config: T5EncoderConfig) -> None:
        super().__init__()
        self.shared = _table(config.vocab_size, config.d_model)
        self.encoder = _Stack(config)

    def forward(self, ids: Tensor) -> Tensor:
        """The features after the last norm."""
        return self.encoder(self.shared(ids))


class _Stack(nn.Module):
    def __init__(self, config: T5EncoderConfig) -> None:
        super().__init__()
        self.block = nn.ModuleList(_Block(config, positions=i == 0) for i in range(config.num_layers))
        self.final_layer_norm = _Norm(config)
        self.reach = config.relative_attention_max_distance

    def forward(self, x: Tensor) -> Tensor:
        # The first block's table serves all of them.
        table = cast(_Block, self.block[0]).table
        places = buckets(x.shape[1], table.num_embeddings, self.reach).to(x.device)
        bias = table(places).permute(2, 0, 1)
        for block in self.block:
            x = block(x, bias)
        return self.final_layer_norm(x)


class _Block(nn.Module):
    def __init__(self, config: T5EncoderConfig, *, positions: bool) -> None:
        super().__init__()
        self.layer = nn.ModuleList([_AttentionLayer(config, positions), _FeedForwardLayer(config)])

    @property
    def table(self) -> nn.Embedding:
        """What is learned of distances."""
        return cast(_AttentionLayer, self.layer[0]).SelfAttention.relative_attention_bias

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        attention, feed_forward = self.layer
        return feed_forward(attention(x, bias))


class _AttentionLayer(nn.Module):
    def __init__(self, config: T5EncoderConfig, positions: bool) -> None:
        super().__init__()
        self.SelfAttention = _Attention(config, positions)
        self.layer_norm = _Norm(config)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        return x + self.SelfAttention(self.layer_norm(x), bias)


class _Attention(nn.Module):
    """Attention over all tokens, its scores unscaled and with a learned bias by the tokens' distance."""

    def __init__(self, config: T5EncoderConfig, positions: bool) -> None:
        super().__init__()
        width, inner, self.head = config.d_model, config.num_heads * config.d_kv, config.d_kv
        self.q, self.k, self.v = (nn.Linear(width, inner, bias=False) for _ in range(3))
        self.o = nn.Linear(inner, width, bias=False)
        if positions:
            self.relative_attention_bias = _table(config.relative_attention_num_buckets, config.num_heads)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        q, k, v = (
            part(x).unflatten(-1, (-1, self.head)).transpose(1, 2) for part in (self.q, self.k, self.v)
        )
        scores = torch.matmul(q, k.transpose(2, 3)) + bias
        mixed = torch.matmul(F.softmax(scores.float(), dim=-1).to(x.dtype), v)
        return self.o(mixed.transpose(1, 2).flatten(2))


class _FeedForwardLayer(nn.Module):
    def __init__(self, config: T5EncoderConfig) -> None:
        super().__init__()
        self.DenseReluDense = _FeedForward(config)
        self.layer_norm = _Norm(config)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.DenseReluDense(self.layer_norm(x))


class _FeedForward(nn.Module):
    def __init__(self, config: T5EncoderConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.feed_forward_proj]
        self.gated = config.feed_forward_proj.startswith("gated-")
        if self.gated:
            self.wi_0, self.wi_1 = (nn.Linear(config.d_model, config.d_ff, bias=False) for _ in range(2))
        else:
            self.wi = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.wo = nn.Linear(config.d_ff, config.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.activation(self.wi_0(x)) * self.wi_1(x) if self.gated else self.activation(self.wi(x))
        return self.wo(inner)


def _table(rows: int, width: int) -> nn.Embedding:
    """An embedding without values, which on the meta device would import ``torch._dynamo`` to draw none."""
    return nn.Embedding.from_pretrained(torch.empty(rows, width))


class _Norm(nn.Module):
    """RMS norm: no mean is taken off and none added; rounded before it meets its weight."""

    def __init__(self, config: T5EncoderConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.d_model))
        self.eps = config.layer_norm_epsilon

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * (x * scale).to(self.weight.dtype)


def buckets(length: int, count: int, reach: int) -> Tensor:
    """Which of ``count`` entries the bias of every pair of tokens is, (L, L) by query and key.

    Half of them are of keys ahead. Of each half, one half is of a single distance each, the rest grow with
    the logarithm of the distance up to ``reach``; what is further shares the last.
    """
    half, exact = count // 2, count // 4
    places = torch.arange(length)
    distance = places[None] - places[:, None]
    far = distance.abs()
    grown = torch.log(far.float() / exact) / math.log(reach / exact) * (half - exact)
    grown = (exact + grown.clamp(min=0).to(torch.long)).clamp(max=half - 1)
    return torch.where(far < exact, far, grown) + (distance > 0) * half
