"""What the text encoders have in common, as bases; what is done with prompts is each one's own."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from .vocabulary import parse_vocabulary

_Config = TypeVar("_Config", bound="EncoderConfig")


@dataclass(frozen=True)
class EncoderConfig(ABC):
    """Shape of a text encoder, in the names of its ``config.json``."""

    vocab_size: int

    @property
    @abstractmethod
    def width(self) -> int:
        """Channels of the features."""

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls: type[_Config], values: Mapping[str, Any]) -> _Config:
        """From a ``config.json`` or our metadata; entries that do not shape the encoder are ignored."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})


def default_text_dtype(device: torch.device | str) -> torch.dtype:
    """bfloat16 on a GPU, float32 on the CPU; float16 overflows in the larger T5 encoders."""
    return torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16


class FrozenEncoder(ABC, Generic[_Config]):
    """A frozen text encoder with its vocabulary: prompts to one (tokens, width) float32 tensor each.

    ``tensors`` carry the names of the Hugging Face files, ``tokenizer_json`` is the format of the
    ``tokenizers`` library. Raises ``ValueError`` for missing, unknown or misshapen tensors, and what
    ``lacks`` says for a vocabulary without the tokens ``names``. ``special``: the numbers of these tokens.
    """

    names: ClassVar[tuple[str, ...]]
    lacks: ClassVar[str]

    def __init__(
        self,
        config: _Config,
        tensors: Mapping[str, Tensor],
        tokenizer_json: str,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.config = config
        self.device = torch.device(device)
        self.dtype = dtype or self.usual_dtype()
        self.model = self.build(tensors)
        self._tokenizer = parse_vocabulary(tokenizer_json, config.vocab_size)
        found = [self._tokenizer.token_to_id(name) for name in self.names]
        self.special = [number for number in found if number is not None]
        if len(self.special) < len(found):
            raise ValueError(f"the text encoder's vocabulary {self.lacks}")

    def usual_dtype(self) -> torch.dtype:
        """Of the weights where none is asked for."""
        return default_text_dtype(self.device)

    @abstractmethod
    def build(self, tensors: Mapping[str, Tensor]) -> nn.Module:
        """The network around ``tensors``; nothing is initialised, so nothing is held twice."""

    @property
    def width(self) -> int:
        """Channels of the features."""
        return self.config.width
