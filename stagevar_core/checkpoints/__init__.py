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
from .save import save
from .tasks import check_task, with_task

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "Header",
    "Loaded",
    "RawCheckpoint",
    "build",
    "check_pairing",
    "check_task",
    "load_text_encoder",
    "load_tokenizer",
    "load_transformer",
    "prepare",
    "read",
    "save",
    "state_dict",
    "with_task",
]
