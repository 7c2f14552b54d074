"""Prompt sheets: what to draw, a row each, as text, CSV, JSON lines, or a benchmark's own files."""

import csv
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..acceleration.presets import PRESETS
from ..checks import MAX_SEED, whole

MAX_BYTES = 1 << 28  # of a sheet: a hundred thousand rows have far less
MAX_ROWS = 1_000_000
MAX_IMAGES = 1024  # of a row
_MAX_SIDE = 16384
_NUMBERS = {
    "seed": (0, MAX_SEED),
    "width": (1, _MAX_SIDE),
    "height": (1, _MAX_SIDE),
    "images": (1, MAX_IMAGES),
}
LAYOUTS = ("plain", "geneval", "dpg", "coco")


@dataclass(frozen=True)
class Row:
    """One prompt. None: what the command says for all rows.

    ``name``: of its pictures' files; empty: the number of the row. ``metadata``: the row as it was read, for
    GenEval's scorer.
    """

    prompt: str
    negative: str | None = None
    seed: int | None = None
    width: int | None = None
    height: int | None = None
    preset: str | None = None
    images: int | None = None
    name: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict, compare=False)


COLUMNS = tuple(entry.name for entry in fields(Row) if entry.name != "metadata")


def read_sheet(path: Path, layout: str = "plain") -> list[Row]:
    """The rows of a file or folder; ``ValueError`` naming the line that cannot be used.

    ``.txt``: a prompt a line, or a folder of them, a prompt a file (DPG-Bench). ``.csv`` with a header and
    ``.jsonl`` with objects have the columns of :data:`COLUMNS`; only "prompt" must be there. ``.json``: the
    captions of COCO. In GenEval's list every other entry is kept as the row's metadata.
    """
    if path.is_dir():
        return read_folder(path)
    readers = {".txt": _lines, ".csv": _table, ".jsonl": _objects, ".json": _captions}
    if path.suffix.lower() not in readers:
        raise ValueError(f"{path}: expected a sheet of prompts, {', '.join(readers)}, or a folder of .txt")
    reader = readers[path.suffix.lower()]
    return _usable(list(reader(_text(path), str(path), strict=layout == "plain")), path)


def read_folder(path: Path) -> list[Row]:
    """A row for each .txt of a folder by its name, as DPG-Bench has them."""
    files = sorted(path.glob("*.txt"))
    rows = [_row({"prompt": _text(file), "name": file.stem}, str(file)) for file in files]
    return _usable(rows, path, "no .txt file there; expected a folder with one for each prompt")


def read_lines(path: Path) -> list[Row]:
    """A row for each line of a text file that is not empty."""
    return _usable(list(_lines(_text(path), str(path), strict=True)), path)


def read_objects(path: Path) -> list[Row]:
    """A row for each JSON object of a file of lines, with all of it as metadata, as in GenEval's list."""
    return _usable(list(_objects(_text(path), str(path), strict=False)), path)


def _usable(rows: list[Row], path: Path, none: str = "no prompt there; expected at least one") -> list[Row]:
    if not rows:
        raise ValueError(f"{path}: {none}")
    if len(rows) > MAX_ROWS:
        raise ValueError(f"{path}: {len(rows)} prompts; expected at most {MAX_ROWS}. Split the sheet")
    names = Counter(row.name for row in rows if row.name)
    if twice := next((name for name, count in names.items() if count > 1), None):
        raise ValueError(f"{path}: the name {twice!r} is there twice; expected another one for every row")
    return rows


def _text(path: Path) -> str:
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"{path} has more than {MAX_BYTES} bytes; expected a sheet of prompts")
    try:
        return data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error}); save it as UTF-8") from None


def _lines(text: str, source: str, *, strict: bool) -> Iterator[Row]:
    for line in text.splitlines():
        if line.strip():
            yield Row(line.strip())


def _table(text: str, source: str, *, strict: bool) -> Iterator[Row]:
    reader = csv.DictReader(text.splitlines())
    header = [str(name).strip() for name in reader.fieldnames or ()]
    if "prompt" not in header:
        raise ValueError(f"{source}: its columns are {header}; expected a header with prompt")
    reader.fieldnames = header
    for values in reader:
        if None in values:
            raise ValueError(
                f"{source}, line {reader.line_num}: more values than the {len(header)} columns; expected "
                "quotes around a prompt with commas"
            )
        given = {name: value.strip() for name, value in values.items() if value and value.strip()}
        if given:
            yield _row(given, f"{source}, line {reader.line_num}", strict=strict)


def _objects(text: str, source: str, *, strict: bool) -> Iterator[Row]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        where = f"{source}, line {number}"
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: no JSON ({error}); expected an object a line") from None
        if not isinstance(values, dict):
            raise ValueError(f'{where}: a {type(values).__name__}; expected an object with a "prompt"')
        given = {name: value for name, value in values.items() if value is not None}
        yield _row(given, where, strict=strict)


def _captions(text: str, source: str, *, strict: bool) -> Iterator[Row]:
    """COCO's captions: the first one of every image, named by its number in twelve digits."""
    try:
        entries = json.loads(text)["annotations"]
        first: dict[int, str] = {}
        for entry in entries:
            first.setdefault(int(entry["image_id"]), str(entry["caption"]).strip())
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f'{source}: not COCO\'s captions ({error}); expected "annotations" with "image_id" and "caption"'
        ) from None
    for number in sorted(first):
        yield Row(first[number], name=f"{number:012d}")


def _row(values: Mapping[str, Any], where: str, *, strict: bool = False) -> Row:
    """A row of named values; ``strict``: other names than ours are a slip of the pen."""
    known = {name: value for name, value in values.items() if name in COLUMNS}
    unknown = [name for name in values if name not in COLUMNS]
    if strict and unknown:
        raise ValueError(f"{where}: the column {unknown[0]!r} is not known; expected {', '.join(COLUMNS)}")
    if not isinstance(known.get("prompt"), str):
        raise ValueError(f"{where}: no prompt; expected a text")
    found: dict[str, Any] = {}
    for name, value in known.items():
        if name in _NUMBERS:
            found[name] = _whole(name, value, where)
        elif not isinstance(value, str):
            raise ValueError(f"{where}: {name} is {value!r}; expected a text")
        else:
            found[name] = value
    if found.get("preset", "off") not in PRESETS:
        raise ValueError(f"{where}: preset is {found['preset']!r}; expected one of {', '.join(PRESETS)}")
    if not _is_name(found.get("name", "x")):
        raise ValueError(
            f"{where}: name is {found['name']!r}; expected a file name of letters, digits, '.', '_', '-'"
        )
    return Row(**found, metadata=dict(values))


def _whole(name: str, value: Any, where: str) -> int:
    low, high = _NUMBERS[name]
    try:
        number = int(value) if isinstance(value, str) else value
        return whole(name, number, low, high, f"{low} to {high}")
    except (TypeError, ValueError):
        raise ValueError(f"{where}: {name} is {value!r}; expected a whole number, {low} to {high}") from None


def _is_name(name: str) -> bool:
    return bool(name) and name[0] != "." and all(letter.isalnum() or letter in "._-" for letter in name)
