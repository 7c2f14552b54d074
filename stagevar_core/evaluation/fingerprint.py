"""Short hashes of what a measurement depends on, so that its parts are never mixed with those of another."""

import hashlib
from pathlib import Path

from torch import Tensor, nn

_LENGTH = 16  # hexadecimal digits: 64 bits, far beyond chance for the few results that are ever compared
_SAMPLES = 64  # values of a tensor, at least: reading all of an 8B model would take long


def digest(*parts: str | bytes) -> str:
    """Of texts and bytes in their order."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part.encode() if isinstance(part, str) else part)
    return found.hexdigest()[:_LENGTH]


def weights(*models: object) -> str:
    """Of the names, shapes and dtypes of all weights, and some values of each, spread over the tensor.

    Buffers count as parameters do: packed layers keep their weights in them, outside of ``state_dict``. What
    is no ``nn.Module`` has no weights.
    """
    found = []
    for model in (model for model in models if isinstance(model, nn.Module)):
        tensors: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        found += [_sampled(name, tensors[name]) for name in sorted(tensors)]
    return digest(*found)


def code() -> str:
    """Of this package, its source and its tables, which decide what is measured."""
    core = Path(__file__).parents[1]
    files = sorted(file for kind in ("*.py", "*.json") for file in core.rglob(kind))
    named = ((file.relative_to(core).as_posix(), file.read_bytes()) for file in files)
    return digest(*(f"{name} {len(data)} ".encode() + data for name, data in named))


def _sampled(name: str, value: Tensor) -> bytes:
    """One tensor; a buffer that its module never reads may be on the meta device and has no values."""
    described = f"{name} {tuple(value.shape)} {value.dtype}".encode()
    if value.is_meta:
        return described
    flat = (value.detach().to_dense() if value.is_mkldnn else value.detach()).flatten()
    return described + flat[:: max(1, len(flat) // _SAMPLES)].float().cpu().numpy().tobytes()
