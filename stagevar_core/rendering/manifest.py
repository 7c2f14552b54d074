"""What has been drawn: a line for every picture, so that a run goes on where it stopped."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .plan import Picture

NAME = "manifest.jsonl"


class Manifest:
    """The file of a folder; its first line says what all pictures depend on, each other line is a picture.

    Raises ``ValueError`` for a folder that belongs to another job. A last line that was cut off, as by a
    power failure, counts as not written.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder, self.file = folder, folder / NAME
        folder.mkdir(parents=True, exist_ok=True)
        self.done: dict[str, dict[str, Any]] = {}
        identity = json.loads(json.dumps(dict(identity)))
        if not self.file.is_file():
            self._append({"job": identity})
            return
        lines = self._lines()
        self._compare(lines[0].get("job") if lines else None, identity)
        for line in lines[1:]:
            self.done[line["file"]] = line

    def left(self, pictures: Sequence[Picture]) -> list[Picture]:
        """Those that are still to be drawn, and ``ValueError`` where one was drawn of something else.

        A picture without a line that lies there whole was finished when the run was stopped: it counts.
        """
        left = []
        for picture in pictures:
            line = self.done.get(picture.file)
            there = (self.folder / picture.file).is_file()
            if line is not None and line["picture"] != described(picture):
                raise ValueError(
                    f"{self.file}: {picture.file} was drawn of another row of the sheet; expected the same "
                    "sheet. Choose another folder"
                )
            if not there:
                left.append(picture)
            elif line is None:
                self.add(picture, found=True)
        return left

    def add(self, picture: Picture, **about: Any) -> None:
        """Note a picture whose file is there, with ``about`` how it was made."""
        line = {"file": picture.file, "picture": described(picture), **about}
        self._append(line)
        self.done[picture.file] = line

    def _append(self, line: Mapping[str, Any]) -> None:
        with self.file.open("ab") as file:
            if file.tell() and not self._ends_whole():
                file.write(b"\n")
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _ends_whole(self) -> bool:
        with self.file.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"

    def _lines(self) -> list[dict[str, Any]]:
        found = []
        texts = self.file.read_text(encoding="utf-8", errors="replace").splitlines()
        for number, text in enumerate(texts, 1):
            try:
                line = json.loads(text)
            except (ValueError, RecursionError):
                continue  # cut off; its picture is looked for on the disk
            if not isinstance(line, dict) or (number > 1 and not {"file", "picture"} <= line.keys()):
                raise ValueError(
                    f"{self.file}, line {number}: not a line of a manifest; choose another folder"
                )
            found.append(line)
        return found

    def _compare(self, before: Any, identity: Mapping[str, Any]) -> None:
        if not isinstance(before, dict):
            raise ValueError(f"{self.file}: does not say what its pictures are; choose another folder")
        changed = [name for name in {**before, **identity} if before.get(name) != identity.get(name)]
        if changed:
            raise ValueError(
                f"{self.folder}: holds pictures of another {' and '.join(changed)} (found "
                f"{before.get(changed[0])!r}, expected {identity.get(changed[0])!r}); choose another folder"
            )


def described(picture: Picture) -> dict[str, Any]:
    """What a picture is, as its line says it."""
    return {name: value for name, value in asdict(picture).items() if name not in ("file", "row", "sample")}
