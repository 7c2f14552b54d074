"""Heads that are watched: what they draw is written down, and older rules take the place of theirs."""

from collections.abc import Callable
from typing import Any

from stagevar_core.models.contract import Drawing, Drawn, Head


class WatchedHead:
    """A head whose draws go through ``change`` before and ``record`` after; everything else is its own."""

    def __init__(
        self,
        head: Head,
        record: Callable[[Drawing, Drawn], None],
        change: Callable[[Drawing], Drawing] = lambda drawing: drawing,
    ) -> None:
        self._head, self._record, self._change = head, record, change

    def draw(self, drawing: Drawing) -> Drawn:
        drawn = self._head.draw(self._change(drawing))
        self._record(drawing, drawn)
        return drawn

    def __getattr__(self, name: str) -> Any:
        return getattr(self._head, name)
