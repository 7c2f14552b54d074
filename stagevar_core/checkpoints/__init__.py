"""Checkpoint files: detection, conversion of official names, strict loading."""

from .errors import CheckpointError
from .files import RawCheckpoint, read
from .header import Header
from .load import (
    Checkpoint,
    Loaded,
    build,
    check_pairing,
    load_text_encoder,
    load_tokenizer,
    load_transformer,
    prepare,
    state_dict,
)
from .lora_files import read_lora
from .lora_layers import Lora, merge
from .restoring import as_restoring, check_restores
from .save import save

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "Header",
    "Loaded",
    "Lora",
    "RawCheckpoint",
    "as_restoring",
    "build",
    "check_pairing",
    "check_restores",
    "load_text_encoder",
    "load_tokenizer",
    "load_transformer",
    "merge",
    "prepare",
    "read",
    "read_lora",
    "save",
    "state_dict",
]
