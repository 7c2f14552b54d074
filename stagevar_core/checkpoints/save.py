"""Writing our own files: one safetensors file with the header of :mod:`.header`, tensor by tensor."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..files import replaced
from . import header as headers

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
) -> int:
    """Write ``tensors`` under our names with ``header`` and return the file's size in bytes.

    One tensor is in memory at a time when the source is memory-mapped. The file appears under its name only
    once it is complete. Raises ``ValueError`` for values that ``dtype`` cannot hold.
    """
    path = Path(path)
    # Wide types first keeps every tensor aligned, as the format's own writer does.
    order = sorted(tensors, key=lambda name: (-stored_dtype(tensors[name], dtype).itemsize, name))
    table: dict[str, object] = {"__metadata__": headers.dump(header)}
    offset = 0
    for name in order:
        kind = stored_dtype(tensors[name], dtype)
        stop = offset + tensors[name].numel() * kind.itemsize
        shape = list(tensors[name].shape)
        table[name] = {"dtype": _CODES[kind], "shape": shape, "data_offsets": [offset, stop]}
        offset = stop
    raw = json.dumps(table, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with replaced(path) as partial, partial.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for name in order:
            file.write(_bytes(name, tensors[name], dtype))
    return path.stat().st_size


def _bytes(name: str, tensor: Tensor, dtype: torch.dtype | None) -> memoryview:
    target = stored_dtype(tensor, dtype)
    stored = tensor.detach().to(device="cpu", dtype=target)
    if target == torch.float16 and tensor.dtype != target and not stored.isfinite().all():
        raise ValueError(f"{name} has values beyond the range of float16; choose bfloat16 or float32 instead")
    return stored.contiguous().reshape(-1).view(torch.uint8).numpy().data
