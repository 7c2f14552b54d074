"""The text encoders of a transformer from one file or two."""

from pathlib import Path

import torch

from ..conditioning.clip import CLIPTextEncoder
from ..conditioning.clip_pair import CLIPPair
from ..models.companions import TextEncoder
from .errors import CheckpointError
from .load import load_text_encoder


def load_text_encoders(
    path: str | Path, second: str | Path | None = None, *, device: torch.device | str = "cpu"
) -> TextEncoder:
    """One text encoder, or two CLIPs as one; ``CheckpointError`` for files that make no pair."""
    encoder = load_text_encoder(path, device=device)
    if second is None:
        return encoder
    pair = [encoder, load_text_encoder(second, device=device)]
    for file, other, each in zip((path, second), (second, path), pair, strict=True):
        if not isinstance(each, CLIPTextEncoder):
            raise CheckpointError(
                f"{file}: this is a {each.family} text encoder, given together with {other}; expected two "
                "CLIPs, CLIP-L and CLIP-bigG"
            )
    try:
        return CLIPPair([each for each in pair if isinstance(each, CLIPTextEncoder)])
    except ValueError as error:
        raise CheckpointError(f"{path} and {second}: {error}") from error
