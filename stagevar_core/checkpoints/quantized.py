"""Weights stored in 8 bits with scales, as ComfyUI and its users save them, and as our converter does.

A record ``<layer>.comfy_quant`` (JSON as bytes) names the format of a layer, ``<layer>.weight_scale`` holds
what its numbers are multiplied with: one scale, or one per row. Older files say it in the metadata
(``_quantization_metadata``) or, for fp8, by a tensor ``scaled_fp8`` beside scales ``<layer>.scale_weight``.
"""

import json
import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from .errors import CheckpointError, listed, short
from .strict import not_in_full

RECORD, SCALE = ".comfy_quant", ".weight_scale"
_METADATA, _OLD_MARK = "_quantization_metadata", "scaled_fp8"
_OLD_SCALE, _OLD_INPUT, _INPUT = ".scale_weight", ".scale_input", ".input_scale"
_MAX_RECORD = 4096  # bytes; real ones have 30 to 100


class Format(NamedTuple):
    """How a format stores its numbers; ``largest``: the largest that it holds."""

    dtype: torch.dtype
    largest: float


FORMATS = {
    "int8_tensorwise": Format(torch.int8, 127.0),
    "float8_e4m3fn": Format(torch.float8_e4m3fn, 448.0),
    "float8_e5m2": Format(torch.float8_e5m2, 57344.0),
}
WRITTEN = {"int8": "int8_tensorwise", "fp8": "float8_e4m3fn"}
"""What the converter writes, by the name of its option."""


def plain(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None, source: str
) -> dict[str, Tensor]:
    """``tensors`` of one model with quantized weights in bfloat16 and without what belongs to them.

    Raises :class:`CheckpointError` for formats that are not read here and for scales that cannot be.
    """
    formats, found = _formats(tensors, metadata, source), dict(tensors)
    if not formats:
        return found
    old = found.pop(_OLD_MARK, None) is not None
    for layer, name in formats.items():
        weight = found.get(f"{layer}.weight")
        scale = found.pop(layer + (_OLD_SCALE if old else SCALE), None)
        for ending in (RECORD, _INPUT, _OLD_INPUT):
            found.pop(layer + ending, None)
        if weight is None or scale is None:
            missing = "its weight" if weight is None else "the scale of its weight"
            raise _bad(source, layer, f"is quantized as {name} without {missing}", "both in the file")
        found[f"{layer}.weight"] = _restored(weight, scale, FORMATS[name], layer, source)
    return found


def layers_of(tensors: Mapping[str, Tensor]) -> list[str]:
    """The linear layers inside a transformer's blocks, by our names; modulation stays as it is."""
    return [
        key.removesuffix(".weight")
        for key, tensor in tensors.items()
        if tensor.dim() == 2 and re.fullmatch(r"blocks\.\d+\.(?!modulation\b).+\.weight", key)
    ]


