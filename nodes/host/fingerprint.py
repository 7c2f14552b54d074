"""What a model's files hold as a short text: it tells when they are to be loaded again.

ComfyUI writes this text into every picture, so it depends on the contents alone, without times, names or
places: equal models give equal texts on all machines.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ...stagevar_core.checkpoints.shards import Parts, parts_of

_WHOLE = 1 << 20  # bytes; smaller files are read to the end
# Of larger ones the ends, which have the table of a safetensors file and the checksums of a PyTorch archive,
# and pieces between. Training moves nearly all weights, so no two trainings agree in all of the pieces, and
# reading these 2 MiB takes milliseconds where 8 GB would take longer than loading them.
_END = 512 << 10
_PIECES, _PIECE = 256, 4096

Stamp = tuple[int, int]  # time of the last change in nanoseconds, and size


class _Seen(NamedTuple):
    """A file as it was last read. ``edition``: how often it was written anew with the same digest."""

    stamp: Stamp
    digest: str
    edition: int = 0


_SEEN: dict[Path, _Seen] = {}
_PARTS: dict[Path, tuple[tuple[Stamp, ...], Parts]] = {}


def known_parts(path: Path) -> Parts:
    """The files of a model as :func:`parts_of` finds them; its folder is listed again only once it changed.

    Raises ``CheckpointError`` where files are missing.
    """
    folder = path if path.is_dir() else path.parent
    if path in _PARTS:
        stamps, parts = _PARTS[path]
        if stamps == _stamps(folder, parts):
            return parts
    parts = parts_of(path)
    if stamps := _stamps(folder, parts):
        _PARTS[path] = (stamps, parts)
    return parts


def fingerprint(files: Sequence[Path]) -> str:
    """The text of a model's files, in their order; ``OSError`` where one cannot be read."""
    contents = [_content(file) for file in files]
    if len(contents) == 1:
        return contents[0]
    return hashlib.sha256(" ".join(contents).encode()).hexdigest()[:32]


def stamp(path: Path) -> Stamp:
    """What changes when a file or folder is written; ``OSError`` where it is gone."""
    found = path.stat()
    return found.st_mtime_ns, found.st_size


def _stamps(folder: Path, parts: Parts) -> tuple[Stamp, ...]:
    """Those of a folder and a model's files in it, none where one is gone."""
    try:
        return tuple(stamp(path) for path in (folder, *parts.files))
    except OSError:
        return ()


def _content(path: Path) -> str:
    """The digest of one file, remembered until it is written again."""
    now, seen = stamp(path), _SEEN.get(path)
    if seen is None or seen.stamp != now:
        digest = _digest(path, now[1])
        edition = 0
        if seen is not None and seen.digest == digest and now[1] > _WHOLE:
            edition = seen.edition + 1  # other weights may have changed than those in the pieces
        _SEEN[path] = seen = _Seen(now, digest, edition)
    return f"{seen.digest}+{seen.edition}" if seen.edition else seen.digest


def _digest(path: Path, size: int) -> str:
    digest = hashlib.sha256(size.to_bytes(8, "little"))
    with path.open("rb", buffering=0) as file:
        if size <= _WHOLE:
            digest.update(file.read())
        else:
            step = (size - 2 * _END) // _PIECES
            digest.update(file.read(_END))
            for index in range(_PIECES if step else 0):
                file.seek(_END + index * step)
                digest.update(file.read(min(_PIECE, step)))
            file.seek(-_END, os.SEEK_END)
            digest.update(file.read(_END))
    return digest.hexdigest()[:32]
