"""HART's files: names of its transformer and tokenizer, and how they are recognised."""

import math
from collections import Counter
from typing import Any

from ..autoencoders.hybrid import HybridTokenizer
from ..autoencoders.vq import VQTokenizerConfig
from ..checks import one_of, refuse
from ..models.hart import HART
from ..models.hart_config import MODULATIONS, POOLINGS, HARTConfig
from ..models.residual_diffusion import spaced
from ..schedule import SIDES_1024, AspectTable, SquareTable, possible_sides
from .convert import BLOCK, Fold, Ignore, KeyMap, Rename
from .errors import CheckpointError
from .families_var import VQ_KEYS, vq_config
from .spec import CODEBOOK, FamilySpec, Shapes, module_shapes

_LEVELS = "lvl_1L"  # the scale of every token, which gives the schedule and the length of texts away
_NET, _HEAD_DIM = r"diffloss\.net\.", 64

# hart_transformer_t2i.py, basic_hart.py and diffloss.py of mit-han-lab/hart.
HART_KEYS = KeyMap(
    blocks=(r"blocks\.(\d+)",),
    renames=(
        Rename(r"context_embed\.(weight|bias)", r"text_proj.\1"),
        Rename(r"context_norm\.weight", "text_norm"),
        Rename(r"lvl_embed\.weight", "level_embed"),
        Rename(r"lvl_embed\.mlp\.0\.(weight|bias)", r"level_net.fc1.\1"),
        Rename(r"lvl_embed\.mlp\.2\.(weight|bias)", r"level_net.fc2.\1"),
        Rename(BLOCK + r"\.ln_wo_grad\.weight", r"\1.norm"),
        Rename(BLOCK + r"\.attn\.qkv_proj\.weight", r"\1.self_attn.qkv.weight"),
        Rename(BLOCK + r"\.attn\.q_bias", r"\1.self_attn.qkv.bias:query"),
        Rename(BLOCK + r"\.attn\.v_bias", r"\1.self_attn.qkv.bias:value"),
        Rename(BLOCK + r"\.attn\.scale_mul_1H11", r"\1.self_attn.log_scale", dims=1),
        Rename(BLOCK + r"\.attn\.proj\.(weight|bias)", r"\1.self_attn.proj.\2"),
        Rename(BLOCK + r"\.ffn\.(gate|up|down)_proj\.weight", r"\1.ffn.\2.weight"),
        Rename(BLOCK + r"\.ada_lin\.1\.(weight|bias)", r"\1.modulation.\2"),
        Rename(BLOCK + r"\.scale_shift_table", r"\1.ada"),
        Rename(r"head_nm\.ln_wo_grad\.weight", "head_norm"),
        Rename(r"head_nm\.ada_lin\.1\.(weight|bias)", r"head_ada.\1"),
        Rename(r"decoder_norm\.weight", "residual_norm"),
        Rename(_NET + r"time_embed\.mlp\.0\.(weight|bias)", r"diffusion.time.fc1.\1"),
        Rename(_NET + r"time_embed\.mlp\.2\.(weight|bias)", r"diffusion.time.fc2.\1"),
        Rename(_NET + r"cond_embed\.(weight|bias)", r"diffusion.text.\1"),
        Rename(_NET + r"input_proj\.(weight|bias)", r"diffusion.entry.\1"),
        Rename(_NET + r"res_blocks\.(\d+)\.in_ln\.(weight|bias)", r"diffusion.blocks.\1.norm_\2"),
        Rename(_NET + r"res_blocks\.(\d+)\.mlp\.0\.(weight|bias)", r"diffusion.blocks.\1.fc1.\2"),
        Rename(_NET + r"res_blocks\.(\d+)\.mlp\.2\.(weight|bias)", r"diffusion.blocks.\1.fc2.\2"),
        Rename(
            _NET + r"res_blocks\.(\d+)\.adaLN_modulation\.1\.(weight|bias)",
            r"diffusion.blocks.\1.modulation.\2",
        ),
        Rename(_NET + r"final_layer\.linear\.(weight|bias)", r"diffusion.out.\1"),
        Rename(_NET + r"final_layer\.adaLN_modulation\.1\.(weight|bias)", r"diffusion.out_modulation.\1"),
    ),
    folds=(Fold("self_attn.qkv.bias", ("query", None, "value")),),
    ignored=(Ignore(r".*\.zero_k_bias"), Ignore(rf"{_LEVELS}|attn_bias_for_masking")),
)
TOKENIZER_KEYS = KeyMap(
    renames=VQ_KEYS.renames,
    ignored=(
        *VQ_KEYS.ignored,
        Ignore(r"(?:decoder2|post_quant_conv2)\..*", "second decoder of its training"),
    ),
)


def trained_on(shapes: Shapes) -> tuple[tuple[int, ...], int]:
    """Side lengths of the scales and tokens of a text; where no buffer tells, those of the release."""
    numbers = shapes.numbers(_LEVELS)
    if numbers and numbers == sorted(numbers):
        counts = Counter(numbers)
        sides = tuple(1 if not level else math.isqrt(counts[level]) for level in range(max(counts) + 1))
        inside = counts[0] + sum(side**2 for side in sides[1:])
        if numbers[0] == 0 and possible_sides(sides) and inside == len(numbers):
            return sides, counts[0]
    return SIDES_1024, 300


