"""What the commands write: images, folders for files, numbers for people."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo


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
