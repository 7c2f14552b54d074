"""Checkpoint files with faults: small complete files, changed at a place by a number, in many ways."""

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save as packed
from torch import Tensor


class Mutation(NamedTuple):
    """One fault: what kind it is, where in the file (0 to 1), and a number that it uses."""

    kind: str
    where: float
    value: int


# ------------------------------------------------------------------------------------------- of the tensors
def _drop(tensors: dict[str, Any], key: str, value: int) -> None:
    del tensors[key]


def _rename(tensors: dict[str, Any], key: str, value: int) -> None:
    names = (
        f"{key}x",
        key[:-1],
        "",
        "a" * 5000,
        key.replace(".", "/"),
        f"module.{key}",
        "\u0007" + key,
        "blocks.9.x",
    )
    tensors[names[value % len(names)]] = tensors.pop(key)


def _number(tensors: dict[str, Any], key: str, value: int) -> None:
    """Another number in a name: of a block, a level, a layer."""
    digits = [str(value), "-1", "99999", "00", "9" * 40]
    parts = [digits[value % 5] if part.isdecimal() else part for part in key.split(".")]
    tensors[".".join(parts)] = tensors.pop(key)


def _reshape(tensors: dict[str, Any], key: str, value: int) -> None:
    tensor = tensors[key]
    ways: list[Callable[[], Tensor]] = [
        lambda: tensor.unsqueeze(0),
        lambda: tensor.flatten(),
        lambda: tensor[:0],
        lambda: torch.cat((tensor, tensor)),
        lambda: tensor.mT if tensor.dim() > 1 else tensor[None].mT,
        lambda: torch.zeros(()),
        lambda: tensor[..., :1],
        lambda: tensor[None, None, None, None],
    ]
    if tensor.dim():
        tensors[key] = ways[value % len(ways)]().contiguous()


def _retype(tensors: dict[str, Any], key: str, value: int) -> None:
    kinds = (
        torch.int8,
        torch.int64,
        torch.bool,
        torch.float64,
        torch.float8_e4m3fn,
        torch.float16,
        torch.uint8,
    )
    tensors[key] = tensors[key].to(kinds[value % len(kinds)])


def _odd_numbers(tensors: dict[str, Any], key: str, value: int) -> None:
    tensor = tensors[key].float().clone()
    tensor.view(-1)[: 1 + value % 3] = (float("nan"), float("inf"), -float("inf"), 3e38)[value % 4]
    tensors[key] = tensor


def _extra(tensors: dict[str, Any], key: str, value: int) -> None:
    names = (
        "comfy_quant",
        "weight_scale",
        "scaled_fp8",
        "lora_A.weight",
        "alpha",
        "stagevar",
        "q_bias",
        "weight",
    )
    kinds = (torch.uint8, torch.float32, torch.float8_e4m3fn)
    name = names[value % len(names)]
    prefix = f"{key.rpartition('.')[0]}." if value % 3 else ""
    tensors[prefix + name] = torch.zeros(value % 7).to(kinds[value % 3])


def _wrap(tensors: dict[str, Any], key: str, value: int) -> None:
    """All names behind a prefix, known or not."""
    prefix = ("model.", "module.", "x.y.z.", "ema.", "vae.", "state_dict.model.", "." * 3)[value % 7]
    for name in list(tensors):
        tensors[prefix + name] = tensors.pop(name)


TENSORS = {
    "drop": _drop,
    "rename": _rename,
    "number": _number,
    "reshape": _reshape,
    "retype": _retype,
    "odd numbers": _odd_numbers,
    "extra": _extra,
    "wrap": _wrap,
}


# --------------------------------------------------------------------------------------------- of the bytes
def _cut(data: bytes, at: int, value: int) -> bytes:
    return data[:at]


def _flip(data: bytes, at: int, value: int) -> bytes:
    changed = bytearray(data)
    for place in range(at, min(len(changed), at + 1 + value % 16)):
        changed[place] ^= 1 + value % 255
    return bytes(changed)


def _insert(data: bytes, at: int, value: int) -> bytes:
    return data[:at] + bytes([value % 256]) * (1 + value % 64) + data[at:]


def _first(data: bytes, at: int, value: int) -> bytes:
    """Another length of the header, or other first bytes."""
    starts = (
        (value % 2**64).to_bytes(8, "little"),
        b"\xff" * 8,
        bytes(8),
        b"PK\x03\x04....",
        b"\x80\x02......",
        b"<!DOCTYP",
    )
    return starts[value % len(starts)] + data[8:]


BYTES = {"cut": _cut, "flip": _flip, "insert": _insert, "first": _first}


