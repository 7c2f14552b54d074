"""HART's files: names of its transformer and tokenizer, and how they are recognised."""

import math
from collections import Counter
from dataclasses import replace
from typing import Any

from ..autoencoders.hybrid import HybridTokenizer
from ..autoencoders.vq import VQTokenizerConfig
from ..checks import one_of, refuse
from ..conditioning.qwen import QwenConfig, QwenTextEncoder, read_tokenizer
from ..models.hart import HART
from ..models.hart_config import MODULATIONS, POOLINGS, HARTConfig
from ..models.residual_diffusion import TRAINED_STEPS, spaced
from ..schedule import SIDES_1024, AspectTable, SquareTable, possible_sides
from .convert import BLOCK, Fold, Ignore, KeyMap, Rename
from .families_var import TOKENIZER as VQ_TOKENIZER
from .families_var import VQ_KEYS
from .spec import CODEBOOK, FamilySpec, Shape, Shapes, module_shapes

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


def _told(shapes: Shapes, name: str) -> int:
    """A whole number from 1 up that the settings beside the weights have, 0 where they have none."""
    value = shapes.settings.get(name)
    value = int(value) if isinstance(value, str) and value.isdecimal() and len(value) < 5 else value
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def hart_config(shapes: Shapes) -> HARTConfig:
    """Heads of 64 channels and eight steps where nothing tells them, as in the release."""
    width, cosine = shapes.size("word_embed.weight"), "blocks.0.self_attn.log_scale" in shapes
    heads = shapes.elements("blocks.0.self_attn.log_scale") if cosine else _told(shapes, "num_heads")
    heads = heads or shapes.ratio("the number of heads", width, _HEAD_DIM)
    head_dim = shapes.ratio("the head size", width, heads)
    shapes.ratio("a quarter of the head size", head_dim, 4)
    sides, context = trained_on(shapes)
    table = "level_embed" in shapes
    if table and shapes.size("level_embed") != len(sides):
        sides = (0,) * shapes.size("level_embed")  # as many as there are, of sizes that nothing tells
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
        pooling="avg" if shapes.settings.get("sep_aln_pooling_mode") == "avg" else "max",
        diff_width=shapes.size("diffusion.text.weight"),
        diff_depth=shapes.count(r"diffusion\.blocks\.(\d+)\."),
        diff_steps=_steps(_told(shapes, "num_sampling_steps")),
    )


def _steps(told: int) -> int:
    return told if 2 <= told <= TRAINED_STEPS else HARTConfig.diff_steps


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
    """The one square that it was trained on; None where nothing tells it."""
    return SquareTable.of(config.sides) if possible_sides(config.sides) else None


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
TOKENIZER = replace(
    VQ_TOKENIZER,
    name="hart",
    title="HART image tokenizer",
    within="vae.",
    example="vae.quantize.embedding.weight",
    expected=module_shapes(HybridTokenizer),
    key_map=TOKENIZER_KEYS,
    module=HybridTokenizer,
    sizes=tokenizer_sizes,
)

# A Qwen2 language model as the transformers library writes it; these names are kept.
QWEN_KEYS = KeyMap(
    renames=(),
    ignored=(
        Ignore(r"lm_head\.weight", "the head that writes text"),
        Ignore(r"visual\..*", "image encoder"),
        Ignore(r".*\.rotary_emb\.inv_freq"),
    ),
)


def qwen_config(shapes: Shapes) -> QwenConfig:
    """Heads have 128 channels where nothing tells them, as in all Qwen2 models of this size."""
    width = shapes.size("norm.weight")
    heads = _told(shapes, "num_attention_heads") or shapes.ratio("the number of heads", width, 128)
    head = shapes.ratio("the head size", width, heads)
    return QwenConfig(
        vocab_size=shapes.size("embed_tokens.weight"),
        hidden_size=width,
        intermediate_size=shapes.size("layers.0.mlp.gate_proj.weight"),
        num_hidden_layers=shapes.count(r"layers\.(\d+)\."),
        num_attention_heads=heads,
        num_key_value_heads=shapes.ratio(
            "the number of key heads", shapes.size("layers.0.self_attn.k_proj.weight"), head
        ),
    )


def check_qwen(config: QwenConfig) -> None:
    """Raise ``ValueError`` for heads that do not divide the width or each other."""
    heads, keys = config.num_attention_heads, config.num_key_value_heads
    if heads < 1 or keys < 1 or config.hidden_size % heads or heads % keys:
        refuse("num_attention_heads", (heads, keys), f"divisors of {config.hidden_size} and of each other")


def qwen_shapes(config: QwenConfig) -> dict[str, Shape]:
    """The tensors of a Qwen2 language model in the Hugging Face layout, without its head."""
    width, hidden = config.hidden_size, config.intermediate_size
    keys = config.num_key_value_heads * (width // config.num_attention_heads)
    shapes: dict[str, Shape] = {"embed_tokens.weight": (config.vocab_size, width), "norm.weight": (width,)}
    for index in range(config.num_hidden_layers):
        layer = f"layers.{index}."
        for name, rows in (("q", width), ("k", keys), ("v", keys)):
            shapes[f"{layer}self_attn.{name}_proj.weight"] = (rows, width)
            shapes[f"{layer}self_attn.{name}_proj.bias"] = (rows,)
        shapes[f"{layer}self_attn.o_proj.weight"] = (width, width)
        for name in ("gate", "up"):
            shapes[f"{layer}mlp.{name}_proj.weight"] = (hidden, width)
        shapes[f"{layer}mlp.down_proj.weight"] = (width, hidden)
        for name in ("input", "post_attention"):
            shapes[f"{layer}{name}_layernorm.weight"] = (width,)
    return shapes


TEXT_ENCODER = FamilySpec(
    name="qwen2",
    kind="text_encoder",
    title="Qwen2 text encoder",
    example="model.layers.0.self_attn.q_proj.bias",
    keys_required=(
        r"embed_tokens\.weight",
        r"layers\.0\.self_attn\.q_proj\.bias",
        r"layers\.0\.mlp\.gate_proj\.weight",
        r"norm\.weight",
    ),
    keys_forbidden=(r"layers\.\d+\.self_attn\.q_norm\..*",),
    config_type=QwenConfig,
    config_from=qwen_config,
    expected=qwen_shapes,
    key_map=QWEN_KEYS,
    unseen=("num_attention_heads", "num_key_value_heads", "rms_norm_eps", "rope_theta"),
    check=check_qwen,
    encoder=QwenTextEncoder,
    vocabulary=read_tokenizer,
)

SPECS: tuple[FamilySpec[Any], ...] = (
    TRANSFORMER,
    TRANSFORMER.in_our_names(r"diffusion\.entry\.weight", r"text_proj\.weight", r"residual_norm"),
    TOKENIZER,
    TEXT_ENCODER,
)
# Our names of this tokenizer are those of VAR's; the header of a file tells them apart.
OWN_TOKENIZER = TOKENIZER.in_our_names(
    r"quantize\.codebook", r"quantize\.phi\.0\.weight", r"encoder\.down\.0\.block\.0\.norm1\.weight"
)
