"""Tiny random Switti models; their texts are those of the tiny STAR models."""

from dataclasses import replace

import torch

from stagevar_core.models.switti import Switti
from stagevar_core.models.switti_config import SwittiConfig
from tests.support.tiny import NEAR, TEXT_WIDTH, randomize
from tests.support.tiny_var import DIM, VOCAB

CALMED = 0.1  # of what the text is for all tokens alike: more would drown their differences
TINY = SwittiConfig(
    depth=3, width=32, heads=2, hidden=80, levels=6, ar=True, vocab=VOCAB, dim=DIM, text_width=TEXT_WIDTH,
    pooled_width=16,
)  # fmt: skip


def tiny_switti(levels: int = 6, *, dtype=None, spread: float = NEAR, **shape) -> Switti:
    """A random transformer, autoregressive unless told otherwise; the same options give the same weights."""
    model = Switti(replace(TINY, levels=levels, **shape), dtype=dtype)
    randomize(model, 0, spread)
    if spread > NEAR:
        with torch.no_grad():
            model.text_proj.weight *= CALMED
    return model.eval()
