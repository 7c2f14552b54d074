"""What the text encoders for a core CLIP share: vocabulary, one chunk of tokens, our header, its length."""

import inspect
import json
import os
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, cast

import comfy.text_encoders
import comfy.text_encoders.t5
import torch
from comfy import sd1_clip
from torch import Tensor

from ...stagevar_core.checkpoints.header import KEY
from ...stagevar_core.checkpoints.load import Checkpoint
from .conditioning import Cut, Encoded, length_of
from .schema import Folders

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_WHOLE = 10**8  # tokens; core would split what is longer into chunks


class StoredVocabulary:
    """Stands in for a tokenizer class whose files are a string: the JSON that came with the encoder."""

    special: ClassVar[dict[str, str]] = {}

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


class CutTokenizer(sd1_clip.SDTokenizer, ABC):
    """ComfyUI's weighted tokenization, one chunk that is cut as in training; ``name``: of it in files."""

    def __init__(
        self,
        embedding_directory: Folders = None,
        tokenizer_data: dict[str, Any] | None = None,
        *,
        name: str,
        width: int,
        header: Tensor | None = None,
        **fixed: Any,
    ) -> None:
        super().__init__(
            embedding_directory=embedding_directory,
            embedding_size=width,
            embedding_key=name,
            pad_with_end=False,
            tokenizer_data=tokenizer_data or {},
            **fixed,
        )
        self.name, self.header = name, header

    def state_dict(self) -> dict[str, Tensor]:
        """What CLIPSave writes beside the weights: our header, which may hold the vocabulary."""
        return {} if self.header is None else {f"{self.name}.{KEY}": self.header}

    def tokenize_with_weights(
        self,
        text: str,
        return_word_ids: bool = False,
        tokenizer_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> list[list]:
        """One list of (token, weight) as :meth:`cut` makes it; word numbers behind them where asked for."""
        chunks = super().tokenize_with_weights(
            text, return_word_ids, tokenizer_options=tokenizer_options or {}, **kwargs
        )
        return [self.cut(chunks, (0,) if return_word_ids else ())]

    @abstractmethod
    def cut(self, chunks: list[list], word: tuple[int, ...]) -> Cut:
        """The tokens that the encoder reads of core's chunks; ``word``: behind the weight of added ones."""


class WholeTokenizer(CutTokenizer):
    """One that core gives a text in one chunk, however long it is.

    With the vocabulary that came with the encoder, read as ``stored``, or else with the one of ComfyUI, which
    ``shipped`` names: its folder beside the text encoders and its class in transformers.
    """

    stored: ClassVar[type[StoredVocabulary]]
    shipped: ClassVar[tuple[str, str]]

    def __init__(
        self,
        embedding_directory: Folders = None,
        tokenizer_data: dict[str, Any] | None = None,
        *,
        tokenizer_json: str | None = None,
        **fixed: Any,
    ) -> None:
        if tokenizer_json is None:
            import transformers

            folder, kind = self.shipped
            beside = os.path.dirname(os.path.realpath(inspect.getfile(comfy.text_encoders.t5)))
            path, reader = os.path.join(beside, folder), getattr(transformers, kind)
        else:
            path, reader = tokenizer_json, self.stored
        super().__init__(
            embedding_directory,
            tokenizer_data,
            tokenizer_path=path,
            tokenizer_class=reader,
            has_start_token=False,
            pad_to_max_length=False,
            max_length=_WHOLE,
            min_length=1,
            **fixed,
        )
        self.tokenizer.model_max_length = _WHOLE


class MaskedEncoder(sd1_clip.SDClipModel):
    """A text encoder with its mask, which ComfyUI computes in float32 whatever its weights are stored in.

    ``shape``: its configuration in the names of ComfyUI's class; ``special``: the numbers of its tokens.
    """

    def __init__(
        self,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        model_options: dict[str, Any] | None = None,
        *,
        shape: dict[str, Any],
        special: dict[str, int],
        **fixed: Any,
    ) -> None:
        super().__init__(
            device=cast(Any, device),  # the host takes both, its default says text
            dtype=dtype,
            textmodel_json_config=dict(shape),
            special_tokens=dict(special),
            return_attention_masks=True,
            model_options=model_options or {},
            **fixed,
        )

    def encode_token_weights(self, token_weight_pairs: list[list]) -> Encoded:
        """Features, what ComfyUI has as pooled output, the mask and the length of the prompt."""
        features, pooled, extra = cast(Encoded, super().encode_token_weights(token_weight_pairs))
        return features, pooled, {**extra, **length_of(token_weight_pairs)}


def check_vocabulary(checkpoint: Checkpoint, name: str, tokens: int) -> None:
    """``ValueError`` for an encoder without a vocabulary that is smaller than ComfyUI's of its kind."""
    if checkpoint.tokenizer_json is None and checkpoint.config.vocab_size < tokens:
        raise ValueError(
            f"text_encoder_name: {checkpoint.source} has {checkpoint.config.vocab_size} tokens and no "
            f"vocabulary of its own; ComfyUI's {name} tokenizer has {tokens}. Use a file that holds its "
            "vocabulary, as scripts/convert_checkpoint.py writes it"
        )
