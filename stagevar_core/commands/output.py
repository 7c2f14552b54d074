"""What the commands write: images, folders for files, numbers for people."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

_PACKAGE_LOG = logging.getLogger(__name__.rpartition(".commands.")[0])


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


def output_file(path: Path) -> Path:
    """``path`` once its folder exists; raises ``ValueError`` when it cannot be an image."""
    known = Image.registered_extensions()
    if path.suffix.lower() not in known or path.is_dir():
        raise ValueError(f"{path}: expected an image file such as x.png")
    return check_file(path)


def save(image: np.ndarray, path: Path, **texts: object) -> str:
    """Write an image (H, W, 3) uint8 and return its path; a PNG also carries ``texts``, how it was made."""
    if path.suffix.lower() == ".png":
        told = PngInfo()
        for name, value in texts.items():
            told.add_itxt(name, str(value))
        Image.fromarray(image).save(path, pnginfo=told)
    else:
        Image.fromarray(image).save(path)
    return str(path)


def rounded(value: float | Sequence[float]) -> float | list[float]:
    """Seconds to a tenth of a millisecond."""
    return [round(item, 4) for item in value] if isinstance(value, Sequence) else round(value, 4)


def first_line(error: BaseException) -> str:
    """What an error says, on one line."""
    return " ".join((str(error).strip().splitlines() or [type(error).__name__])[:1])


def check_file(path: Path) -> Path:
    """``path`` once its folder exists; raises ``ValueError`` when it is a folder itself."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder; expected a file such as report.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
