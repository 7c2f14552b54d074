"""HART's language model for a core CLIP: ComfyUI's own Qwen2, the text before the prompt, its padding.

The transformer reads the features of the padding as well, so they stay; how many they are travels in the
dictionary of the conditioning, ``PADDING``.
"""

from functools import partial
from typing import Any, cast

import comfy.text_encoders
import comfy.text_encoders.llama
from torch import Tensor

from ...stagevar_core.checkpoints.header import record
from ...stagevar_core.checkpoints.load import Checkpoint
from ...stagevar_core.conditioning.qwen import MAX_TOKENS, PAD_TOKEN, QwenConfig, system_prompt
from .clip_parts import MaskedEncoder, StoredVocabulary, WholeTokenizer, check_vocabulary
from .conditioning import PADDING, Cut, Encoded

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


class QwenTokenizer(WholeTokenizer):
    """One that fills every text to the length of training."""

    stored, shipped = QwenVocabulary, ("qwen25_tokenizer", "Qwen2Tokenizer")

    def __init__(self, *, tokenizer_json: str | None, **given: Any) -> None:
        super().__init__(
            name=NAME, tokenizer_json=tokenizer_json, has_end_token=False, pad_token=_PAD, **given
        )
        if tokenizer_json is not None:
            self.pad_token = self.tokenizer.pad_token_id
        self.before = [(token, 1.0) for token in self.tokenizer(system_prompt())["input_ids"][:MAX_TOKENS]]

    def cut(self, chunks: list[list], word: tuple[int, ...]) -> Cut:
        """The fixed text, the prompt, padding."""
        (tokens,) = chunks
        if [token for token, *_ in tokens] == [self.pad_token]:  # core pads what is empty to one token
            tokens = []
        filler = [(self.pad_token, 1.0, *word)] * (MAX_TOKENS - len(tokens))
        before = [(*each, *word) for each in self.before]
        return _Tokens(before, [*tokens[:MAX_TOKENS], *filler], len(tokens))


class QwenEncoder(MaskedEncoder):
    """The last hidden states of one Qwen2 behind the fixed text."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self._before: list = []

    def encode_token_weights(self, token_weight_pairs: list[list]) -> Encoded:
        """Features of the prompt and its padding, no pooled output, and how much of them is padding."""
        chunk = token_weight_pairs[0]
        before = chunk.before if isinstance(chunk, _Tokens) else 0
        self._before = [token for token, *_ in chunk[:before]]
        features, pooled, extra = super().encode_token_weights(token_weight_pairs)
        mask = extra["attention_mask"][:, before:]
        padding = {PADDING: int(mask.shape[1] - mask.sum())}
        return features[:, before:], pooled, {**extra, "attention_mask": mask, **padding}

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
    check_vocabulary(checkpoint, "Qwen2", _VOCABULARY)
    encoder = partial(
        QwenEncoder,
        shape=config.to_dict(),
        special={"pad": pad},
        layer_norm_hidden_state=False,
        model_class=comfy.text_encoders.llama.Qwen25_3B,
        enable_attention_masks=True,
    )
    vocabulary = {"width": config.width, "tokenizer_json": checkpoint.tokenizer_json}
    return encoder, partial(QwenTokenizer, header=record(checkpoint.header()), **vocabulary)
