"""The header that our own files carry: one JSON object under the safetensors metadata key ``stagevar``.

``{"format": 1, "kind": ..., "family": ..., "config": {...}}`` and, where they apply, ``"trained"`` (ratios,
budgets and pixels per token; or the sides of the scales of squares in place of ratios and budgets),
``"defaults"`` (sampling settings), ``"tokenizer"`` (tokenizers JSON of a text encoder), ``"classes"`` (their
names by number) and ``"title"``. Other entries are notes and ignored.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor

from ..checks import number, one_of, refuse, shown, whole
from ..schedule import AspectTable, SquareTable, infinity_aspect_table, possible_sides
from .errors import CheckpointError, listed, short

KEY = "stagevar"
FORMAT = 1  # rises when files can no longer be read by what came before
_LIMIT = 1 << 24  # no size in a real model comes near it
_MAX_ENTRIES = 256  # of a list
_MAX_CLASSES, _MAX_NAME = 1 << 16, 200  # names of classes, and characters of one
_TINY, _HUGE = 1e-12, 1e12  # of a number in a configuration, which float32 still computes with
Config = TypeVar("Config", bound="ModelConfig")

_MAX_PIXELS = 1024  # per side of a token; published models have 8 to 32
PER_SCALE = ("cfg", "temperature")  # may also be a list, with a value for every scale

# Sampling defaults whose range is known, whole where its ends are; others may be any JSON scalar.
_DEFAULT_RANGES = {
    "cfg": (0.0, 1000.0),
    "temperature": (1e-6, 1000.0),
    "top_p": (0.0, 1.0),
    "top_k": (0, 1 << 20),
    "width": (1, 16384),
    "height": (1, 16384),
    "max_tokens": (2, 1 << 16),
}


class ModelConfig(Protocol):
    """Sizes of a model as a frozen dataclass, whose fields a header says and tensors show."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values for JSON."""
        ...

    @classmethod
    def from_dict(cls: type[Config], values: dict[str, Any]) -> Config:
        """The inverse of :meth:`to_dict`."""
        ...


@dataclass(frozen=True)
class Header:
    """The parsed header; ``config`` is still a plain dict, see :func:`read_config`."""

    kind: str
    family: str
    config: dict[str, Any]
    trained: AspectTable | None = None
    defaults: dict[str, Any] = field(default_factory=dict)
    tokenizer_json: str | None = None
    title: str | None = None
    classes: tuple[str, ...] = ()
    notes: Mapping[str, str] = field(default_factory=dict)  # written for people, never read back


def parse(metadata: Mapping[str, str] | None, source: str) -> Header | None:
    """The header of a file, None when it has none; raises :class:`CheckpointError` naming the bad entry."""
    if not metadata or KEY not in metadata:
        return None
    try:
        values = json.loads(metadata[KEY])
    except (TypeError, ValueError, RecursionError) as error:
        raise _bad(source, "metadata", f"not valid JSON ({short(error, 120)})", "a JSON object") from None
    if not isinstance(values, dict):
        raise _bad(source, "metadata", f"a {type(values).__name__}", "a JSON object")
    version = values.get("format")
    if version != FORMAT or isinstance(version, bool):
        advice = "Update ComfyUI-StageVAR" if isinstance(version, int) and version > FORMAT else ""
        raise _bad(source, "format", shown(version), f"{FORMAT}, the one this version reads", advice)
    for name, expected in (("kind", str), ("family", str), ("config", dict)):
        if not isinstance(values.get(name), expected):
            raise _bad(source, name, shown(values.get(name)), f"a JSON {expected.__name__}")
    for name in ("tokenizer", "title"):
        if not isinstance(values.get(name, ""), str):
            raise _bad(source, name, shown(values[name]), "a string")
    return Header(
        kind=values["kind"],
        family=values["family"],
        config=values["config"],
        trained=_trained(values.get("trained"), source),
        defaults=_defaults(values.get("defaults", {}), source),
        tokenizer_json=_tokenizer(values.get("tokenizer"), source),
        title=values.get("title"),
        classes=_classes(values.get("classes", []), source),
    )


