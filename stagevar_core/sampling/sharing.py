"""A run on a CPU that others use as well.

Every operation on several threads ends when the last of them does. Where another process has the core of one,
all wait until it gets a turn, some milliseconds, and a run has thousands of operations: beside two busy
threads it takes ten times as long and more, where one thread alone loses a third.
"""

import time
from types import TracebackType

import torch
from torch import Tensor

from ..schedule import Scale
from .result import Monitor

_CROWDED, _FREE = 0.7, 0.95  # of the time in which the thread of the run has a core
_LOOK, _TRY = 0.04, 0.4  # seconds to look at, on several threads and on one


class Sharing(Monitor):
    """Goes on with one thread while this one has to wait for a core; passes everything on.

    The number of threads changes no number that is computed. It is what it was once the ``with`` ends. On
    other devices, and where there is one thread, nothing happens.
    """

    def __init__(self, monitor: Monitor, device: torch.device) -> None:
        self.monitor = monitor
        self.threads = torch.get_num_threads() if device.type == "cpu" else 1
        self.alone = False

    def __enter__(self) -> "Sharing":
        self._begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._turn(alone=False)

    def restart(self, runs: int) -> None:
        self.monitor.restart(runs)

    def block(self, scale: Scale, layer: int) -> None:
        self.monitor.block(scale, layer)
        self._look()

    def logits(self, scale: Scale, raw: Tensor, guided: Tensor) -> None:
        self.monitor.logits(scale, raw, guided)

    def scale(self, scale: Scale, f_hat: Tensor) -> None:
        self._look()
        self.monitor.scale(scale, f_hat)
        self._begin()  # what the caller waits for says nothing of the cores

    def _begin(self) -> None:
        self._wall, self._busy = time.perf_counter(), time.thread_time()

    def _look(self) -> None:
        """Change the number of threads where the time since the last look says so."""
        if self.threads == 1:
            return
        passed = time.perf_counter() - self._wall
        if passed < (_TRY if self.alone else _LOOK):
            return
        share = (time.thread_time() - self._busy) / passed
        if share < _CROWDED or (self.alone and share > _FREE):
            self._turn(alone=share < _CROWDED)
        self._begin()

    def _turn(self, *, alone: bool) -> None:
        if alone != self.alone:
            self.alone = alone
            torch.set_num_threads(1 if alone else self.threads)
