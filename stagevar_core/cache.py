"""The KV cache of one run: preallocated, written by position, narrowed in place of a second forward."""

import torch
from torch import Tensor

from .schedule import Scale


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
        self._segments: list[list[Scale | None]] = [[] for _ in range(layers)]
        self._keys = [self._empty(0) for _ in range(layers)]
        self._values = [self._empty(0) for _ in range(layers)]
        self._shared = [self._empty(0), self._empty(0)]

    def length(self, layer: int) -> int:
        """Tokens stored for ``layer``."""
        return self._lengths[layer]

    @property
    def bytes(self) -> int:
        """Memory held by the cache."""
        return sum(t.numel() * t.element_size() for t in (*self._keys, *self._values, *self._shared))

    def reserve(self, capacity: int) -> None:
        """Make room for ``capacity`` tokens per layer at once, so that appending copies nothing."""
        for layer in range(len(self._lengths)):
            if self._keys[layer].shape[2] < capacity:
                self._resize(layer, capacity)

    def append(
        self, layer: int, k: Tensor, v: Tensor, scale: Scale | None = None, *, keep: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Store (rows, heads, L, head_dim) and return all keys and values of the layer so far.

        ``scale``: the scale whose tokens these are, all of them in raster order; None for a part of one.
        ``keep``: False stores nothing: what is returned holds until the next call, in memory that all layers
        share.
        """
        start = self._lengths[layer]
        stop = start + k.shape[2]
        if not keep:
            return self._joined(layer, k, v)
        if stop > self._keys[layer].shape[2]:
            self._resize(layer, stop)
        keys, values = self._keys[layer], self._values[layer]
        keys[:, :, start:stop] = k
        values[:, :, start:stop] = v
        self._lengths[layer] = stop
        self._segments[layer].append(scale)
        return keys[:, :, :stop], values[:, :, :stop]

    def segments(self, layer: int) -> list[Scale] | None:
        """The scales that make up the layer's tokens, in order; None when one of them is incomplete."""
        known = self._segments[layer]
        return None if None in known else list(known)

    def compress(self, layer: int, q: Tensor, budget: int) -> None:
        """Keep the ``budget`` most wanted tokens of a layer, per row and head.

        Wanted is what 16 evenly spread queries of ``q`` (rows, heads, L, head_dim) score highest in sum, as
        in ScaleKV (arXiv 2505.19602); the first tokens, a tenth of the budget, always stay. The capacity does
        not change: what comes next takes the place of what goes.
        """
        length = self._lengths[layer]
        if length <= budget:
            return
        queries = min(16, q.shape[2])
        last = max(queries - 1, 1)
        observers = torch.arange(queries, device=q.device) * (q.shape[2] - 1) // last
        scores = (q[:, :, observers].float() @ self._keys[layer][:, :, :length].float().mT).sum(dim=2)
        scores[..., : budget // 10] = torch.inf
        kept = scores.topk(budget, dim=-1).indices.sort(dim=-1).values.unsqueeze(-1)
        for store in (self._keys, self._values):
            tensor = store[layer]
            tensor[:, :, :budget] = tensor.gather(2, kept.expand(-1, -1, -1, tensor.shape[-1]))
        self._lengths[layer] = budget
        self._segments[layer] = [None]

    def narrow(self, rows: slice, more: int = 0) -> None:
        """Keep only these rows, with room for ``more`` tokens, and free the others at once.

        It goes layer by layer, so that the peak stays low.
        """
        self.rows = len(range(*rows.indices(self.rows)))
        for layer, length in enumerate(self._lengths):
            for store in (self._keys, self._values):
                kept = self._empty(length + more)
                kept[:, :, :length] = store[layer][rows, :, :length]
                store[layer] = kept

    def _joined(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The stored tokens of a layer and these, in the memory that all layers share."""
        start, stop = self._lengths[layer], self._lengths[layer] + k.shape[2]
        if self._shared[0].shape[0] != self.rows or self._shared[0].shape[2] < stop:
            self._shared = [self._empty(stop), self._empty(stop)]
        for shared, stored, new in zip(self._shared, (self._keys, self._values), (k, v), strict=True):
            shared[:, :, :start] = stored[layer][:, :, :start]
            shared[:, :, start:stop] = new
        keys, values = self._shared
        return keys[:, :, :stop], values[:, :, :stop]

    def _empty(self, capacity: int) -> Tensor:
        heads, head_dim = self._shape
        return torch.empty(self.rows, heads, capacity, head_dim, **self._factory)

    def _resize(self, layer: int, capacity: int) -> None:
        length = self._lengths[layer]
        for store in (self._keys, self._values):
            grown = self._empty(capacity)
            grown[:, :, :length] = store[layer][:, :, :length]
            store[layer] = grown
