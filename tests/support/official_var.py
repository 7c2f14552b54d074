"""VAR's state dicts as the published files have them, built from the specification of the architecture."""

import torch

from stagevar_core.autoencoders.vq import VQTokenizerConfig
from stagevar_core.models.var import VARConfig

from .official_files import Layout, TokenizerLayout


def transformer(config: VARConfig, *, device: str = "meta", seed: int = 0) -> Layout:
    """A VAR transformer file."""
    layout = Layout(device, seed)
    width, tokens = config.width, sum(side**2 for side in config.sides)
    layout.put("pos_start", 1, 1, width)
    layout.put("pos_1LC", 1, tokens, width)
    levels = [level for level, side in enumerate(config.sides) for _ in range(side**2)]
    layout["lvl_1L"] = torch.tensor([levels], device=device)
    layout.put("attn_bias_for_masking", 1, 1, tokens, tokens, buffer=True)
    layout.buffers.add("lvl_1L")
    layout.linear("word_embed", width, config.dim)
    layout.put("class_emb.weight", config.classes + 1, width)
    layout.put("lvl_embed.weight", len(config.sides), width)
    if config.shared:
        layout.linear("shared_ada_lin.1", 6 * width, width)
    for index in range(config.depth):
        _block(layout, f"blocks.{index}.", config)
    layout.linear("head_nm.ada_lin.1", 2 * width, width)
    layout.linear("head", config.vocab, width)
    return layout


def _block(layout: Layout, prefix: str, config: VARConfig) -> None:
    width = config.width
    if config.cosine:
        layout.put(f"{prefix}attn.scale_mul_1H11", 1, config.heads, 1, 1)
    layout.block(prefix, width, config.hidden)
    if config.shared:
        layout.put(f"{prefix}ada_gss", 1, 1, 6, width)
    else:
        layout.linear(f"{prefix}ada_lin.1", 6 * width, width)


class _Plain(TokenizerLayout):
    """The tokenizer's own naming, without wrapper levels, and its attention."""

    wrapped = False

    def attention(self, key: str, channels: int) -> None:
        self.norm(f"{key}.norm", channels)
        self.conv(f"{key}.qkv", 3 * channels, channels, 1)
        self.conv(f"{key}.proj_out", channels, channels, 1)

    def middle(self, key: str, channels: int) -> None:
        self.resblock(f"{key}.block_1", channels, channels)
        self.attention(f"{key}.attn_1", channels)
        self.resblock(f"{key}.block_2", channels, channels)

    def level(self, key: str, blocks: int, into: int, out: int, attention: bool) -> None:
        for block in range(blocks):
            self.resblock(f"{key}.block.{block}", into if block == 0 else out, out)
            if attention:
                self.attention(f"{key}.attn.{block}", out)


def tokenizer(
    config: VQTokenizerConfig, *, phi: str = "qresi_ls.{}.", device: str = "meta", seed: int = 0
) -> Layout:
    """A VQ tokenizer file; ``phi`` names its convolutions."""
    layout = _Plain(device, seed)
    widths = [config.width * multiplier for multiplier in config.multipliers]
    last = len(widths) - 1
    layout.conv("encoder.conv_in", config.width, 3)
    channels = config.width
    for index, out in enumerate(widths):
        layout.level(f"encoder.down.{index}", config.blocks, channels, out, index == last)
        channels = out
        if index < last:
            layout.conv(f"encoder.down.{index}.downsample.conv", channels, channels)
    layout.middle("encoder.mid", channels)
    layout.norm("encoder.norm_out", channels)
    layout.conv("encoder.conv_out", config.dim, channels)
    layout.conv("decoder.conv_in", channels, config.dim)
    layout.middle("decoder.mid", channels)
    for index in reversed(range(len(widths))):
        out = widths[index]
        layout.level(f"decoder.up.{index}", config.blocks + 1, channels, out, index == last)
        channels = out
        if index > 0:
            layout.conv(f"decoder.up.{index}.upsample.conv", channels, channels)
    layout.norm("decoder.norm_out", channels)
    layout.conv("decoder.conv_out", 3, channels)
    for name in ("quant_conv", "post_quant_conv"):
        layout.conv(name, config.dim, config.dim)
    layout.put("quantize.embedding.weight", config.vocab, config.dim)
    layout.put("quantize.ema_vocab_hit_SV", 10, config.vocab, buffer=True)
    for index in range(config.phis):
        layout.conv(f"quantize.quant_resi.{phi.format(index)}".rstrip("."), config.dim, config.dim)
    return layout
