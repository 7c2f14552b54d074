"""Changes of low rank and the weights that they belong to: what a LoRA adds, and where."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import number
from .convert import routes
from .detect import spec_of
from .errors import CheckpointError
from .load import Checkpoint

_NESTED = re.compile(r"block_chunks[._](\d{1,4})[._]module[._](\d{1,4})[._]")
_EIGHT = ((32, 2048), (40, 3584))  # depth and width of Infinity 2B and 8B, whose blocks come in 8 chunks
_CHUNKS = 4  # of its other sizes


class LowRank(NamedTuple):
    """The change ``scale * up @ down`` of a weight, ``up`` (out, rank) and ``down`` (rank, in).

    ``magnitude`` (out, 1): of DoRA, the length that the rows of the changed weight then get.
    """

    up: Tensor
    down: Tensor
    scale: float
    magnitude: Tensor | None = None

    def changed(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """``weight`` (out, in) in float32 with ``strength`` times the change, on the weight's device."""
        up, down = (half.to(device=weight.device, dtype=torch.float32) for half in (self.up, self.down))
        if self.magnitude is None:
            return torch.addmm(weight, up, down, alpha=strength * self.scale)
        full = torch.addmm(weight, up, down, alpha=self.scale)
        length = self.magnitude.to(device=weight.device, dtype=torch.float32)
        full = full * (length / full.norm(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny))
        return weight + strength * (full - weight)


@dataclass(frozen=True)
class Lora:
    """A LoRA that fits a model: changes by our names of its weights, and what to say about the file."""

    source: str
    layers: dict[str, LowRank]
    notes: tuple[str, ...] = ()

    @property
    def ranks(self) -> list[int]:
        """The different ranks of its layers."""
        return sorted({layer.down.shape[0] for layer in self.layers.values()})

    def summary(self) -> str:
        """How many layers it changes, of which rank, and what else there is to say."""
        ranks = self.ranks if len(self.ranks) < 3 else [self.ranks[0], self.ranks[-1]]
        joined = (" to " if len(self.ranks) > 2 else " and ").join(map(str, ranks))
        return "; ".join((f"{len(self.layers)} layers of rank {joined}", *self.notes))


class Target(NamedTuple):
    """A weight that a LoRA may change: our name of it, and its (out, in)."""

    key: str
    shape: tuple[int, ...]


def targets(checkpoint: Checkpoint, keys: Iterable[str], source: str) -> dict[str, Target]:
    """What the layers of a model are called, with `_` for every full stop, as kohya-ss writes them.

    Names of the official code, with flat and with nested block numbers, and ours. ``keys``: of the LoRA, by
    which the nested ones are told.
    """
    spec = spec_of(checkpoint.kind, checkpoint.family)
    depth, width = checkpoint.config.depth, checkpoint.config.width
    size = _chunk(keys, depth, width, source)
    expected, found = spec.expected(checkpoint.config), {}
    names = [layer.format(index) for layer in spec.linears for index in range(depth)]
    for key, route in routes([f"{name}.weight" for name in dict.fromkeys(names)], spec.key_map).items():
        if route.target not in expected:  # of options that these weights do not have
            continue
        target = Target(route.target, expected[route.target])
        name = key.removesuffix(".weight")
        for form in (name, _nested(name, size), route.target.removesuffix(".weight")):
            found[form.replace(".", "_")] = target
    return found


def merge(
    checkpoint: Checkpoint, loras: Sequence[tuple[Lora, float]], dtype: torch.dtype | None = None
) -> None:
    """Put LoRAs of these strengths into the weights of ``checkpoint``; those of strength 0 change nothing.

    Sums are made in float32. ``dtype``: what the weights are for; sums stay in it, or in a wider one that the
    weights have. None: they stay in that of the weights. ``ValueError`` for a strength that is no number.
    """
    for lora, strength in loras:
        number(f"the strength of {lora.source}", strength)
    for key in dict.fromkeys(key for lora, strength in loras if strength for key in lora.layers):
        base = checkpoint.tensors[key]
        weight = base.float()
        for lora, strength in loras:
            if strength and key in lora.layers:
                weight = lora.layers[key].changed(weight, strength)
        checkpoint.tensors[key] = weight.to(_wider(base.dtype, dtype))


def _wider(own: torch.dtype, wanted: torch.dtype | None) -> torch.dtype:
    if wanted is None:
        return own
    return wanted if own.itemsize == 1 else torch.promote_types(own, wanted)


def _nested(name: str, size: int) -> str:
    """The name of a layer in block chunks of ``size`` blocks."""
    head, _, rest = name.partition(".")
    number, _, layer = rest.partition(".")
    if head != "blocks" or not size:
        return name
    return f"block_chunks.{int(number) // size}.module.{int(number) % size}.{layer}"


def _chunk(keys: Iterable[str], depth: int, width: int, source: str) -> int:
    """How many blocks a chunk has, 0 where no key has nested block numbers."""
    found = {(int(match[1]), int(match[2])) for key in keys if (match := _NESTED.search(key))}
    if not found:
        return 0
    chunk, block = max(c for c, _ in found), max(b for _, b in found)
    sizes = [size for size in range(block + 1, depth + 1) if depth % size == 0 and depth // size > chunk]
    published = depth // (8 if (depth, width) in _EIGHT else _CHUNKS)
    for size in (block + 1, published):
        if size in sizes and (size == published or (chunk + 1) * size == depth):
            return size
    if len(sizes) == 1:
        return sizes[0]
    raise CheckpointError(
        f"{source}: its block {chunk}.{block} is none of the model's {depth}, in chunks as they are "
        "published; expected a LoRA of this model. Choose the model that it was trained on"
    )
