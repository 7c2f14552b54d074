"""Which model a checkpoint holds, from tensor names and shapes alone: ordered family specifications.

A new family is an entry of ``SPECS``; file names are never looked at. Only first dimensions of weights are
read, because quantised files may change the others.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ..autoencoders.bsq import BSQTokenizer, BSQTokenizerConfig
from ..models.infinity import Infinity, InfinityConfig
from ..schedule import infinity_aspect_table
from ..text import T5EncoderConfig
from . import families_star, families_var
from .convert import BSQ_KEYS, INFINITY_KEYS, T5_KEYS, routes
from .errors import CheckpointError, listed
from .spec import FamilySpec, Shape, Shapes, first_match, module_shapes

KINDS = {"transformer": "a transformer", "tokenizer": "an image tokenizer", "text_encoder": "a text encoder"}


class Detected(NamedTuple):
    """A recognised file: its specification and the configuration that its shapes show."""

    spec: FamilySpec
    config: Any


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
    """Stride and widths from the encoder's levels; other normalisation groups than 32 need metadata."""
    width = shapes.size("encoder.conv_in.weight")
    levels = shapes.count(r"encoder\.down\.(\d+)\.")
    outs = [shapes.size(f"encoder.down.{level}.block.0.conv1.weight") for level in range(levels)]
    return BSQTokenizerConfig(
        dim=shapes.size("encoder.conv_out.weight"),
        width=width,
        multipliers=tuple(shapes.ratio("a channel multiplier", out, width) for out in outs),
        blocks=shapes.count(r"encoder\.down\.0\.block\.(\d+)\."),
    )


_T5_BLOCK = "encoder.block.{}.layer."
_T5_POSITIONS = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"


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


_INFINITY = {
    "name": "infinity",
    "kind": "transformer",
    "title": "Infinity transformer",
    "config_type": InfinityConfig,
    "config_from": infinity_config,
    "expected": module_shapes(Infinity),
    "module": Infinity,
    "unseen": ("patch",),
    "sizes": lambda config: infinity_aspect_table(),
}

# Specific before broad; the first match wins.
SPECS: tuple[FamilySpec, ...] = (
    FamilySpec(
        **_INFINITY,
        keys_required=(
            r"cfg_uncond",
            r"pos_start",
            r"text_proj_for_sos\.ca\.mat_q",
            r".*\.sa\.mat_qkv\.weight",
        ),
        keys_forbidden=(r"class_emb\.weight",),
        key_map=INFINITY_KEYS,
        unsupported=(
            (r".*\.ca_gamma", "a learned scale on cross-attention"),
            (r".*\.ffn\.fcg\.weight", "SwiGLU feed-forwards"),
            (r"norm0_ve\..*", "a norm before the word embedding"),
            (r"head\.[02]\..*", "a two-layer head"),
            (r"(?:block_chunks\.\d+\.module|blocks)\.\d+\.ada_lin\..*", "modulation layers in every block"),
            (r".*\.ln_wo_grad\.weight", "RMS norms"),
        ),
    ),
    FamilySpec(
        **_INFINITY,
        keys_required=(r"null_text", r"text_pool\.query", r"blocks\.0\.self_attn\.log_scale", r"level_embed"),
        keys_forbidden=(),
    ),
    FamilySpec(
        name="infinity",
        kind="tokenizer",
        title="Infinity image tokenizer",
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
        sizes=lambda config: infinity_aspect_table(),
    ),
    *families_star.SPECS,
    *families_var.SPECS,
    FamilySpec(
        name="t5",
        kind="text_encoder",
        title="T5 text encoder",
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
    ),
)

# What files of other kinds look like, for the advice in the error.
LOOKALIKES: tuple[tuple[str, str], ...] = (
    (r"(?:model\.)?diffusion_model\..*|first_stage_model\..*", "an all-in-one diffusion checkpoint"),
    (
        r"(?:double_blocks|joint_blocks|input_blocks|down_blocks|transformer_blocks)\.\d.*",
        "a diffusion model",
    ),
    (r".*\.(?:lora_(?:up|down|A|B)|alpha)(?:\..*)?", "a LoRA"),
    (r"quantize\.embedding\..*", "a VAR image tokenizer of which parts are missing"),
    (r"class_emb\.weight", "a class-conditional VAR transformer of which parts are missing"),
    (r"(?:post_)?quant_conv\..*|(?:en|de)coder\.mid\.attn_1\..*", "the VAE of a diffusion model"),
    (r"encoder\.block\.1\.layer\.0\.SelfAttention\.relative_attention_bias\.weight", "a umT5 text encoder"),
    (r"(?:text_model|transformer\.text_model|cond_stage_model)\..*", "a CLIP text encoder"),
    (r"(?:model\.)?layers\.\d+\.self_attn\..*", "a language model"),
    (r"decoder\.(?:conv_in|up)\..*", "the decoder half of an image tokenizer"),
)


def recognise(keys: Sequence[str], source: str) -> FamilySpec | None:
    """The first specification that these keys match; raises for a known file with unreleased options."""
    spec = next((spec for spec in SPECS if spec.matches(keys)), None)
    for pattern, meaning in spec.unsupported if spec else ():
        if key := first_match(pattern, keys):
            raise CheckpointError(
                f"{source}: the key {key} stands for {meaning}, an option that no released {spec.title} "
                "uses; expected a checkpoint with the released settings. Use one of the published files"
            )
    return spec


def detect(
    shapes: Mapping[str, Sequence[int]],
    source: str = "checkpoint",
    tensors: Mapping[str, Tensor] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Detected:
    """Family and configuration of a file from its tensor names and shapes, in any known naming style.

    ``tensors``: the file's, where the values of small buffers may be read as well. ``settings``: of the
    training run, where the file carries them.
    """
    spec = recognise(list(shapes), source)
    if spec is None:
        raise unknown(list(shapes), source)
    planned = routes(shapes, spec.key_map, source)
    named = {route.target: shapes[key] for key, route in planned.items() if route.target is not None}
    buffers = {key: tensors[key] for key in spec.buffers if tensors and key in tensors}
    return Detected(spec, spec.config_from(Shapes(named, source, buffers, settings)))


def spec_of(kind: str, family: str) -> FamilySpec | None:
    """The first specification of a kind and family, None where there is none."""
    return next((spec for spec in SPECS if (spec.kind, spec.name) == (kind, family)), None)


def unknown(keys: Sequence[str], source: str) -> CheckpointError:
    """The error for a file that no specification matches: what it has, what was expected, what it may be."""
    guess = next((text for pattern, text in LOOKALIKES if first_match(pattern, keys)), None)
    found = f"{len(keys)} tensors such as {listed(keys, 4)}" if keys else "no tensors"
    known = dict.fromkeys(
        f"{spec.title} (with keys like {_readable(spec)})" for spec in SPECS if spec.key_map
    )
    return CheckpointError(
        f"{source}: no known model; found {found}. Expected one of: {'; '.join(known)}. "
        + (f"This looks like {guess}, which the StageVAR loaders cannot use. " if guess else "")
        + "Choose a file from the model table of the README"
    )


def _readable(spec: FamilySpec) -> str:
    keys = (re.sub(r"\(\?:[^)]*\)\??", "", key.split("|")[0]) for key in spec.keys_required[:3])
    return ", ".join(re.sub(r"\\", "", key).replace(".*", "*") for key in keys)
