"""State dicts in the layout of the published files, built from the specification of the architecture.

Written independently of the key maps, so that both can be compared. On the meta device they have full size
and no storage.
"""

import torch
from torch import Tensor

from stagevar_core.autoencoders.bsq import BSQTokenizerConfig
from stagevar_core.conditioning.types import TextConditioning
from stagevar_core.models.infinity import Infinity, InfinityConfig
from stagevar_core.sampling.generate import generate
from stagevar_core.sampling.settings import SamplingSettings
from stagevar_core.schedule import ScaleSchedule


class Layout(dict):
    """A state dict that is filled shape by shape; ``buffers`` are the keys that hold no parameter."""

    def __init__(self, device: str = "meta", seed: int = 0) -> None:
        super().__init__()
        self.device = device
        self.buffers: set[str] = set()
        self._generator = torch.Generator().manual_seed(seed)

    def put(self, key: str, *shape: int, buffer: bool = False) -> None:
        """One float tensor: without storage on the meta device, else small random numbers."""
        if buffer:
            self.buffers.add(key)
        if self.device == "meta" or buffer:
            self[key] = torch.zeros(shape, device=self.device)
        else:
            self[key] = torch.randn(shape, generator=self._generator) * 0.1

    def linear(self, key: str, rows: int, columns: int) -> None:
        """Weight and bias."""
        self.put(f"{key}.weight", rows, columns)
        self.put(f"{key}.bias", rows)

    def block(self, prefix: str, width: int, hidden: int) -> None:
        """Self-attention, all but its scale, and feed-forward of a block, as VAR and STAR name them."""
        self.put(f"{prefix}attn.mat_qkv.weight", 3 * width, width)
        for name in ("q_bias", "v_bias"):
            self.put(f"{prefix}attn.{name}", width)
        self.put(f"{prefix}attn.zero_k_bias", width, buffer=True)
        self.linear(f"{prefix}attn.proj", width, width)
        self.linear(f"{prefix}ffn.fc1", hidden, width)
        self.linear(f"{prefix}ffn.fc2", width, hidden)

    @property
    def parameters(self) -> int:
        """Number of weights without buffers."""
        return sum(tensor.numel() for key, tensor in self.items() if key not in self.buffers)


