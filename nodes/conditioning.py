"""ComfyUI conditioning to the text features the core takes."""

import logging
from typing import Any

from torch import Tensor

from ..stagevar_core.conditioning import TextConditioning
from ..stagevar_core.models.infinity import InfinityConfig

_LOG = logging.getLogger(__name__)


def text_conditioning(
    config: InfinityConfig, positive: list, negative: list | None, batch: int
) -> TextConditioning:
    """The features of ``batch`` images; without ``negative`` the model's own null text takes its place."""
    features = _prompts("positive", positive, config, batch)
    if negative is None:
        return TextConditioning(features)
    return TextConditioning(features, _prompts("negative", negative, config, batch))


def _prompts(field: str, conditioning: list, config: InfinityConfig, batch: int) -> tuple[Tensor, ...]:
    """One (tokens, width) tensor per image: the prompts in turn, as ComfyUI fills batches."""
    if not conditioning:
        raise ValueError(f"{field}: the conditioning is empty; connect a CLIP Text Encode node")
    if len(conditioning) > 1:
        _LOG.warning(
            "StageVAR: %s holds %d conditionings; the first one is used, combined or scheduled ones are not",
            field,
            len(conditioning),
        )
    features, extra = conditioning[0][:2]
    _check_width(field, features, config)
    texts = [_trim(field, row, config.null_rows) for row in _without_padding(features, extra)]
    if len(texts) > batch:
        _LOG.warning(
            "StageVAR: %s holds %d prompts for %d images; the rest is ignored", field, len(texts), batch
        )
    return tuple(texts[index % len(texts)] for index in range(batch))


def _check_width(field: str, features: Any, config: InfinityConfig) -> None:
    shape = tuple(getattr(features, "shape", ()))
    if len(shape) == 3 and shape[0] and shape[1] and shape[2] == config.text_width:
        return
    raise ValueError(
        f"{field}: found text features of shape {shape}; this model expects (prompts, tokens, "
        f"{config.text_width}). Encode the prompt with the text encoder the model was trained with: "
        + ("Flan-T5-XL" if config.text_width == 2048 else "the built-in one")
        + ", through Load StageVAR Text Encoder"
    )


def _without_padding(features: Tensor, extra: dict) -> list[Tensor]:
    mask = extra.get("attention_mask")
    if mask is None or tuple(mask.shape) != tuple(features.shape[:2]):
        return list(features)
    kept = mask.to(features.device).bool()
    # A mask without a single token (a zeroed conditioning) would leave nothing to attend to.
    return [row[keep] if keep.any() else row[:1] for row, keep in zip(features, kept, strict=True)]


def _trim(field: str, text: Tensor, limit: int) -> Tensor:
    if len(text) <= limit:
        return text
    _LOG.warning(
        "StageVAR: the %s prompt has %d tokens; this model reads %d, the rest is ignored",
        field,
        len(text),
        limit,
    )
    return text[:limit]
