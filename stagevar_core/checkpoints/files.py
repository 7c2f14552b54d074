"""Reading checkpoint files: safetensors, PyTorch archives and sharded directories; their code never runs."""

import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from .errors import CheckpointError, NeedsCodeError, listed

SAFETENSORS = (".safetensors", ".sft")
PICKLES = (".pth", ".pt", ".ckpt", ".bin")
INDEXES = ("*.safetensors.index.json", "*.bin.index.json")  # the preferred one first
_SHARD = re.compile(r".+-\d{5}-of-\d{5}\.\w+")
_MAX_HEADER = 100_000_000  # the safetensors format's own limit

# First bytes of files that are often saved under a checkpoint's name.
_SIGNATURES: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer", "run `git lfs pull`, or download the file itself"),
    (b"<", "a web page", "open the link in a browser to see why, then download the file again"),
    (b"GGUF", "a GGUF file", "use the safetensors version of the model"),
    (b"\x1f\x8b", "a gzip archive", "unpack it first"),
)


class RawCheckpoint(NamedTuple):
    """What a file holds, as stored: tensors (possibly nested in dicts) and the safetensors metadata."""

    tensors: dict[str, Any]
    metadata: dict[str, str] | None
    source: str


def read(path: str | Path) -> RawCheckpoint:
    """Read a file, a sharded directory or one shard of it; tensors stay memory-mapped where torch can.

    Raises :class:`CheckpointError` for everything that is not a readable checkpoint.
    """
    path = Path(path)
    if path.is_dir():
        return _read_directory(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; check the name, or put the file there")
    if path.name.endswith(".index.json"):
        return _read_shards(path)
    if index := _index_of(path):
        return _read_shards(index)
    return _read_file(path)


def _read_file(path: Path) -> RawCheckpoint:
    suffix, kind = path.suffix.lower(), _content(path)
    if suffix in SAFETENSORS:
        if kind != "safetensors":
            found, advice = (
                ("a PyTorch file", "Rename it to .pth") if kind else ("unknown", "Download it again")
            )
            raise CheckpointError(
                f"{path}: named {suffix}, but its content is {found}; expected safetensors. {advice}"
            )
        return _read_safetensors(path)
    if suffix in PICKLES:
        if kind == "safetensors":
            raise CheckpointError(
                f"{path}: named {suffix}, but its content is safetensors; expected a PyTorch file. "
                "Rename it to .safetensors"
            )
        if kind is None:
            raise CheckpointError(
                f"{path}: not a PyTorch file (it starts with none of the known marks); expected a checkpoint "
                "saved by torch.save. Download it again"
            )
        return _read_pickle(path, kind == "zip")
    raise CheckpointError(
        f"{path}: cannot read {suffix or 'a file without suffix'}; "
        f"expected {', '.join(SAFETENSORS + PICKLES)} or a directory of shards"
    )


def _content(path: Path) -> str | None:
    """``safetensors``, ``zip`` or ``pickle`` by the first bytes; raises for what is plainly another thing."""
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be opened ({error.strerror}); check its permissions and its disk"
        ) from error
    if not start:
        raise CheckpointError(f"{path}: the file is empty; expected a checkpoint. Download it again")
    # Eight bytes of header length, then a JSON object; first, as the length may begin like another mark.
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= _MAX_HEADER:
        return "safetensors"
    for signature, found, advice in _SIGNATURES:
        if start.lstrip().startswith(signature):
            raise CheckpointError(f"{path}: this is {found}, not a checkpoint; {advice}")
    if start.startswith(b"PK\x03\x04"):
        return "zip"
    if start[0] == 0x80 and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "pickle"
    return None


def _read_safetensors(path: Path) -> RawCheckpoint:
    _check_length(path)
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            metadata = file.metadata()
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, it is no dict
    except Exception as error:  # whatever the reader makes of damaged bytes
        raise CheckpointError(
            f"{path}: damaged safetensors file ({error}); expected a complete one. Download it again"
        ) from error
    return RawCheckpoint(tensors, metadata, str(path))


