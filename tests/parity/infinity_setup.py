"""Models of the Infinity fixtures: shapes from config.json, weights through the project's converter."""

from torch import Tensor

from stagevar_core.autoencoders.bsq import BSQTokenizer, BSQTokenizerConfig
from stagevar_core.checkpoints.convert import convert
from stagevar_core.checkpoints.families_infinity import BSQ_KEYS, INFINITY_KEYS
from stagevar_core.models.infinity import Infinity, InfinityConfig

from .report import UnreadableFolder, UnreleasedOption

# What every released model has; anything else is an option of the training code alone.
RELEASED = {
    "rms_norm": False,
    "swiglu": False,
    "nm0": False,
    "head_depth": 1,
    "cos_attn": True,
    "shared_aln": True,
    "head_aln": True,
    "use_bit_label": 1,
    "add_lvl_embeding_only_first_block": 1,
    "rope2d_each_sa_layer": 1,
    "rope2d_normalized_by_hw": 2,
    "norm_eps": 1e-6,
    "fused_norm": True,
}
RELEASED_TOKENIZER = {"mid_attention": False, "group_norm_eps": 1e-6}


def check_released(config: dict) -> None:
    """Raise :class:`UnreleasedOption` naming every option that no released model uses."""
    found = []
    for part, released in (("transformer", RELEASED), ("vae", RELEASED_TOKENIZER)):
        values = config.get(part, {})
        found += [
            f"{key} {values[key]}" for key, usual in released.items() if values.get(key, usual) != usual
        ]
    if config.get("transformer", {}).get("cross_attn_layer_scale", -1.0) > 0:
        found.append(f"cross_attn_layer_scale {config['transformer']['cross_attn_layer_scale']}")
    if found:
        raise UnreleasedOption(", ".join(found))


def load_transformer(config: dict, tensors: dict[str, Tensor]) -> Infinity:
    """The transformer of a folder in float32, loaded strictly."""
    shape = config["transformer"]
    patch = 2 if shape.get("apply_spatial_patchify") else 1
    if shape["d_vae_in"] % patch**2:
        raise UnreadableFolder(
            f"{shape['d_vae_in']} bits per token do not divide into {patch}x{patch} patches"
        )
    model = Infinity(
        InfinityConfig(
            depth=shape["depth"],
            width=shape["embed_dim"],
            heads=shape["num_heads"],
            hidden=shape["mlp_hidden"],
            bits=shape["d_vae_in"],
            patch=patch,
            text_width=shape["text_channels"],
            null_rows=shape["text_maxlen"],
            pool_heads=shape["pool_num_heads"],
            levels=tensors["lvl_embed.weight"].shape[0],
            edits=config.get("task") == "edit",
        )
    )
    model.load_state_dict(convert(tensors, INFINITY_KEYS).tensors)
    return model.eval()


def load_tokenizer(config: dict, tensors: dict[str, Tensor]) -> BSQTokenizer:
    """The tokenizer of a folder in float32, loaded strictly."""
    tokenizer = BSQTokenizer(_tokenizer_config(config))
    tokenizer.load_state_dict(convert(tensors, BSQ_KEYS).tensors)
    return tokenizer.eval()


def load_decoder(config: dict, tensors: dict[str, Tensor]) -> BSQTokenizer:
    """A tokenizer of which a folder holds the decoder; the decoder is loaded strictly."""
    converted = convert(tensors, BSQ_KEYS).tensors
    if any(name.startswith("encoder.") for name in converted):
        return load_tokenizer(config, tensors)
    tokenizer = BSQTokenizer(_tokenizer_config(config))
    tokenizer.decoder.load_state_dict(
        {name.removeprefix("decoder."): value for name, value in converted.items()}
    )
    return tokenizer.eval()


def _tokenizer_config(config: dict) -> BSQTokenizerConfig:
    shape = config["vae"]
    return BSQTokenizerConfig(
        dim=shape["codebook_dim"],
        width=shape["base_ch"],
        multipliers=tuple(shape["ch_mult"]),
        blocks=shape["num_res_blocks"],
        groups=shape.get("group_norm_groups", 32),
    )
