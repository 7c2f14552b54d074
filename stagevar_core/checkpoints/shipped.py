"""The models that come with this package: that their files are whole, and those of this version."""

import hashlib
import json
from functools import cache
from pathlib import Path

from ..embedded import ASSETS
from .errors import CheckpointError

SUMS = Path(__file__).parents[1] / "data" / "checksums.json"
"""SHA-256 of every file in :data:`ASSETS` by its name; ``scripts/checksums.py`` writes it."""
_ADVICE = "The clone or the download is damaged: get the package again, with its large files"


@cache
def checksums() -> dict[str, str]:
    """What the files should be."""
    return json.loads(SUMS.read_text(encoding="utf-8"))


def sha256(path: Path) -> str:
    """Of a file's bytes."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            found.update(part)
    return found.hexdigest()


def check_shipped(path: Path) -> None:
    """Raise :class:`CheckpointError` for a file of the package that is not what was published."""
    if path.resolve().parent != ASSETS.resolve() or path.name not in checksums():
        return
    found, expected = sha256(path), checksums()[path.name]
    if found != expected:
        raise CheckpointError(
            f"{path}: its content has the SHA-256 {found[:12]}..., expected {expected[:12]}... of this "
            f"version. {_ADVICE}"
        )
