"""STAR's state dicts in the layout of the published files, built from the specification."""

from stagevar_core.models.star_config import STARConfig

from .official_files import Layout


def transformer(config: STARConfig, *, device: str = "meta", seed: int = 0) -> Layout:
    """A STAR transformer file, with the inner sampler network where the config has one."""
    layout = Layout(device, seed)
    width = config.width
    layout.put("pos_start", 1, 1, width)
    layout.linear("word_embed", width, config.dim)
    layout.put("class_emb.weight", 1001, width, buffer=True)
    layout.put("lvl_embed.weight", config.levels, width)
    layout.linear("encoder_proj", width, config.text_width)
    for index in range(config.depth):
        block = f"blocks.{index}."
        _block(layout, block, config)
        _cross_attention(layout, f"{block}cross_attn.", config)
    layout.linear("head_logits", config.vocab, width)
    if config.sampler_depth:
        layout.put("pos_start_last", 1, 1, width)
        layout.linear("word_embed_head", width, config.dim)
        layout.linear("head_logits2", config.vocab, width)
        layout.linear("encoder_proj2", width, config.text_width)
        layout.linear("head_proj", width, 2 * width)
        layout.put("lvl_embed_2.weight", config.levels, width)
        for index in range(config.sampler_depth):
            _block(layout, f"feat_extract_blocks.{index}.", config)
    return layout


def _block(layout: Layout, prefix: str, config: STARConfig) -> None:
    layout.put(f"{prefix}attn.scale_mul_1H11", 1, config.heads, 1, 1)
    layout.block(prefix, config.width, config.hidden)


def _cross_attention(layout: Layout, prefix: str, config: STARConfig) -> None:
    width = config.width
    layout.put(f"{prefix}scale_mul_1H11", 1, config.heads, 1, 1)
    layout.put(f"{prefix}mat_q.weight", width, width)
    layout.put(f"{prefix}mat_kv.weight", 2 * width, config.text_width)
    for name in ("q_bias", "v_bias"):
        layout.put(f"{prefix}{name}", width)
    layout.put(f"{prefix}zero_k_bias", width, buffer=True)
    layout.linear(f"{prefix}proj", width, width)


def clip_text(layers: int = 23, *, width: int = 1024) -> Layout:
    """The text encoder of Stable Diffusion 2.1 as published; 24 layers are those of OpenCLIP."""
    layout, stem = Layout(), "text_model."
    layout.put(f"{stem}embeddings.token_embedding.weight", 49408, width)
    layout.put(f"{stem}embeddings.position_embedding.weight", 77, width)
    layout.put(f"{stem}embeddings.position_ids", 1, 77, buffer=True)
    for index in range(layers):
        layer = f"{stem}encoder.layers.{index}."
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            layout.linear(f"{layer}self_attn.{name}", width, width)
        layout.linear(f"{layer}mlp.fc1", 4 * width, width)
        layout.linear(f"{layer}mlp.fc2", width, 4 * width)
        for name in ("layer_norm1", "layer_norm2"):
            layout.put(f"{layer}{name}.weight", width)
            layout.put(f"{layer}{name}.bias", width)
    layout.put(f"{stem}final_layer_norm.weight", width)
    layout.put(f"{stem}final_layer_norm.bias", width)
    return layout
