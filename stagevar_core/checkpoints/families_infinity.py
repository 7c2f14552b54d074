"""Infinity's files: names of its transformer, image tokenizer and text encoder, and how to recognise them."""

from dataclasses import replace
from typing import Any

from ..autoencoders.bsq import BSQTokenizer, BSQTokenizerConfig
from ..checks import one_of
from ..conditioning.t5 import T5EncoderConfig, T5TextEncoder, read_tokenizer
from ..models.infinity import Infinity, InfinityConfig
from ..schedule import AspectTable, infinity_aspect_table
from .convert import BLOCK, Fold, Ignore, KeyMap, Rename, self_attention
from .lora import merged_lora
from .spec import FamilySpec, Shape, Shapes, conv_sizes, module_shapes

_LORA = r".*\.sa\.mat_qkv\.(?:linear|lora_down|lora_up)\.weight"  # of VARestorer, as published
T5_ACTIVATIONS = ("gated-gelu", "gated-silu", "relu", "gelu", "gelu_new", "silu")
_T5_BLOCK = "encoder.block.{}.layer."
_T5_POSITIONS = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"

# The built-in tokenizer's, whose shapes no published one has: files that older versions of this pack let the
# host write hold its tensors alone, which show neither groups nor sizes.
_SCENES = BSQTokenizerConfig(dim=16, width=32, multipliers=(1, 1, 3, 4), blocks=1, groups=8)
_SCENES_RATIOS, _SCENES_BUDGETS = [1.0], ["0.06M"]

# infinity/models/{infinity,basic}.py of FoundationVision/Infinity.
INFINITY_KEYS = KeyMap(
    blocks=(r"block_chunks\.(\d+)\.module\.(\d+)", r"blocks\.(\d+)"),
    renames=(
        Rename(r"cfg_uncond", "null_text"),
        Rename(r"pos_start", "start", dims=1),
        Rename(r"text_norm\.weight", "text_norm"),
        Rename(r"text_proj_for_sos\.ca\.mat_q", "text_pool.query", dims=2),
        Rename(r"text_proj_for_sos\.ca\.mat_kv\.weight", "text_pool.kv.weight"),
        Rename(r"text_proj_for_sos\.ca\.v_bias", "text_pool.kv.bias:value"),
        Rename(r"text_proj_for_sos\.ca\.proj\.(weight|bias)", r"text_pool.proj.\1"),
        Rename(r"text_proj_for_ca\.0\.(weight|bias)", r"text_mlp.fc1.\1"),
        Rename(r"text_proj_for_ca\.2\.(weight|bias)", r"text_mlp.fc2.\1"),
        Rename(r"lvl_embed\.weight", "level_embed"),
        Rename(r"shared_ada_lin\.1\.(weight|bias)", r"block_ada.\1"),
        Rename(r"head_nm\.ada_lin\.1\.(weight|bias)", r"head_ada.\1"),
        Rename(BLOCK + r"\.ada_gss", r"\1.ada", dims=2),
        *self_attention(BLOCK + r"\.sa", r"\1.self_attn"),
        Rename(BLOCK + r"\.ca\.mat_q\.(weight|bias)", r"\1.cross_attn.q.\2"),
        Rename(BLOCK + r"\.ca\.mat_kv\.weight", r"\1.cross_attn.kv.weight"),
        Rename(BLOCK + r"\.ca\.v_bias", r"\1.cross_attn.kv.bias:value"),
        Rename(BLOCK + r"\.ca\.proj\.(weight|bias)", r"\1.cross_attn.proj.\2"),
        Rename(BLOCK + r"\.ca_norm\.(weight|bias)", r"\1.cross_norm.\2"),
    ),
    folds=(
        Fold("self_attn.qkv.bias", ("query", None, "value")),
        Fold("cross_attn.kv.bias", (None, "value")),
        Fold("text_pool.kv.bias", (None, "value")),
    ),
    ignored=(
        Ignore(r".*\.zero_k_bias"),
        Ignore(
            r"lvl_1L|attn_bias_for_masking|Infinity_visible_kvlen|Infinity_invisible_qlen",
            "mask buffers of old training code",
        ),
    ),
)

# infinity/models/bsq_vae/vae.py; published files may or may not have the `.conv` / `.norm` wrapper levels.
BSQ_KEYS = KeyMap(
    renames=(
        Rename(
            r"((?:encoder|decoder)\.(?:.+\.)?(?:conv\d|conv_in|conv_out|nin_shortcut|(?:down|up)sample\.conv))"
            r"(?:\.conv)?\.(weight|bias)",
            r"\1.\2",
        ),
        Rename(r"((?:encoder|decoder)\.(?:.+\.)?(?:norm\d|norm_out))(?:\.norm)?\.(weight|bias)", r"\1.\2"),
    ),
    ignored=(Ignore(r"quantizer?\.lfq\.mask"),),
)

