"""CLIP-L and CLIP-bigG for one core CLIP: what ComfyUI's two CLIPs of SDXL are, with their last layers.

Switti was trained on what both say at the end, up to the end token of the text.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from ...stagevar_core.checkpoints.load import Checkpoint
from . import clip_sd2
from .conditioning import NULL_TEXT, Encoded
from .schema import Folders

NAMES = ("l", "g")  # of the narrower and the wider one, as core nodes call the tokens of both


def ordered(checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
    """The narrower CLIP, then the wider one; ``ValueError`` for two that are no pair."""
    for checkpoint in checkpoints:
        if checkpoint.family != "clip":
            raise ValueError(
                f"text_encoder_name and second_text_encoder_name: {checkpoint.source} is a "
                f"{checkpoint.family} text encoder; expected two CLIPs, CLIP-L and CLIP-bigG, or one text "
                "encoder alone"
            )
    first, second = sorted(checkpoints, key=lambda checkpoint: checkpoint.config.width)
    if first.config.width == second.config.width:
        raise ValueError(
            f"text_encoder_name and second_text_encoder_name: {first.source} and {second.source} have "
            f"{first.config.width} channels each; expected two different CLIPs, CLIP-L with 768 and "
            "CLIP-bigG with 1280"
        )
    return [first, second]


class PairEncoder(torch.nn.Module):
    """Both encoders; their features lie side by side."""

    def __init__(
        self,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        model_options: dict[str, Any] | None = None,
        *,
        encoders: Sequence[Any],
    ) -> None:
        super().__init__()
        for name, encoder in zip(NAMES, encoders, strict=True):
            options = {**(model_options or {}), "model_name": f"clip_{name}"}
            setattr(self, f"clip_{name}", encoder(device=device, dtype=dtype, model_options=options))
        self.dtypes = set() if dtype is None else {dtype}

    @property
    def parts(self) -> list[clip_sd2.CLIPEncoder]:
        """The narrower and the wider one."""
        return [cast(clip_sd2.CLIPEncoder, getattr(self, f"clip_{name}")) for name in NAMES]

    def set_clip_options(self, options: dict[str, Any]) -> None:
        """Of both, as core nodes choose them."""
        for part in self.parts:
            part.set_clip_options(options)

    def reset_clip_options(self) -> None:
        """Of both."""
        for part in self.parts:
            part.reset_clip_options()

    def encode_token_weights(self, token_weight_pairs: dict[str, list[list]]) -> Encoded:
        """Features of both, the pooled output of the wider one, and what the models need beside them."""
        encoded = [
            part.encode_token_weights(token_weight_pairs[name])
            for name, part in zip(NAMES, self.parts, strict=True)
        ]
        features, _, extra = encoded[0]
        others, pooled, more = encoded[1]
        null = torch.cat((extra[NULL_TEXT], more[NULL_TEXT].to(extra[NULL_TEXT].device)), dim=-1)
        both = torch.cat((features, others.to(features.device)), dim=-1)
        return both, pooled, {**extra, **more, NULL_TEXT: null}

    def load_sd(self, sd: dict[str, Tensor]) -> Any:
        """Into the one of the width that they have."""
        width = sd["text_model.final_layer_norm.weight"].shape[0]
        for part in self.parts:
            if part.transformer.text_projection.weight.shape[0] == width:
                return part.load_sd(sd)
        raise ValueError(f"these weights have {width} channels, which neither of the two CLIPs has")


class PairTokenizer:
    """The tokens of both, which are the same, and different where a prompt names embeddings."""

    def __init__(
        self,
        embedding_directory: Folders = None,
        tokenizer_data: dict[str, Any] | None = None,
        *,
        tokenizers: Sequence[Any],
    ) -> None:
        given = {"embedding_directory": embedding_directory, "tokenizer_data": tokenizer_data or {}}
        self.parts = {name: make(**given) for name, make in zip(NAMES, tokenizers, strict=True)}

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **kwargs: Any) -> dict:
        """One list of (token, weight) for each."""
        return {
            name: part.tokenize_with_weights(text, return_word_ids, **kwargs)
            for name, part in self.parts.items()
        }

    def untokenize(self, token_weight_pair: list) -> list:
        """Tokens to pieces of text."""
        return self.parts[NAMES[1]].untokenize(token_weight_pair)

    def state_dict(self) -> dict[str, Tensor]:
        """What CLIPSave writes beside the weights: a header for each."""
        return {key: value for part in self.parts.values() for key, value in part.state_dict().items()}
