"""The text encoder of Stable Diffusion 2.1 for a core CLIP: ComfyUI's own CLIP, told where a text ends.

Models that were trained on it read the text up to its end token, and the encoded empty text in place of a
negative one. Core conditioning says neither, so both travel in its dictionary: ``attention_mask`` and
``NULL_TEXT``.
"""

import logging
from functools import partial
from typing import Any, cast

import torch
from comfy import sd1_clip
from torch import Tensor

from ...stagevar_core.checkpoints.header import KEY, record
from ...stagevar_core.checkpoints.load import Checkpoint
from ...stagevar_core.conditioning.clip import CLIPEncoderConfig
from .conditioning import NULL_TEXT
from .schema import Folders

_LOG = logging.getLogger(__name__)
NAME = "clip_h"
_VOCABULARY = 49408  # of the tokenizer that comes with ComfyUI
_SPECIAL = {"start": 49406, "end": 49407, "pad": 0}
_PROJECTION = "text_projection.weight"
# What the host returns where masks are asked for: features (1, tokens, width), pooled (1, width), the rest.
Encoded = tuple[Tensor, Tensor, dict[str, Any]]


class CLIPTokenizer(sd1_clip.SDTokenizer):
    """ComfyUI's weighted tokenization, one chunk: what is longer is cut off, as in training."""

    def __init__(
        self,
        embedding_directory: Folders = None,
        tokenizer_data: dict[str, Any] | None = None,
        *,
        width: int,
        length: int,
        header: Tensor | None = None,
    ) -> None:
        super().__init__(
            max_length=length,
            pad_with_end=False,
            embedding_directory=embedding_directory,
            embedding_size=width,
            embedding_key=NAME,
            tokenizer_data=tokenizer_data or {},
        )
        self.header = header

    def state_dict(self) -> dict[str, Tensor]:
        """What CLIPSave writes beside the weights: our header."""
        return {} if self.header is None else {f"{NAME}.{KEY}": self.header}

    def tokenize_with_weights(
        self,
        text: str,
        return_word_ids: bool = False,
        tokenizer_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> list[list]:
        """One list of (token, weight): start, text, end, padding."""
        chunks = super().tokenize_with_weights(
            text, return_word_ids, tokenizer_options=tokenizer_options or {}, **kwargs
        )
        if len(chunks) > 1:
            _LOG.warning(
                "StageVAR: the prompt has more than the %d tokens that the model reads; the rest is ignored",
                self.max_length,
            )
        return chunks[:1]


class CLIPEncoder(sd1_clip.SDClipModel):
    """The last hidden states of one CLIP, which ComfyUI computes in float32."""

    def __init__(
        self,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        model_options: dict[str, Any] | None = None,
        *,
        shape: dict[str, Any],
    ) -> None:
        super().__init__(
            device=cast(Any, device),  # the host takes both, its default says text
            dtype=dtype,
            max_length=shape["max_position_embeddings"],
            textmodel_json_config=dict(shape),
            special_tokens=dict(_SPECIAL),
            return_attention_masks=True,
            model_options=model_options or {},
        )

    def encode_token_weights(self, token_weight_pairs: list[list]) -> Encoded:
        """Features, ComfyUI's pooled output, and what the models need beside them."""
        features, pooled, extra = cast(Encoded, super().encode_token_weights(token_weight_pairs))
        tokens = sd1_clip.gen_empty_tokens(self.special_tokens, self.max_length)
        empty = cast(Tensor, self.encode([tokens])[0])
        # Nothing before the end token has seen what follows it.
        return features, pooled, {**extra, NULL_TEXT: empty[:, :2].to(features.device)}

    def load_sd(self, sd: dict[str, Tensor]) -> Any:
        """The projection of the pooled output, which no model reads and files lack, stays out of it."""
        width = self.transformer.text_projection.weight.shape[0]
        return super().load_sd({_PROJECTION: torch.eye(width), **sd})


def parts(checkpoint: Checkpoint) -> tuple[partial, partial]:
    """What makes the encoder and the tokenizer of a CLIP checkpoint."""
    config: CLIPEncoderConfig = checkpoint.config
    if config.vocab_size != _VOCABULARY:
        raise ValueError(
            f"text_encoder_name: this CLIP has {config.vocab_size} tokens; ComfyUI's tokenizer has "
            f"{_VOCABULARY}. Use the text encoder of Stable Diffusion 2.1"
        )
    shape = {**config.to_dict(), "eos_token_id": _SPECIAL["end"]}
    size = {
        "width": config.width,
        "length": config.max_position_embeddings,
        "header": record(checkpoint.header()),
    }
    return partial(CLIPEncoder, shape=shape), partial(CLIPTokenizer, **size)
