"""Data-parallel training with one process per core, which on a CPU beats threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Workers:
    """This process among ``count``; all of them call every method in the same order."""

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        self.rank, self.count = rank, count

    @property
    def first(self) -> bool:
        """Whether this one writes files and logs."""
        return self.rank == 0

    def summed(self, tensor: Tensor) -> Tensor:
        """The sum over all of them, in place."""
        if self.count > 1:
            dist.all_reduce(tensor)
        return tensor

    def average(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its mean; parameters without one are left out everywhere."""
        grads = [p.grad for p in parameters if p.grad is not None]
        if self.count == 1:
            return
        flat = torch.cat([grad.flatten() for grad in grads])
        dist.all_reduce(flat)
        flat /= self.count
        for grad, mean in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
            grad.copy_(mean.view_as(grad))

    def same(self, module: nn.Module) -> None:
        """Give all of them the weights of the first."""
        if self.count > 1:
            for tensor in module.state_dict().values():
                whole = tensor.contiguous()  # kernels may lie in memory with their channels last
                dist.broadcast(whole, 0)
                tensor.copy_(whole)


def _worker(rank: int, count: int, store: str, phase: Callable[..., None], arguments: tuple) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=count)
    try:
        phase(*arguments, workers=Workers(rank, count))
    finally:
        dist.destroy_process_group()


def run(phase: Callable[..., None], *arguments: object, count: int, out: Path) -> None:
    """``phase(*arguments, workers=)`` in ``count`` processes, here where it is one."""
    if count == 1:
        phase(*arguments, workers=Workers())
        return
    store = out / f"store.{os.getpid()}"
    store.unlink(missing_ok=True)
    torch.multiprocessing.spawn(_worker, (count, str(store.resolve()), phase, arguments), nprocs=count)
    store.unlink(missing_ok=True)
