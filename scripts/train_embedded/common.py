"""Logging and checkpoints that all phases share."""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch

from stagevar_core.files import replaced


class Log:
    """Appends one JSON line per report to a file and prints it."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.start = path, time.time()

    def __call__(self, **values) -> None:
        """Write one line."""
        line = {k: round(v, 4) if isinstance(v, float) else v for k, v in values.items()}
        line["wall"] = round(time.time() - self.start, 1)
        text = json.dumps(line)
        print(text, flush=True)
        with self.path.open("a") as handle:
            handle.write(text + "\n")


def save_checkpoint(path: Path, **state) -> None:
    """Write all or nothing."""
    with replaced(path) as partial:
        torch.save(state, partial)


def load_checkpoint(path: Path) -> dict | None:
    """The stored state, or None when there is none yet."""
    return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None
