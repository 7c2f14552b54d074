"""LoRA files as people train them: PEFT with its configuration beside, cloneofsimo/lora, kohya-ss, diffusers.

They differ in what they call the two halves, in what stands before a layer's name, and in where alpha is.
Everything that a file holds is used, or the file is refused: what is silently left out looks like a bad LoRA.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..checks import shown
from .detect import spec_of
from .errors import CheckpointError, article, listed, short
from .files import read
from .load import Checkpoint
from .lora_keys import Parts, checked_alpha, is_alpha, parts_of, placed, tensors_of
from .lora_layers import Lora, LowRank, Target, targets
from .strict import check_stored

CONFIG = "adapter_config.json"  # of PEFT, beside its adapter_model file
_ADAPTER = "adapter_model"
_MAX_CONFIG = 1 << 20  # bytes


def lora_parts(path: Path) -> tuple[Path, ...]:
    """The files of a LoRA: itself, and PEFT's configuration where it belongs to it.

    ``path`` may be the folder that PEFT writes. Raises :class:`CheckpointError` where there is none.
    """
    if path.is_dir():
        inside = [path / f"{_ADAPTER}{suffix}" for suffix in (".safetensors", ".bin")]
        found = next((file for file in inside if file.is_file()), None)
        if found is None:
            raise CheckpointError(
                f"{path}: this folder has no {_ADAPTER}.safetensors; give the file of a LoRA"
            )
        path = found
    beside = path.with_name(CONFIG)
    return (path, beside) if path.stem == _ADAPTER and beside.is_file() else (path,)


def read_lora(path: str | Path, checkpoint: Checkpoint, name: str | None = None) -> Lora:
    """The LoRA in a file, for the model of ``checkpoint``, whose tensors are not looked at.

    ``name``: what messages call it. Raises :class:`CheckpointError` for a file that is none, for one of
    another model or size, and for one of which a part would be left out.
    """
    files = lora_parts(Path(path))
    source, spec = name or str(path), spec_of(checkpoint.kind, checkpoint.family)
    wanted = article(spec.title)
    if not spec.linears:
        raise CheckpointError(
            f"{source}: a LoRA for {wanted} is not read here; expected one of a transformer"
        )
    tensors = tensors_of(read(files[0]).tensors, source)
    settings = _settings(files[1], source) if len(files) > 1 else {}
    check_stored({key: tensor for key, tensor in tensors.items() if not is_alpha(key)}, source)
    parts = parts_of(tensors, source, wanted)
    found = placed(parts, targets(checkpoint, parts, source), source, wanted)
    factors, notes = _factors(parts, settings, source)
    layers = {
        target.key: _low_rank(parts[layer], factors[layer], target, f"{source}: {short(layer)}")
        for layer, target in found.items()
    }
    return Lora(source, layers, (*notes, *_idle(layers)))


def _settings(path: Path, source: str) -> dict[str, Any]:
    """PEFT's configuration; ``CheckpointError`` for one that cannot be followed."""
    place = f"{source}: {path.name} beside it"
    try:
        if path.stat().st_size > _MAX_CONFIG:
            raise ValueError(f"more than {_MAX_CONFIG:,} bytes")
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{place} cannot be read ({short(error, 120)}); copy both files again"
        ) from None
    if isinstance(values, dict) and isinstance(values.get("default"), dict):  # by adapter, of some scripts
        values = values["default"]
    if not isinstance(values, dict):
        raise CheckpointError(f"{place} is no JSON object; copy both files again")
    for entry, expected in (("peft_type", "LORA"), ("fan_in_fan_out", False), ("use_rslora", None)):
        value = values.get(entry, expected)
        if expected is None and not isinstance(value, bool | None):
            raise CheckpointError(f"{place} says {entry} {shown(value)}; expected true or false")
        if expected is not None and value != expected:
            raise CheckpointError(
                f"{place} says {entry} {shown(value)}; expected {shown(expected)}, which alone is read here"
            )
    return values