def _check_length(path: Path) -> None:
    """Compare the length that the header promises with the file's, to tell a broken download plainly."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        raw = file.read(min(length, size))
    needed = 8 + length
    try:
        header = json.loads(raw) if len(raw) == length else {}
        entries = [entry for name, entry in header.items() if name != "__metadata__"]
        needed += max((int(entry["data_offsets"][1]) for entry in entries), default=0)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: damaged safetensors header ({error}); expected a table of tensors. Download it again"
        ) from error
    if size < needed:
        raise CheckpointError(
            f"{path}: the file is cut off, {size:,} of at least {needed:,} bytes are there; download it again"
        )


def _read_pickle(path: Path, archive: bool) -> RawCheckpoint:
    if archive and not zipfile.is_zipfile(path):
        raise CheckpointError(
            f"{path}: the file is cut off ({path.stat().st_size:,} bytes, the archive's end is missing); "
            "download it again"
        )
    try:
        content = torch.load(str(path), map_location="cpu", weights_only=True, mmap=archive)
    except pickle.UnpicklingError as error:
        raise _needs_code(path, str(error)) from None
    except Exception as error:  # damaged bytes make it fail in many ways
        if "weights_only" in str(error):
            raise _needs_code(path, str(error)) from None
        raise CheckpointError(
            f"{path}: damaged PyTorch file ({_first_line(str(error))}); expected what torch.save writes. "
            "Download it again"
        ) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path}: holds a {type(content).__name__}; expected a dict of tensors. Save `model.state_dict()`"
        )
    return RawCheckpoint(dict(content), None, str(path))


def _needs_code(path: Path, reason: str) -> NeedsCodeError:
    wanted = re.search(r"GLOBAL (\S+)", reason)
    found = f"the Python object {wanted[1]}" if wanted else _first_line(reason)
    return NeedsCodeError(
        f"{path}: cannot be read without running code ({found}), and code in checkpoints is never run; "
        f"expected plain tensors. Use a .safetensors file, or take the tensors out once with: "
        f"python scripts/convert_checkpoint.py {path.name}"
    )


def _read_directory(folder: Path) -> RawCheckpoint:
    if indexes := _indexes(folder):
        return _read_shards(indexes[0])
    files = [entry for entry in sorted(folder.iterdir()) if entry.suffix.lower() in SAFETENSORS + PICKLES]
    if len(files) == 1 and not _SHARD.fullmatch(files[0].name):
        return _read_file(files[0])
    found = listed(entry.name for entry in files) if files else "no model files"
    raise CheckpointError(
        f"{folder}: found {found}, but no model.safetensors.index.json; expected that index and all its "
        "shards, or a single model file. Download the index too"
    )


def _index_of(path: Path) -> Path | None:
    """The index beside a shard that lists it; file pickers can only name one of the shards."""
    if not _SHARD.fullmatch(path.name):
        return None
    indexes = _indexes(path.parent)
    return next((index for index in indexes if path.name in _shard_names(index).values()), None)


def _indexes(folder: Path) -> list[Path]:
    return [index for pattern in INDEXES for index in sorted(folder.glob(pattern))]


def _shard_names(index: Path) -> dict[str, str]:
    """Tensor name to shard file; shards lie beside their index and nowhere else."""
    names: dict[str, str] = {}
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        if names and all(_lies_beside(name) for name in names.values()):
            return names
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass  # as unreadable as one that names nothing
    raise CheckpointError(
        f"{index}: not a shard index; expected JSON with a weight_map from tensors to files beside it. "
        "Download it again"
    )


def _lies_beside(name: object) -> bool:
    """Whether a shard's name is one of a file, without a folder."""
    return isinstance(name, str) and Path(name).name == name and "\\" not in name


def _read_shards(index: Path) -> RawCheckpoint:
    folder, names = index.parent, _shard_names(index)
    shards = sorted(set(names.values()))
    missing = [name for name in shards if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder}: {len(missing)} of {len(shards)} shards are missing ({listed(missing)}); expected all "
            f"that {index.name} names. Download them into this folder"
        )
    tensors: dict[str, Tensor] = {}
    for name in shards:
        tensors.update(_read_file(folder / name).tensors)
    if absent := names.keys() - tensors.keys():
        raise CheckpointError(
            f"{folder}: {len(absent)} tensors of {index.name} are in no shard ({listed(absent)}); expected "
            "shards and index of one download. Download them again"
        )
    return RawCheckpoint(tensors, None, str(folder))


def _first_line(text: str) -> str:
    line = text.strip().splitlines()[0] if text.strip() else "no reason given"
    return line if len(line) <= 200 else f"{line[:197]}..."
