"""Prompts to features with the text encoder of Stable Diffusion 2.1, which STAR was trained on.

The OpenCLIP ViT-H/14 text tower without its last layer, in the layout of the Hugging Face files. Inside
ComfyUI its own CLIP loading computes the same features; its pooled output is that of another layer, so the
transformer takes the pooled text from the features, see ``models/star.py``.
"""

import json
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

MAX_TOKENS = 77  # with the start and end tokens
START_TOKEN, END_TOKEN = "<|startoftext|>", "<|endoftext|>"
TOKENIZER_FILES = ("tokenizer.json", "vocab.json and merges.txt")
_STEM = "text_model."
_END_OF_WORD = "</w>"
# How CLIP cuts a text into words before the byte pairs: contractions, letters, single digits, the rest.
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@dataclass(frozen=True)
class CLIPEncoderConfig(EncoderConfig):
    """Shape of a CLIP text encoder, in the names of its ``config.json``; the defaults are SD 2.1's."""

    vocab_size: int = 49408
    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 23
    num_attention_heads: int = 16
    max_position_embeddings: int = 77
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5

    @property
    def width(self) -> int:
        """Channels of the features."""
        return self.hidden_size


def read_tokenizer(path: Path) -> str:
    """The ``tokenizers`` JSON that belongs to the encoder file or directory ``path``.

    Looked for beside the file, in ``tokenizer/`` there, and in ``tokenizer/`` beside its folder, as in the
    diffusers layout. Raises ``ValueError`` when the vocabulary is in none of them or cannot be read.
    """
    folder = path if path.is_dir() else path.parent
    folders = (folder, folder / "tokenizer", folder.parent / "tokenizer")
    found = first_vocabulary(folders, ("vocab.json", "merges.txt"), _from_byte_pairs)
    if found is None:
        raise ValueError(
            f"{path}: this text encoder has no vocabulary; expected {' or '.join(TOKENIZER_FILES)} in "
            f"{folder} or in a folder `tokenizer` beside it. Copy the tokenizer folder there from the "
            "encoder's repository (for STAR: taocrayon/STAR, folder CLIP)"
        )
    return found


def _from_byte_pairs(folder: Path) -> str:
    """``vocab.json`` and ``merges.txt`` as a ``tokenizers`` JSON that works as CLIP's own tokenizer."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    try:
        vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
        pairs = [tuple(line.split()) for line in lines if line.strip() and not line.startswith("#version")]
        model = models.BPE(
            vocabulary, pairs, unk_token=END_TOKEN, continuing_subword_prefix="",
            end_of_word_suffix=_END_OF_WORD, fuse_unk=False,
        )  # fmt: skip
    except Exception as error:  # damaged files fail in the JSON, in the pairs or inside the library
        raise ValueError(
            f"{folder}: vocab.json and merges.txt cannot be read together ({error}); expected those of CLIP. "
            "Download both again"
        ) from error
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    return tokenizer.to_str()


class CLIPTextEncoder(FrozenEncoder[CLIPEncoderConfig]):
    """A frozen CLIP text encoder with its vocabulary, see :class:`FrozenEncoder`.

    The features run from the start token to the end token; padding, which the official code masks away, is
    left out.
    """

    family = "clip"
    names = (START_TOKEN, END_TOKEN)
    lacks = f"lacks {START_TOKEN} or {END_TOKEN}; expected one of CLIP"

    def usual_dtype(self) -> torch.dtype:
        """float32, as the official code, which keeps it out of autocast."""
        return torch.float32

    def build(self, tensors: Mapping[str, Tensor]) -> nn.Module:
        """The ``transformers`` model around ``tensors``; nothing is initialised, so nothing is held twice."""
        from transformers import CLIPTextConfig, CLIPTextModel

        with torch.device("meta"):
            model = CLIPTextModel(CLIPTextConfig(**self.config.to_dict()))
        # Releases of the library differ in whether the module has the stem that the files have.
        own = {name.removeprefix(_STEM): name for name in model.state_dict()}
        expected = {name.removeprefix(_STEM): tensor for name, tensor in model.state_dict().items()}
        given = {name.removeprefix(_STEM): tensor for name, tensor in tensors.items()}
        weights = strict_weights(expected, given, "CLIP text", dtype=self.dtype, device=self.device)
        named = {own[name]: tensor for name, tensor in weights.items()}
        model.load_state_dict(named, strict=True, assign=True)
        return model.eval().requires_grad_(False)

    def tokenize(self, prompt: str, max_tokens: int = MAX_TOKENS) -> list[int]:
        """Start token, the text, end token; what is too long is cut with a warning."""
        ids = self._tokenizer.encode(without_surrogates(prompt), add_special_tokens=False).ids
        limit = min(max_tokens, self.config.max_position_embeddings)
        if len(ids) + 2 > limit:
            warn_of_cut(len(ids) + 2, limit)
        start, end = self.special
        return [start, *ids[: limit - 2], end]

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str], max_tokens: int = MAX_TOKENS) -> tuple[Tensor, ...]:
        """Features of each prompt, (tokens, width) in float32 on the encoder's device, without padding."""
        tokenize = partial(self.tokenize, max_tokens=max_tokens)
        return encode_by_length(prompts, tokenize, self._features, self.device)

    def _features(self, ids: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1], device=self.device)[None]
        return self.model(input_ids=ids, position_ids=places).last_hidden_state