def quantize(weight: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """A weight (out, in) in a format of :data:`FORMATS`, and its scale.

    int8 gets a scale per row, (out, 1) in float32, fp8 one for all, () in float32.
    """
    kind, wide = FORMATS[name], weight.detach().float()
    largest = wide.abs().amax(dim=1, keepdim=True) if kind.dtype == torch.int8 else wide.abs().amax()
    scale = (largest / kind.largest).clamp(min=torch.finfo(torch.float32).tiny)
    ratio = (wide / scale).clamp(-kind.largest, kind.largest)
    return (ratio.round() if kind.dtype == torch.int8 else ratio).to(kind.dtype), scale


def record(name: str) -> Tensor:
    """The record of a layer in a format, as ComfyUI reads it."""
    return torch.tensor(list(json.dumps({"format": name}).encode()), dtype=torch.uint8)


def _formats(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None, source: str
) -> dict[str, str]:
    """The format of every quantized layer."""
    records = [key for key in tensors if key.endswith(RECORD)]
    said = {key.removesuffix(RECORD): _read(tensors[key], key, source) for key in records}
    if not said and metadata and _METADATA in metadata:
        said = _listed(metadata[_METADATA], tensors, source)
    if not said and _OLD_MARK in tensors:
        scaled = (key.removesuffix(_OLD_SCALE) for key in tensors if key.endswith(_OLD_SCALE))
        said = {layer: {"format": _old_format(tensors.get(f"{layer}.weight"))} for layer in scaled}
    return {layer: _known(values, layer, source) for layer, values in said.items()}


def _old_format(weight: Tensor | None) -> str:
    return "float8_e5m2" if weight is not None and weight.dtype == torch.float8_e5m2 else "float8_e4m3fn"


def _read(stored: Tensor, key: str, source: str) -> object:
    """The JSON of one record."""
    if stored.dtype != torch.uint8 or stored.dim() != 1 or stored.numel() > _MAX_RECORD or stored.is_meta:
        raise _damaged(source, key, _seen(stored))
    return _parsed(bytes(stored.tolist()), key, source)


def _parsed(text: str | bytes, what: str, source: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _damaged(source, what, f"no JSON ({short(error, 80)})") from None


def _listed(text: str, tensors: Mapping[str, Tensor], source: str) -> dict[str, object]:
    """The layers of the metadata, by the names that they have behind the prefix of this model."""
    values = _parsed(text, f"metadata {_METADATA}", source)
    layers = values.get("layers") if isinstance(values, dict) else None
    if not isinstance(layers, dict):
        raise _damaged(source, f"metadata {_METADATA}", "no layers")
    by_name = {key.removesuffix(SCALE): key for key in tensors if key.endswith(SCALE)}
    found: dict[str, object] = {}
    for full, said in layers.items():
        words = str(full).split(".")
        names = (".".join(words[start:]) for start in range(min(len(words), 8)))  # prefixes are few
        if (name := next((name for name in names if name in by_name), None)) is not None:
            found[name] = said
    return found


def _known(values: object, layer: str, source: str) -> str:
    """The format of a layer; raises for one that is not read here."""
    if not isinstance(values, dict) or not isinstance(values.get("format"), str):
        raise _damaged(source, layer + RECORD, "no format")
    name, rest = values["format"], values.get("params")
    rotated = values.get("convrot", rest.get("convrot") if isinstance(rest, dict) else False)
    if name in FORMATS and not rotated:
        return name
    kind = f"{short(name)} with rotated inputs (convrot)" if rotated else short(name)
    raise CheckpointError(
        f"{source}: the layer {short(layer)} is quantized as {kind}; expected {listed(FORMATS)}. Get the "
        "model in one of them, or in bfloat16"
    )


def _damaged(source: str, what: str, found: str) -> CheckpointError:
    return CheckpointError(
        f"{source}: {short(what)} holds {found}; expected what a quantized layer is, a JSON object with its "
        "format. Get the file again"
    )


def _bad(source: str, layer: str, found: str, expected: str) -> CheckpointError:
    return CheckpointError(
        f"{source}: the layer {short(layer)} {found}; expected {expected}. Get the whole file again"
    )


def _seen(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} of {tensor.dtype}".replace("torch.", "")


def _restored(weight: Tensor, scale: Tensor, kind: Format, layer: str, source: str) -> Tensor:
    """The weight in bfloat16 after checking that both parts are of this format."""
    if found := not_in_full(weight):
        raise _bad(source, layer, f"has a weight that {found}", "all of its numbers")
    if weight.dtype == torch.uint8 and kind.dtype != torch.int8:  # as old versions stored fp8
        weight = weight.view(kind.dtype)
    if weight.dtype != kind.dtype or weight.dim() != 2:
        asked = f"a matrix of {kind.dtype}, as its record says".replace("torch.", "")
        raise _bad(source, layer, f"has a weight {_seen(weight)}", asked)
    if scale.numel() not in (1, len(weight)) or not scale.is_floating_point():
        asked = f"one float, or one for each of {len(weight)} rows"
        raise _bad(source, layer, f"has a scale {_seen(scale)}", asked)
    if weight.is_meta or scale.is_meta:
        return torch.empty(weight.shape, dtype=torch.bfloat16, device="meta")
    wide = scale.float().reshape(-1, 1)
    if not wide.isfinite().all():
        raise _bad(source, layer, "has a scale of NaN or infinity", "finite scales")
    return (weight.float() * wide).to(torch.bfloat16)
