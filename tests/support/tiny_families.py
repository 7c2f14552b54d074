"""Tiny random VAR and STAR files with the names of the published ones, for ComfyUI's model folders."""

from dataclasses import replace
from pathlib import Path

from safetensors.torch import save_file

from stagevar_core.autoencoders.vq import VQTokenizerConfig
from stagevar_core.conditioning.clip import CLIPEncoderConfig
from stagevar_core.models.star_config import STARConfig
from stagevar_core.models.var import VARConfig
from stagevar_core.schedule import SIDES_256
from tests.support import official_star, official_var
from tests.support.tiny_star import tiny_clip

CLASSES, TEXT_WIDTH = 10, 64
VAR = VARConfig(2, 128, 2, 256, SIDES_256, classes=CLASSES, vocab=24, dim=4)
STAR = STARConfig(2, 128, 2, 256, len(SIDES_256), vocab=24, dim=4, text_width=TEXT_WIDTH)
STAR_SAMPLER = replace(STAR, sampler_depth=1)  # which draws the last of the ten scales
TOKENIZER = VQTokenizerConfig(24, 4, width=32, multipliers=(1, 1, 1, 1, 1), blocks=1)
CLIP = CLIPEncoderConfig(
    hidden_size=TEXT_WIDTH, intermediate_size=96, num_hidden_layers=2, num_attention_heads=1
)
VAR_FILE, STAR_FILE, TOKENIZER_FILE = "tiny_var.safetensors", "tiny_star.safetensors", "tiny_vq.safetensors"
CLIP_FILE, SAMPLER_FILE = "tiny_clip.safetensors", "tiny_star_sampler.safetensors"


def write_families(models: Path) -> None:
    """One file of each kind in the folders that the loaders read."""
    clip = {
        f"text_model.{name.removeprefix('text_model.')}": t
        for name, t in tiny_clip(CLIP).state_dict().items()
    }
    clip.pop("text_model.embeddings.position_ids", None)
    files = {
        f"diffusion_models/{VAR_FILE}": official_var.transformer(VAR, device="cpu"),
        f"diffusion_models/{STAR_FILE}": official_star.transformer(STAR, device="cpu", seed=1),
        f"diffusion_models/{SAMPLER_FILE}": official_star.transformer(STAR_SAMPLER, device="cpu", seed=3),
        f"vae/{TOKENIZER_FILE}": official_var.tokenizer(TOKENIZER, device="cpu", seed=2),
        f"text_encoders/{CLIP_FILE}": clip,
    }
    for name, tensors in files.items():
        path = models / name
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
