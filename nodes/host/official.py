"""The published files that belong together, by what a model is."""

import re
from typing import Any, NamedTuple, cast

from ...stagevar_core.checkpoints.detect import spec_of
from ...stagevar_core.checkpoints.load import Checkpoint
from ...stagevar_core.conditioning.clip_pair import CLIPPair
from .bridge import module_of

_HUB = "https://huggingface.co/"
_SDXL = f"{_HUB}stabilityai/stable-diffusion-xl-base-1.0/resolve/main/"
_INFINITY = "https://huggingface.co/FoundationVision/Infinity/resolve/main/"
_VAR = "https://huggingface.co/FoundationVision/var/resolve/main/"
_STAR = "https://huggingface.co/taocrayon/STAR/resolve/main/"
_HART = "https://huggingface.co/mit-han-lab/hart-0.7b-1024px"


class Published(NamedTuple):
    """A published companion: its file (of shards their folder) and link, and the models it belongs to.

    ``contents``: of the folder. ``others``: a pattern for the names of published files that have the same
    shapes and another training. They would give bad pictures, and nothing but the name tells them apart.
    """

    name: str
    link: str
    models: str
    contents: str = ""
    others: str = ""

    def is_other(self, name: str) -> bool:
        """Whether a file of this name is known to be another one of the same shapes."""
        return bool(self.others) and re.search(self.others, name, re.IGNORECASE) is not None


# By family, channels per latent pixel and image pixels per latent pixel; of equal shapes the documented one.
_TOKENIZERS = {
    ("infinity", 16, 16): Published(
        "infinity_vae_d16.pth", f"{_INFINITY}infinity_vae_d16.pth", "Infinity 125M"
    ),
    ("infinity", 32, 16): Published(
        "infinity_vae_d32reg.pth",
        f"{_INFINITY}infinity_vae_d32reg.pth",
        "Infinity 2B",
        others=r"infinity_vae_d32(?![._-]?reg)",
    ),
    ("infinity", 14, 8): Published(
        "infinity_vae_d56_f8_14_patchify.pth",
        f"{_INFINITY}infinity_vae_d56_f8_14_patchify.pth",
        "Infinity 8B",
    ),
    ("var", 32, 16): Published(
        "vae_ch160v4096z32.pth",
        f"{_VAR}vae_ch160v4096z32.pth",
        "VAR and STAR",
        others=r"switti",
    ),
    ("hart", 32, 16): Published("the folder tokenizer", _HART, "HART"),
}
# Of families that have one of the form of another's, which no tensor tells apart.
_OWN_TOKENIZERS = {
    "switti": Published(
        "VQVAE-Switti",
        f"{_HUB}yresearch/VQVAE-Switti",
        "Switti",
        contents="config.json and model.safetensors",
        others=r"vae_ch160v4096z32",
    ),
}
# By family and channels of the features.
_TEXT_ENCODERS = {
    ("t5", 2048): Published(
        "flan-t5-xl",
        "https://huggingface.co/google/flan-t5-xl",
        "Infinity",
        "model-00001-of-00002.safetensors, model-00002-of-00002.safetensors and model.safetensors.index.json",
        others=r"t5.?v1[._-]1",
    ),
    ("clip", 768): Published(
        "clip_l", f"{_SDXL}text_encoder/model.safetensors", "Switti", "model.safetensors"
    ),
    ("clip", 1280): Published(
        "clip_g", f"{_SDXL}text_encoder_2/model.safetensors", "Switti", "model.safetensors"
    ),
    ("clip", 1024): Published(
        "star_clip", f"{_STAR}CLIP/text_encoder/model.safetensors", "STAR", "model.safetensors"
    ),
    ("qwen2", 1536): Published(
        "hart_qwen2",
        "https://huggingface.co/mit-han-lab/Qwen2-VL-1.5B-Instruct",
        "HART",
        "its weights and tokenizer.json",
    ),
}


def tokenizer_of(transformer: Checkpoint) -> Published | None:
    """The published tokenizer of a transformer; None for models of other sizes."""
    family = spec_of(transformer.kind, transformer.family).tokenizer or transformer.family
    config, trained = transformer.config, transformer.trained
    pixels = trained.pixels_per_token if trained else 16  # STAR without a schedule
    shared = _TOKENIZERS.get((family, config.dim, pixels // config.patch))
    return shared and _OWN_TOKENIZERS.get(transformer.family, shared)


def models_of(tokenizer: Checkpoint) -> str | None:
    """The published models that a tokenizer belongs to; None for one of other sizes."""
    known = _TOKENIZERS.get((tokenizer.family, tokenizer.config.dim, tokenizer.config.stride))
    return known.models if known else None


Text = tuple[str, int]  # what tells text encoders apart: their family, and the channels of their features


def texts(transformer: Checkpoint) -> list[Text]:
    """The text encoders of a transformer; none for models of classes, two for those of a pair."""
    family, width = cast(Any, module_of(transformer)).text_family, transformer.config.text_width
    if family == CLIPPair.family:
        second = transformer.config.pooled_width
        return [("clip", width - second), ("clip", second)]
    return [(family, width)] if family else []


def text_encoder_of(text: Text) -> Published | None:
    """The published text encoder of this kind; None for those of other sizes."""
    return _TEXT_ENCODERS.get(text)


def reads(text: Text, transformer: Checkpoint, encoder: Checkpoint) -> bool:
    """Whether an encoder is the one of this kind, which the transformer was trained on."""
    return (encoder.family, encoder.config.width) == text