# T5 as the transformers library writes it; these names are kept, also for ComfyUI's own T5.
T5_KEYS = KeyMap(
    renames=(Rename(r"encoder\.embed_tokens\.weight", "shared.weight", alias=True),),
    ignored=(Ignore(r"decoder\..*", "text decoder"), Ignore(r"lm_head\..*", "language model head")),
)


_LINEARS = (
    *(f"blocks.{{}}.{name}" for name in ("sa.mat_qkv", "sa.proj", "ca.mat_q", "ca.mat_kv", "ca.proj")),
    *("blocks.{}.ffn.fc1", "blocks.{}.ffn.fc2", "shared_ada_lin.1", "head_nm.ada_lin.1"),
    *("text_proj_for_sos.ca.mat_kv", "text_proj_for_sos.ca.proj", "text_proj_for_ca.0", "text_proj_for_ca.2"),
    *("word_embed", "head"),
)


def infinity_config(shapes: Shapes) -> InfinityConfig:
    """Patchify is not stored: 56 bits are the 14 of the stride-8 tokenizer times 2 x 2, others are plain."""
    bits = shapes.ratio("the number of bits", shapes.size("head.weight"), 2)
    width, heads = shapes.elements("start"), shapes.elements("blocks.0.self_attn.log_scale")
    pool_heads = shapes.size("text_pool.query", -2)
    head_dim = shapes.ratio("the head size", width, heads)
    shapes.ratio("a quarter of the head size", head_dim, 4)
    shapes.ratio("the head size of the text pooling", width, pool_heads)
    return InfinityConfig(
        depth=shapes.count(r"blocks\.(\d+)\."),
        width=width,
        heads=heads,
        hidden=shapes.size("blocks.0.ffn.fc1.weight"),
        bits=bits,
        patch=2 if bits == 56 else 1,
        text_width=shapes.elements("text_norm"),
        null_rows=shapes.size("null_text"),
        pool_heads=pool_heads,
        levels=shapes.size("level_embed"),
    )


def bsq_config(shapes: Shapes) -> BSQTokenizerConfig:
    """Sizes from the encoder; other normalisation groups than 32 need metadata, the built-in one's aside."""
    found = BSQTokenizerConfig(dim=shapes.size("encoder.conv_out.weight"), **conv_sizes(shapes))
    return _SCENES if replace(found, groups=_SCENES.groups) == _SCENES else found


def t5_config(shapes: Shapes) -> T5EncoderConfig:
    """Activations cannot be seen; gated files are taken for GELU (Flan-T5, T5 v1.1), others for ReLU."""
    heads = shapes.size(_T5_POSITIONS, 1)
    first = _T5_BLOCK.format(0)
    gated = f"{first}1.DenseReluDense.wi_0.weight" in shapes
    inner = shapes.size(f"{first}0.SelfAttention.q.weight")
    return T5EncoderConfig(
        vocab_size=shapes.size("shared.weight"),
        d_model=shapes.size("encoder.final_layer_norm.weight"),
        d_ff=shapes.size(f"{first}1.DenseReluDense.{'wi_0' if gated else 'wi'}.weight"),
        d_kv=shapes.ratio("the head size", inner, heads),
        num_heads=heads,
        num_layers=shapes.count(r"encoder\.block\.(\d+)\."),
        relative_attention_num_buckets=shapes.size(_T5_POSITIONS),
        feed_forward_proj="gated-gelu" if gated else "relu",
    )


def t5_shapes(config: T5EncoderConfig) -> dict[str, Shape]:
    """The tensors of a T5 encoder in the Hugging Face layout."""
    width, inner = config.d_model, config.num_heads * config.d_kv
    shapes = {
        "shared.weight": (config.vocab_size, width),
        "encoder.final_layer_norm.weight": (width,),
        _T5_POSITIONS: (config.relative_attention_num_buckets, config.num_heads),
    }
    entries = ("wi_0", "wi_1") if config.feed_forward_proj.startswith("gated") else ("wi",)
    for index in range(config.num_layers):
        block = _T5_BLOCK.format(index)
        shapes |= {f"{block}0.SelfAttention.{name}.weight": (inner, width) for name in "qkv"}
        shapes |= {f"{block}1.DenseReluDense.{name}.weight": (config.d_ff, width) for name in entries}
        shapes |= {f"{block}{layer}.layer_norm.weight": (width,) for layer in (0, 1)}
        shapes[f"{block}0.SelfAttention.o.weight"] = (width, inner)
        shapes[f"{block}1.DenseReluDense.wo.weight"] = (width, config.d_ff)
    return shapes


