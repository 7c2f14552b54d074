"""Switti's state dicts in the layout of the published files, built from the specification."""

import torch

from stagevar_core.models.switti_config import SwittiConfig

from .official_files import Layout

NORMS = (
    *(f"{part}_attention_norm{place}" for part in ("self", "cross") for place in (1, 2)),
    *("ffn_norm1", "ffn_norm2"),
)


def transformer(config: SwittiConfig, *, device: str = "meta", seed: int = 0) -> Layout:
    """A Switti transformer file; its buffers are numbers on every device, since they are looked at."""
    layout = Layout(device, seed)
    width, tokens = config.width, sum(side**2 for side in config.sides)
    levels = [level for level, side in enumerate(config.sides) for _ in range(side**2)]
    layout["lvl_1L"] = torch.tensor([levels])
    # One number in place of all: what the tokens of a scale see of those before it.
    seen = 0.0 if config.ar else -torch.inf
    layout["attn_bias_for_masking"] = torch.full((1, 1, 1, 1), seen).expand(1, 1, tokens, tokens)
    layout.buffers |= {"lvl_1L", "attn_bias_for_masking"}
    layout.put("pos_start", 1, 1, width)
    layout.linear("word_embed", width, config.dim)
    layout.linear("text_pooler", width, config.pooled_width)
    layout.put("lvl_embed.weight", config.levels, width)
    if config.crop:
        layout.put("crop_embed.weight", width // 8)
        layout.linear("crop_proj", width, width)
    for index in range(config.depth):
        _block(layout, f"blocks.{index}.", config)
    layout.linear("head_nm.ada_lin.1", 2 * width, width)
    layout.linear("head", config.vocab, width)
    return layout


def _block(layout: Layout, prefix: str, config: SwittiConfig) -> None:
    width, text = config.width, config.text_width
    layout.linear(f"{prefix}attn.to_qkv", 3 * width, width)
    layout.linear(f"{prefix}attn.proj", width, width)
    layout.linear(f"{prefix}cross_attn.to_q", width, width)
    layout.linear(f"{prefix}cross_attn.to_kv", 2 * width, text)
    layout.linear(f"{prefix}cross_attn.proj", width, width)
    for name in ("gate_proj", "up_proj"):
        layout.put(f"{prefix}ffn.{name}.weight", config.hidden, width)
    layout.put(f"{prefix}ffn.down_proj.weight", width, config.hidden)
    for name in NORMS:
        layout.put(f"{prefix}{name}.weight", width)
    layout.put(f"{prefix}attention_y_norm.weight", text)
    layout.linear(f"{prefix}ada_lin.1", 6 * width, width)
    if config.crop:
        layout.put(f"{prefix}crop_cond_scales", 1, width)
