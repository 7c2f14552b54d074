"""The models in the host's folders: what a loader lists, and what is behind a name.

Only the host walks the folders, and it keeps its lists until a folder changes. What it does not list, indexes
and whether a set of shards is complete, is asked of the folders that hold its files, one by one.
"""

import os
from pathlib import Path

import folder_paths

from ...stagevar_core.checkpoints.errors import CheckpointError
from ...stagevar_core.checkpoints.shards import is_index, is_shard, parts_of
from .fingerprint import known_parts

# Of a folder: when it was last changed, and the names of the models in shards that it holds.
_SHARDED: dict[Path, tuple[int, tuple[str, ...]]] = {}


def listed(folder: str) -> list[str]:
    """The host's files of a kind of models, and of models in shards their folder and first shard.

    Tools and the page look for files, so the first shard is the name to store; folders are shorter to read.
    """
    try:
        files = folder_paths.get_filename_list(folder)
    except OSError:  # one of the folders is gone since the host looked; its models are, too
        return []
    names = {name for name in files if not is_shard(os.path.basename(name))}
    for place in {os.path.dirname(name) for name in files}:
        for root in folder_paths.get_folder_paths(folder):
            names.update(os.path.join(place, name) if name else place for name in _sharded(Path(root, place)))
    return sorted(names - {""}, key=str.lower)


def find(folder: str, name: str) -> Path | None:
    """The file, index, shard or folder of a name with either separator; None where there is none.

    Of several places the first that has the whole model. Raises ``CheckpointError`` where none has it.
    """
    for form in dict.fromkeys((name, name.replace("\\", "/"))):
        # As the host does: no name leads out of its folders.
        inside = os.path.relpath(os.path.join("/", form), "/")
        roots = folder_paths.get_folder_paths(folder)
        found = [Path(root, inside) for root in roots if inside != "." and os.path.exists(Path(root, inside))]
        if found:
            return _first_whole(found)
    return None


def _first_whole(found: list[Path]) -> Path:
    """The first path with a whole model; of plain files the first one, which is the host's choice."""
    failures: list[tuple[Path, CheckpointError]] = []
    for path in found:
        if path.is_file() and not is_shard(path.name) and not is_index(path.name):
            return path
        try:
            known_parts(path)
        except CheckpointError as error:
            failures.append((path if path.is_dir() else path.parent, error))
        else:
            return path
    # What is missing is said best of a folder that has an index or shards.
    raise next((error for place, error in failures if _sharded(place)), failures[0][1])


def _sharded(folder: Path) -> tuple[str, ...]:
    """Names in a folder that are models in shards, "" for the folder itself; remembered until it changes."""
    try:
        changed = folder.stat().st_mtime_ns
        if folder not in _SHARDED or _SHARDED[folder][0] != changed:
            _SHARDED[folder] = (changed, _look(folder))
    except OSError:  # not there, or not readable
        return ()
    return _SHARDED[folder][1]


def _look(folder: Path) -> tuple[str, ...]:
    names = os.listdir(folder)
    shards = {name for name in names if is_shard(name)}
    indexed = any(is_index(name) for name in names)
    if not (shards or indexed) or _loops(folder):
        return ()
    firsts = []
    while shards:
        try:
            parts = parts_of(folder / min(shards))
        except CheckpointError:  # a set that is not complete
            shards.remove(min(shards))
            continue
        firsts.append(parts.shards[0].name)
        shards.difference_update({min(shards), *(shard.name for shard in parts.shards)})
    return ("", *firsts) if indexed or firsts else ()


def _loops(folder: Path) -> bool:
    """Whether a link leads back to where the path came from: then the host lists the same again and again."""
    places = [os.path.realpath(place) for place in (folder, *folder.parents)]
    return len(set(places)) < len(places)
