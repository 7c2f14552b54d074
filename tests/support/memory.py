"""How much memory tensors take at the peak, counted storage by storage on any device."""

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class Peak(TorchDispatchMode):
    """Counts the bytes of the storages that operations make while it is active.

    ``bytes``: the most that lived at once, without what was there before. What a kernel needs inside of one
    operation is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.now = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id_of(t) for t in tree_iter((args, kwargs)) if isinstance(t, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor) and id_of(tensor) not in given:
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.bytes = max(self.bytes, self.now)
        weakref.finalize(storage, self._remove, key)

    def forget(self, tensor: torch.Tensor) -> None:
        """Do not count this one: it stands for what is on another device."""
        self.now -= tensor.untyped_storage().nbytes()
        self._known[tensor.untyped_storage()._cdata] = 0

    def _remove(self, key: int) -> None:
        self.now -= self._known.pop(key)


def id_of(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata
