"""T5 text encoders for a core CLIP: ComfyUI's own T5 with the vocabulary and limits of our models."""

from functools import partial
from typing import Any

import comfy.text_encoders
import comfy.text_encoders.t5

from ...stagevar_core.checkpoints.header import record
from ...stagevar_core.checkpoints.load import Checkpoint
from ...stagevar_core.conditioning.t5 import MAX_TOKENS, T5EncoderConfig
from .clip_parts import MaskedEncoder, StoredVocabulary, WholeTokenizer, check_vocabulary
from .conditioning import Cut

NAME = "t5"
_VOCABULARY = 32100  # of the tokenizer that comes with ComfyUI
_SPECIAL = {"end": 1, "pad": 0}
_T5: type[Any] = comfy.text_encoders.t5.T5  # the host's default says CLIP, and it means any encoder
_ACTIVATIONS = {"gated-gelu": "gelu_pytorch_tanh", "gelu_new": "gelu_pytorch_tanh", "relu": "relu"}


class T5Vocabulary(StoredVocabulary):
    """The vocabulary that came with the encoder."""

    special = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


class T5Tokenizer(WholeTokenizer):
    """What is longer than ``max_tokens`` keeps its end token."""

    stored, shipped = T5Vocabulary, ("t5_tokenizer", "T5TokenizerFast")

    def __init__(self, *, max_tokens: int, **given: Any) -> None:
        super().__init__(name=NAME, **given)
        self.max_tokens = max_tokens

    def cut(self, chunks: list[list], word: tuple[int, ...]) -> Cut:
        """The end token last."""
        (tokens,), limit = chunks, self.max_tokens
        read = tokens if len(tokens) <= limit else [*tokens[: limit - 1], tokens[-1]]
        return Cut(read, len(tokens))


def parts(checkpoint: Checkpoint) -> tuple[partial, partial]:
    """What makes the encoder and the tokenizer of a T5 checkpoint."""
    vocabulary = {
        "width": checkpoint.config.d_model,
        "max_tokens": int(checkpoint.defaults.get("max_tokens", MAX_TOKENS)),
        "tokenizer_json": checkpoint.tokenizer_json,
        "header": record(checkpoint.header()),
    }
    check_vocabulary(checkpoint, "T5", _VOCABULARY)
    shape, made = _shape(checkpoint.config), {"model_class": _T5, "enable_attention_masks": True}
    encoder = partial(MaskedEncoder, shape=shape, special=_SPECIAL, **made)
    return encoder, partial(T5Tokenizer, **vocabulary)


def _shape(config: T5EncoderConfig) -> dict[str, Any]:
    """The configuration in the names of ``comfy.text_encoders.t5``."""
    projection = config.feed_forward_proj
    fixed = {"relative_attention_num_buckets": 32, "relative_attention_max_distance": 128}
    differs = {name for name, value in fixed.items() if getattr(config, name) != value}
    if projection not in _ACTIVATIONS or differs:
        raise ValueError(
            f"text_encoder_name: this T5 has {projection!r} and {sorted(differs)} that ComfyUI's T5 does not "
            "compute; use Flan-T5-XL or the built-in encoder"
        )
    return {
        "vocab_size": config.vocab_size,
        "d_model": config.d_model,
        "d_ff": config.d_ff,
        "d_kv": config.d_kv,
        "num_heads": config.num_heads,
        "num_layers": config.num_layers,
        "is_gated_act": projection.startswith("gated"),
        "dense_act_fn": _ACTIVATIONS[projection],
        "model_type": "t5",
    }
