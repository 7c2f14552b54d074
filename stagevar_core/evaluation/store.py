"""Results of a comparison on disk, a file for every batch, so that an interrupted one can go on."""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..files import replaced

Part = dict[str, np.ndarray]


class Store:
    """A folder of results that belong to one comparison.

    ``identity``: what they depend on, by name. Raises ``ValueError`` for a folder that holds others.
    """

    def __init__(self, folder: Path, identity: Mapping[str, str]) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "comparison.json"
        if file.is_file():
            self._compare(file, identity)
            return
        if any(folder.glob("*.npz")):
            raise ValueError(f"{folder}: has results, but not what they belong to; choose another folder")
        with replaced(file) as partial:
            partial.write_text(json.dumps(identity, indent=1) + "\n", encoding="utf-8")

    def read(self, start: int) -> Part | None:
        """The batch that begins with picture ``start``, None where it is not there yet."""
        file = self._file(start)
        if not file.is_file():
            return None
        try:
            with np.load(file, allow_pickle=False) as found:
                return {key: found[key] for key in found.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{file}: damaged ({error}); delete it, and it is measured again") from error

    def write(self, start: int, part: Part) -> None:
        """Keep a batch, in one step, so that an interrupted run leaves whole ones only."""
        named: dict[str, Any] = {**part}
        with replaced(self._file(start)) as partial, partial.open("wb") as opened:
            np.savez_compressed(opened, **named)

    def _file(self, start: int) -> Path:
        return self.folder / f"{start:07d}.npz"

    def _compare(self, file: Path, identity: Mapping[str, str]) -> None:
        try:
            before = json.loads(file.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{file}: damaged ({error}); delete the folder or choose another") from error
        changed = [key for key, value in identity.items() if before.get(key) != value]
        if changed:
            raise ValueError(
                f"{self.folder}: holds results of other {' and '.join(changed)}; delete the folder or choose "
                "another"
            )
