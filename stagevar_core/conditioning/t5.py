"""Prompts to features with a T5 encoder, for use without ComfyUI (which runs the same weights as a CLIP)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from .encoder import EncoderConfig, FrozenEncoder
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


@dataclass(frozen=True)
class T5EncoderConfig(EncoderConfig):
    """Shape of a T5 encoder, in the names of its ``config.json``; the defaults are Flan-T5-XL."""

    vocab_size: int = 32128
    d_model: int = 2048
    d_ff: int = 5120
    d_kv: int = 64
    num_heads: int = 32
    num_layers: int = 24
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    feed_forward_proj: str = "gated-gelu"
    layer_norm_epsilon: float = 1e-6

    @property
    def width(self) -> int:
        """Channels of the features."""
        return self.d_model


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

    def build(self, tensors: Mapping[str, Tensor]) -> nn.Module:
        """The ``transformers`` model around ``tensors``; nothing is initialised, so nothing is held twice."""
        from transformers import T5Config, T5EncoderModel

        shape = T5Config(**self.config.to_dict(), is_encoder_decoder=False, use_cache=False)
        with torch.device("meta"):
            model = T5EncoderModel(shape)
        expected = {name: tensor for name, tensor in model.state_dict().items() if name != _TIED}
        given = {name: tensor for name, tensor in tensors.items() if name != _TIED}
        weights = strict_weights(expected, given, "T5", dtype=self.dtype, device=self.device)
        model.load_state_dict(weights, strict=False, assign=True)
        # How the input embedding is tied differs between transformers releases; set, it is the same.
        embedding = nn.Embedding(self.config.vocab_size, self.config.d_model, device="meta")
        embedding.weight = nn.Parameter(weights["shared.weight"], requires_grad=False)
        model.set_input_embeddings(embedding)
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
        return self.model(input_ids=ids).last_hidden_state
