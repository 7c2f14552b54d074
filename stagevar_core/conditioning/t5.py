"""Prompts to features with a T5 encoder, for use without ComfyUI (which runs the same weights as a CLIP)."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from .t5_encoder import T5Encoder, T5EncoderConfig
from .vocabulary import (
    encode_by_length,
    first_vocabulary,
    parse_vocabulary,
    strict_weights,
    warn_of_cut,
    without_surrogates,
)

MAX_TOKENS = 512  # what Flan-T5 and all released Infinity transformers were trained with, end token included
END_TOKEN = "</s>"
TOKENIZER_FILES = ("tokenizer.json", "spiece.model")
_TIED = "encoder.embed_tokens.weight"  # the same as shared.weight, in some files


def default_text_dtype(device: torch.device | str) -> torch.dtype:
    """bfloat16 on a GPU, float32 on the CPU; float16 overflows in the larger T5 encoders."""
    return torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16


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


class T5TextEncoder:
    """A frozen T5 encoder with its vocabulary: prompts to one (tokens, width) float32 tensor each.

    ``tensors`` carry the names of the Hugging Face files, ``tokenizer_json`` is the format of the
    ``tokenizers`` library. Raises ``ValueError`` for missing, unknown or misshapen tensors.
    """

    family = "t5"

    def __init__(
        self,
        config: T5EncoderConfig,
        tensors: Mapping[str, Tensor],
        tokenizer_json: str,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.config = config
        self.device = torch.device(device)
        self.dtype = dtype or default_text_dtype(self.device)
        self.model = _build(config, tensors, self.dtype, self.device)
        self._tokenizer = parse_vocabulary(tokenizer_json, config.vocab_size)
        self._end = self._tokenizer.token_to_id(END_TOKEN)
        if self._end is None:
            raise ValueError(
                f"the text encoder's vocabulary has no end token {END_TOKEN}; expected one of T5"
            )

    @property
    def width(self) -> int:
        """Channels of the features."""
        return self.config.width

    def tokenize(self, prompt: str, max_tokens: int = MAX_TOKENS) -> list[int]:
        """Token ids and the end token, alone for an empty prompt; what is too long is cut with a warning."""
        ids = self._tokenizer.encode(without_surrogates(prompt)).ids
        if not ids or ids[-1] != self._end:
            ids = [*ids, self._end]
        if len(ids) <= max_tokens:
            return ids
        warn_of_cut(len(ids), max_tokens)
        return [*ids[: max_tokens - 1], self._end]

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str], max_tokens: int = MAX_TOKENS) -> tuple[Tensor, ...]:
        """Features of each prompt, (tokens, width) in float32 on the encoder's device, without padding."""
        tokenize = partial(self.tokenize, max_tokens=max_tokens)
        return encode_by_length(prompts, tokenize, self._features, self.device)

    def _features(self, ids: Tensor) -> Tensor:
        return self.model(ids)


def _build(
    config: T5EncoderConfig, tensors: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device
) -> T5Encoder:
    """The encoder around ``tensors``; nothing is initialised, so nothing is held twice."""
    with torch.device("meta"):
        model = T5Encoder(config)
    given = {name: tensor for name, tensor in tensors.items() if name != _TIED}
    weights = strict_weights(model.state_dict(), given, "T5", dtype=dtype, device=device)
    model.load_state_dict(weights, strict=True, assign=True)
    return model.eval().requires_grad_(False)
