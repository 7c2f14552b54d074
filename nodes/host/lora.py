"""LoRA files on a VAR_MODEL: in the host's folder, read by the core, added by the host's patcher."""

from pathlib import Path
from typing import Any

import comfy.lora
import torch
from comfy.weight_adapter import LoRAAdapter
from torch import Tensor

from ...stagevar_core.checkpoints.errors import CheckpointError
from ...stagevar_core.checkpoints.lora_files import lora_parts, read_lora
from ...stagevar_core.checkpoints.lora_layers import Lora, LowRank
from .attached import Patcher
from .files import Part, resolve
from .fingerprint import fingerprint

RED = "embedded/StageVAR-scenes all in red (built in)"
LORA = Part(
    "lora",
    "lora_name",
    "loras",
    {RED: "lora_red.safetensors"},
    "a LoRA of an Infinity, VAR or STAR transformer",
    "whoever trained it",
)


class _DoRA(LoRAAdapter):
    """The host's adapter, with lengths of the changed weight's rows, as PEFT trains them.

    The host's own takes the lengths of the unchanged weight's, which gives another model.
    """

    layer: LowRank

    def calculate_weight(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, weight: Tensor, key: str, strength: float, *_: Any, **__: Any
    ) -> Tensor:
        """The changed weight, (out, in) in the dtype of ``weight``."""
        return self.layer.changed(weight.float(), strength).to(weight.dtype)


def read(name: object, model: Patcher) -> Lora:
    """The LoRA behind a choice, for this model; raises ``ValueError`` for a file that is none for it."""
    path = resolve(LORA, name)
    try:
        return read_lora(path, model.model.checkpoint, str(name))
    except CheckpointError as error:
        raise ValueError(f"{LORA.field}: {error}") from error


def version(name: object) -> str:
    """Changes with what the file holds, and with PEFT's configuration beside it; empty without a file."""
    try:
        return fingerprint(lora_parts(Path(resolve(LORA, name))))
    except (ValueError, OSError):  # running it says why
        return ""


def patched(model: Patcher, lora: Lora, strength: float) -> Patcher:
    """A clone of ``model`` with the changes in its weights' patches; ``model`` is not changed.

    The host applies them when it loads the model: after those that are there, in float32, to what is stored.
    """
    clone = model.clone()
    changes = {key: _adapter(key, layer) for key, layer in lora.layers.items()}
    taken = clone.add_patches(changes, strength)
    if len(taken) != len(changes):
        raise RuntimeError(f"ComfyUI took {len(taken)} of {len(changes)} changes of {lora.source}")
    return clone


def _adapter(key: str, layer: LowRank) -> LoRAAdapter:
    """The host's form of a change."""
    named = {"x.lora_up.weight": layer.up, "x.lora_down.weight": layer.down}
    named["x.alpha"] = torch.tensor(layer.scale * layer.down.shape[0])
    if layer.magnitude is not None:
        named["x.dora_scale"] = layer.magnitude
    adapter = comfy.lora.load_lora(named, {"x": key}, log_missing=False)[key]
    if layer.magnitude is None:
        return adapter
    changed = _DoRA(adapter.loaded_keys, adapter.weights)
    changed.layer = layer
    return changed
