"""Reads the text of a schedule file: checks every value and names the first that is wrong.

The work grows with the length of the text, which :data:`MAX_BYTES` limits. What the values mean says
``schedule_file.py``.
"""

import json
from collections.abc import Mapping
from typing import NoReturn, TypedDict

from ..checks import SHOWN, inside, keys, number, refuse, shown, whole
from .changes import NAMES, changed, converted, given
from .settings import MOST_CHUNKS, MOST_SCALES, Keep, StageSettings, checked_keep
from .stages import StageBoundaries

FORMAT, VERSION = "stagevar-schedule", 1
MAX_BYTES = 1 << 20  # a thousand times what a schedule without a measurement has
CURVES = (
    "rank",
    "rank_of_tokens",
    "rank_of_width",
    "latent_cosine",
    "latent_distance",
    "latent_change",
    "bit_agreement",
    "image_psnr",
    "disagreement",
    "entropy",
)
SIZES = ("depth", "width", "heads", "hidden", "bits", "patch")
"""Sizes of a transformer that tell it from others of its family."""

_KEYS = ("format", "version", "model", "boundaries", "keep", "settings", "measured")
_SETTINGS = tuple(
    name for name in NAMES if name not in ("boundaries", "keep")
)  # those have keys of their own
_COUNT = 1 << 24  # the largest size or count that is believed
_SIDE = 4096  # of a grid, in tokens
_VALUE = 1e9  # the largest size of a measured number that is believed

Identity = Mapping[str, object]
"""``family`` and some of :data:`SIZES` of a transformer."""


class Curve(TypedDict):
    """A number for every scale, or one for every chunk of blocks of it; None where nothing was measured."""

    mean: list
    std: list


class Measured(TypedDict):
    """What a calibration found; ``schedule``: its grids [height, width]."""

    alpha: float
    chunks: int
    prompts: int
    seed: int
    width: int
    schedule: list[list[int]]
    curves: dict[str, Curve]


class Contents(TypedDict):
    """The values of a file; None or empty where it says nothing."""

    model: Identity | None
    boundaries: StageBoundaries | None
    keep: Keep | None
    settings: Mapping[str, object]
    measured: Measured | None


def read(text: str, source: str) -> Contents:
    """The contents of a file; ``ValueError`` names ``source``, the key, the value and what is allowed."""
    if len(text) > MAX_BYTES:
        raise ValueError(f"{source} has more than {MAX_BYTES} characters; a schedule has a few thousand")
    try:
        values = json.loads(text, object_pairs_hook=_unique, parse_constant=_constant)
    except RecursionError:
        raise ValueError(f"{source} is nested too deeply; expected a schedule") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{source} is no valid JSON ({error}); expected a schedule") from None
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    try:
        with inside(f"{source}: "):
            return _contents(values)
    except RecursionError:  # what JSON could nest, but a message could not show
        raise ValueError(f"{source} is nested too deeply; expected a schedule") from None


def _contents(values: object) -> Contents:
    """The values of a file that is JSON."""
    if not isinstance(values, dict):
        refuse("the file", values, "a JSON object")
    if values.get("format") != FORMAT:
        refuse("format", values.get("format"), repr(FORMAT))
    whole("version", values.get("version"), VERSION, VERSION, f"{VERSION}, the one that this release reads")
    keys("", values, _KEYS)
    settings, boundaries = _settings(values.get("settings", {})), None
    if "boundaries" in values:
        beside = {name: settings[name] for name in ("structure_end",) if name in settings}  # refused
        boundaries = changed(StageSettings(), boundaries=values["boundaries"], **beside).boundaries
    return {
        "model": _model(values["model"]) if "model" in values else None,
        "boundaries": boundaries,
        "keep": checked_keep(values["keep"]) if "keep" in given(values) else None,
        "settings": settings,
        "measured": _measured(values["measured"]) if "measured" in values else None,
    }


def _model(values: object) -> Identity:
    """A family and sizes."""
    sizes = keys("model", values, ("family", *SIZES))
    family = sizes.get("family")
    if not isinstance(family, str) or len(family) > SHOWN or not family.isprintable():
        refuse("model.family", family, "the name of a model family such as 'infinity'")
    for name, value in sizes.items():
        if name != "family":
            whole(f"model.{name}", value, 0, _COUNT)
    return sizes


def _settings(values: object) -> Mapping[str, object]:
    """Settings by their public names."""
    given = keys("settings", values, _SETTINGS)
    found = {name: converted(name, value, "settings.") for name, value in given.items()}
    with inside("settings."):
        changed(StageSettings(), **found)
    return found


def _measured(values: object) -> Measured:
    """The curves of a calibration and what they belong to."""
    names = tuple(Measured.__annotations__)
    given = keys("measured", values, names)
    for name in names:
        if name not in given:
            refuse(f"measured.{name}", None, "a value there; calibrate again, or leave out measured")
    grids = given["schedule"]
    if not isinstance(grids, list) or not 1 <= len(grids) <= MOST_SCALES:
        refuse("measured.schedule", grids, f"1 to {MOST_SCALES} grids [height, width]")
    for index, grid in enumerate(grids):
        if not isinstance(grid, list) or len(grid) != 2:
            refuse(f"measured.schedule[{index}]", grid, "[height, width]")
        for side in grid:
            whole(f"measured.schedule[{index}]", side, 1, _SIDE)
    curves = keys("measured.curves", given["curves"], CURVES)
    return {
        "alpha": number("measured.alpha", given["alpha"], 0.0, 1.0, "a share of the energy from 0 to 1"),
        "chunks": whole("measured.chunks", given["chunks"], 1, MOST_CHUNKS),
        "prompts": whole("measured.prompts", given["prompts"], 1, _COUNT),
        "seed": whole("measured.seed", given["seed"], 0, 1 << 64),
        "width": whole("measured.width", given["width"], 1, _COUNT),
        "schedule": grids,
        "curves": {
            name: _curve(f"measured.curves.{name}", curve, len(grids), name.startswith("rank"))
            for name, curve in curves.items()
        },
    }


def _curve(name: str, values: object, scales: int, chunked: bool) -> Curve:
    """A number, a list over the chunks or null for every scale; ``chunked``: such a list for all."""
    parts = keys(name, values, ("mean", "std"))
    found: Curve = {"mean": [], "std": []}
    widths: set[int] = set()
    for part, into in (("mean", found["mean"]), ("std", found["std"])):
        rows = parts.get(part)
        if not isinstance(rows, list) or len(rows) != scales:
            refuse(f"{name}.{part}", rows, f"a list with one entry for each of {scales} scales")
        for index, row in enumerate(rows):
            cells = row if chunked and isinstance(row, list) else [row]
            widths.add(len(cells) if cells is row else 0)
            for cell in cells:
                if cell is not None:
                    number(f"{name}.{part}[{index}]", cell, -_VALUE, _VALUE)
        into += rows
    if len(widths) != 1 or max(widths) > MOST_CHUNKS or (chunked and 0 in widths):
        refuse(name, values, f"as many chunks of blocks at every scale, 1 to {MOST_CHUNKS}")
    return found


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object that says everything once."""
    values: dict[str, object] = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"{shown(name)} is there twice; expected every key once")
        values[name] = value
    return values


def _constant(name: str) -> NoReturn:
    """JSON has no NaN, but Python reads it."""
    raise ValueError(f"the file holds {name}; expected finite numbers")
