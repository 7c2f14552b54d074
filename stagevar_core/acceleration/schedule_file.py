"""Schedule files: stages and budgets of a model as JSON that people can read, edit and share.

``{"format": "stagevar-schedule", "version": 1, ...}`` and any of ``model`` (what it was made for),
``boundaries`` (area fractions), ``keep`` (shares of tokens), ``settings`` (the other names of ``changes.py``;
what they mean says ``settings.py``) and ``measured`` (the curves of a calibration, see ``calibrate.py``).
What a file leaves out stays as the preset has it.
"""

import json
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeGuard

from ..checks import refuse, shown
from ..files import replaced
from ..network.local import LocalWindow
from .changes import changed
from .policy import AccelerationPolicy
from .presets import scheduled
from .schedule_reader import FORMAT, MAX_BYTES, SIZES, VERSION, Identity, Measured, read
from .settings import Keep, StageSettings
from .staged import StagedPolicy
from .stages import StageBoundaries

_NAME = re.compile(r"\w[\w .()+-]{0,119}\.json")


@dataclass(frozen=True)
class StageSchedule:
    """The contents of a schedule file; None or empty leaves a preset as it is.

    ``model``: family and sizes it was made for; None fits every model. ``measured``: curves over the scales
    of ``measured["schedule"]``, each with a mean and a standard deviation over the prompts.
    """

    model: Identity | None = None
    boundaries: StageBoundaries | None = None
    keep: Keep | None = None
    settings: Mapping[str, object] = field(default_factory=dict)
    measured: Measured | None = None
    source: str = field(default="schedule", compare=False)

    @classmethod
    def load(cls, path: Path | str) -> "StageSchedule":
        """Read a file; ``ValueError`` names the key, the value and what is allowed there."""
        path = Path(path)
        data = _read(path)
        if len(data) > MAX_BYTES:
            raise ValueError(f"{path.name} has more than {MAX_BYTES} bytes; a schedule has a few thousand")
        try:
            text = data.decode("utf-8-sig")  # some editors begin a file with a mark
        except UnicodeDecodeError as error:
            raise ValueError(f"{path.name} is no text in UTF-8 ({error}); expected a JSON object") from None
        return cls.parse(text, path.name)

    @classmethod
    def parse(cls, text: str, source: str = "schedule") -> "StageSchedule":
        """Read the text of a file; ``source`` names it in errors."""
        return cls(**read(text, source), source=source)

    def save(self, path: Path | str) -> None:
        """Write the file in one step, so that nobody reads half of it."""
        with replaced(Path(path)) as partial:
            partial.write_text(self.to_json(), encoding="utf-8")

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        values: dict[str, object] = {"format": FORMAT, "version": VERSION}
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

    def stages(self) -> StageBoundaries | None:
        """Where the stages end on a preset of the usual ones; None where the schedule does not say."""
        end = self.settings.get("structure_end")
        return self.boundaries if end is None else changed(StageSettings(), structure_end=end).boundaries

    def check(self, model: Identity) -> None:
        """``ValueError`` with both sides where ``model`` is not the one this was made for."""
        if self.model is None:
            return
        found = {key: model.get(key) for key in self.model}
        if found != dict(self.model):
            raise ValueError(
                f"{self.source} was made for {_described(self.model)}; the model is {_described(found)}. "
                "Choose a schedule of this model, or make one with the calibrate command"
            )

    def apply(self, policy: AccelerationPolicy) -> StagedPolicy:
        """A preset with this schedule's stages, budgets and settings.

        Shares over the depth are averaged where the preset reduces all blocks at once. Raises ``ValueError``
        for methods without stages.
        """
        changes = dict(self.settings)
        if self.boundaries is not None:
            changes["boundaries"] = self.boundaries
        if self.keep is not None:
            changes["keep"] = self.keep
        return scheduled(policy, changes, self.source)


def identity(family: str, sizes: Mapping[str, object]) -> Identity:
    """What a transformer is recognised by: its family and, of its config, the sizes that tell."""
    return {"family": family, **{name: sizes[name] for name in SIZES if name in sizes}}


def resolve(folder: Path | str, name: str) -> Path:
    """The file ``name`` in the schedules folder; ``ValueError`` for whatever would leave it.

    A name is one file name that ends in .json; folders, drives and links to elsewhere are refused.
    """
    folder = Path(folder).resolve()
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        refuse(
            "the schedule's name",
            name,
            "a file name such as balanced.json: letters, digits, spaces, . _ - + ( ), no folders, 125 "
            "characters at most",
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


def _read(path: Path) -> bytes:
    """A file's bytes, no more than one beyond :data:`MAX_BYTES`; ``ValueError`` where there are none."""
    what = f"a schedule file at {shown(str(path))}"
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would wait for somebody who writes to it
            raise ValueError(f"{path.name} is no file; expected {what}")
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ValueError(f"{path.name} is not there; expected {what}") from None
    except OSError as error:
        raise ValueError(f"{shown(path.name)} cannot be read ({error.strerror}); expected {what}") from None


def _described(model: Identity) -> str:
    """A transformer in a few words."""
    sizes = [f"{key} {value}" for key, value in model.items() if key != "family"]
    return f"{model['family']}" + (f" with {', '.join(sizes)}" if sizes else "")


def _lines(values: Mapping[str, object], indent: str = "") -> str:
    """JSON with one entry a line and lists unbroken."""
    inner, entries = indent + " ", []
    for key, value in values.items():
        text = _lines(value, inner) if _nested(value) else json.dumps(value, allow_nan=False)
        entries.append(f"{inner}{json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(entries) + "\n" + indent + "}"


def _nested(value: object) -> TypeGuard[Mapping[str, object]]:
    """Whether an entry is an object of lists or objects, which gets lines of its own."""
    return isinstance(value, Mapping) and any(isinstance(v, Mapping | list | tuple) for v in value.values())
