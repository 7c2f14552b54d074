"""Tiny random HART files with the names of the published ones, for ComfyUI's model folders."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from stagevar_core.checkpoints import prepare
from stagevar_core.checkpoints.save import save
from stagevar_core.models.hart_config import HARTConfig
from tests.support.official_hart import tokenizer, transformer
from tests.support.tiny_families import TOKENIZER
from tests.support.tiny_qwen import SHAPE, published, vocabulary

SIDES = (1, 2, 3, 4, 6, 8, 12, 16)
HART = HARTConfig(
    2, 128, 2, 128, SIDES, text_width=SHAPE.width, vocab=24, dim=4, cosine=True, diff_width=32, diff_depth=1
)
HART_FILE, CODES_FILE, QWEN_FILE = "tiny_hart.bin", "tiny_hart_vae.bin", "tiny_qwen.safetensors"


def write_hart(models: Path) -> None:
    """One file of each kind in the folders that the loaders read; the text encoder with its vocabulary."""
    for folder in ("diffusion_models", "vae", "text_encoders"):
        (models / folder).mkdir(parents=True, exist_ok=True)
    torch.save(dict(transformer(HART, device="cpu", seed=4)), models / "diffusion_models" / HART_FILE)
    torch.save(dict(tokenizer(TOKENIZER, device="cpu", seed=5)), models / "vae" / CODES_FILE)
    checkpoint = prepare(published(), None, "qwen")
    checkpoint.tokenizer_json = vocabulary()
    save(models / "text_encoders" / QWEN_FILE, checkpoint.tensors, checkpoint.header())
    bare = {name: tensor.contiguous() for name, tensor in published().items()}
    save_file(bare, models / "text_encoders" / f"bare_{QWEN_FILE}")
