"""Reading checkpoint files: safetensors, PyTorch archives and sharded directories; their code never runs."""

import json
import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from .errors import CheckpointError, NeedsCodeError, listed, short
from .shards import PICKLES, SAFETENSORS, Parts, parts_of
from .shipped import check_shipped

_MAX_HEADER = 100_000_000  # bytes, the safetensors format's own limit
_MAX_GROWTH = 50  # of a compressed archive
# Models whose config.json says what their tensors do not.
_TOLD_BESIDE = ("hart_transformer_t2i", "qwen2", "qwen2_vl")
_MAX_CONFIG = 1_000_000  # bytes

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
    """Read a file, an index, a folder or one shard (:func:`.shards.parts_of`), memory-mapped where torch can.

    Raises :class:`CheckpointError` for everything that is not a readable checkpoint.
    """
    parts = parts_of(path)
    if parts.index is None and len(parts.shards) == 1:
        check_shipped(parts.shards[0])
        found = _read_file(parts.shards[0])
    else:
        found = _read_shards(parts, str(path))
    told = _told_beside(parts.shards[0])
    return found._replace(tensors={"config": told, **found.tensors}) if told else found


def _told_beside(path: Path) -> dict[str, Any]:
    """The ``config.json`` in a file's folder, as training checkpoints carry theirs; empty for most models."""
    config = path.parent / "config.json"
    try:
        if config.stat().st_size > _MAX_CONFIG:
            return {}
        told = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) and told.get("model_type") in _TOLD_BESIDE else {}


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
    except (ValueError, ArithmeticError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: damaged safetensors header ({short(error, 120)}); expected a table of tensors. "
            "Download it again"
        ) from error
    if size < needed:
        raise CheckpointError(
            f"{path}: the file is cut off, {size:,} of at least {needed:,} bytes are there; download it again"
        )


def _read_pickle(path: Path, archive: bool) -> RawCheckpoint:
    records = _records(path) if archive else []
    mapped = archive and all(record.compress_type == zipfile.ZIP_STORED for record in records)
    try:
        content = torch.load(str(path), map_location="cpu", weights_only=True, mmap=mapped)
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
    _check_tensors(content, records if mapped else None, path)
    return RawCheckpoint(dict(content), None, str(path))


def _records(path: Path) -> list[zipfile.ZipInfo]:
    """The entries of an archive; raises for one that is cut off or that unpacks to far more than it is."""
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise CheckpointError(
            f"{path}: the file is cut off or damaged ({size:,} bytes, the archive's end cannot be read: "
            f"{short(error, 120)}); download it again"
        ) from error
    unpacked = sum(record.file_size for record in records)
    if unpacked > max(_MAX_GROWTH * size, _MAX_HEADER):
        raise CheckpointError(
            f"{path}: {size:,} bytes that unpack to {unpacked:,}; expected the weights of a trained model, "
            "which hardly shrink. Get the file from its publisher"
        )
    return records


def _check_tensors(content: Mapping[Any, Any], records: list[zipfile.ZipInfo] | None, path: Path) -> None:
    """Raise for tensors without storage, and for mapped ones that are longer than their ``records``."""
    sizes: dict[int, int] = {}
    for name, tensor in _tensors(content):
        if tensor.is_meta:
            raise CheckpointError(
                f"{path}: the tensor {short(name)} is on the meta device, without numbers; expected weights. "
                "Save the model again after loading its weights"
            )
        if records is not None and tensor.layout is torch.strided and not tensor.is_nested:
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
    stored = Counter(record.file_size for record in records or ())
    if records is not None and (extra := Counter(filter(None, sizes.values())) - stored):
        raise CheckpointError(
            f"{path}: damaged PyTorch file ({extra.total()} tensors are longer than what is stored of them); "
            "download it again"
        )


def _tensors(content: Mapping[Any, Any]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor in nested dicts and lists with the names that lead to it, each container once."""
    seen: set[int] = set()
    waiting: list[tuple[str, Any]] = [("", content)]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, Mapping | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            entries = value.items() if isinstance(value, Mapping) else enumerate(value)
            waiting += [(f"{name}.{short(key)}" if name else short(key), each) for key, each in entries]


def _needs_code(path: Path, reason: str) -> NeedsCodeError:
    wanted = re.search(r"GLOBAL (\S+)", reason)
    found = f"the Python object {wanted[1]}" if wanted else _first_line(reason)
    return NeedsCodeError(
        f"{path}: cannot be read without running code ({found}), and code in checkpoints is never run; "
        f"expected plain tensors. Use a .safetensors file, or take the tensors out once with: "
        f"python scripts/convert_checkpoint.py {path.name}"
    )


def _read_shards(parts: Parts, source: str) -> RawCheckpoint:
    """The tensors of all shards; of a tensor in several, that of the shard which the index names."""
    tensors: dict[str, Tensor] = {}
    for shard in parts.shards:
        held = _read_file(shard).tensors
        if not parts.names and (twice := tensors.keys() & held.keys()):
            raise CheckpointError(
                f"{source}: {len(twice)} tensors are in several shards ({listed(twice)}); expected shards of "
                "one model. Download them again, with their index"
            )
        for name, tensor in held.items():
            if name not in tensors or parts.names.get(name) == shard.name:
                tensors[name] = tensor
    if parts.index and (absent := parts.names.keys() - tensors.keys()):
        raise CheckpointError(
            f"{source}: {len(absent)} tensors of {parts.index.name} are in no shard "
            f"({listed(absent)}); expected shards and index of one download. Download them again"
        )
    return RawCheckpoint(tensors, None, source)


def _first_line(text: str) -> str:
    line = text.strip().splitlines()[0] if text.strip() else "no reason given"
    return line if len(line) <= 200 else f"{line[:197]}..."
