"""Logging and checkpoints that all phases share."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from stagevar_core.files import replaced

Model = TypeVar("Model", bound=nn.Module)


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


def finished(path: Path, phase: str = "") -> dict:
    """The stored state of a phase, by default of the file's name; ``FileNotFoundError`` without one."""
    state = load_checkpoint(path)
    if state is None:
        raise FileNotFoundError(f"{path} is missing; run --phase {phase or path.stem} first")
    return state


def averaged(path: Path, model: Model, phase: str = "") -> Model:
    """``model`` with the averaged weights of a finished phase, frozen."""
    model.load_state_dict(finished(path, phase)["ema"])
    return model.eval().requires_grad_(False)


def resume(path: Path, **parts: Any) -> int:
    """Load what is stored into the parts that have its names; the step to go on from, 0 where nothing is."""
    state = load_checkpoint(path)
    if state is None:
        return 0
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return state["step"]


def start_linears(model: nn.Module) -> None:
    """Weights of all linear layers that keep the scale of what they read, and no biases."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            nn.init.zeros_(module.bias)
