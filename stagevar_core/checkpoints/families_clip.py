"""CLIP text encoders: names and sizes of those that STAR and Switti were trained with."""

from dataclasses import replace
from typing import Any

from ..checks import one_of, refuse
from ..conditioning.clip import CLIPEncoderConfig, CLIPTextEncoder, read_tokenizer
from .convert import Ignore, KeyMap
from .spec import FamilySpec, Shape, Shapes

_OPENAI = 768  # channels of the one that OpenAI trained, with a GELU of its own
_BESIDE = (
    Ignore(r"text_model\.embeddings\.position_ids"),
    Ignore(r"vision_model\..*|visual_projection\..*", "image encoder"),
    Ignore(r"text_projection(?:\.weight)?", "projection for image search"),
)

# CLIP as the transformers library writes it; these names are kept.
CLIP_KEYS = KeyMap(
    renames=(),
    ignored=(
        *_BESIDE,
        Ignore(r"text_model\.encoder\.layers\.23\..*", "last layer, which Stable Diffusion 2.1 leaves out"),
    ),
)


def clip_config(shapes: Shapes) -> CLIPEncoderConfig:
    """Heads have 64 channels in all released encoders; GELU is that of the OpenCLIP ones but for OpenAI's."""
    width = shapes.size("text_model.final_layer_norm.weight")
    return CLIPEncoderConfig(
        vocab_size=shapes.size("text_model.embeddings.token_embedding.weight"),
        hidden_size=width,
        intermediate_size=shapes.size("text_model.encoder.layers.0.mlp.fc1.weight"),
        num_hidden_layers=shapes.count(r"text_model\.encoder\.layers\.(\d+)\."),
        num_attention_heads=shapes.ratio("the number of heads", width, 64),
        max_position_embeddings=shapes.size("text_model.embeddings.position_embedding.weight"),
        hidden_act="quick_gelu" if width == _OPENAI else "gelu",
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

# OpenCLIP's bigG, the only one with 32 layers.
CLIP_G = replace(
    CLIP,
    title="CLIP-bigG text encoder",
    keys_required=(*CLIP.keys_required, r"text_model\.encoder\.layers\.31\.self_attn\.q_proj\.weight"),
    keys_forbidden=(r"text_model\.encoder\.layers\.32\..*",),
    key_map=KeyMap(renames=(), ignored=_BESIDE),
)

SPECS: tuple[FamilySpec[Any], ...] = (CLIP, CLIP_G)
