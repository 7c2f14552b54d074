"""Small complete checkpoint files of every kind, in the official layouts."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from stagevar_core.autoencoders.vq import VQTokenizerConfig
from stagevar_core.checkpoints.families_clip import clip_shapes
from stagevar_core.checkpoints.families_infinity import t5_shapes
from stagevar_core.conditioning.clip import CLIPEncoderConfig
from stagevar_core.conditioning.t5 import T5EncoderConfig
from stagevar_core.models.star_config import STARConfig
from stagevar_core.models.var import VARConfig
from tests.support import official_star, official_var
from tests.support.official_files import small_tokenizer, small_transformer

T5 = T5EncoderConfig(vocab_size=40, d_model=16, d_ff=24, d_kv=4, num_heads=2, num_layers=2)
CLIP = CLIPEncoderConfig(vocab_size=40, hidden_size=64, intermediate_size=32, num_hidden_layers=2)
STAR = replace(STARConfig.released(1, (1,) * 6), vocab=24, dim=4, text_width=24)
VAR = VARConfig(2, 128, 2, 512, (1, 2, 3, 4, 6), classes=10, vocab=24, dim=4)
CODES = VQTokenizerConfig(24, 4, width=32, multipliers=(1, 1, 2), blocks=1)


def zeros(shapes: dict) -> dict[str, Tensor]:
    """Tensors of these shapes with numbers in them."""
    return {name: torch.full(shape, 0.5) for name, shape in shapes.items()}


FILES: dict[str, Callable[[], dict[str, Tensor]]] = {
    "infinity transformer": lambda: dict(small_transformer()),
    "infinity tokenizer": lambda: dict(small_tokenizer()),
    "infinity text_encoder": lambda: zeros(t5_shapes(T5)),
    "star transformer": lambda: dict(official_star.transformer(STAR, device="cpu")),
    "star text_encoder": lambda: zeros(clip_shapes(CLIP)),
    "var transformer": lambda: dict(official_var.transformer(VAR, device="cpu")),
    "var tokenizer": lambda: dict(official_var.tokenizer(CODES, device="cpu")),
}
