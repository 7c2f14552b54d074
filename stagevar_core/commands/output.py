"""What the commands write: images, folders for files, numbers for people."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo


def output_file(path: Path) -> Path:
    """``path`` once its folder exists; raises ``ValueError`` when it cannot be an image."""
    known = Image.registered_extensions()
    if path.suffix.lower() not in known or path.is_dir():
        raise ValueError(f"{path}: expected an image file such as x.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def save(image: np.ndarray, path: Path, **texts: Any) -> str:
    """Write an image; a PNG also carries how it was made."""
    extra = {}
    if path.suffix.lower() == ".png":
        extra["pnginfo"] = PngInfo()
        for name, value in texts.items():
            extra["pnginfo"].add_itxt(name, str(value))
    Image.fromarray(image).save(path, **extra)
    return str(path)


def rounded(value: float | Sequence[float]) -> Any:
    """Seconds to a tenth of a millisecond."""
    return [round(item, 4) for item in value] if isinstance(value, Sequence) else round(value, 4)


def first_line(error: BaseException) -> str:
    """What an error says, on one line."""
    return " ".join((str(error).strip().splitlines() or [type(error).__name__])[:1])


def check_file(path: Path) -> None:
    """Make a file's folder; ``ValueError`` for a folder's name."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder; expected a file such as report.json")
    path.parent.mkdir(parents=True, exist_ok=True)