def check_t5(config: T5EncoderConfig) -> None:
    """Raise ``ValueError`` for positions or activations that no T5 computes."""
    exact = (
        config.relative_attention_num_buckets // 4
    )  # each side has half of them, near places half of those
    if exact < 1 or config.relative_attention_max_distance <= exact:
        raise ValueError(
            f"{config.relative_attention_num_buckets} buckets of positions that reach "
            f"{config.relative_attention_max_distance} tokens"
        )
    one_of("feed_forward_proj", config.feed_forward_proj, T5_ACTIVATIONS)


def infinity_sizes(config: InfinityConfig | BSQTokenizerConfig) -> AspectTable:
    """All aspect ratios and budgets: no tensor tells which of them a file was trained on.

    What restores has one size, squares of 512 px; the built-in tokenizer's shapes have its own.
    """
    if config == _SCENES:
        return infinity_aspect_table(_SCENES.stride).restrict(_SCENES_RATIOS, _SCENES_BUDGETS)
    table = infinity_aspect_table()
    return table.restrict([1.0], ["0.25M"]) if getattr(config, "restores", False) else table


TRANSFORMER = FamilySpec(
    name="infinity",
    kind="transformer",
    title="Infinity transformer",
    example="text_proj_for_sos.ca.mat_q",
    keys_required=(
        r"cfg_uncond",
        r"pos_start",
        r"text_proj_for_sos\.ca\.mat_q",
        r".*\.sa\.mat_qkv\.weight",
    ),
    keys_forbidden=(r"class_emb\.weight", _LORA),
    config_type=InfinityConfig,
    config_from=infinity_config,
    expected=module_shapes(Infinity),
    key_map=INFINITY_KEYS,
    module=Infinity,
    unsupported=(
        (r".*\.ca_gamma", "a learned scale on cross-attention"),
        (r".*\.ffn\.fcg\.weight", "SwiGLU feed-forwards"),
        (r"norm0_ve\..*", "a norm before the word embedding"),
        (r"head\.[02]\..*", "a two-layer head"),
        (r"(?:block_chunks\.\d+\.module|blocks)\.\d+\.ada_lin\..*", "modulation layers in every block"),
        (r".*\.ln_wo_grad\.weight", "RMS norms"),
    ),
    unseen=("patch", "edits", "moved_source", "restores"),
    sizes=infinity_sizes,
    linears=_LINEARS,
)
RESTORER = replace(
    TRANSFORMER,
    title="VARestorer transformer",
    example="block_chunks.0.module.0.sa.mat_qkv.lora_down.weight",
    keys_required=(*TRANSFORMER.keys_required[:3], _LORA),
    keys_forbidden=(r"class_emb\.weight",),
    config_from=lambda shapes: replace(infinity_config(shapes), restores=True),
    merged=merged_lora,
)
TOKENIZER = FamilySpec(
    name="infinity",
    kind="tokenizer",
    title="Infinity image tokenizer",
    example="encoder.down.0.block.0.conv1.conv.weight",
    keys_required=(
        r"encoder\.conv_in\.(?:conv\.)?weight",
        r"encoder\.conv_out\.(?:conv\.)?weight",
        r"encoder\.down\.0\.block\.0\.conv1\.(?:conv\.)?weight",
        r"decoder\.up\.0\.block\.0\.conv1\.(?:conv\.)?weight",
    ),
    keys_forbidden=(r".*\.attn(?:_\d+)?\..*", r"(?:post_)?quant_conv\..*", r"quantize\.embedding\..*"),
    config_type=BSQTokenizerConfig,
    config_from=bsq_config,
    expected=module_shapes(BSQTokenizer),
    key_map=BSQ_KEYS,
    module=BSQTokenizer,
    unseen=("groups",),
    sizes=infinity_sizes,
)
T5 = FamilySpec(
    name="t5",
    kind="text_encoder",
    title="T5 text encoder",
    example="encoder.block.0.layer.0.SelfAttention.q.weight",
    keys_required=(
        r"shared\.weight|encoder\.embed_tokens\.weight",
        r"encoder\.block\.0\.layer\.0\.SelfAttention\.q\.weight",
        r"encoder\.final_layer_norm\.weight",
    ),
    keys_forbidden=(r"encoder\.block\.1\.layer\.0\.SelfAttention\.relative_attention_bias\.weight",),
    config_type=T5EncoderConfig,
    config_from=t5_config,
    expected=t5_shapes,
    key_map=T5_KEYS,
    unseen=("relative_attention_max_distance", "layer_norm_epsilon", "feed_forward_proj"),
    check=check_t5,
    encoder=T5TextEncoder,
    vocabulary=read_tokenizer,
)

SPECS: tuple[FamilySpec[Any], ...] = (
    TRANSFORMER,
    RESTORER,
    TRANSFORMER.in_our_names(
        r"null_text", r"text_pool\.query", r"blocks\.0\.self_attn\.log_scale", r"level_embed"
    ),
    TOKENIZER,
)