def dump(header: Header) -> dict[str, str]:
    """Safetensors metadata for a file of ours, the inverse of :func:`parse`."""
    values = {"format": FORMAT, "kind": header.kind, "family": header.family, "config": header.config}
    optional = {
        "trained": _sizes(header.trained),
        "defaults": header.defaults,
        "tokenizer": header.tokenizer_json,
        "title": header.title,
        "classes": list(header.classes),
    }
    values |= {name: value for name, value in optional.items() if value}
    values |= {name: text for name, text in header.notes.items() if name not in values}
    return {KEY: json.dumps(values)}


def _sizes(trained: AspectTable | None) -> dict[str, Any] | None:
    """What :func:`_trained` reads; squares have sides, everything else is a part of Infinity's table."""
    if trained is None:
        return None
    pixels = {"pixels_per_token": trained.pixels_per_token}
    if isinstance(trained, SquareTable):
        return {"sides": [[side for side, _ in grids] for grids in trained.schedules.values()], **pixels}
    return {"ratios": list(trained.grids), "budgets": list(trained.budgets), **pixels}


def record(header: Header) -> Tensor:
    """The header as a tensor of bytes, for state dicts that others write without our metadata."""
    return torch.frombuffer(bytearray(dump(header)[KEY].encode()), dtype=torch.uint8)


def recorded(tensor: Tensor | None, source: str) -> dict[str, str] | None:
    """The metadata that :func:`record` put into a tensor; raises :class:`CheckpointError` for another one."""
    if tensor is None:
        return None
    bytes_alone = tensor.layout is torch.strided and not tensor.is_nested and tensor.dtype == torch.uint8
    if not bytes_alone or tensor.is_meta or tensor.dim() != 1 or tensor.stride() != (1,):
        raise _bad(source, f"tensor {KEY}", f"dtype {tensor.dtype}", "a vector of bytes")
    return {KEY: tensor.contiguous().numpy().tobytes().decode("utf-8", "replace")}


def read_config(config_type: type[Config], values: Mapping[str, object], source: str) -> Config:
    """``values`` as a ``config_type``, after checking names, types and ranges of all fields.

    Raises :class:`CheckpointError` naming the first entry that is unknown, missing or not allowed.
    """
    known = {entry.name: entry for entry in fields(config_type)}
    required = {name for name, entry in known.items() if entry.default is MISSING}
    if extra := values.keys() - known.keys():
        raise _bad(source, f"config entry {listed(extra)}", "unknown", f"only {listed(known, 20)}")
    if missing := required - values.keys():
        raise _bad(source, f"config entry {listed(missing)}", "missing", f"all of {listed(required, 20)}")
    for name, value in values.items():
        kind = known[name].type  # a text in modules that postpone annotations
        text = kind.__name__ if isinstance(kind, type) else str(kind)
        check, expected = _FIELD_CHECKS[text.partition("[")[0]]
        with _refused(source, f"config entry {name}", value, expected):
            check(value)
    return config_type.from_dict(dict(values))


def _size(value: object) -> int:
    return whole("the size", value, 1, _LIMIT)


def _text(value: object) -> str:
    return value if isinstance(value, str) else refuse("the text", value, "a string")


def _entries(value: object) -> list[object]:
    if isinstance(value, list | tuple) and 0 < len(value) <= _MAX_ENTRIES:
        return list(value)
    refuse("the list", value, f"1 to {_MAX_ENTRIES} entries")


# By the type of a field: what refuses a value, and what is expected of it.
_FIELD_CHECKS: dict[str, tuple[Callable[[object], object], str]] = {
    "int": (_size, f"a whole number from 1 to {_LIMIT}"),
    "float": (lambda value: number("the number", value, _TINY, _HUGE), "a positive number"),
    "bool": (lambda value: one_of("the switch", value, (False, True)), "true or false"),
    "str": (_text, "a string"),
    "tuple": (lambda value: [_size(entry) for entry in _entries(value)], "a list of positive whole numbers"),
}


@contextmanager
def _refused(source: str, entry: str, value: object, expected: str) -> Iterator[None]:
    """Refusals of a block as the error of an entry of the header."""
    try:
        yield
    except ValueError:
        raise _bad(source, entry, shown(value), expected) from None


