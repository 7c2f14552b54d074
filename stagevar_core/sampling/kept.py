"""Keys and values of what precedes the scales, kept for the next run on the same picture and instruction.

They depend on the picture, the texts and the weights, on no seed and no policy.
"""

import hashlib
import weakref
from collections.abc import Iterator

import torch
from torch import Tensor

from ..conditioning.types import Conditioning
from ..models.contract import Transformer
from ..network.cache import CachePair, KVCache
from ..schedule import Prefix

REUSED = "the picture's keys and values are those of an earlier run"
Stored = list[tuple[Tensor, Tensor]]  # keys and values of every block, (rows, heads, tokens, head_dim)


class KeptPrefix:
    """What one call of ``generate`` leaves for the next; a call forgets what it did not use.

    ``device``: where it waits, such as the host's memory; None leaves it where it was made. It tells models
    apart, not the weights that one of them has at different times.
    """

    def __init__(self, device: torch.device | str | None = None) -> None:
        self._device = device
        self._entries: dict[tuple[object, ...], Stored] = {}
        self._used: set[tuple[object, ...]] = set()

    @property
    def bytes(self) -> int:
        """Memory that it holds."""
        tensors = (t for stored in self._entries.values() for pair in stored for t in pair)
        return sum(t.numel() * t.element_size() for t in tensors)

    def fill(self, key: tuple[object, ...], prefix: Prefix, cache: KVCache | CachePair) -> bool:
        """Put what is kept under ``key`` into an empty cache; False where nothing is."""
        self._used.add(key)
        if key not in self._entries:
            return False
        cache.fill(prefix, self._entries[key])
        return True

    def keep(self, key: tuple[object, ...], cache: KVCache | CachePair) -> None:
        """Copy what a cache holds that was just filled by the pass."""
        self._entries[key] = [
            (k.to(self._device, copy=True), v.to(self._device, copy=True)) for k, v in cache.stored()
        ]

    def forget(self) -> None:
        """Drop what was not asked for since the last time."""
        self._entries = {key: stored for key, stored in self._entries.items() if key in self._used}
        self._used.clear()


def prefix_key(
    model: Transformer, conditioning: Conditioning, prefix: Prefix, *, guided: bool
) -> tuple[object, ...]:
    """What keys and values of a prefix depend on."""
    digest = hashlib.sha256()
    for tensor in _tensors(conditioning):
        digest.update(repr((tuple(tensor.shape), tensor.dtype)).encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    negative = conditioning.negative is not None
    return *model_key(model), prefix, guided, negative, digest.hexdigest()


def model_key(model: Transformer) -> tuple[object, ...]:
    """A model as long as it lives; another one with compiled blocks, which are wrapped anew for each run."""
    return weakref.ref(getattr(model, "network", model)), type(model), model.compute_dtype


def _tensors(conditioning: Conditioning) -> Iterator[Tensor]:
    for value in vars(conditioning).values():
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple):
            yield from (each for each in value if isinstance(each, Tensor))
