"""VAR's files: names of its transformer and of the tokenizer that STAR shares, and how to recognise them."""

import math
from collections import Counter
from typing import Any

from ..autoencoders.vq import VQTokenizer, VQTokenizerConfig
from ..checks import refuse
from ..models.var import VAR, VARConfig
from ..schedule import SIDES_256, SIDES_512, SIDES_1024, AspectTable, SquareTable, possible_sides
from .convert import BLOCK, Fold, Ignore, KeyMap, Rename, self_attention
from .spec import CODEBOOK, FamilySpec, Shapes, conv_sizes, module_shapes

_LEVELS = "lvl_1L"  # the scale of every token, which gives the schedule away

# models/{var,basic_var}.py of FoundationVision/VAR.
VAR_KEYS = KeyMap(
    blocks=(r"blocks\.(\d+)",),
    renames=(
        Rename(r"class_emb\.weight", "class_embed"),
        Rename(r"pos_start", "start", dims=1),
        Rename(r"pos_1LC", "position_embed", dims=2),
        Rename(r"lvl_embed\.weight", "level_embed"),
        Rename(r"shared_ada_lin\.1\.(weight|bias)", r"block_ada.\1"),
        Rename(r"head_nm\.ada_lin\.1\.(weight|bias)", r"head_ada.\1"),
        Rename(BLOCK + r"\.ada_gss", r"\1.ada", dims=2),
        Rename(BLOCK + r"\.ada_lin\.1\.(weight|bias)", r"\1.modulation.\2"),
        *self_attention(BLOCK + r"\.attn", r"\1.self_attn"),
    ),
    folds=(Fold("self_attn.qkv.bias", ("query", None, "value")),),
    ignored=(Ignore(r".*\.zero_k_bias"), Ignore(rf"{_LEVELS}|attn_bias_for_masking")),
)

# models/{vqvae,quant}.py; phi is one convolution, several that scales share, or one for each scale.
VQ_KEYS = KeyMap(
    renames=(
        Rename(r"quantize\.embedding\.weight", "quantize.codebook"),
        Rename(r"quantize\.quant_resi\.qresi\.(weight|bias)", r"quantize.phi.0.\1"),
        Rename(r"quantize\.quant_resi\.(?:qresi_ls\.)?(\d+)\.(weight|bias)", r"quantize.phi.\1.\2"),
    ),
    # Usage statistics, whose length is that of the schedule in training.
    ignored=(Ignore(r"quantize\.ema_vocab_hit_SV"),),
)

# The published schedules by number of scales and of tokens.
_SCHEDULES = {(len(s), sum(side**2 for side in s)): s for s in (SIDES_256, SIDES_512, SIDES_1024)}


def trained_sides(shapes: Shapes, levels: int, tokens: int) -> tuple[int, ...]:
    """Side lengths of the scales: from the buffer that counts them, else a published schedule, else none."""
    numbers = shapes.numbers(_LEVELS)
    if numbers is not None and len(numbers) == tokens and numbers == sorted(numbers):
        counts = Counter(numbers)
        sides = tuple(math.isqrt(counts[level]) for level in range(levels))
        if possible_sides(sides) and sum(side**2 for side in sides) == tokens:
            return sides
    return _SCHEDULES.get((levels, tokens), ())


def var_config(shapes: Shapes) -> VARConfig:
    """Attention without normalisation has no scale per head; all trained models have 64 channels in each."""
    width, cosine = shapes.size("word_embed.weight"), "blocks.0.self_attn.log_scale" in shapes
    heads = (
        shapes.elements("blocks.0.self_attn.log_scale")
        if cosine
        else shapes.ratio("the number of heads", width, 64)
    )
    shapes.ratio("the head size", width, heads)
    levels = shapes.size("level_embed")
    return VARConfig(
        depth=shapes.count(r"blocks\.(\d+)\."),
        width=width,
        heads=heads,
        hidden=shapes.size("blocks.0.ffn.fc1.weight"),
        sides=trained_sides(shapes, levels, shapes.size("position_embed", -2)),
        classes=shapes.size("class_embed") - 1,
        vocab=shapes.size("head.weight"),
        dim=shapes.size("word_embed.weight", 1),
        shared="block_ada.weight" in shapes,
        cosine=cosine,
    )


