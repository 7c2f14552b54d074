"""HART's language model for a core CLIP: ComfyUI's own Qwen2, the text before the prompt, its padding.

The transformer reads the features of the padding as well, so they stay; how many they are travels in the
dictionary of the conditioning, ``PADDING``.
"""

import inspect
import os
from functools import partial
from typing import Any, cast

import comfy.text_encoders
import comfy.text_encoders.llama
import torch
from comfy import sd1_clip
from torch import Tensor

from ...stagevar_core.checkpoints.header import KEY, record
from ...stagevar_core.checkpoints.load import Checkpoint
from ...stagevar_core.conditioning.qwen import MAX_TOKENS, PAD_TOKEN, QwenConfig, system_prompt
from .clip_t5 import StoredVocabulary
from .conditioning import PADDING, Cut, Encoded, length_of
from .schema import Folders

NAME = "qwen2"
_HEAD = 128  # channels of a head in ComfyUI's class
_STEM = "model."
_VOCABULARY, _PAD = 151665, 151643  # of the tokenizer that comes with ComfyUI


class _Tokens(Cut):
    """The tokens of a prompt behind those of the fixed text; ``before``: how many these are."""

    def __init__(self, before: list, prompt: list, length: int) -> None:
        super().__init__([*before, *prompt], length)
        self.before = len(before)


class QwenVocabulary(StoredVocabulary):
    """The vocabulary that came with the encoder."""

    special = {"pad_token": PAD_TOKEN}


class QwenTokenizer(sd1_clip.SDTokenizer):
    """ComfyUI's weighted tokenization, one chunk, cut and padded to the length of training."""

    def __init__(
        self,
        embedding_directory: Folders = None,
        tokenizer_data: dict[str, Any] | None = None,
        *,
        width: int,
        tokenizer_json: str | None = None,
        header: Tensor | None = None,
    ) -> None:
        if tokenizer_json is None:
            from transformers import Qwen2Tokenizer

            folder = os.path.dirname(os.path.realpath(inspect.getfile(comfy.text_encoders.llama)))
            path, kind = os.path.join(folder, "qwen25_tokenizer"), cast(type[Any], Qwen2Tokenizer)
        else:
            path, kind = tokenizer_json, cast(type[Any], QwenVocabulary)
        super().__init__(
            path,
            embedding_directory=embedding_directory,
            pad_with_end=False,
            embedding_size=width,
            embedding_key=NAME,
            tokenizer_class=kind,
            has_start_token=False,
            has_end_token=False,
            pad_to_max_length=False,
            max_length=10**8,  # cut below: core would split into chunks
            min_length=1,
            pad_token=_PAD,
            tokenizer_data=tokenizer_data or {},
        )
        self.tokenizer.model_max_length = 10**8
        self.pad_token = _PAD if tokenizer_json is None else self.tokenizer.pad_token_id
        self.before = [(token, 1.0) for token in self.tokenizer(system_prompt())["input_ids"][:MAX_TOKENS]]
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
        """One list of (token, weight): the fixed text, the prompt, padding."""
        (tokens,) = super().tokenize_with_weights(
            text, return_word_ids, tokenizer_options=tokenizer_options or {}, **kwargs
        )
        if [token for token, *_ in tokens] == [self.pad_token]:  # core pads what is empty to one token
            tokens = []
        word = (0,) if return_word_ids else ()
        filler = [(self.pad_token, 1.0, *word)] * (MAX_TOKENS - len(tokens))
        before = [(*each, *word) for each in self.before]
        return [_Tokens(before, [*tokens[:MAX_TOKENS], *filler], len(tokens))]


class QwenEncoder(sd1_clip.SDClipModel):
    """The last hidden states of one Qwen2 behind the fixed text, which ComfyUI computes in float32."""

    def __init__(
        self,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        model_options: dict[str, Any] | None = None,
        *,
        shape: dict[str, Any],
        pad: int,
    ) -> None:
        super().__init__(
            device=cast(Any, device),  # the host takes both, its default says text
            dtype=dtype,
            textmodel_json_config=dict(shape),
            special_tokens={"pad": pad},
            layer_norm_hidden_state=False,
            model_class=cast(type[Any], comfy.text_encoders.llama.Qwen25_3B),
            enable_attention_masks=True,
            return_attention_masks=True,
            model_options=model_options or {},
        )
        self._before: list = []

    def encode_token_weights(self, token_weight_pairs: list[list]) -> Encoded:
        """Features of the prompt and its padding, no pooled output, and how much of them is padding."""
        chunk = token_weight_pairs[0]
        before = chunk.before if isinstance(chunk, _Tokens) else 0
        self._before = [token for token, *_ in chunk[:before]]
        features, pooled, extra = cast(Encoded, super().encode_token_weights(token_weight_pairs))
        mask = extra["attention_mask"][:, before:]
        padding = {PADDING: int(mask.shape[1] - mask.sum())}
        found = {**extra, "attention_mask": mask, **padding, **length_of(token_weight_pairs)}
        return features[:, before:], pooled, found

    def gen_empty_tokens(self, special_tokens: dict[str, int], length: int) -> list:
        """What weights in a prompt are measured against: the fixed text alone."""
        return [*self._before, *[special_tokens["pad"]] * (length - len(self._before))]

    def load_sd(self, sd: dict[str, Tensor]) -> Any:
        """The names of ComfyUI's class have a stem."""
        return super().load_sd({_STEM + name.removeprefix(_STEM): tensor for name, tensor in sd.items()})


def parts(checkpoint: Checkpoint) -> tuple[partial, partial]:
    """What makes the encoder and the tokenizer of a Qwen2 checkpoint."""
    config: QwenConfig = checkpoint.config
    if not hasattr(comfy.text_encoders.llama, "Qwen25_3B"):
        raise ValueError(
            "text_encoder_name: this ComfyUI has no Qwen2 text encoder; update it, or encode with the "
            "command line of StageVAR"
        )
    if config.hidden_size != _HEAD * config.num_attention_heads:
        raise ValueError(
            f"text_encoder_name: this Qwen2 has heads of {config.hidden_size // config.num_attention_heads} "
            f"channels; ComfyUI's have {_HEAD}. Use the language model that HART was trained with"
        )
    pad = _PAD
    if checkpoint.tokenizer_json is not None:
        pad = cast(int, QwenVocabulary.from_pretrained(checkpoint.tokenizer_json).pad_token_id)
    elif config.vocab_size < _VOCABULARY:
        raise ValueError(
            f"text_encoder_name: {checkpoint.source} has {config.vocab_size} tokens and no vocabulary of its "
            f"own; ComfyUI's Qwen2 tokenizer has {_VOCABULARY}. Use a file that holds its vocabulary, as "
            "scripts/convert_checkpoint.py writes it"
        )
    names = {"width": config.width, "tokenizer_json": checkpoint.tokenizer_json}
    header = {"header": record(checkpoint.header())}
    return partial(QwenEncoder, shape=config.to_dict(), pad=pad), partial(QwenTokenizer, **names, **header)
