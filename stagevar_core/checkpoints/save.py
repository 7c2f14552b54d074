"""Writing our own files: one safetensors file with the header of :mod:`.header`, tensor by tensor."""

import json
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..files import replaced
from . import header as headers
from . import quantized

# The names that the safetensors format has for them.
_CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}


def stored_dtype(tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    """Matrices and kernels take ``dtype``; vectors (norms, biases, scales) are small and stay as they are.

    Kinds of fp8 that the format has no name for become float16, which holds all their values.
    """
    if dtype is not None and tensor.is_floating_point() and tensor.dim() > 1:
        return dtype
    return tensor.dtype if tensor.dtype in _CODES else torch.float16


def save(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    header: headers.Header,
    *,
    dtype: torch.dtype | None = None,
    quantize: str | None = None,
) -> int:
    """Write ``tensors`` under our names with ``header`` and return the file's size in bytes.

    ``dtype``: of matrices and kernels, ``quantize``: a format of :data:`.quantized.FORMATS` for the layers of
    a transformer's blocks. One tensor is in memory at a time when the source is memory-mapped. The file
    appears under its name only once it is complete. Raises ``ValueError`` for values that ``dtype`` cannot
    hold, and where there are no blocks to quantize.
    """
    path = Path(path)
    entries = _entries(tensors, dtype, quantize)
    # Wide types first keeps every tensor aligned, as the format's own writer does.
    order = sorted(entries, key=lambda name: (-entries[name].dtype.itemsize, name))
    table: dict[str, object] = {"__metadata__": headers.dump(header)}
    offset = 0
    for name in order:
        shape, kind, _ = entries[name]
        stop = offset + math.prod(shape) * kind.itemsize
        table[name] = {"dtype": _CODES[kind], "shape": list(shape), "data_offsets": [offset, stop]}
        offset = stop
    raw = json.dumps(table, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with replaced(path) as unfinished, unfinished.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for name in order:
            file.write(_bytes(name, entries[name]))
    return path.stat().st_size


class _Entry(NamedTuple):
    """One tensor of the file: how it is stored, and what gives it when its turn comes."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]


def _entries(
    tensors: Mapping[str, Tensor], dtype: torch.dtype | None, quantize: str | None
) -> dict[str, _Entry]:
    """What the file holds by name."""
    found = {
        name: _Entry(tuple(tensor.shape), stored_dtype(tensor, dtype), partial(_itself, tensor))
        for name, tensor in tensors.items()
    }
    if quantize is None:
        return found
    layers = quantized.layers_of(tensors)
    if not layers:
        raise ValueError("there are no blocks of a transformer to quantize; leave that out for other models")
    kind, said = quantized.FORMATS[quantize].dtype, quantized.record(quantize)
    for layer in layers:
        weight = tensors[f"{layer}.weight"]
        rows = (len(weight), 1) if kind == torch.int8 else ()
        halves = [partial(_half, weight, quantize, half) for half in range(2)]
        found[f"{layer}.weight"] = _Entry(tuple(weight.shape), kind, halves[0])
        found[layer + quantized.SCALE] = _Entry(rows, torch.float32, halves[1])
        found[layer + quantized.RECORD] = _Entry(tuple(said.shape), said.dtype, partial(_itself, said))
    return found


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _half(weight: Tensor, quantize: str, half: int) -> Tensor:
    """A quantized weight (0) or its scale (1): made twice, so that no other weight is held meanwhile."""
    return quantized.quantize(weight, quantize)[half]


def _bytes(name: str, entry: _Entry) -> memoryview:
    tensor = entry.read().detach()
    stored = tensor.to(device="cpu", dtype=entry.dtype)
    if entry.dtype == torch.float16 and tensor.dtype != entry.dtype and not stored.isfinite().all():
        raise ValueError(f"{name} has values beyond the range of float16; choose bfloat16 or float32 instead")
    return stored.contiguous().reshape(-1).view(torch.uint8).numpy().data
