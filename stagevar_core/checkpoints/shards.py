"""Which files a model consists of: one, the shards that an index names, or a whole ``-i-of-N`` set.

Nothing else in their folder matters, whatever its name and whether it can be read.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .errors import CheckpointError, listed, short

SAFETENSORS = (".safetensors", ".sft")
PICKLES = (".pth", ".pt", ".ckpt", ".bin")
_SUFFIX = r"\.(?:safetensors|sft|pth|pt|ckpt|bin)"
# model-00001-of-00002.safetensors, model-00001-of-00002.fp16.safetensors, model.fp16-00001-of-00002.bin
_SHARD = re.compile(
    rf"(?P<stem>.+)-(?P<place>\d{{1,5}})-of-(?P<count>\d{{1,5}})(?P<end>(?:\.\w+)?{_SUFFIX})", re.IGNORECASE
)
# model.safetensors.index.json, pytorch_model.bin.index.json, model.safetensors.index.fp16.json
_INDEX = re.compile(rf".*{_SUFFIX}\.index(?:\.\w+)?\.json", re.IGNORECASE)
# HART's folder has its weights twice; those that its demos use are the averaged ones.
_PREFERRED = "ema_model.bin"
_DIGITS, _MAX_SHARDS = 5, 10_000
_MAX_INDEX = 100_000_000  # bytes; that of the largest models has some


@dataclass(frozen=True)
class Parts:
    """The files of one model.

    ``shards``: in order; a model in one file has one. ``index``: the file that names them, if there is one,
    and ``names`` what it says, tensor to name of a shard.
    """

    shards: tuple[Path, ...]
    index: Path | None = None
    names: Mapping[str, str] = field(default_factory=dict)

    @property
    def files(self) -> tuple[Path, ...]:
        """Everything that decides what is read."""
        return (self.index, *self.shards) if self.index else self.shards


def is_index(name: str) -> bool:
    """Whether a file of this name is an index of shards."""
    return _INDEX.fullmatch(name) is not None


def is_shard(name: str) -> bool:
    """Whether a file of this name is one of a set."""
    return _SHARD.fullmatch(name) is not None


def parts_of(path: str | Path) -> Parts:
    """The files behind a path: a file, an index, a folder, or any one shard of a set.

    A folder stands for its averaged weights where it is HART's, which has others as well; else for its first
    complete index (safetensors before others), its complete set, or its only model file. Raises
    :class:`CheckpointError` where files are missing, naming them.
    """
    path = Path(path)
    if os.path.isdir(path):
        return _of_folder(path)
    if not os.path.isfile(path):
        raise CheckpointError(f"{short(path)}: no such file; check the name, or put the file there")
    if is_index(path.name):
        return _complete(_indexed(path))
    return _of_shard(path)


def _of_folder(folder: Path) -> Parts:
    names = _names(folder)
    failure: CheckpointError | None = None
    if _PREFERRED in names:
        return Parts((folder / _PREFERRED,))
    for name in filter(is_index, names):
        try:
            return _complete(_indexed(folder / name))
        except CheckpointError as error:
            failure = failure or error
    if failure is not None:
        raise failure
    if sets := _sets(folder, names):
        return _complete(next((parts for parts in sets if not _missing(parts)), sets[0]))
    files = [name for name in names if name.lower().endswith(SAFETENSORS + PICKLES)]
    if len(files) == 1:
        return Parts((folder / files[0],))
    raise CheckpointError(
        f"{folder}: found {listed(files) if files else 'no model files'}, but no "
        "model.safetensors.index.json; expected that index and all its shards, or a single model file. "
        "Download the index too"
    )


def _of_shard(path: Path) -> Parts:
    """The set that a file is a shard of, which an index beside it tells or its name; else the file alone."""
    names = _names(path.parent)
    failure: CheckpointError | None = None
    for name in filter(is_index, names):
        try:
            parts = _indexed(path.parent / name)
        except CheckpointError as error:  # of this model only where no other index names the file
            failure = failure or error
            continue
        if len(parts.shards) > 1 and path in parts.shards:
            return _complete(parts)
    numbered = next((parts for parts in _sets(path.parent, names) if path in parts.shards), None)
    if numbered is None:
        return Parts((path,))
    if failure is not None and _missing(numbered):
        raise failure
    return _complete(numbered)


def _sets(folder: Path, names: Iterable[str]) -> list[Parts]:
    """The ``-i-of-N`` sets of a folder by the names of its files; what is missing has its usual name."""
    found: dict[tuple[str, str, str], dict[int, str]] = {}
    for name in names:
        if match := _SHARD.fullmatch(name):
            found.setdefault((match["stem"], match["count"], match["end"]), {})[int(match["place"])] = name
    sets = []
    for (stem, count, end), shards in found.items():
        first = 0 if 0 in shards else 1
        places = range(first, first + int(count))
        whole = len(shards) == len(places)
        # Of other numbers than the usual 00001-of-00002 only a whole set is surely one.
        if (whole or len(count) == _DIGITS) and len(places) <= _MAX_SHARDS and shards.keys() <= set(places):
            usual = [f"{stem}-{place:0{len(count)}d}-of-{count}{end}" for place in places]
            chosen = (shards.get(place, name) for place, name in zip(places, usual, strict=True))
            sets.append(Parts(tuple(folder / name for name in chosen)))
    return sets


def _names(folder: Path) -> list[str]:
    """The names of a folder's files, safetensors first, those of a variant such as fp16 behind plain ones."""
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise CheckpointError(
            f"{folder}: cannot be opened ({error.strerror}); check its permissions"
        ) from None
    return sorted(
        (name for name in names if os.path.isfile(folder / name)),
        key=lambda name: (".safetensors" not in name.lower(), name.count("."), name),
    )


def _missing(parts: Parts) -> list[str]:
    return [shard.name for shard in parts.shards if not os.path.isfile(shard)]


def _complete(parts: Parts) -> Parts:
    if missing := _missing(parts):
        folder = parts.shards[0].parent
        said = f"{parts.index.name} names" if parts.index else "the numbers in their names ask for"
        raise CheckpointError(
            f"{folder}: {len(missing)} of {len(parts.shards)} shards are missing ({listed(missing)}); "
            f"expected all that {said}. Download them into this folder"
        )
    return parts


def _indexed(index: Path) -> Parts:
    """What an index says; its shards lie beside it and nowhere else."""
    try:
        if index.stat().st_size <= _MAX_INDEX:
            names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            if names and all(map(_lies_beside, names.values())):
                shards = sorted(set(names.values()))
                return Parts(tuple(index.parent / name for name in shards), index, names)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass  # as unreadable as one that names nothing
    raise CheckpointError(
        f"{index}: not a shard index; expected JSON with a weight_map from tensors to files beside it. "
        "Download it again"
    )


def _lies_beside(name: object) -> bool:
    """Whether a shard's name is one of a file, without a folder."""
    return isinstance(name, str) and name not in ("", "..") and Path(name).name == name and "\\" not in name
