"""Schedule files: stages and budgets of a model as JSON that people can read, edit and share.

``{"format": "stagevar-schedule", "version": 1, ...}`` and any of ``model`` (what it was made for),
``boundaries`` (area fractions), ``keep`` (shares of tokens), ``settings`` (other keys of
:class:`StageSettings`, where all are explained) and ``measured`` (the curves of a calibration, see
``calibrate.py``). What a file leaves out stays as the preset has it.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NoReturn

from ..files import replaced
from ..network.local import LocalWindow
from .policy import AccelerationPolicy
from .presets import PRESETS
from .staged import Share, StagedPolicy, StageSettings
from .stages import StageBoundaries

FORMAT, VERSION = "stagevar-schedule", 1
MAX_BYTES = 1 << 20
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
_KEYS = ("format", "version", "model", "boundaries", "keep", "settings", "measured")
_MEASURED = ("alpha", "chunks", "prompts", "seed", "width", "schedule", "curves")
_IDENTITY = ("depth", "width", "heads", "hidden", "bits", "patch")
_NAME = re.compile(r"\w[\w .()+-]{0,119}\.json")

Keep = float | tuple[tuple[float, Share], ...]


@dataclass(frozen=True)
class StageSchedule:
    """The contents of a schedule file; None or empty leaves a preset as it is.

    ``model``: family and sizes it was made for; None fits every model. ``measured``: curves over the scales
    of ``measured["schedule"]``, each with a mean and a standard deviation over the prompts.
    """

    model: Mapping[str, Any] | None = None
    boundaries: StageBoundaries | None = None
    keep: Keep | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    measured: Mapping[str, Any] | None = None
    source: str = field(default="schedule", compare=False)

    @classmethod
    def load(cls, path: Path | str) -> "StageSchedule":
        """Read a file; ``ValueError`` names the key, the value and what is allowed there."""
        path = Path(path)
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ValueError(f"{path.name} has more than {MAX_BYTES} bytes; a schedule has a few thousand")
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path.name} is no text in UTF-8 ({error}); expected a JSON object") from None
        return cls.parse(text, path.name)

    @classmethod
    def parse(cls, text: str, source: str = "schedule") -> "StageSchedule":
        """Read the text of a file; ``source`` names it in errors."""
        return _Reader(source).read(text)

    def save(self, path: Path | str) -> None:
        """Write the file in one step, so that nobody reads half of it."""
        with replaced(Path(path)) as partial:
            partial.write_text(self.to_json(), encoding="utf-8")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values: dict[str, Any] = {"format": FORMAT, "version": VERSION}
        if self.model is not None:
            values["model"] = dict(self.model)
        if self.boundaries is not None:
            values["boundaries"] = dict(vars(self.boundaries))
        if self.keep is not None:
            values["keep"] = self.keep
        if self.settings:
            plain = {k: vars(v) if isinstance(v, LocalWindow) else v for k, v in self.settings.items()}
            values["settings"] = plain
        if self.measured is not None:
            values["measured"] = dict(self.measured)
        return values

    def to_json(self) -> str:
        """The text of the file, one entry a line."""
        return _lines(self.to_dict()) + "\n"

    def check(self, model: Any) -> None:
        """``ValueError`` with both sides when the schedule was made for another transformer."""
        if self.model is None:
            return
        present = {"family": model.family, **model.config.to_dict()}
        if any(present.get(key) != value for key, value in self.model.items()):
            found = {key: present.get(key) for key in self.model}
            raise ValueError(
                f"{self.source} was made for {_described(self.model)}; the model is {_described(found)}. "
                "Choose a schedule of this model, or make one with the calibrate command"
            )

    def apply(self, policy: AccelerationPolicy) -> StagedPolicy:
        """A preset with this schedule's stages, budgets and settings.

        Shares over the depth are averaged where the preset reduces all blocks at once. Raises ``ValueError``
        for methods without stages.
        """
        if not isinstance(policy, StagedPolicy):
            staged = [name for name, known in PRESETS.items() if isinstance(known, StagedPolicy)]
            raise ValueError(f"preset {policy.name!r} takes no schedule; expected one of {staged}")
        changes: dict[str, Any] = dict(self.settings)
        if self.boundaries is not None:
            changes["boundaries"] = self.boundaries
        if self.keep is not None:
            spans = changes.get("spans", policy.settings.spans)
            changes["keep"] = _averaged(self.keep) if spans == 1 else self.keep
        return StagedPolicy(f"{policy.name} ({self.source})", replace(policy.settings, **changes))


def identity(model: Any) -> dict[str, Any]:
    """Family and sizes by which :meth:`StageSchedule.check` recognises a transformer."""
    config = model.config.to_dict()
    return {"family": model.family, **{name: config[name] for name in _IDENTITY if name in config}}


def resolve(folder: Path | str, name: str) -> Path:
    """The file ``name`` in the schedules folder; ``ValueError`` for whatever would leave it.

    A name is one file name that ends in .json; folders, drives and links to elsewhere are refused.
    """
    folder = Path(folder).resolve()
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(
            f"the schedule's name is {_shown(name)}; expected a file name such as balanced.json: letters, "
            "digits, spaces, . _ - + ( ), no folders, 125 characters at most"
        )
    try:
        path = (folder / name).resolve()
    except (OSError, RuntimeError):  # a link to itself; which of the two depends on Python's version
        path = folder
    if path.parent != folder or path.suffix != ".json":
        raise ValueError(
            f"the schedule {name!r} is a link that leaves {folder.name}; expected a file in that folder"
        )
    return path


def _averaged(keep: Keep) -> Keep:
    """``keep`` with one share for all blocks."""
    if not isinstance(keep, tuple):
        return keep
    return tuple((area, sum(s) / len(s) if isinstance(s, tuple) else s) for area, s in keep)


def _described(model: Mapping[str, Any]) -> str:
    sizes = [f"{key} {value}" for key, value in model.items() if key != "family"]
    return f"{model['family']}" + (f" with {', '.join(sizes)}" if sizes else "")


def _shown(value: Any) -> str:
    """A value for an error, short whatever it is."""
    text = repr(value) if not isinstance(value, dict | list) else json.dumps(value, default=repr)
    return text if len(text) <= 60 else text[:57] + "..."


def _lines(values: Mapping[str, Any], indent: str = "") -> str:
    """JSON with one entry a line and lists unbroken."""
    inner, entries = indent + " ", []
    for key, value in values.items():
        nested = isinstance(value, Mapping) and any(
            isinstance(v, Mapping | list | tuple) for v in value.values()
        )
        text = _lines(value, inner) if nested else json.dumps(value, allow_nan=False)
        entries.append(f"{inner}{json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(entries) + "\n" + indent + "}"


class _Reader:
    """Checks every value of a file and names the first that is wrong."""

    def __init__(self, source: str) -> None:
        self.source = source

    def read(self, text: str) -> StageSchedule:
        if len(text) > MAX_BYTES:
            raise ValueError(
                f"{self.source} has more than {MAX_BYTES} characters; a schedule has a few thousand"
            )
        try:
            values = json.loads(text, object_pairs_hook=self.unique, parse_constant=self.constant)
        except RecursionError:
            raise ValueError(f"{self.source} is nested too deeply; expected a schedule") from None
        except json.JSONDecodeError as error:
            raise ValueError(f"{self.source} is no valid JSON ({error}); expected a schedule") from None
        except ValueError as error:
            raise ValueError(f"{self.source}: {error}") from None
        if not isinstance(values, dict):
            self.bad("the file", values, "a JSON object")
        if values.get("format") != FORMAT:
            self.bad("format", values.get("format"), repr(FORMAT))
        version = values.get("version")
        if type(version) is not int or version != VERSION:
            self.bad("version", version, f"{VERSION}, the one that this release reads")
        self.keys("", values, _KEYS)
        return StageSchedule(
            model=self.model(values["model"]) if "model" in values else None,
            boundaries=self.boundaries(values["boundaries"]) if "boundaries" in values else None,
            keep=self.keep(values["keep"]) if "keep" in values else None,
            settings=self.settings(values.get("settings", {})),
            measured=self.measured(values["measured"]) if "measured" in values else None,
            source=self.source,
        )

    def model(self, values: Any) -> dict[str, Any]:
        self.keys("model", values, ("family", *_IDENTITY))
        if not isinstance(values.get("family"), str):
            self.bad("model.family", values.get("family"), "the name of a model family such as 'infinity'")
        for name, value in values.items():
            if name != "family":
                self.integer(f"model.{name}", value, 0, 1 << 24)
        return values

    def boundaries(self, values: Any) -> StageBoundaries:
        known = tuple(item.name for item in fields(StageBoundaries))
        self.keys("boundaries", values, known)
        for name in known:
            if name not in values:
                self.bad(f"boundaries.{name}", None, "a fraction of the final area from 0 to 1")
            self.number(f"boundaries.{name}", values[name], 0.0, 1.0, "a fraction of the final area")
        return self.built("boundaries", StageBoundaries, values)

    def keep(self, values: Any) -> Keep:
        if not isinstance(values, list):
            return self.number("keep", values, 0.0, 1.0, "a share, or a list of [area fraction, share],")
        if not 1 <= len(values) <= 64:
            self.bad("keep", values, "1 to 64 points [area fraction, share]")
        points, before = [], -1.0
        for index, point in enumerate(values):
            key = f"keep[{index}]"
            if not isinstance(point, list) or len(point) != 2:
                self.bad(key, point, "[area fraction, share]")
            area = self.number(f"{key}[0]", point[0], 0.0, 1.0, "an area fraction")
            if area <= before:
                self.bad(f"{key}[0]", area, f"more than {before}, the area fraction before it, and 1 at most")
            points.append((area, self.share(f"{key}[1]", point[1])))
            before = area
        return tuple(points)

    def share(self, key: str, value: Any) -> Share:
        if not isinstance(value, list):
            return self.number(key, value, 0.0, 1.0, "a share, or a list of shares over the depth,")
        if not 1 <= len(value) <= 256:
            self.bad(key, value, "1 to 256 shares over the depth")
        return tuple(
            self.number(f"{key}[{index}]", item, 0.0, 1.0, "a share") for index, item in enumerate(value)
        )

    def settings(self, values: Any) -> dict[str, Any]:
        defaults = StageSettings()
        known = [item.name for item in fields(StageSettings) if item.name not in ("boundaries", "keep")]
        self.keys("settings", values, known)
        found: dict[str, Any] = {}
        for name, value in values.items():
            key, default = f"settings.{name}", getattr(defaults, name)
            if isinstance(default, LocalWindow):
                found[name] = self.window(key, value)
            elif name == "kv" and not isinstance(value, str):
                found[name] = self.number(key, value, 0.0, 1.0, "'append', 'none' or a share")
            elif isinstance(default, str) and not isinstance(value, str):
                self.bad(key, value, f"a name such as {default!r}")
            elif isinstance(default, int):
                found[name] = self.integer(key, value, 0, 1 << 16)
            elif isinstance(default, float):
                found[name] = self.number(key, value, 0.0, 1.0, "a number")
            else:
                found[name] = value
        self.built("settings", StageSettings, found)
        return found

    def window(self, key: str, values: Any) -> LocalWindow:
        self.keys(key, values, [item.name for item in fields(LocalWindow)])
        for name, value in values.items():
            self.number(f"{key}.{name}", value, 0.0, 1.0, "a share of the grid")
        return self.built(key, LocalWindow, values)

    def measured(self, values: Any) -> dict[str, Any]:
        self.keys("measured", values, _MEASURED)
        for name in _MEASURED:
            if name not in values:
                self.bad(f"measured.{name}", None, "a value there; calibrate again, or leave out measured")
        self.number("measured.alpha", values["alpha"], 0.0, 1.0, "a share of the energy")
        for name, most in (("chunks", 256), ("prompts", 1 << 24), ("seed", 1 << 64), ("width", 1 << 24)):
            self.integer(f"measured.{name}", values[name], 0 if name == "seed" else 1, most)
        grids = values["schedule"]
        if not isinstance(grids, list) or not 1 <= len(grids) <= 64:
            self.bad("measured.schedule", grids, "1 to 64 grids [height, width]")
        for index, grid in enumerate(grids):
            if not isinstance(grid, list) or len(grid) != 2:
                self.bad(f"measured.schedule[{index}]", grid, "[height, width]")
            for side in grid:
                self.integer(f"measured.schedule[{index}]", side, 1, 4096)
        self.keys("measured.curves", values["curves"], CURVES)
        for name, curve in values["curves"].items():
            self.curve(f"measured.curves.{name}", curve, len(grids), name.startswith("rank"))
        return values

    def curve(self, key: str, values: Any, scales: int, chunked: bool) -> None:
        """``{"mean": [...], "std": [...]}`` with a number, a list over the chunks or null for every scale."""
        self.keys(key, values, ("mean", "std"))
        widths = set()
        for part in ("mean", "std"):
            rows, name = values.get(part), f"{key}.{part}"
            if not isinstance(rows, list) or len(rows) != scales:
                self.bad(name, rows, f"a list with one entry for each of {scales} scales")
            for index, row in enumerate(rows):
                cells = row if chunked and isinstance(row, list) else [row]
                widths.add(len(cells) if chunked and isinstance(row, list) else 0)
                for cell in cells:
                    if cell is not None:
                        self.number(f"{name}[{index}]", cell, -1e9, 1e9, "a number")
        if len(widths) != 1 or not max(widths) <= 256 or (chunked and 0 in widths):
            self.bad(key, values, "as many chunks of blocks at every scale, 1 to 256")

    def number(self, key: str, value: Any, low: float, high: float, what: str) -> float:
        """A number in range; booleans, NaN and infinities are none."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            self.bad(key, value, f"{what} from {low:g} to {high:g}")
        return float(value)

    def integer(self, key: str, value: Any, low: int, high: int) -> int:
        """A whole number in range."""
        if type(value) is not int or not low <= value <= high:
            self.bad(key, value, f"a whole number from {low} to {high}")
        return value

    def keys(self, key: str, values: Any, known: tuple[str, ...] | list[str]) -> None:
        """An object without keys beyond ``known``."""
        if not isinstance(values, dict):
            self.bad(key, values, f"an object with any of {list(known)}")
        for name in values:
            if name not in known:
                where = f"{key}.{name}" if key else name
                raise ValueError(f"{self.source}: {_shown(where)} is unknown; expected any of {list(known)}")

    def built(self, key: str, kind: type, values: Mapping[str, Any]) -> Any:
        """An object whose own check has the last word."""
        try:
            return kind(**values)
        except ValueError as error:
            raise ValueError(f"{self.source}: {key}.{error}") from None

    def unique(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """A JSON object that says everything once."""
        values = dict(pairs)
        if len(values) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"{_shown(twice)} is there twice; expected every key once")
        return values

    def constant(self, name: str) -> NoReturn:
        """JSON has no NaN, but Python reads it."""
        raise ValueError(f"the file holds {name}; expected finite numbers")

    def bad(self, key: str, value: Any, expected: str) -> NoReturn:
        """Refuse a value."""
        raise ValueError(f"{self.source}: {key} is {_shown(value)}; expected {expected}")
