"""The KV cache of one run: preallocated, written by position, narrowed in place of a second forward."""

import torch
from torch import Tensor


class KVCache:
    """Keys and values of every layer, (rows, heads, capacity, head_dim), with a length per layer.

    It belongs to one ``generate()`` call and is dropped with it. Lengths differ between layers once a policy
    appends fewer tokens in some of them.
    """

    def __init__(self, layers: int, rows: int, heads: int, head_dim: int, *, dtype, device) -> None:
        self.rows = rows
        self._shape = (heads, head_dim)
        self._factory = {"dtype": dtype, "device": device}
        self._lengths = [0] * layers
        self._keys = [self._empty(0) for _ in range(layers)]
        self._values = [self._empty(0) for _ in range(layers)]

    def length(self, layer: int) -> int:
        """Tokens stored for ``layer``."""
        return self._lengths[layer]

    @property
    def bytes(self) -> int:
        """Memory held by the cache."""
        return sum(t.numel() * t.element_size() for t in (*self._keys, *self._values))

    def reserve(self, capacity: int) -> None:
        """Make room for ``capacity`` tokens per layer at once, so that appending copies nothing."""
        for layer in range(len(self._lengths)):
            if self._keys[layer].shape[2] < capacity:
                self._resize(layer, capacity)

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store (rows, heads, L, head_dim) and return all keys and values of the layer so far."""
        start = self._lengths[layer]
        stop = start + k.shape[2]
        if stop > self._keys[layer].shape[2]:
            self._resize(layer, stop)
        keys, values = self._keys[layer], self._values[layer]
        keys[:, :, start:stop] = k
        values[:, :, start:stop] = v
        self._lengths[layer] = stop
        return keys[:, :, :stop], values[:, :, :stop]

    def narrow(self, rows: slice) -> None:
        """Keep only these rows and free the others at once; layer by layer, so the peak stays low."""
        for layer, length in enumerate(self._lengths):
            for store in (self._keys, self._values):
                store[layer] = store[layer][rows, :, :length].clone()
        self.rows = len(range(*rows.indices(self.rows)))

    def _empty(self, capacity: int) -> Tensor:
        heads, head_dim = self._shape
        return torch.empty(self.rows, heads, capacity, head_dim, **self._factory)

    def _resize(self, layer: int, capacity: int) -> None:
        length = self._lengths[layer]
        for store in (self._keys, self._values):
            grown = self._empty(capacity)
            grown[:, :, :length] = store[layer][:, :, :length]
            store[layer] = grown
