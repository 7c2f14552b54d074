"""The KV cache of one run: preallocated, written by position, narrowed in place of a second forward."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..schedule import Prefix, Scale
from .tokens import resize_keys


class KVCache:
    """Keys and values of every layer, (2, rows, heads, capacity, head_dim), with a length per layer.

    It belongs to one ``generate()`` call and is dropped with it. Lengths differ between layers once a policy
    appends fewer tokens in some of them. Tokens that precede the scales come first and never go.
    """

    def __init__(self, layers: int, rows: int, heads: int, head_dim: int, *, dtype, device) -> None:
        self.rows = rows
        self._shape = (heads, head_dim)
        self._dtype, self._device = dtype, torch.device(device)
        self._elsewhere: torch.device | None = None  # where keys and values wait, see keep_on
        self._prefix: Prefix | None = None  # what precedes the scales, the first tokens of every layer
        self._lengths = [0] * layers
        self._segments: list[list[Scale | None]] = [[] for _ in range(layers)]
        self._stored = [self._empty(0) for _ in range(layers)]
        self._shared = self._empty(0)

    def length(self, layer: int) -> int:
        """Tokens stored for ``layer``."""
        return self._lengths[layer]

    @property
    def device(self) -> torch.device:
        """Where it is used."""
        return self._device

    @property
    def bytes(self) -> int:
        """Memory held by the cache."""
        return sum(t.numel() * t.element_size() for t in (*self._stored, self._shared))

    def reserve(self, capacity: int) -> None:
        """Make room for ``capacity`` tokens per layer at once, so that appending copies nothing."""
        for layer in range(len(self._lengths)):
            if self._stored[layer].shape[3] < capacity:
                self._resize(layer, capacity)

    def append(
        self, layer: int, kv: Tensor, scale: Scale | None = None, *, keep: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Store (2, rows, heads, L, head_dim) and return all keys and values of the layer so far.

        ``scale``: the scale whose tokens these are, in raster order where all of them are there; None where
        that is not known. ``keep``: False stores nothing: what is returned holds until the next call, in
        memory that all layers share. So does what has a prefix that is resized.
        """
        start = self._lengths[layer]
        stop = start + kv.shape[3]
        if not keep and not start:
            return kv[0], kv[1]
        if not keep:
            return self._joined(layer, start, kv, scale)
        if stop > self._stored[layer].shape[3]:
            self._resize(layer, stop)
        stored = self._stored[layer]
        stored[:, :, :, start:stop] = kv
        self._lengths[layer] = stop
        self._segments[layer].append(scale if scale is not None and kv.shape[3] == scale.tokens else None)
        if self._elsewhere is not None or self._resized(layer, scale):
            return self._joined(layer, start, kv, scale)
        return stored[0, :, :, :stop], stored[1, :, :, :stop]

    def precede(self, prefix: Prefix) -> None:
        """Take all that is stored for ``prefix``: it precedes the scales, belongs to none and stays."""
        self._prefix = prefix
        self._segments = [[] for _ in self._segments]

    def stored(self) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of every layer as they lie here, (rows, heads, length, head_dim)."""
        pairs = zip(self._stored, self._lengths, strict=True)
        return [(kv[0, :, :, :length], kv[1, :, :, :length]) for kv, length in pairs]

    def fill(self, prefix: Prefix, stored: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Take over keys and values of a prefix from an earlier run, while the cache is empty."""
        for layer, (k, v) in enumerate(stored):
            if self._stored[layer].shape[3] < prefix.tokens:
                self._resize(layer, prefix.tokens)
            for target, part in zip(self._stored[layer], (k, v), strict=True):
                target[:, :, : prefix.tokens] = part
            self._lengths[layer] = prefix.tokens
        self.precede(prefix)

    def segments(self, layer: int, scale: Scale | None = None) -> list[Scale] | None:
        """What makes up the tokens that ``append`` returns, in order; None when a scale is incomplete.

        A prefix comes first, on the grid that it has for ``scale``.
        """
        known = [scale for scale in self._segments[layer] if scale is not None]
        if len(known) < len(self._segments[layer]):
            return None
        if self._prefix is None:
            return known
        grid = (self._resized(layer, scale) or self._prefix).grid
        return [Prefix(self._prefix.index, *grid, self._prefix.aligned), *known]

    def compress(self, layer: int, q: Tensor, budget: int) -> None:
        """Keep the ``budget`` most wanted tokens of a layer's scales, per row and head.

        Wanted is what 16 evenly spread queries of ``q`` (rows, heads, L, head_dim) score highest in sum, as
        in ScaleKV (arXiv 2505.19602); the first tokens, a tenth of the budget, always stay. The capacity does
        not change: what comes next takes the place of what goes.
        """
        first, length = self._first, self._lengths[layer]
        if length - first <= budget:
            return
        queries = min(16, q.shape[2])
        last = max(queries - 1, 1)
        observers = torch.arange(queries, device=q.device) * (q.shape[2] - 1) // last
        stored = self._stored[layer]
        seen = stored[0, :, :, first:length]
        scores = (q[:, :, observers].to(seen.device).float() @ seen.float().mT).sum(dim=2)
        scores[..., : budget // 10] = torch.inf
        kept = scores.topk(budget, dim=-1).indices.sort(dim=-1).values.unsqueeze(-1)
        for tensor in stored[:, :, :, first:]:
            tensor[:, :, :budget] = tensor.gather(2, kept.expand(-1, -1, -1, tensor.shape[-1]))
        self._lengths[layer] = first + budget
        self._segments[layer] = [None]

    def keep_on(self, device: torch.device | str) -> None:
        """Keep keys and values on another device from now on, while the cache is empty.

        What ``append`` returns is then a copy where they are used, of one layer at a time, in the memory that
        all layers share.
        """
        self._elsewhere = torch.device(device)
        self._stored = [self._empty(0) for _ in self._stored]

    def selected(self, rows: Tensor, device: torch.device, more: int = 0) -> "KVCache":
        """A copy of these rows (n,) on a device, with room for ``more`` tokens; a row may be there twice."""
        heads, head_dim = self._shape
        layers = len(self._lengths)
        copy = KVCache(layers, len(rows), heads, head_dim, dtype=self._dtype, device=device)
        copy._prefix, copy._lengths = self._prefix, list(self._lengths)
        copy._segments = [list(segments) for segments in self._segments]
        for layer, length in enumerate(self._lengths):
            copy._stored[layer] = copy._empty(length + more)
            for old, new in zip(self._stored[layer], copy._stored[layer], strict=True):
                new[:, :, :length] = old[rows.to(old.device), :, :length].to(device)
        return copy

    def narrow(self, rows: slice, more: int = 0) -> "KVCache":
        """Keep only these rows, with room for ``more`` tokens, and free the others at once.

        It goes layer by layer, so that the peak stays low. What was kept elsewhere moves to where it is used.
        """
        self.rows, self._elsewhere = len(range(*rows.indices(self.rows))), None
        for layer, length in enumerate(self._lengths):
            kept = self._empty(length + more)
            kept[:, :, :, :length] = self._stored[layer][:, rows, :, :length]
            self._stored[layer] = kept
        return self

    @property
    def _first(self) -> int:
        """Where the tokens of the scales begin."""
        return 0 if self._prefix is None else self._prefix.tokens

    def _resized(self, layer: int, scale: Scale | None) -> Scale | None:
        """``scale`` where it sees the prefix of a layer on its own grid and that is another; else None."""
        prefix = self._prefix
        if prefix is None or scale is None or layer not in prefix.aligned or scale.grid == prefix.grid:
            return None
        return scale

    def _joined(self, layer: int, start: int, kv: Tensor, scale: Scale | None) -> tuple[Tensor, Tensor]:
        """The first ``start`` tokens of a layer and these, in the memory that all layers share.

        Of the prefix what ``scale`` sees of it.
        """
        resized = self._resized(layer, scale)
        first, lead = (0, 0) if resized is None else (self._first, resized.tokens)
        middle = lead + start - first
        stop = middle + kv.shape[3]
        if self._shared.shape[1] != self.rows or self._shared.shape[3] < stop:
            self._shared = self._empty(0)  # freed before there is more of it
            self._shared = self._empty(stop, self._device)
        shared, stored = self._shared, self._stored[layer]
        if resized is not None and self._prefix is not None:
            for target, part in zip(shared, stored, strict=True):
                whole = part[:, :, :first].to(self._device)
                target[:, :, :lead] = resize_keys(whole, self._prefix.grid, resized.grid)
        shared[:, :, :, lead:middle] = stored[:, :, :, first:start]
        shared[:, :, :, middle:stop] = kv
        return shared[0, :, :, :stop], shared[1, :, :, :stop]

    def _empty(self, capacity: int, device: torch.device | None = None) -> Tensor:
        heads, head_dim = self._shape
        device = device or self._elsewhere or self._device
        return torch.empty(2, self.rows, heads, capacity, head_dim, dtype=self._dtype, device=device)

    def _resize(self, layer: int, capacity: int) -> None:
        length = self._lengths[layer]
        grown = self._empty(capacity)
        grown[:, :, :, :length] = self._stored[layer][:, :, :, :length]
        self._stored[layer] = grown


class CachePair:
    """The caches of the conditional and the unconditional rows, where they run in turn, seen as one."""

    def __init__(self, conditional: KVCache, unconditional: KVCache) -> None:
        self.halves = [conditional, unconditional]

    @property
    def rows(self) -> int:
        """Rows of both halves."""
        return sum(half.rows for half in self.halves)

    @property
    def bytes(self) -> int:
        """Memory held by both, wherever it is."""
        return sum(half.bytes for half in self.halves)

    def length(self, layer: int) -> int:
        """Tokens stored for ``layer``, per row."""
        return self.halves[0].length(layer)

    def precede(self, prefix: Prefix) -> None:
        """Take all that is stored in both for ``prefix``."""
        for half in self.halves:
            half.precede(prefix)

    def stored(self) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of every layer, the rows of both halves, on the device of the first."""
        first, second = (half.stored() for half in self.halves)
        joined = []
        for (k, v), (other_k, other_v) in zip(first, second, strict=True):
            keys, values = torch.cat((k, other_k.to(k.device))), torch.cat((v, other_v.to(v.device)))
            joined.append((keys, values))
        return joined

    def fill(self, prefix: Prefix, stored: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Take over keys and values of a prefix for the rows of both."""
        start = 0
        for half in self.halves:
            rows = slice(start, start + half.rows)
            half.fill(prefix, [(k[rows], v[rows]) for k, v in stored])
            start += half.rows

    def reserve(self, capacity: int) -> None:
        """Make room for ``capacity`` tokens per layer in both."""
        for half in self.halves:
            half.reserve(capacity)

    def narrow(self, rows: slice, more: int = 0) -> KVCache:
        """The cache of the half that ``rows`` of both together leave; the other one is freed first."""
        kept = self.halves[1 if rows.start else 0]
        self.halves.clear()
        return kept.narrow(slice(None), more)