def _factors(
    parts: Mapping[str, Parts], settings: Mapping[str, Any], source: str
) -> tuple[dict[str, float], list[str]]:
    """The factor of every layer, alpha by rank, and what was assumed."""
    place = f"{source}: {CONFIG} beside it has"
    common = checked_alpha(settings.get("lora_alpha"), f"{place} lora_alpha, which") if settings else None
    patterns = _patterns(settings.get("alpha_pattern"), f"{place} alpha_pattern, which")
    factors: dict[str, float] = {}
    untold, unused = False, set(patterns)
    for layer, part in parts.items():
        fitting = [name for name in patterns if layer == name or layer.endswith(f".{name}")]
        unused -= set(fitting)
        alpha = patterns[fitting[0]] if fitting else common if part.alpha is None else part.alpha
        half = part.halves.get("down")
        rank = 1 if half is None or not half.dim() else max(1, half.shape[0])
        untold |= alpha is None
        divisor = math.sqrt(rank) if settings.get("use_rslora") else rank
        factors[layer] = 1.0 if alpha is None else alpha / divisor
    if unused:
        raise CheckpointError(
            f"{place} alpha_pattern for {listed(unused, 4)}, which is none of its layers; copy both again"
        )
    note = f"alpha is taken for the rank, as nothing says it (PEFT does in {CONFIG}, beside {_ADAPTER})"
    return factors, [note] if untold else []


def _patterns(value: object, place: str) -> dict[str, float]:
    """Alpha by the end of a layer's name, of which the first counts that fits."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise CheckpointError(f"{place} is {shown(value)}; expected an object")
    plain = {str(name).removeprefix("^").removesuffix("$"): alpha for name, alpha in value.items()}
    return {name.replace("\\.", "."): checked_alpha(alpha, place) for name, alpha in plain.items()}


def _low_rank(part: Parts, scale: float, target: Target, place: str) -> LowRank:
    """The change of one layer, after comparing its halves with each other and with the weight."""
    missing = [half for half in ("up", "down") if half not in part.halves]
    if missing:
        raise CheckpointError(f"{place} lacks its {missing[0]} half; get the whole file again")
    up, down, magnitude = part.halves["up"], part.halves["down"], part.magnitude
    if up.dim() != 2 or down.dim() != 2:
        raise CheckpointError(
            f"{place} has halves of {up.dim()} and {down.dim()} dimensions, as of a convolution; expected "
            "the matrices of a linear layer, which all layers of the model are"
        )
    if up.shape[1] != down.shape[0] or not down.shape[0]:
        raise CheckpointError(
            f"{place} has halves of the ranks {up.shape[1]} and {down.shape[0]}; expected the same of both. "
            "Get the file again"
        )
    found = (up.shape[0], down.shape[1])
    if found != target.shape:
        raise CheckpointError(
            f"{place} takes {found[1]} channels to {found[0]}, the layer of the model {target.shape[1]} to "
            f"{target.shape[0]}; expected a LoRA that was trained on this size of the model"
        )
    if magnitude is not None and magnitude.numel() != found[0]:
        raise CheckpointError(
            f"{place} has DoRA magnitudes of the shape {list(magnitude.shape)}; expected one for each of the "
            f"{found[0]} outputs, as PEFT trains them"
        )
    stored = (up, down) if magnitude is None else (up, down, magnitude)
    if not all(tensor.float().isfinite().all() for tensor in stored):
        raise CheckpointError(
            f"{place} holds NaN or infinity; expected finite numbers. Take an earlier one of the training"
        )
    return LowRank(up, down, scale, None if magnitude is None else magnitude.reshape(-1, 1))


def _idle(layers: Mapping[str, LowRank]) -> list[str]:
    """Says of how many layers a half is zero.

    PEFT does not reach the layers whose weight the official code takes itself: mat_qkv and mat_kv.
    """
    idle = sum(
        layer.magnitude is None and not (layer.up.any() and layer.down.any()) for layer in layers.values()
    )
    return [f"{idle} of them change nothing: they were not trained, a half is zero"] if idle else []