def _trained(values: object, source: str) -> AspectTable | None:
    if values is None:
        return None
    if not isinstance(values, dict):
        raise _bad(source, "trained", shown(values), "an object with ratios, budgets and pixels_per_token")
    ratios, budgets = values.get("ratios"), values.get("budgets")
    pixels, allowed = values.get("pixels_per_token"), f"a whole number from 1 to {_MAX_PIXELS}"
    with _refused(source, "trained.pixels_per_token", pixels, allowed):
        side = whole("the side", pixels, 1, _MAX_PIXELS)
    if "sides" in values:
        return _squares(values["sides"], side, source)
    with _refused(source, "trained.ratios", ratios, "a list of ratios such as [1.0]"):
        chosen = [number("the ratio", ratio) for ratio in _entries(ratios)]
    with _refused(source, "trained.budgets", budgets, 'a list of budgets such as ["0.06M"]'):
        named = [_text(name) for name in _entries(budgets)]
    try:
        return infinity_aspect_table(side).restrict(chosen, named)
    except ValueError as error:
        raise _bad(source, "trained", str(error), "ratios and budgets of that table") from None


def _squares(sides: object, pixels: int, source: str) -> SquareTable:
    """The sizes of a model that was trained on squares alone."""
    with _refused(source, "trained.sides", sides, "lists of side lengths such as [[1, 2, 4]]"):
        found = [_entries(each) for each in _entries(sides)]
        if not all(map(possible_sides, found)):
            refuse("sides", sides, "side lengths from 1 up")
    return SquareTable.of(*([_size(side) for side in each] for each in found), pixels_per_token=pixels)


def _classes(values: object, source: str) -> tuple[str, ...]:
    """Names that can be told apart, in any case of their letters."""
    expected = f"up to {_MAX_CLASSES} different names of up to {_MAX_NAME} characters that are no numbers"
    with _refused(source, "classes", values, expected):
        names = [_text(name) for name in values] if isinstance(values, list) else refuse("", values, expected)
        usable = all(0 < len(name.strip()) == len(name) <= _MAX_NAME and _is_name(name) for name in names)
        if len(names) > _MAX_CLASSES or not usable or len({name.lower() for name in names}) < len(names):
            refuse("the names", values, expected)
    return tuple(names)


def _is_name(text: str) -> bool:
    return text.isprintable() and not text.removeprefix("-").isdecimal()


def _defaults(values: object, source: str) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise _bad(source, "defaults", shown(values), "an object of sampling settings")
    for name, value in values.items():
        if name in _DEFAULT_RANGES:
            low, high = _DEFAULT_RANGES[name]
            kind = "a whole number" if isinstance(low, int) else "a number"
            per_scale = isinstance(value, list) and name in PER_SCALE
            with _refused(source, f"defaults.{name}", value, f"{kind} from {low} to {high}"):
                for each in _entries(value) if per_scale else [value]:
                    _in_range(each, low, high)
        elif not isinstance(value, bool | str):
            with _refused(source, f"defaults.{name}", value, "a number, a string, true or false"):
                number(name, value)
    return dict(values)


def _in_range(value: object, low: float, high: float) -> None:
    """Whole where the ends of the range are; 600.0 is, as JSON does not tell it from 600."""
    found = number("the value", value, low, high)
    if isinstance(low, int) and not found.is_integer():
        refuse("the value", value, "a whole number")


def _tokenizer(text: str | None, source: str) -> str | None:
    if not text:
        return None
    try:
        valid = isinstance(json.loads(text).get("model"), dict)
    except (ValueError, AttributeError, RecursionError):
        valid = False
    if not valid:
        raise _bad(source, "tokenizer", shown(text), "a vocabulary in the tokenizers JSON format")
    return text


def _bad(source: str, entry: str, found: str, expected: str, advice: str = "") -> CheckpointError:
    return CheckpointError(
        f"{source}: its StageVAR metadata has a bad {entry}: found {found}, expected {expected}. "
        + (advice or "Convert the model again with scripts/convert_checkpoint.py")
    )