def check_var(config: VARConfig) -> None:
    """Raise ``ValueError`` for scales that cannot be; how many tokens they have, the positions tell."""
    if not possible_sides(config.sides):
        refuse("sides", config.sides, "side lengths from 1 up")


def var_sizes(config: VARConfig) -> AspectTable:
    """The one square that the positions belong to."""
    return SquareTable.of(config.sides)


def vq_sizes(config: VQTokenizerConfig) -> AspectTable:
    """The squares of all transformers that use this tokenizer; a size has one schedule in all of them."""
    return SquareTable.of(SIDES_256, SIDES_512, SIDES_1024, pixels_per_token=config.stride)


def vq_config(shapes: Shapes) -> VQTokenizerConfig:
    """Sizes from the codebook and the encoder; other normalisation groups than 32 need metadata."""
    return VQTokenizerConfig(
        vocab=shapes.size("quantize.codebook"),
        dim=shapes.size("post_quant_conv.weight"),
        phis=shapes.count(r"quantize\.phi\.(\d+)\."),
        **conv_sizes(shapes),
    )


TRANSFORMER = FamilySpec(
    name="var",
    kind="transformer",
    title="VAR transformer",
    example="head_nm.ada_lin.1.weight",
    keys_required=(
        r"pos_1LC",
        r"class_emb\.weight",
        r"head_nm\.ada_lin\.1\.weight",
        r"blocks\.0\.attn\.mat_qkv\.weight",
    ),
    keys_forbidden=(r".*\.cross_attn\..*", r"encoder_proj\..*", r"head_logits\..*"),
    config_type=VARConfig,
    config_from=var_config,
    expected=module_shapes(VAR),
    key_map=VAR_KEYS,
    module=VAR,
    unseen=("sides",),
    buffers=(_LEVELS,),
    check=check_var,
    sizes=var_sizes,
    defaults={"cfg": 4.0, "temperature": 1.0, "top_k": 900, "top_p": 0.95},  # of the official demo
    linears=(
        *(f"blocks.{{}}.{name}" for name in ("attn.mat_qkv", "attn.proj", "ffn.fc1", "ffn.fc2", "ada_lin.1")),
        *("shared_ada_lin.1", "head_nm.ada_lin.1", "word_embed", "head"),
    ),
    pairs=CODEBOOK,
)
TOKENIZER = FamilySpec(
    name="var",
    kind="tokenizer",
    title="VAR image tokenizer",
    example="quantize.embedding.weight",
    keys_required=(
        r"quantize\.embedding\.weight",
        r"quantize\.quant_resi\.(?:qresi_ls\.0|qresi|0)\.weight",
        r"encoder\.down\.0\.block\.0\.norm1\.weight",
        r"decoder\.up\.0\.block\.0\.norm1\.weight",
    ),
    config_type=VQTokenizerConfig,
    config_from=vq_config,
    expected=module_shapes(VQTokenizer),
    key_map=VQ_KEYS,
    module=VQTokenizer,
    unseen=("groups",),
    sizes=vq_sizes,
)

SPECS: tuple[FamilySpec[Any], ...] = (
    TRANSFORMER,
    TRANSFORMER.in_our_names(r"class_embed", r"position_embed", r"blocks\.0\.self_attn\.qkv\.weight"),
    TOKENIZER,
    TOKENIZER.in_our_names(
        r"quantize\.codebook", r"quantize\.phi\.0\.weight", r"encoder\.down\.0\.block\.0\.norm1\.weight"
    ),
)
