"""Prompts to features with the language model that HART was trained on, a Qwen2 of 1.5 B parameters.

As in hart/utils of mit-han-lab/hart: a fixed text that asks for a better prompt comes before the prompt,
which is padded to a fixed length. The features behind that text are what is kept, those of the padding among
them, since the transformer reads these as well.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from .encoder import EncoderConfig, FrozenEncoder
from .vocabulary import (
    first_vocabulary,
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
class QwenConfig(EncoderConfig):
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


class QwenTextEncoder(FrozenEncoder[QwenConfig]):
    """A frozen Qwen2 with its vocabulary, see :class:`FrozenEncoder`; all features are as long."""

    family = "qwen2"
    names = (PAD_TOKEN,)
    lacks = f"lacks {PAD_TOKEN}; expected one of Qwen2"

    def build(self, tensors: Mapping[str, Tensor]) -> nn.Module:
        """The ``transformers`` model around ``tensors``; nothing is initialised, so nothing is held twice."""
        from transformers import Qwen2Config, Qwen2Model

        shape = Qwen2Config(**self.config.to_dict(), use_cache=False)
        with torch.device("meta"):
            model = Qwen2Model(shape)
        given = {name.removeprefix(_STEM): tensor for name, tensor in tensors.items()}
        weights = strict_weights(model.state_dict(), given, "Qwen2", dtype=self.dtype, device=self.device)
        model.load_state_dict(weights, strict=True, assign=True)
        # What it works out from its configuration is no weight, and was without storage until here.
        model.rotary_emb = type(model.rotary_emb)(shape, device=self.device)
        return model.eval().requires_grad_(False)

    @cached_property
    def before(self) -> list[int]:
        """Token ids of the fixed text."""
        return self._tokenizer.encode(system_prompt()).ids[:MAX_TOKENS]

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
        (pad,), known = self.special, dict[str, Tensor]()
        for prompt in dict.fromkeys(prompts):
            ids = self.tokenize(prompt, max_tokens)
            missing = max_tokens - len(ids)
            tokens = torch.tensor([[*self.before, *ids, *[pad] * missing]], device=self.device)
            mask = torch.ones_like(tokens)
            mask[:, tokens.shape[1] - missing :] = 0
            states = self.model(input_ids=tokens, attention_mask=mask).last_hidden_state
            known[prompt] = states[0, len(self.before) :].float()
        return tuple(known[prompt] for prompt in prompts)
