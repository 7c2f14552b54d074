"""Tiny random Switti files and two CLIPs, named as the published ones, for ComfyUI's model folders."""

from pathlib import Path

from safetensors.torch import save_file

from stagevar_core.conditioning.clip import CLIPEncoderConfig
from stagevar_core.models.switti_config import SwittiConfig
from stagevar_core.schedule import SIDES_256
from tests.support import official_switti, official_var
from tests.support.tiny_families import TOKENIZER
from tests.support.tiny_star import tiny_clip

SMALL, LARGE = (
    CLIPEncoderConfig(hidden_size=width, intermediate_size=96, num_hidden_layers=2, num_attention_heads=heads)
    for width, heads in ((64, 1), (128, 2))
)
FILES = {"Switti": "tiny_switti.safetensors", "Switti-AR": "tiny_switti_ar.safetensors"}
TOKENIZER_FILE = "tiny_vqvae_switti.safetensors"
SMALL_FILE, LARGE_FILE = "tiny_clip_l.safetensors", "tiny_clip_g.safetensors"


def switti(*, ar: bool) -> SwittiConfig:
    """A transformer of two blocks that reads both CLIPs."""
    width = SMALL.width + LARGE.width
    return SwittiConfig(
        *(2, 128, 2, 320, len(SIDES_256), ar, SIDES_256),
        vocab=TOKENIZER.vocab,
        dim=TOKENIZER.dim,
        text_width=width,
        pooled_width=LARGE.width,
    )


def write_switti(models: Path) -> None:
    """One file of each kind in the folders that the loaders read."""
    files = {f"vae/{TOKENIZER_FILE}": official_var.tokenizer(TOKENIZER, device="cpu", seed=2)}
    for name, file in FILES.items():
        layout = official_switti.transformer(switti(ar=name.endswith("AR")), device="cpu", seed=4)
        files[f"diffusion_models/{file}"] = layout
    for config, file in ((SMALL, SMALL_FILE), (LARGE, LARGE_FILE)):
        stem, state = "text_model.", tiny_clip(config).state_dict()
        tensors = {f"{stem}{name.removeprefix(stem)}": tensor for name, tensor in state.items()}
        tensors.pop(f"{stem}embeddings.position_ids", None)
        files[f"text_encoders/{file}"] = tensors
    for name, tensors in files.items():
        path = models / name
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
