"""The header that our own files carry: one JSON object under the safetensors metadata key ``stagevar``.

``{"format": 1, "kind": ..., "family": ..., "config": {...}}`` and, where they apply, ``"trained"`` (ratios,
budgets and pixels per token), ``"defaults"`` (sampling settings), ``"tokenizer"`` (tokenizers JSON of a text
encoder) and ``"title"``. Other entries are notes and ignored.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, TypeGuard

from ..schedule import AspectTable, infinity_aspect_table
from .errors import CheckpointError, listed

KEY = "stagevar"
FORMAT = 1
_LIMIT = 1 << 24  # no size in a real model comes near it

# Sampling defaults whose range is known; others may be any JSON scalar.
_DEFAULT_RANGES = {
    "cfg": (0.0, 1000.0),
    "temperature": (1e-6, 1000.0),
    "top_p": (0.0, 1.0),
    "top_k": (0, 1 << 20),
    "width": (1, 16384),
    "height": (1, 16384),
}


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


def parse(metadata: Mapping[str, str] | None, source: str) -> Header | None:
    """The header of a file, None when it has none; raises :class:`CheckpointError` naming the bad entry."""
    if not metadata or KEY not in metadata:
        return None
    try:
        values = json.loads(metadata[KEY])
    except (TypeError, ValueError, RecursionError) as error:
        raise _bad(source, "metadata", f"not valid JSON ({error})", "a JSON object") from None
    if not isinstance(values, dict):
        raise _bad(source, "metadata", f"a {type(values).__name__}", "a JSON object")
    version = values.get("format")
    if version != FORMAT or isinstance(version, bool):
        advice = "Update ComfyUI-StageVAR" if isinstance(version, int) and version > FORMAT else ""
        raise _bad(source, "format", repr(version), f"{FORMAT}, the one this version reads", advice)
    for name, expected in (("kind", str), ("family", str), ("config", dict)):
        if not isinstance(values.get(name), expected):
            raise _bad(source, name, _short(values.get(name)), f"a JSON {expected.__name__}")
    for name in ("tokenizer", "title"):
        if not isinstance(values.get(name, ""), str):
            raise _bad(source, name, _short(values[name]), "a string")
    return Header(
        kind=values["kind"],
        family=values["family"],
        config=values["config"],
        trained=_trained(values.get("trained"), source),
        defaults=_defaults(values.get("defaults", {}), source),
        tokenizer_json=_tokenizer(values.get("tokenizer"), source),
        title=values.get("title"),
    )


def dump(header: Header) -> dict[str, str]:
    """Safetensors metadata for a file of ours, the inverse of :func:`parse`."""
    values = {"format": FORMAT, "kind": header.kind, "family": header.family, "config": header.config}
    if header.trained is not None:
        values["trained"] = {
            "ratios": list(header.trained.grids),
            "budgets": list(header.trained.budgets),
            "pixels_per_token": header.trained.pixels_per_token,
        }
    optional = {
        "defaults": header.defaults,
        "tokenizer": header.tokenizer_json,
        "title": header.title,
    }
    values |= {name: value for name, value in optional.items() if value}
    return {KEY: json.dumps(values)}


def read_config(config_type: type, values: Mapping[str, Any], source: str) -> Any:
    """``values`` as a ``config_type``, after checking names, types and ranges of all fields."""
    known = {entry.name: entry for entry in fields(config_type)}
    required = {name for name, entry in known.items() if entry.default is MISSING}
    if extra := values.keys() - known.keys():
        raise _bad(source, f"config entry {listed(extra)}", "unknown", f"only {listed(known, 20)}")
    if missing := required - values.keys():
        raise _bad(source, f"config entry {listed(missing)}", "missing", f"all of {listed(required, 20)}")
    for name, value in values.items():
        kind = known[name].type
        kind = kind if isinstance(kind, str) else getattr(kind, "__name__", str(kind))
        check, expected = _FIELD_CHECKS[kind.partition("[")[0]]
        if not check(value):
            raise _bad(source, f"config entry {name}", _short(value), expected)
    return config_type.from_dict(dict(values))


def _is_size(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _LIMIT


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_FIELD_CHECKS = {
    "int": (_is_size, f"a whole number from 1 to {_LIMIT}"),
    "float": (lambda value: _is_number(value) and value > 0, "a positive number"),
    "bool": (lambda value: isinstance(value, bool), "true or false"),
    "str": (lambda value: isinstance(value, str), "a string"),
    "tuple": (
        lambda value: isinstance(value, list | tuple) and value and all(_is_size(entry) for entry in value),
        "a list of positive whole numbers",
    ),
}


def _trained(values: Any, source: str) -> AspectTable | None:
    if values is None:
        return None
    if not isinstance(values, dict):
        raise _bad(source, "trained", _short(values), "an object with ratios, budgets and pixels_per_token")
    ratios, budgets = values.get("ratios"), values.get("budgets")
    pixels = values.get("pixels_per_token")
    if not _is_size(pixels) or pixels > 1024:
        raise _bad(source, "trained.pixels_per_token", _short(pixels), "a whole number from 1 to 1024")
    if not isinstance(ratios, list) or not ratios or not all(_is_number(ratio) for ratio in ratios):
        raise _bad(source, "trained.ratios", _short(ratios), "a list of ratios such as [1.0]")
    if not isinstance(budgets, list) or not budgets or not all(isinstance(name, str) for name in budgets):
        raise _bad(source, "trained.budgets", _short(budgets), 'a list of budgets such as ["0.06M"]')
    try:
        return infinity_aspect_table(pixels).restrict([float(ratio) for ratio in ratios], budgets)
    except ValueError as error:
        raise _bad(source, "trained", str(error), "ratios and budgets of that table") from None


def _defaults(values: Any, source: str) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise _bad(source, "defaults", _short(values), "an object of sampling settings")
    for name, value in values.items():
        if name in _DEFAULT_RANGES:
            low, high = _DEFAULT_RANGES[name]
            whole = isinstance(low, int)
            per_scale = isinstance(value, list) and name in ("cfg", "temperature")
            given: list[Any] = list(value) if per_scale else [value]
            for number in given:
                if not _is_number(number) or (whole and number != int(number)) or not low <= number <= high:
                    kind = "a whole number" if whole else "a number"
                    raise _bad(source, f"defaults.{name}", _short(value), f"{kind} from {low} to {high}")
        elif not (isinstance(value, bool | str) or _is_number(value)):
            raise _bad(source, f"defaults.{name}", _short(value), "a number, a string, true or false")
    return dict(values)


def _tokenizer(text: str | None, source: str) -> str | None:
    if not text:
        return None
    try:
        valid = isinstance(json.loads(text).get("model"), dict)
    except (ValueError, AttributeError, RecursionError):
        valid = False
    if not valid:
        raise _bad(source, "tokenizer", _short(text), "a vocabulary in the tokenizers JSON format")
    return text


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _bad(source: str, entry: str, found: str, expected: str, advice: str = "") -> CheckpointError:
    return CheckpointError(
        f"{source}: its StageVAR metadata has a bad {entry}: found {found}, expected {expected}. "
        + (advice or "Convert the model again with scripts/convert_checkpoint.py")
    )
