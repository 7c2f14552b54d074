"""Switti's files: names of its transformer, and how it is recognised.

Its tokenizer has the names of VAR's, see ``families_var.py``, its text encoders are in ``families_clip.py``.
"""

from dataclasses import replace
from typing import Any

from ..checks import refuse
from ..models.switti import Switti
from ..models.switti_config import SwittiConfig
from ..schedule import SIDES_512, SIDES_1024, AspectTable, SquareTable, possible_sides
from .convert import BLOCK, Ignore, KeyMap, Rename
from .errors import CheckpointError
from .families_var import trained_sides
from .spec import CODEBOOK, FamilySpec, Shapes, module_shapes

_LEVELS = "lvl_1L"  # the scale of every token
_MASK = "attn_bias_for_masking"  # which token sees which

# models/{switti,basic_switti}.py of yandex-research/switti.
SWITTI_KEYS = KeyMap(
    blocks=(r"blocks\.(\d+)",),
    renames=(
        Rename(r"pos_start", "start", dims=1),
        Rename(r"lvl_embed\.weight", "level_embed"),
        Rename(r"text_pooler\.(weight|bias)", r"text_proj.\1"),
        Rename(r"crop_embed\.weight", "crop.frequencies"),
        Rename(r"crop_proj\.(weight|bias)", r"crop.proj.\1"),
        Rename(r"head_nm\.ada_lin\.1\.(weight|bias)", r"head_ada.\1"),
        Rename(BLOCK + r"\.ada_lin\.1\.(weight|bias)", r"\1.modulation.\2"),
        Rename(BLOCK + r"\.crop_cond_scales", r"\1.crop_scale", dims=1),
        Rename(BLOCK + r"\.attn\.to_qkv\.(weight|bias)", r"\1.self_attn.qkv.\2"),
        Rename(BLOCK + r"\.attn\.proj\.(weight|bias)", r"\1.self_attn.proj.\2"),
        Rename(BLOCK + r"\.cross_attn\.to_(q|kv)\.(weight|bias)", r"\1.cross_attn.\2.\3"),
        Rename(BLOCK + r"\.attention_y_norm\.weight", r"\1.cross_attn.norm"),
        *(
            Rename(BLOCK + rf"\.{theirs}{place}\.weight", rf"\1.{ours}_norm_{side}")
            for theirs, ours in (("self_attention_norm", "self"), ("cross_attention_norm", "cross"))
            for place, side in ((1, "in"), (2, "out"))
        ),
        Rename(BLOCK + r"\.ffn_norm1\.weight", r"\1.ffn_norm_in"),
        Rename(BLOCK + r"\.ffn_norm2\.weight", r"\1.ffn_norm_out"),
        Rename(BLOCK + r"\.ffn\.(gate|up|down)_proj\.weight", r"\1.ffn.\2.weight"),
    ),
    ignored=(Ignore(rf"{_LEVELS}|{_MASK}"),),
)


def switti_config(shapes: Shapes) -> SwittiConfig:
    """What shapes show; whether earlier scales are seen is left open."""
    width, levels = shapes.size("word_embed.weight"), shapes.size("level_embed")
    heads = shapes.ratio("the number of heads", width, 64)  # as in all released models
    tokens = shapes.numbers(_LEVELS) or ()
    published = {len(sides): sides for sides in (SIDES_512, SIDES_1024)}
    return SwittiConfig(
        depth=shapes.count(r"blocks\.(\d+)\."),
        width=width,
        heads=heads,
        hidden=shapes.size("blocks.0.ffn.gate.weight"),
        levels=levels,
        ar=False,
        sides=trained_sides(shapes, levels, len(tokens)) or published.get(levels, ()),
        vocab=shapes.size("head.weight"),
        dim=shapes.size("word_embed.weight", 1),
        text_width=shapes.size("blocks.0.cross_attn.kv.weight", 1),
        pooled_width=shapes.size("text_proj.weight", 1),
        crop="crop.proj.weight" in shapes,
    )


def official_config(shapes: Shapes) -> SwittiConfig:
    """With what the mask of training lets the tokens of the second scale see of the first: 0 is all."""
    config, let = switti_config(shapes), shapes.entry(_MASK, 0, 0, 1, 0)
    if config.levels > 1 and let is None:
        raise CheckpointError(
            f"{shapes.source}: it does not say whether its scales see the ones before (Switti-AR) or "
            f"themselves alone (Switti), for which the tensor {_MASK} is looked at; expected the file as "
            "published. Download it again"
        )
    return replace(config, ar=let == 0.0)


def check_switti(config: SwittiConfig) -> None:
    """Raise ``ValueError`` for sizes that cannot be."""
    if config.sides and (len(config.sides) != config.levels or not possible_sides(config.sides)):
        refuse("sides", config.sides, f"{config.levels} side lengths from 1 up")
    if config.heads < 1 or config.width % (4 * config.heads):
        refuse(
            "heads", config.heads, f"a number of heads of which each has a multiple of 4 of {config.width}"
        )


def switti_sizes(config: SwittiConfig) -> AspectTable | None:
    """The one square that it was trained on."""
    return SquareTable.of(config.sides) if config.sides else None


TRANSFORMER = FamilySpec(
    name="switti",
    kind="transformer",
    title="Switti transformer",
    example="blocks.0.attention_y_norm.weight",
    keys_required=(
        r"text_pooler\.weight",
        r"blocks\.0\.cross_attn\.to_kv\.weight",
        r"blocks\.0\.attention_y_norm\.weight",
    ),
    config_type=SwittiConfig,
    config_from=official_config,
    expected=module_shapes(Switti),
    key_map=SWITTI_KEYS,
    module=Switti,
    unsupported=(
        (r"pos_1LC", "learned positions"),
        (r"blocks\.\d+\.ffn\.fc[12]\..*", "a feed-forward without gates"),
    ),
    unseen=("ar", "sides", "heads", "guided", "rope_norm", "rope_base"),
    buffers=(_LEVELS, _MASK),
    check=check_switti,
    sizes=switti_sizes,
    defaults={"cfg": 6.0, "temperature": 1.0, "top_k": 400, "top_p": 0.95},  # of the official function
    linears=(
        *(f"blocks.{{}}.attn.{name}" for name in ("to_qkv", "proj")),
        *(f"blocks.{{}}.cross_attn.{name}" for name in ("to_q", "to_kv", "proj")),
        *(f"blocks.{{}}.ffn.{name}_proj" for name in ("gate", "up", "down")),
        *("blocks.{}.ada_lin.1", "head_nm.ada_lin.1", "text_pooler", "crop_proj", "word_embed", "head"),
    ),
    tokenizer="var",
    pairs=CODEBOOK,
)

SPECS: tuple[FamilySpec[Any], ...] = (
    TRANSFORMER,
    replace(
        TRANSFORMER.in_our_names(
            r"text_proj\.weight",
            r"level_embed",
            r"blocks\.0\.cross_attn\.norm",
            r"blocks\.0\.ffn\.gate\.weight",
        ),
        config_from=switti_config,
    ),
)
