"""T5 text encoders for a core CLIP: ComfyUI's own T5 with the vocabulary and limits of our models."""

import inspect
import json
import os
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import comfy.text_encoders
import comfy.text_encoders.t5
import torch
from comfy import sd1_clip
from torch import Tensor

from ...stagevar_core.checkpoints.header import KEY, record
from ...stagevar_core.checkpoints.load import Checkpoint
from ...stagevar_core.conditioning.t5 import MAX_TOKENS, T5EncoderConfig
from .conditioning import Cut, Encoded, length_of
from .schema import Folders

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

NAME = "t5"
_VOCABULARY = 32100  # of the tokenizer that comes with ComfyUI
_SPECIAL = {"end": 1, "pad": 0}
_T5: type[Any] = comfy.text_encoders.t5.T5  # the host's default says CLIP, and it means any encoder
_ACTIVATIONS = {"gated-gelu": "gelu_pytorch_tanh", "gelu_new": "gelu_pytorch_tanh", "relu": "relu"}


class StoredVocabulary:
    """Stands in for a tokenizer class whose files are a string: the JSON that came with the encoder."""

    special = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}

    @classmethod
    def from_pretrained(cls, tokenizer_json: str, **_: Any) -> "PreTrainedTokenizerFast":
        """A fast tokenizer of the library that neither pads nor cuts."""
        from tokenizers import Tokenizer
        from transformers import PreTrainedTokenizerFast

        vocabulary = Tokenizer.from_str(tokenizer_json)
        vocabulary.no_padding()
        vocabulary.no_truncation()
        # The library would overwrite with its own default whether a space comes before the first word.
        given = json.loads(tokenizer_json).get("pre_tokenizer") or {}
        own = {key: given[key] for key in ("add_prefix_space",) if key in given}
        return PreTrainedTokenizerFast(tokenizer_object=vocabulary, **cls.special, **own)


class T5Tokenizer(sd1_clip.SDTokenizer):
    """ComfyUI's weighted tokenization, one chunk, cut where the models were cut in training."""

    def __init__(
        self,
        embedding_directory: Folders = None,
        tokenizer_data: dict[str, Any] | None = None,
        *,
        width: int = 2048,
        max_tokens: int = MAX_TOKENS,
        tokenizer_json: str | None = None,
        header: Tensor | None = None,
    ) -> None:
        if tokenizer_json is None:
            from transformers import T5TokenizerFast

            folder = os.path.dirname(os.path.realpath(inspect.getfile(comfy.text_encoders.t5)))
            path, kind = os.path.join(folder, "t5_tokenizer"), cast(type[Any], T5TokenizerFast)
        else:
            path, kind = tokenizer_json, cast(type[Any], StoredVocabulary)
        super().__init__(
            path,
            embedding_directory=embedding_directory,
            pad_with_end=False,
            embedding_size=width,
            embedding_key=NAME,
            tokenizer_class=kind,
            has_start_token=False,
            pad_to_max_length=False,
            max_length=10**8,  # cut below: core would split into chunks of different lengths
            min_length=1,
            tokenizer_data=tokenizer_data or {},
        )
        self.tokenizer.model_max_length = 10**8
        self.max_tokens = max_tokens
        self.header = header

    def state_dict(self) -> dict[str, Tensor]:
        """What CLIPSave writes beside the weights: our header, vocabulary included."""
        return {} if self.header is None else {f"{NAME}.{KEY}": self.header}

    def tokenize_with_weights(
        self,
        text: str,
        return_word_ids: bool = False,
        tokenizer_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> list[list]:
        """One list of (token, weight), the end token last."""
        (tokens,) = super().tokenize_with_weights(
            text, return_word_ids, tokenizer_options=tokenizer_options or {}, **kwargs
        )
        limit = self.max_tokens
        read = tokens if len(tokens) <= limit else [*tokens[: limit - 1], tokens[-1]]
        return [Cut(read, len(tokens))]


class T5Encoder(sd1_clip.SDClipModel):
    """One T5 with attention masks; ComfyUI computes it in float32 whatever its weights are stored in."""

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
            textmodel_json_config=dict(shape),
            special_tokens=dict(_SPECIAL),
            model_class=_T5,
            enable_attention_masks=True,
            return_attention_masks=True,
            model_options=model_options or {},
        )

    def encode_token_weights(self, token_weight_pairs: list[list]) -> Encoded:
        """Features, no pooled output, the mask and the length of the prompt."""
        features, pooled, extra = cast(Encoded, super().encode_token_weights(token_weight_pairs))
        return features, pooled, {**extra, **length_of(token_weight_pairs)}


def parts(checkpoint: Checkpoint) -> tuple[partial, partial]:
    """What makes the encoder and the tokenizer of a T5 checkpoint."""
    vocabulary = {
        "width": checkpoint.config.d_model,
        "max_tokens": int(checkpoint.defaults.get("max_tokens", MAX_TOKENS)),
        "tokenizer_json": checkpoint.tokenizer_json,
        "header": record(checkpoint.header()),
    }
    if checkpoint.tokenizer_json is None and checkpoint.config.vocab_size < _VOCABULARY:
        raise ValueError(
            f"text_encoder_name: {checkpoint.source} has {checkpoint.config.vocab_size} tokens and no "
            f"vocabulary of its own; ComfyUI's T5 tokenizer has {_VOCABULARY}. Use a file that holds its "
            "vocabulary, as scripts/convert_checkpoint.py writes it"
        )
    return partial(T5Encoder, shape=_shape(checkpoint.config)), partial(T5Tokenizer, **vocabulary)


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
