"""Prompts to features with a T5 encoder, for use without ComfyUI (which runs the same weights as a CLIP)."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from .encoder import FrozenEncoder
from .t5_encoder import T5Encoder, T5EncoderConfig
from .vocabulary import (
    encode_by_length,
    first_vocabulary,
    strict_weights,
    warn_of_cut,
    without_surrogates,
)

MAX_TOKENS = 512  # what Flan-T5 and all released Infinity transformers were trained with, end token included
END_TOKEN = "</s>"
TOKENIZER_FILES = ("tokenizer.json", "spiece.model")
_TIED = "encoder.embed_tokens.weight"  # the same as shared.weight, in some files


def read_tokenizer(path: Path) -> str:
    """The ``tokenizers`` JSON that belongs to the encoder file or directory ``path``.

    Raises ``ValueError`` when neither ``tokenizer.json`` nor ``spiece.model`` is there.
    """
    folder = path if path.is_dir() else path.parent
    found = first_vocabulary((folder, folder / "tokenizer"), ("spiece.model",), _convert_sentencepiece)
    if found is None:
        raise ValueError(
            f"{path}: this text encoder has no vocabulary; expected {' or '.join(TOKENIZER_FILES)} in "
            f"{folder}. Copy it there from the encoder's repository (for Infinity: google/flan-t5-xl)"
        )
    return found


def _convert_sentencepiece(folder: Path) -> str:
    """``spiece.model`` as a ``tokenizers`` JSON."""
    from transformers import T5TokenizerFast

    try:
        return T5TokenizerFast.from_pretrained(str(folder), legacy=True).backend_tokenizer.to_str()
    except Exception as error:  # the library raises what its optional dependencies raise
        raise ValueError(
            f"{folder / 'spiece.model'} cannot be read; install sentencepiece and protobuf, or put the "
            "tokenizer.json of the same repository next to it"
        ) from error


class T5TextEncoder(FrozenEncoder[T5EncoderConfig]):
    """A frozen T5 encoder with its vocabulary, see :class:`FrozenEncoder`."""

    family = "t5"
    names = (END_TOKEN,)
    lacks = f"has no end token {END_TOKEN}; expected one of T5"

    def build(self, tensors: Mapping[str, Tensor]) -> T5Encoder:
        """The encoder around ``tensors``; nothing is initialised, so nothing is held twice."""
        with torch.device("meta"):
            model = T5Encoder(self.config)
        given = {name: tensor for name, tensor in tensors.items() if name != _TIED}
        weights = strict_weights(model.state_dict(), given, "T5", dtype=self.dtype, device=self.device)
        model.load_state_dict(weights, strict=True, assign=True)
        return model.eval().requires_grad_(False)

    def tokenize(self, prompt: str, max_tokens: int = MAX_TOKENS) -> list[int]:
        """Token ids and the end token, alone for an empty prompt; what is too long is cut with a warning."""
        (end,), ids = self.special, self._tokenizer.encode(without_surrogates(prompt)).ids
        if not ids or ids[-1] != end:
            ids = [*ids, end]
        if len(ids) <= max_tokens:
            return ids
        warn_of_cut(len(ids), max_tokens)
        return [*ids[: max_tokens - 1], end]

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str], max_tokens: int = MAX_TOKENS) -> tuple[Tensor, ...]:
        """Features of each prompt, (tokens, width) in float32 on the encoder's device, without padding."""
        tokenize = partial(self.tokenize, max_tokens=max_tokens)
        return encode_by_length(prompts, tokenize, self._features, self.device)

    def _features(self, ids: Tensor) -> Tensor:
        return self.model(ids)