# -------------------------------------------------------------------------------------- of the JSON header
def _header(data: bytes, where: float, value: int) -> bytes:
    """One entry of a safetensors header changed; the tensors' bytes stay."""
    length = int.from_bytes(data[:8], "little")
    table = json.loads(data[8 : 8 + length])
    names = sorted(table)
    name = names[int(where * len(names))]
    entry = table[name]
    odd: tuple[Any, ...] = (None, -1, 2**63, "F31", [], {}, True, 1.5, "x" * 3000, [[0]])
    if value % 11 == 0 or not isinstance(entry, dict) or not entry:
        table[name] = odd[value % len(odd)]
    elif name == "__metadata__":
        key = sorted(entry)[value % len(entry)]
        texts = ("{", "[]", "{}", "null", entry[key][: len(entry[key]) // 2], entry[key].replace("1", "-1"))
        entry[key] = (*texts, entry[key].replace("2", "1e999"), "[" * 3000)[value % 8]
    else:
        key = ("dtype", "shape", "data_offsets")[value % 3]
        given = entry[key] if isinstance(entry[key], list) else [0]
        numbers = [number for number in given if isinstance(number, int)]  # a fault may be there already
        changed: tuple[Any, ...] = (
            *odd,
            [*numbers, 1],
            numbers[:-1],
            [2**40, 2**40],
            [number + 1 for number in numbers],
            list(reversed(numbers)),
            ("F64", "I8", "BOOL", "F8_E4M3", "BF16")[value % 5],
        )
        entry[key] = changed[value % len(changed)]
    raw = json.dumps(table).encode()
    return len(raw).to_bytes(8, "little") + raw + data[8 + length :]


# --------------------------------------------------------------------------------------- of other containers
class Marker:
    """What a pickle that ran code would leave behind: a file, by a harmless call."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.file,)


def _pickle(tensors: dict[str, Any], folder: Path, value: int) -> Path:
    """A PyTorch file of the same tensors, with other things in it or in an old format."""
    content: Any = dict(tensors)
    marker = Marker(folder / "ran")
    odd: tuple[Any, ...] = (
        content,
        {"model": content},
        {**content, "optimizer": {"state": [1, 2]}},
        {**content, "note": marker},
        [content],
        list(content.values()),
        {"state_dict": {"model": {"module": {"model": {"var": content}}}}},
        {**content, 7: torch.zeros(1)},
        next(iter(content.values()), torch.zeros(1)),
        marker,
    )
    path = folder / "model.pth"
    held = odd[value % len(odd)]
    if value % 13 == 0:
        path.write_bytes(pickle.dumps({"model": [1, 2, marker]}))
    else:
        torch.save(held, path, _use_new_zipfile_serialization=value % 3 != 0)
    return path


def _rezip(path: Path, where: float, value: int) -> None:
    """The archive of a PyTorch file with an entry left out, emptied, or compressed."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as old:
        entries = [(name, old.read(name)) for name in old.namelist()]
    chosen = int(where * len(entries))
    method = zipfile.ZIP_DEFLATED if value % 4 == 3 else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", method) as new:
        for index, (name, data) in enumerate(entries):
            if index == chosen and value % 4 == 0:
                continue
            new.writestr(name, b"" if index == chosen and value % 4 == 1 else data)


def _shards(data: bytes, tensors: dict[str, Any], folder: Path, where: float, value: int) -> Path:
    """A folder with an index over two shards, of which something is not as it should be."""
    names = sorted(tensors)
    middle = len(names) // 2
    parts = {"a.safetensors": names[:middle], "b.safetensors": names[middle:]}
    for file, held in parts.items():
        (folder / file).write_bytes(packed({name: tensors[name].contiguous() for name in held}))
    table: dict[str, Any] = {name: file for file, held in parts.items() for name in held}
    name = names[int(where * len(names))]
    odd = (
        "c.safetensors",
        "../a.safetensors",
        "/a.safetensors",
        "",
        None,
        3,
        ["a.safetensors"],
        "a.safetensors",
    )
    table[name] = odd[value % len(odd)]
    index: Any = ({"weight_map": table}, {"weight_map": [table]}, table, [], {"weight_map": {}})[value % 5]
    file = folder / "model.safetensors.index.json"
    file.write_text(json.dumps(index))
    if value % 7 == 0:
        (folder / "b.safetensors").unlink()
    elif value % 7 == 1:
        (folder / "b.safetensors").write_bytes(data[: int(where * len(data))])
    return folder if value % 2 else file


KINDS = (*TENSORS, *BYTES, "header", "pickle", "zip", "shards")


def written(
    tensors: dict[str, Tensor], metadata: dict[str, str] | None, mutations: list[Mutation], folder: Path
) -> Path:
    """A file or folder of these tensors with the faults in it: those of tensors first, of bytes last."""
    held: dict[str, Any] = dict(tensors)
    for kind, where, value in mutations:
        if kind in TENSORS and held:
            TENSORS[kind](held, sorted(held)[int(where * len(held))], value)
    data = packed({name: tensor.contiguous() for name, tensor in held.items()}, metadata)
    path = folder / "model.safetensors"
    for kind, where, value in mutations:
        if kind == "header" and data[:8] != b"" and path.name == "model.safetensors":
            data = _header(data, where, value)
    for kind, where, value in mutations:
        if kind == "shards" and held:
            return _shards(data, held, folder, where, value)
        if kind == "pickle" or (kind == "zip" and path.suffix != ".pth"):
            path = _pickle(held, folder, value)
            data = path.read_bytes()
        if kind == "zip":
            _rezip(path, where, value)
            data = path.read_bytes()
    for kind, where, value in mutations:
        if kind in BYTES:
            data = BYTES[kind](data, int(where * len(data)), value)
    path.write_bytes(data)
    return path
