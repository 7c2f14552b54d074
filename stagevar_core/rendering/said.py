"""What the package warns of while it works, kept for those who asked, who may be on another machine."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

_PACKAGE_LOG = logging.getLogger(__name__.rpartition(".rendering.")[0])


class _Once(logging.Handler):
    """Keeps every message once."""

    def __init__(self, said: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.said = said

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message not in self.said:
            self.said.append(message)


@contextmanager
def collected() -> Iterator[list[str]]:
    """What the package warns of meanwhile, each message once, instead of lines on a progress bar."""
    said: list[str] = []
    handler, propagate = _Once(said), _PACKAGE_LOG.propagate
    _PACKAGE_LOG.addHandler(handler)
    _PACKAGE_LOG.propagate = False
    try:
        yield said
    finally:
        _PACKAGE_LOG.removeHandler(handler)
        _PACKAGE_LOG.propagate = propagate


def repeated(said: Iterable[str]) -> None:
    """Warn here of what was said elsewhere."""
    for message in said:
        _PACKAGE_LOG.warning("%s", message)
