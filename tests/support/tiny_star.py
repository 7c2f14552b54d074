"""Tiny random STAR models, texts for them and a small CLIP with its vocabulary."""

import json
from pathlib import Path

from transformers import CLIPTextConfig, CLIPTextModel

from stagevar_core.conditioning.clip import END_TOKEN, START_TOKEN, CLIPEncoderConfig
from stagevar_core.conditioning.types import TextConditioning
from stagevar_core.models.star import STAR
from stagevar_core.models.star_config import STARConfig
from tests.support.tiny import NEAR, TEXT_WIDTH, randomize, texts
from tests.support.tiny_var import DIM, VOCAB, squares

# The 1024 px schedule at a quarter of its size: as many scales, the sampler's among them.
SIDES = (1, 1, 2, 2, 3, 3, 4, 5, 6, 7, 9, 11, 13, 16)
SQUARES = squares(*SIDES)
TEXT = CLIPEncoderConfig(
    vocab_size=40, hidden_size=64, intermediate_size=24, num_hidden_layers=2, num_attention_heads=1
)
_WORDS = ("a</w>", "red</w>", "circle</w>", "12", "1</w>", "2</w>", "'s</w>", START_TOKEN, END_TOKEN)
_MERGES = ("r e", "re d</w>", "c i", "ci r", "cir c", "circ l", "circl e</w>", "' s</w>")
_PARTS = (
    "a",
    "r",
    "e",
    "d",
    "d</w>",
    "c",
    "i",
    "l",
    "e</w>",
    "re",
    "ci",
    "cir",
    "circ",
    "circl",
    "'",
    "s</w>",
)


def tiny_star(
    *,
    levels: int = len(SIDES),
    depth: int = 3,
    sampler: int = 0,
    text: int = TEXT_WIDTH,
    dtype=None,
    spread: float = NEAR,
) -> STAR:
    """A random transformer; the same options give the same weights in every dtype."""
    config = STARConfig(
        depth=depth, width=32, heads=2, hidden=64, levels=levels, vocab=VOCAB, dim=DIM, text_width=text,
        sampler_depth=sampler,
    )  # fmt: skip
    model = STAR(config, dtype=dtype)
    randomize(model, 0, spread)
    return model.eval()


def encoded(batch: int, *, negative: bool = False) -> TextConditioning:
    """A text for every image; the first do not depend on their number."""
    against = texts(*(4,) * batch, seed=1) if negative else None
    return TextConditioning(texts(*(5, 9, 2, 7)[:batch]), against, texts(2, seed=2)[0])


def tiny_clip(config: CLIPEncoderConfig = TEXT) -> CLIPTextModel:
    """A random CLIP text encoder of the ``transformers`` library."""
    # The end token of the file's config.json: 2 makes the library pool at the highest token id.
    model = CLIPTextModel(CLIPTextConfig(**config.to_dict(), bos_token_id=0, eos_token_id=2, pad_token_id=1))
    randomize(model, 0, spread=0.5)
    return model.eval()


def write_vocabulary(folder: Path) -> Path:
    """A small byte-pair vocabulary in CLIP's two files."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {word: index for index, word in enumerate((*_PARTS, *_WORDS))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(("#version: 0.2", *_MERGES)) + "\n", encoding="utf-8")
    return folder
