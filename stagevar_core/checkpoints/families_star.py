"""STAR's files: names of the transformer and of the text encoder, and how they are recognised.

Its tokenizer is VAR's, see ``families_var.py``.
"""

from typing import Any

from ..checks import one_of, refuse
from ..conditioning.clip import CLIPEncoderConfig, CLIPTextEncoder, read_tokenizer
from ..models.star import STAR
from ..models.star_config import STARConfig
from ..schedule import SIDES_256, SIDES_512, SIDES_1024, AspectTable, SquareTable, possible_sides
from .convert import BLOCK, Fold, Ignore, KeyMap, Rename, self_attention
from .errors import CheckpointError
from .spec import CODEBOOK, FamilySpec, Shape, Shapes, module_shapes

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

# CLIP as the transformers library writes it; these names are kept.
CLIP_KEYS = KeyMap(
    renames=(),
    ignored=(
        Ignore(r"text_model\.embeddings\.position_ids"),
        Ignore(r"text_model\.encoder\.layers\.23\..*", "last layer, which Stable Diffusion 2.1 leaves out"),
        Ignore(r"vision_model\..*|visual_projection\..*", "image encoder"),
        Ignore(r"text_projection(?:\.weight)?", "projection for image search"),
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


def clip_config(shapes: Shapes) -> CLIPEncoderConfig:
    """Heads have 64 channels in all released encoders; GELU is that of the OpenCLIP ones."""
    width = shapes.size("text_model.final_layer_norm.weight")
    return CLIPEncoderConfig(
        vocab_size=shapes.size("text_model.embeddings.token_embedding.weight"),
        hidden_size=width,
        intermediate_size=shapes.size("text_model.encoder.layers.0.mlp.fc1.weight"),
        num_hidden_layers=shapes.count(r"text_model\.encoder\.layers\.(\d+)\."),
        num_attention_heads=shapes.ratio("the number of heads", width, 64),
        max_position_embeddings=shapes.size("text_model.embeddings.position_embedding.weight"),
    )


def check_clip(config: CLIPEncoderConfig) -> None:
    """Raise ``ValueError`` for heads that do not divide the width, and activations that no CLIP has."""
    if config.hidden_size % config.num_attention_heads:
        refuse("num_attention_heads", config.num_attention_heads, f"a divisor of {config.hidden_size}")
    one_of("hidden_act", config.hidden_act, ("gelu", "quick_gelu", "gelu_new"))


def clip_shapes(config: CLIPEncoderConfig) -> dict[str, Shape]:
    """The tensors of a CLIP text encoder in the Hugging Face layout."""
    width, hidden = config.hidden_size, config.intermediate_size
    linears = {f"self_attn.{name}_proj": (width, width) for name in ("q", "k", "v", "out")}
    linears |= {"mlp.fc1": (hidden, width), "mlp.fc2": (width, hidden)}
    shapes: dict[str, Shape] = {
        "text_model.embeddings.token_embedding.weight": (config.vocab_size, width),
        "text_model.embeddings.position_embedding.weight": (config.max_position_embeddings, width),
    }
    norms = ["text_model.final_layer_norm"]
    for index in range(config.num_hidden_layers):
        layer = f"text_model.encoder.layers.{index}."
        for name, shape in linears.items():
            shapes |= {f"{layer}{name}.weight": shape, f"{layer}{name}.bias": shape[:1]}
        norms += [f"{layer}layer_norm1", f"{layer}layer_norm2"]
    return shapes | {f"{norm}.{part}": (width,) for norm in norms for part in ("weight", "bias")}


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
CLIP = FamilySpec(
    name="clip",
    kind="text_encoder",
    title="CLIP text encoder",
    example="text_model.final_layer_norm.weight",
    keys_required=(
        r"text_model\.embeddings\.token_embedding\.weight",
        r"text_model\.encoder\.layers\.0\.self_attn\.q_proj\.weight",
        r"text_model\.final_layer_norm\.weight",
    ),
    keys_forbidden=(r"text_model\.encoder\.layers\.24\..*",),
    config_type=CLIPEncoderConfig,
    config_from=clip_config,
    expected=clip_shapes,
    key_map=CLIP_KEYS,
    unseen=("num_attention_heads", "hidden_act", "layer_norm_eps"),
    check=check_clip,
    encoder=CLIPTextEncoder,
    vocabulary=read_tokenizer,
)

SPECS: tuple[FamilySpec[Any], ...] = (
    TRANSFORMER,
    TRANSFORMER.in_our_names(
        r"text_proj\.weight", r"level_embed", r"blocks\.0\.cross_attn\.log_scale", r"head\.weight"
    ),
    CLIP,
)
