"""HART's state dicts in the layout of the published files, built from the specification."""

import torch

from stagevar_core.autoencoders.vq import VQTokenizerConfig
from stagevar_core.models.hart_config import HARTConfig

from . import official_var
from .official_files import Layout


def transformer(config: HARTConfig, *, device: str = "meta", seed: int = 0) -> Layout:
    """A HART transformer file."""
    layout = Layout(device, seed)
    width = config.width
    levels = [0] * config.context
    levels += [level for level, side in enumerate(config.sides) if level for _ in range(side**2)]
    layout["lvl_1L"] = torch.tensor([levels], device=device)
    layout.buffers.add("lvl_1L")
    if device == "meta":
        layout.put("attn_bias_for_masking", 1, 1, len(levels), len(levels), buffer=True)
    layout.linear("context_embed", width, config.text_width)
    if config.context_norm:
        layout.put("context_norm.weight", config.text_width)
    layout.linear("word_embed", width, config.dim)
    if config.level_table:
        layout.put("lvl_embed.weight", len(config.sides), width)
    else:
        _embedder(layout, "lvl_embed", width)
    for index in range(config.depth):
        _block(layout, f"blocks.{index}.", config)
    layout.put("head_nm.ln_wo_grad.weight", width)
    layout.linear("head_nm.ada_lin.1", 2 * width, width)
    layout.linear("head", config.vocab, width)
    layout.put("decoder_norm.weight", width)
    _diffusion(layout, "diffloss.net.", config)
    return layout


def _embedder(layout: Layout, prefix: str, width: int) -> None:
    layout.linear(f"{prefix}.mlp.0", width, 256)
    layout.linear(f"{prefix}.mlp.2", width, width)


def _block(layout: Layout, prefix: str, config: HARTConfig) -> None:
    width = config.width
    layout.put(f"{prefix}ln_wo_grad.weight", width)
    layout.put(f"{prefix}attn.qkv_proj.weight", 3 * width, width)
    for name in ("q_bias", "v_bias"):
        layout.put(f"{prefix}attn.{name}", width)
    layout.put(f"{prefix}attn.zero_k_bias", width, buffer=True)
    layout.linear(f"{prefix}attn.proj", width, width)
    if config.cosine:
        layout.put(f"{prefix}attn.scale_mul_1H11", 1, config.heads, 1, 1)
    for name, shape in (("gate", (1, 0)), ("up", (1, 0)), ("down", (0, 1))):
        sizes = (width, config.hidden)
        layout.put(f"{prefix}ffn.{name}_proj.weight", *(sizes[place] for place in shape))
    if config.modulation == "own":
        layout.linear(f"{prefix}ada_lin.1", 6 * width, width)
    elif config.modulation == "shared":
        layout.put(f"{prefix}scale_shift_table", 6, width)


def _diffusion(layout: Layout, prefix: str, config: HARTConfig) -> None:
    width = config.diff_width
    _embedder(layout, f"{prefix}time_embed", width)
    layout.linear(f"{prefix}cond_embed", width, config.width)
    layout.linear(f"{prefix}input_proj", width, config.dim)
    for index in range(config.diff_depth):
        block = f"{prefix}res_blocks.{index}."
        layout.put(f"{block}in_ln.weight", width)
        layout.put(f"{block}in_ln.bias", width)
        layout.linear(f"{block}mlp.0", width, width)
        layout.linear(f"{block}mlp.2", width, width)
        layout.linear(f"{block}adaLN_modulation.1", 3 * width, width)
    layout.linear(f"{prefix}final_layer.linear", 2 * config.dim, width)
    layout.linear(f"{prefix}final_layer.adaLN_modulation.1", 2 * width, width)


def tokenizer(
    config: VQTokenizerConfig, *, second: bool = True, device: str = "meta", seed: int = 0
) -> Layout:
    """A HART autoencoder file with its discriminator; ``second``: and the second decoder of its training."""
    inner = official_var.tokenizer(config, device=device, seed=seed)
    layout = Layout(device, seed)
    for key, tensor in inner.items():
        layout[f"vae.{key}"] = tensor
        if second and key.startswith(("decoder.", "post_quant_conv.")):
            name, _, rest = key.partition(".")
            layout[f"vae.{name}2.{rest}"] = tensor.clone()
    layout.linear("disc.main.0", 8, 3)
    return layout