def hart_config(shapes: Shapes) -> HARTConfig:
    """Heads of 64 channels where no tensor counts them, and eight steps, as in the release."""
    width, cosine = shapes.size("word_embed.weight"), "blocks.0.self_attn.log_scale" in shapes
    heads = (
        shapes.elements("blocks.0.self_attn.log_scale")
        if cosine
        else shapes.ratio("the number of heads", width, _HEAD_DIM)
    )
    head_dim = shapes.ratio("the head size", width, heads)
    shapes.ratio("a quarter of the head size", head_dim, 4)
    sides, context = trained_on(shapes)
    table = "level_embed" in shapes
    if table and shapes.size("level_embed") != len(sides):
        raise CheckpointError(
            f"{shapes.source}: it has {shapes.size('level_embed')} scales and does not say which; expected "
            f"the buffer {_LEVELS} of the file, which counts their tokens. Get the file again"
        )
    own, shared = "blocks.0.modulation.weight" in shapes, "blocks.0.ada" in shapes
    return HARTConfig(
        depth=shapes.count(r"blocks\.(\d+)\."),
        width=width,
        heads=heads,
        hidden=shapes.size("blocks.0.ffn.gate.weight"),
        sides=sides,
        context=context,
        text_width=shapes.size("text_proj.weight", 1),
        vocab=shapes.size("head.weight"),
        dim=shapes.size("word_embed.weight", 1),
        cosine=cosine,
        modulation="own" if own else "shared" if shared else "none",
        level_table=table,
        context_norm="text_norm" in shapes,
        diff_width=shapes.size("diffusion.text.weight"),
        diff_depth=shapes.count(r"diffusion\.blocks\.(\d+)\."),
    )


def check_hart(config: HARTConfig) -> None:
    """Raise ``ValueError`` for what tensors cannot show and that cannot be."""
    if not possible_sides(config.sides) or len(config.sides) < 2:
        refuse("sides", config.sides, "two or more side lengths from 1 up")
    if config.width % config.heads or config.width // config.heads % 4:
        refuse("heads", config.heads, f"a divisor of {config.width} that leaves a multiple of 4")
    if config.context < 1:
        refuse("context", config.context, "a number of tokens from 1 up")
    one_of("modulation", config.modulation, MODULATIONS)
    one_of("pooling", config.pooling, POOLINGS)
    spaced(config.diff_steps)


def hart_sizes(config: HARTConfig) -> AspectTable | None:
    """The one square that it was trained on."""
    return SquareTable.of(config.sides) if config.sides else None


def tokenizer_sizes(config: VQTokenizerConfig) -> AspectTable:
    """The square of the released transformer."""
    return SquareTable.of(SIDES_1024, pixels_per_token=config.stride)


TRANSFORMER = FamilySpec(
    name="hart",
    kind="transformer",
    title="HART transformer",
    example="diffloss.net.input_proj.weight",
    keys_required=(r"diffloss\.net\.input_proj\.weight", r"context_embed\.weight", r"decoder_norm\.weight"),
    config_type=HARTConfig,
    config_from=hart_config,
    expected=module_shapes(HART),
    key_map=HART_KEYS,
    module=HART,
    unsupported=(
        (r"blocks\.\d+\.attn\.mat_qkv\.weight|pos_1LC|pos_start", "blocks of the GPT-2 kind"),
        (r"blocks\.\d+\.cross_attn\..*", "cross-attention to the text"),
    ),
    unseen=("sides", "context", "heads", "pooling", "diff_steps"),
    buffers=(_LEVELS,),
    check=check_hart,
    sizes=hart_sizes,
    defaults={"cfg": 4.5, "temperature": 1.0, "top_k": 600, "top_p": 0.0},  # of the official demo
    linears=(
        *(f"blocks.{{}}.{name}" for name in ("attn.qkv_proj", "attn.proj", "ada_lin.1")),
        *(f"blocks.{{}}.ffn.{name}" for name in ("gate_proj", "up_proj", "down_proj")),
        *("context_embed", "head_nm.ada_lin.1", "word_embed", "head"),
    ),
    pairs=CODEBOOK,
)
TOKENIZER = FamilySpec(
    name="hart",
    kind="tokenizer",
    title="HART image tokenizer",
    within="vae.",
    example="vae.quantize.embedding.weight",
    keys_required=(
        r"quantize\.embedding\.weight",
        r"quantize\.quant_resi\.(?:qresi_ls\.0|qresi|0)\.weight",
        r"encoder\.down\.0\.block\.0\.norm1\.weight",
        r"decoder\.up\.0\.block\.0\.norm1\.weight",
    ),
    config_type=VQTokenizerConfig,
    config_from=vq_config,
    expected=module_shapes(HybridTokenizer),
    key_map=TOKENIZER_KEYS,
    module=HybridTokenizer,
    unseen=("groups",),
    sizes=tokenizer_sizes,
)

SPECS: tuple[FamilySpec[Any], ...] = (
    TRANSFORMER,
    TRANSFORMER.in_our_names(r"diffusion\.entry\.weight", r"text_proj\.weight", r"residual_norm"),
    TOKENIZER,
)
# Our names of this tokenizer are those of VAR's; the header of a file tells them apart.
OWN_TOKENIZER = TOKENIZER.in_our_names(
    r"quantize\.codebook", r"quantize\.phi\.0\.weight", r"encoder\.down\.0\.block\.0\.norm1\.weight"
)
