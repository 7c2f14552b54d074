"""Finding the weights inside what a file holds: training checkpoints nest them, some tools prefix them."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor

# Names that hold weights, the preferred ones first; averaged copies ("ema") are the last choice.
WRAPPERS = (
    "gpt_fsdp",
    "gpt_wo_ddp",
    "var_wo_ddp",
    "vae",
    "vae_local",
    "state_dict",
    "model",
    "module",
    "trainer",
    "gpt_ema_fsdp",
    "gpt_ema_for_vis",
    "ema",
)
# Stripped when every key of a group has it.
PREFIXES = (
    "module.",
    "_orig_mod.",
    "model.",
    "vae.",
    "gpt_fsdp.",
    "gpt_wo_ddp.",
    "var_wo_ddp.",
    "trainer.",
    "state_dict.",
)
_MAX_DEPTH = 4  # of nested entries; published files have two levels


class Group(NamedTuple):
    """One set of tensors of a file and the names that lead to it.

    ``settings``: what a training checkpoint says about its run, in its entry ``config``.
    """

    path: tuple[str, ...]
    tensors: dict[str, Tensor]
    settings: Mapping[str, Any] = MappingProxyType({})


def groups(
    content: Mapping[str, Any], path: tuple[str, ...] = (), settings: Mapping[str, Any] = MappingProxyType({})
) -> Iterator[Group]:
    """Sets of tensors that may be a model, the preferred ones first. Nothing is copied."""
    said = content.get("config")
    settings = said if isinstance(said, Mapping) else settings
    flat = {
        key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)
    }
    if flat:
        yield Group(path, _without_prefix(flat), settings)
    if len(path) < _MAX_DEPTH:
        for name in WRAPPERS:
            if isinstance(content.get(name), Mapping):
                yield from groups(content[name], (*path, name), settings)


def extras(content: Mapping[str, Any], path: tuple[str, ...] = ()) -> dict[str, int]:
    """Other entries that hold tensors (discriminator, optimizer state), with their number of tensors."""
    counts: dict[str, int] = {}
    for name, value in content.items():
        if not isinstance(value, Mapping):
            continue
        if name in WRAPPERS and len(path) < _MAX_DEPTH:
            counts.update(extras(value, (*path, name)))
        elif tensors := _count_tensors(value):
            counts[".".join((*path, str(name)))] = tensors
    return counts


def _count_tensors(value: Any, depth: int = 0) -> int:
    if isinstance(value, Tensor):
        return 1
    if isinstance(value, Mapping) and depth < _MAX_DEPTH:
        return sum(_count_tensors(entry, depth + 1) for entry in value.values())
    return 0


def _without_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    while True:
        prefix = next((p for p in PREFIXES if all(key.startswith(p) for key in tensors)), None)
        if prefix is None:
            return tensors
        tensors = {key[len(prefix) :]: tensor for key, tensor in tensors.items()}
