"""CLIP text encoders for a core CLIP: ComfyUI's own CLIP, told where a text ends.

Models that were trained on them read the text up to its end token, and the encoded empty text in place of a
negative one. Core conditioning says neither, so both travel in its dictionary: ``attention_mask`` and
``NULL_TEXT``.
"""

from functools import partial
from typing import Any, cast

import torch
from comfy import sd1_clip
from torch import Tensor

from ...stagevar_core.checkpoints.header import record
from ...stagevar_core.checkpoints.load import Checkpoint
from ...stagevar_core.conditioning.clip import CLIPEncoderConfig
from .clip_parts import CutTokenizer, MaskedEncoder
from .conditioning import NULL_TEXT, Cut, Encoded

NAME = "clip_h"
_VOCABULARY = 49408  # of the tokenizer that comes with ComfyUI
_SPECIAL = {"start": 49406, "end": 49407, "pad": 0}
_PROJECTION = "text_projection.weight"


class CLIPTokenizer(CutTokenizer):
    """One chunk: what is longer is cut off, as in training."""

    def cut(self, chunks: list[list], word: tuple[int, ...]) -> Cut:
        """Start, text, end, padding."""
        return Cut(chunks[0], 2 + sum(map(_words, chunks)))


def _words(chunk: list) -> int:
    """Tokens between start and end; some are no numbers but embeddings."""
    ends = (
        place
        for place, (token, *_) in enumerate(chunk)
        if isinstance(token, int) and token == _SPECIAL["end"]
    )
    return next(ends, len(chunk)) - 1


class CLIPEncoder(MaskedEncoder):
    """The last hidden states of one CLIP."""

    def encode_token_weights(self, token_weight_pairs: list[list]) -> Encoded:
        """Features, ComfyUI's pooled output, and what the models need beside them.

        Rows of padding are 0, by which they are known after nodes that mix or join features and keep the mask
        of one of them.
        """
        features, pooled, extra = super().encode_token_weights(token_weight_pairs)
        features = torch.where(
            extra["attention_mask"].bool().unsqueeze(-1).to(features.device), features, 0.0
        )
        tokens = sd1_clip.gen_empty_tokens(self.special_tokens, self.max_length)
        empty = cast(Tensor, self.encode([tokens])[0])
        # Nothing before the end token has seen what follows it.
        empty = empty[:, :2].to(features.device)
        return features, pooled, {**extra, NULL_TEXT: empty}

    def load_sd(self, sd: dict[str, Tensor]) -> Any:
        """The projection of the pooled output, which no model reads and files lack, stays out of it."""
        width = self.transformer.text_projection.weight.shape[0]
        return super().load_sd({_PROJECTION: torch.eye(width), **sd})


def parts(checkpoint: Checkpoint, name: str = NAME) -> tuple[partial, partial]:
    """What makes the encoder and the tokenizer of a CLIP checkpoint; ``name``: of both in files."""
    config: CLIPEncoderConfig = checkpoint.config
    if config.vocab_size != _VOCABULARY:
        raise ValueError(
            f"text_encoder_name: this CLIP has {config.vocab_size} tokens; ComfyUI's tokenizer has "
            f"{_VOCABULARY}. Use the text encoder that the model was trained with"
        )
    shape = {**config.to_dict(), "eos_token_id": _SPECIAL["end"]}
    length, header = {"max_length": config.max_position_embeddings}, record(checkpoint.header())
    encoder = partial(CLIPEncoder, shape=shape, special=_SPECIAL, **length)
    return encoder, partial(CLIPTokenizer, name=name, width=config.width, header=header, **length)
