"""What comes with a transformer and signs, too: image tokenizer and text encoder (see ``contract.py``)."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ..autoencoders.costs import Decoder
from .contract import Quantizer, Transformer


class TokenizerConfig(Decoder, Protocol):
    """Sizes of an image tokenizer. ``stride``: image pixels per latent pixel and side."""

    @property
    def stride(self) -> int: ...

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values for JSON."""
        ...


class Tokenizer(Protocol):
    """An image tokenizer, an ``nn.Module``: pictures to features, accumulated codes to pictures."""

    @property
    def family(self) -> str: ...
    @property
    def config(self) -> TokenizerConfig: ...
    @property
    def decoding(self) -> tuple[nn.Module, ...]:
        """What :meth:`decode` runs; it may have another dtype than the rest."""
        ...

    def quantizer(self, patch: int = 1) -> Quantizer:
        """For tokens of ``patch`` x ``patch`` latent pixels; ``ValueError`` for patches it does not have."""
        ...

    def encode(self, image: Tensor) -> Tensor:
        """Image (B, 3, height, width) in [-1, 1] to features (B, C, height / stride, width / stride)."""
        ...

    def decode(self, f_hat: Tensor) -> Tensor:
        """Accumulated codes (B, C, h, w) to an image (B, 3, h * stride, w * stride) in [-1, 1]."""
        ...

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """As every module has them."""
        ...


class TextEncoder(Protocol):
    """A frozen text encoder with its vocabulary."""

    @property
    def family(self) -> str: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def model(self) -> nn.Module:
        """The network, whose weights tell one encoder from another."""
        ...

    @property
    def width(self) -> int:
        """Channels of the features."""
        ...

    def encode(self, prompts: Sequence[str], max_tokens: int = ...) -> tuple[Tensor, ...]:
        """One (tokens, width) tensor in float32 per prompt, without padding."""
        ...


@runtime_checkable
class PaddingEncoder(Protocol):
    """A text encoder whose features have padding at their end, which its transformers read as well."""

    def padding(self, prompts: Sequence[str], max_tokens: int = ...) -> tuple[int, ...]:
        """How many tokens at the end of every prompt's features are padding."""
        ...


# What families of text encoders are made of, where that is more than one.
MADE_OF = {"clip pair": ", CLIP-L's and CLIP-bigG's side by side; give both"}


def check_text(transformer: Transformer, text_encoder: TextEncoder | None) -> None:
    """Raise ``ValueError`` when a text encoder is missing, too many or another one's."""
    wanted = transformer.config.text_width
    if not wanted:
        if text_encoder is not None:
            raise ValueError("this transformer takes class labels, but a text encoder is given; leave it out")
        return
    if text_encoder is None or text_encoder.width != wanted:
        found = "no" if text_encoder is None else text_encoder.width
        raise ValueError(
            f"the text encoder gives {found} channels; this transformer was trained on {wanted}"
            f"{MADE_OF.get(transformer.text_family or '', '')}. Load the text encoder that belongs to it"
        )
    if text_encoder.family != transformer.text_family:
        raise ValueError(
            f"the text encoder is a {text_encoder.family}; this transformer was trained on a "
            f"{transformer.text_family}. Load the text encoder that belongs to it"
        )
