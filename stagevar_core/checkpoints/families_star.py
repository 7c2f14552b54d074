"""STAR's files: names of the transformer, and how it is recognised.

Its tokenizer is VAR's, see ``families_var.py``, its text encoder is in ``families_clip.py``.
"""

from typing import Any

from ..checks import refuse
from ..models.star import STAR
from ..models.star_config import STARConfig
from ..schedule import SIDES_256, SIDES_512, SIDES_1024, AspectTable, SquareTable, possible_sides
from .convert import BLOCK, Fold, Ignore, KeyMap, Rename, self_attention
from .errors import CheckpointError
from .spec import CODEBOOK, FamilySpec, Shapes, module_shapes

_SAMPLER_BLOCK = r"feat_extract_blocks\.(\d+)"

# models/{var_drop,basic_var}.py of Davinci-XLab/STAR-T2I.
STAR_KEYS = KeyMap(
    blocks=(r"blocks\.(\d+)",),
    renames=(
        Rename(r"pos_start", "start", dims=1),
        Rename(r"lvl_embed\.weight", "level_embed"),
        Rename(r"encoder_proj\.(weight|bias)", r"text_proj.\1"),
        Rename(r"head_logits\.(weight|bias)", r"head.\1"),
        *self_attention(BLOCK + r"\.attn", r"\1.self_attn"),
        Rename(BLOCK + r"\.cross_attn\.scale_mul_1H11", r"\1.cross_attn.log_scale", dims=1),
        Rename(BLOCK + r"\.cross_attn\.mat_q\.weight", r"\1.cross_attn.q.weight"),
        Rename(BLOCK + r"\.cross_attn\.q_bias", r"\1.cross_attn.q.bias"),
        Rename(BLOCK + r"\.cross_attn\.mat_kv\.weight", r"\1.cross_attn.kv.weight"),
        Rename(BLOCK + r"\.cross_attn\.v_bias", r"\1.cross_attn.kv.bias:value"),
        # The inner sampler network, in files that have it.
        Rename(r"pos_start_last", "sampler.start", dims=1),
        Rename(r"lvl_embed_2\.weight", "sampler.level_embed"),
        Rename(r"encoder_proj2\.(weight|bias)", r"sampler.text_proj.\1"),
        Rename(r"word_embed_head\.(weight|bias)", r"sampler.word_embed.\1"),
        Rename(r"head_proj\.(weight|bias)", r"sampler.merge.\1"),
        Rename(r"head_logits2\.(weight|bias)", r"sampler.head.\1"),
        *self_attention(_SAMPLER_BLOCK + r"\.attn", r"sampler.blocks.\1.self_attn"),
        Rename(_SAMPLER_BLOCK + r"\.ffn\.(fc\d)\.(weight|bias)", r"sampler.blocks.\1.ffn.\2.\3"),
    ),
    folds=(
        Fold("self_attn.qkv.bias", ("query", None, "value")),
        Fold("cross_attn.kv.bias", (None, "value")),
    ),
    ignored=(
        Ignore(r".*\.zero_k_bias"),
        Ignore(r"class_emb\.weight"),  # left over from VAR, no code reads it
        Ignore(r"lvl_1L|attn_bias_for_masking"),
    ),
)


def star_config(shapes: Shapes) -> STARConfig:
    """The side lengths are in no tensor: 14 scales are the 1024 px schedule, 10 those of 256 or 512 px."""
    width, heads = shapes.size("word_embed.weight"), shapes.elements("blocks.0.self_attn.log_scale")
    levels, text_width = shapes.size("level_embed"), shapes.size("text_proj.weight", 1)
    head_dim = shapes.ratio("the head size", width, heads)
    shapes.ratio("a quarter of the head size", head_dim, 4)
    if text_width == 2048:
        raise CheckpointError(
            f"{shapes.source}: its text features have 2048 channels, those of the T5 ablation; expected the "
            "1024 of the Stable Diffusion 2.1 text encoder. Use one of the published files"
        )
    return STARConfig(
        depth=shapes.count(r"blocks\.(\d+)\."),
        width=width,
        heads=heads,
        hidden=shapes.size("blocks.0.ffn.fc1.weight"),
        levels=levels,
        vocab=shapes.size("head.weight"),
        dim=shapes.size("word_embed.weight", 1),
        text_width=text_width,
        sampler_depth=shapes.count(r"sampler\.blocks\.(\d+)\."),
        sides=_told_sides(shapes, levels) or (SIDES_1024 if levels == len(SIDES_1024) else ()),
    )


def _told_sides(shapes: Shapes, levels: int) -> tuple[int, ...]:
    """The schedule in the settings that a training checkpoint carries, empty where there is none."""
    told = shapes.settings.get("patch_nums")
    if not isinstance(told, list | tuple) or len(told) != levels or not possible_sides(told):
        return ()
    return tuple(told)


def check_star(config: STARConfig) -> None:
    """Raise ``ValueError`` for scales that are not those of the level embedding, or cannot be."""
    if config.sides and (len(config.sides) != config.levels or not possible_sides(config.sides)):
        refuse("sides", config.sides, f"{config.levels} side lengths from 1 up")


def star_sizes(config: STARConfig) -> AspectTable | None:
    """One square size; both of 256 and 512 px where a file does not say which of them it is."""
    if config.sides:
        return SquareTable.of(config.sides)
    known = [sides for sides in (SIDES_512, SIDES_256) if len(sides) == config.levels]
    return SquareTable.of(*known) if known else None


TRANSFORMER = FamilySpec(
    name="star",
    kind="transformer",
    title="STAR transformer",
    example="blocks.0.cross_attn.mat_kv.weight",
    keys_required=(
        r"head_logits\.weight",
        r"encoder_proj\.weight",
        r"blocks\.0\.cross_attn\.mat_kv\.weight",
    ),
    config_type=STARConfig,
    config_from=star_config,
    expected=module_shapes(STAR),
    key_map=STAR_KEYS,
    module=STAR,
    unsupported=(
        (r"blocks\.\d+\.ada_gss|lvl_embed_(?:proj|adaln)\..*", "modulation by the scale"),
        (r"pos_1LC", "learned positions"),
    ),
    unseen=("sides", "rope_norm", "rope_base"),
    check=check_star,
    sizes=star_sizes,
    defaults={"cfg": 4.0, "temperature": 1.0, "top_k": 600, "top_p": 0.8},  # of the official demo
    linears=(
        *(f"blocks.{{}}.{name}" for name in ("attn.mat_qkv", "attn.proj", "ffn.fc1", "ffn.fc2")),
        *(f"blocks.{{}}.cross_attn.{name}" for name in ("mat_q", "mat_kv", "proj")),
        *("encoder_proj", "word_embed", "head_logits"),
    ),
    tokenizer="var",
    pairs=CODEBOOK,
)
SPECS: tuple[FamilySpec[Any], ...] = (
    TRANSFORMER,
    TRANSFORMER.in_our_names(
        r"text_proj\.weight", r"level_embed", r"blocks\.0\.cross_attn\.log_scale", r"head\.weight"
    ),
)
