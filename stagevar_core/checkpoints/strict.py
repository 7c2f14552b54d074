"""What tensors must be before a model is made of them: plain numbers stored in full, all of its shapes."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from .errors import CheckpointError, listed, short
from .header import ModelConfig
from .spec import FamilySpec, Shape

# What weights may be stored as; scales of quantized layers (e8m0) and packed fp4 are none by themselves.
FLOATS = frozenset(
    (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    + (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)
)
_SHARED = 4  # models that share storage among tensors, such as tied embeddings, stay far below


def check_stored(tensors: Mapping[str, Tensor], source: str) -> None:
    """Raise for tensors that are no plain floating-point numbers, or more of them than the file stores.

    Without this a few bytes could stand for any amount of memory (views with stride 0), and integers of a
    quantized model would be taken for its weights. ``tensors`` carry the file's names.
    """
    storages: dict[int, int] = {}
    total = 0
    for name, tensor in tensors.items():
        if found := _unlike_weights(tensor):
            raise CheckpointError(
                f"{source}: the tensor {short(name)} {found}; expected floating-point numbers stored in "
                "full. Get the original weights, or save the model again with plain float tensors"
            )
        if not tensor.is_meta:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            total += tensor.numel() * tensor.element_size()
    stored = sum(storages.values())
    if storages and total > _SHARED * stored:
        raise CheckpointError(
            f"{source}: its tensors stand for {total:,} bytes, of which {stored:,} are stored; expected "
            "every tensor stored in full. Save the model again from contiguous copies of its tensors"
        )


def _unlike_weights(tensor: Tensor) -> str:
    """What makes a tensor none that can be loaded, empty for a good one."""
    if not tensor.is_nested and tensor.layout is torch.strided and tensor.dtype not in FLOATS:
        return f"has the dtype {tensor.dtype}".replace("torch.", "")
    return not_in_full(tensor)


def not_in_full(tensor: Tensor) -> str:
    """What makes a tensor one that is not stored in full, empty for a good one."""
    if tensor.is_nested or tensor.layout is not torch.strided:
        return f"is {'nested' if tensor.is_nested else tensor.layout}"
    if not tensor.is_meta and _overlaps(tensor):
        needed = tensor.numel() * tensor.element_size()
        stored = tensor.untyped_storage().nbytes()
        return f"repeats its elements: {needed:,} bytes posed as, {stored:,} stored"
    return ""


def _overlaps(tensor: Tensor) -> bool:
    """Whether elements may share memory: some stride is smaller than what the dimensions before it span."""
    span = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride < span:
            return tensor.numel() > 0
        span += stride * (size - 1)
    return False


def check_shapes(
    tensors: Mapping[str, Tensor], spec: FamilySpec[Any], config: ModelConfig, source: str
) -> None:
    """Raise for missing, leftover and misshapen tensors, before anything is built."""
    try:
        expected = spec.expected(config)
    except (ValueError, ArithmeticError, RuntimeError, TypeError) as error:  # what the module itself refuses
        raise CheckpointError(
            f"{source}: its sizes make no {spec.title} ({short(error)}); expected those of a trained model. "
            "Get the file again, or convert it from the original"
        ) from error
    if wrong := "; ".join(_differences(tensors, expected)):
        raise CheckpointError(
            f"{source}: not a complete {spec.title}; {wrong}. Expected exactly the {len(expected)} tensors "
            "of the model; get the file again, or convert it from the original"
        )
    misshapen = [name for name, shape in expected.items() if tuple(tensors[name].shape) != shape]
    if misshapen:
        first = misshapen[0]
        raise CheckpointError(
            f"{source}: {len(misshapen)} tensors have another shape than the rest of the {spec.title} asks "
            f"for, first {first}: found {list(tensors[first].shape)}, expected {list(expected[first])}. "
            "Get the file again, or convert it from the original"
        )


def _differences(tensors: Mapping[str, Tensor], expected: Mapping[str, Shape]) -> Iterator[str]:
    missing, leftover = expected.keys() - tensors.keys(), tensors.keys() - expected.keys()
    for names, what in ((missing, "are missing"), (leftover, "are left over")):
        if names:
            yield f"{len(names)} tensors {what}: {listed(names)}"
