"""Prompts to features with the language model that HART was trained on, a Qwen2 of 1.5 B parameters.

As in hart/utils of mit-han-lab/hart: a fixed text that asks for a better prompt comes before the prompt,
which is padded to a fixed length. The features behind that text are what is kept, those of the padding among
them, since the transformer reads these as well.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .t5 import default_text_dtype
from .vocabulary import (
    first_vocabulary,
    known_entries,
    parse_vocabulary,
    strict_weights,
    warn_of_cut,
    without_surrogates,
)

MAX_TOKENS = 300  # of a prompt, padding among them
PAD_TOKEN = "<|endoftext|>"
_SYSTEM = Path(__file__).parents[1] / "data" / "hart_system_prompt.json"
_STEM = "model."


def system_prompt() -> str:
    """What comes before every prompt; the transformer was trained on features behind this very text."""
    return json.loads(_SYSTEM.read_text(encoding="utf-8"))["text"]


@dataclass(frozen=True)
class QwenConfig:
    """Shape of a Qwen2 language model, in the names of its ``config.json``; the defaults are HART's."""

    vocab_size: int = 151936
    hidden_size: int = 1536
    intermediate_size: int = 8960
    num_hidden_layers: int = 28
    num_attention_heads: int = 12
    num_key_value_heads: int = 2
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1000000.0

    @property
    def width(self) -> int:
        """Channels of the features."""
        return self.hidden_size

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "QwenConfig":
        """From a ``config.json`` or our metadata; entries that do not shape the model are ignored."""
        return cls(**known_entries(cls, values))


def read_tokenizer(path: Path) -> str:
    """The ``tokenizers`` JSON beside the model file or in the directory ``path``; ``ValueError`` without."""
    folder = path if path.is_dir() else path.parent
    found = first_vocabulary((folder, folder / "tokenizer"), ("tokenizer.json",), lambda place: "")
    if found is None:
        raise ValueError(
            f"{path}: this text encoder has no vocabulary; expected tokenizer.json in {folder}. Copy it "
            "there from the encoder's repository (for HART: mit-han-lab/Qwen2-VL-1.5B-Instruct)"
        )
    return found


class QwenTextEncoder:
    """A frozen Qwen2 with its vocabulary: prompts to one (tokens, width) float32 tensor each, all as long.

    ``tensors`` carry the names of the Hugging Face files, ``tokenizer_json`` is the format of the
    ``tokenizers`` library. Raises ``ValueError`` for missing, unknown or misshapen tensors.
    """

    family = "qwen2"

    def __init__(
        self,
        config: QwenConfig,
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
        self._pad = self._tokenizer.token_to_id(PAD_TOKEN)
        if self._pad is None:
            raise ValueError(f"the text encoder's vocabulary lacks {PAD_TOKEN}; expected one of Qwen2")
        self._before = self._tokenizer.encode(system_prompt()).ids[:MAX_TOKENS]

    @property
    def width(self) -> int:
        """Channels of the features."""
        return self.config.width

    def tokenize(self, prompt: str, max_tokens: int = MAX_TOKENS) -> list[int]:
        """Token ids without padding; what is too long is cut with a warning."""
        ids = self._tokenizer.encode(without_surrogates(prompt)).ids
        if len(ids) > max_tokens:
            warn_of_cut(len(ids), max_tokens)
        return ids[:max_tokens]

    def padding(self, prompts: Sequence[str], max_tokens: int = MAX_TOKENS) -> tuple[int, ...]:
        """How many tokens at the end of every prompt's features are padding."""
        counts = (len(self._tokenizer.encode(without_surrogates(prompt)).ids) for prompt in prompts)
        return tuple(max(0, max_tokens - count) for count in counts)

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str], max_tokens: int = MAX_TOKENS) -> tuple[Tensor, ...]:
        """Features of each prompt, (max_tokens, width) in float32 on the encoder's device."""
        known: dict[str, Tensor] = {}
        for prompt in dict.fromkeys(prompts):
            ids = self.tokenize(prompt, max_tokens)
            missing = max_tokens - len(ids)
            tokens = torch.tensor([[*self._before, *ids, *[self._pad] * missing]], device=self.device)
            mask = torch.ones_like(tokens)
            mask[:, tokens.shape[1] - missing :] = 0
            states = self.model(input_ids=tokens, attention_mask=mask).last_hidden_state
            known[prompt] = states[0, len(self._before) :].float()
        return tuple(known[prompt] for prompt in prompts)


def _build(
    config: QwenConfig, tensors: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device
) -> nn.Module:
    """The ``transformers`` model around ``tensors``; nothing is initialised, so nothing is held twice."""
    from transformers import Qwen2Config, Qwen2Model

    shape = Qwen2Config(**config.to_dict(), use_cache=False)
    with torch.device("meta"):
        model = Qwen2Model(shape)
    given = {name.removeprefix(_STEM): tensor for name, tensor in tensors.items()}
    weights = strict_weights(model.state_dict(), given, "Qwen2", dtype=dtype, device=device)
    model.load_state_dict(weights, strict=True, assign=True)
    # What it works out from its configuration is no weight, and was without storage until here.
    model.rotary_emb = type(model.rotary_emb)(shape, device=device)
    return model.eval().requires_grad_(False)