def transformer(
    config: InfinityConfig,
    *,
    chunks: int | None,
    device: str = "meta",
    flash_scale: bool = False,
    seed: int = 0,
) -> Layout:
    """An Infinity transformer file; ``chunks`` None gives flat block names."""
    layout = Layout(device, seed)
    width, text, pool = config.width, config.text_width, config.pool_heads
    layout.put("cfg_uncond", config.null_rows, text)
    layout.put("pos_start", 1, 1, width)
    layout.put("text_norm.weight", text)
    layout.put("text_proj_for_sos.ca.mat_q", 1, pool, width // pool)
    layout.put("text_proj_for_sos.ca.mat_kv.weight", 2 * width, text)
    layout.put("text_proj_for_sos.ca.v_bias", width)
    layout.put("text_proj_for_sos.ca.zero_k_bias", width, buffer=True)
    layout.linear("text_proj_for_sos.ca.proj", width, width)
    layout.linear("text_proj_for_ca.0", width, text)
    layout.linear("text_proj_for_ca.2", width, width)
    layout.put("lvl_embed.weight", 15, width)
    layout.linear("word_embed", width, config.bits)
    layout.linear("shared_ada_lin.1", 6 * width, width)
    layout.linear("head_nm.ada_lin.1", 2 * width, width)
    layout.linear("head", 2 * config.bits, width)
    for index in range(config.depth):
        chunk, place = divmod(index, config.depth // (chunks or 1))
        prefix = f"blocks.{index}." if chunks is None else f"block_chunks.{chunk}.module.{place}."
        _block(layout, prefix, config, (1, 1, config.heads, 1) if flash_scale else (1, config.heads, 1, 1))
    return layout


def _block(layout: Layout, prefix: str, config: InfinityConfig, scale_shape: tuple[int, ...]) -> None:
    width, hidden = config.width, config.hidden
    layout.put(f"{prefix}ada_gss", 1, 1, 6, width)
    layout.put(f"{prefix}sa.scale_mul_1H11", *scale_shape)
    layout.put(f"{prefix}sa.q_bias", width)
    layout.put(f"{prefix}sa.v_bias", width)
    layout.put(f"{prefix}sa.zero_k_bias", width, buffer=True)
    layout.put(f"{prefix}sa.mat_qkv.weight", 3 * width, width)
    layout.linear(f"{prefix}sa.proj", width, width)
    layout.linear(f"{prefix}ca.mat_q", width, width)
    layout.put(f"{prefix}ca.mat_kv.weight", 2 * width, width)
    layout.put(f"{prefix}ca.v_bias", width)
    layout.put(f"{prefix}ca.zero_k_bias", width, buffer=True)
    layout.linear(f"{prefix}ca.proj", width, width)
    layout.put(f"{prefix}ca_norm.weight", width)
    layout.put(f"{prefix}ca_norm.bias", width)
    layout.linear(f"{prefix}ffn.fc1", hidden, width)
    layout.linear(f"{prefix}ffn.fc2", width, hidden)


class TokenizerLayout(Layout):
    """The parts of a tokenizer, with or without the ``.conv`` / ``.norm`` wrapper levels."""

    wrapped = True

    def conv(self, key: str, out: int, into: int, kernel: int = 3) -> None:
        key = f"{key}.conv" if self.wrapped else key
        self.put(f"{key}.weight", out, into, kernel, kernel)
        self.put(f"{key}.bias", out)

    def norm(self, key: str, channels: int) -> None:
        key = f"{key}.norm" if self.wrapped else key
        self.put(f"{key}.weight", channels)
        self.put(f"{key}.bias", channels)

    def resblock(self, key: str, into: int, out: int) -> None:
        self.norm(f"{key}.norm1", into)
        self.conv(f"{key}.conv1", out, into)
        self.norm(f"{key}.norm2", out)
        self.conv(f"{key}.conv2", out, out)
        if into != out:
            self.conv(f"{key}.nin_shortcut", out, into, 1)


def tokenizer(config: BSQTokenizerConfig, *, wrapped: bool = True, device: str = "meta") -> Layout:
    """An Infinity tokenizer file."""
    layout = TokenizerLayout(device)
    layout.wrapped = wrapped
    widths = [config.width * multiplier for multiplier in config.multipliers]
    layout.conv("encoder.conv_in", config.width, 3)
    channels = config.width
    for level, out in enumerate(widths):
        for block in range(config.blocks):
            layout.resblock(f"encoder.down.{level}.block.{block}", channels, out)
            channels = out
        if level < len(widths) - 1:
            layout.conv(f"encoder.down.{level}.downsample.conv", channels, channels)
    for side in ("encoder", "decoder"):
        layout.resblock(f"{side}.mid.block_1", channels, channels)
        layout.resblock(f"{side}.mid.block_2", channels, channels)
    layout.norm("encoder.norm_out", channels)
    layout.conv("encoder.conv_out", config.dim, channels)
    layout.conv("decoder.conv_in", channels, config.dim)
    for level, out in reversed(list(enumerate(widths))):
        for block in range(config.blocks + 1):
            layout.resblock(f"decoder.up.{level}.block.{block}", channels, out)
            channels = out
        if level > 0:
            layout.conv(f"decoder.up.{level}.upsample.conv", channels, channels)
    layout.norm("decoder.norm_out", channels)
    layout.conv("decoder.conv_out", 3, channels)
    for owner in ("quantizer", "quantize"):
        layout.put(f"{owner}.lfq.mask", config.dim, buffer=True)
    return layout


def flan_t5_xl(decoder: bool = True) -> dict[str, Tensor]:
    """google/flan-t5-xl as published: encoder, decoder and language model head."""
    layout, width, inner, hidden, vocabulary = Layout(), 2048, 32 * 64, 5120, 32128
    layout.put("shared.weight", vocabulary, width)
    for stack in ("encoder", "decoder") if decoder else ("encoder",):
        layout.put(f"{stack}.embed_tokens.weight", vocabulary, width)
        layout.put(f"{stack}.final_layer_norm.weight", width)
        attentions = ("SelfAttention",) if stack == "encoder" else ("SelfAttention", "EncDecAttention")
        for index in range(24):
            block = f"{stack}.block.{index}.layer"
            for place, attention in enumerate(attentions):
                for name in "qkv":
                    layout.put(f"{block}.{place}.{attention}.{name}.weight", inner, width)
                layout.put(f"{block}.{place}.{attention}.o.weight", width, inner)
            for place in range(len(attentions) + 1):
                layout.put(f"{block}.{place}.layer_norm.weight", width)
            feed_forward = f"{block}.{len(attentions)}.DenseReluDense"
            layout.put(f"{feed_forward}.wi_0.weight", hidden, width)
            layout.put(f"{feed_forward}.wi_1.weight", hidden, width)
            layout.put(f"{feed_forward}.wo.weight", width, hidden)
        layout.put(f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight", 32, 32)
    if decoder:
        layout.put("lm_head.weight", vocabulary, width)
    return layout


SMALL = InfinityConfig(
    depth=4, width=32, heads=2, hidden=64, bits=16, text_width=48, null_rows=12, pool_heads=2
)
SMALL_TOKENIZER = BSQTokenizerConfig(dim=16, width=32, multipliers=(1, 1, 2), blocks=1)


def small_transformer(config: InfinityConfig = SMALL, *, chunks: int | None = 2, **options) -> Layout:
    """A transformer file with real numbers."""
    return transformer(config, chunks=chunks, device="cpu", **options)


def small_tokenizer() -> Layout:
    """A tokenizer file with real numbers."""
    return tokenizer(SMALL_TOKENIZER, device="cpu")


def latent(module: Infinity) -> Tensor:
    """What a model generates for one prompt, for comparing two loaded ones."""
    torch.manual_seed(0)
    conditioning = TextConditioning((torch.randn(5, module.config.text_width),))
    schedule = ScaleSchedule.of([(1, 1), (2, 2)])
    result = generate(module, conditioning, schedule, SamplingSettings(greedy=True), noise=None)
    return result.f_hat
