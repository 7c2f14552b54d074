"""One way to change stage settings: by their flat, public names.

Presets, nodes, ``--overrides`` and schedule files all come through :func:`changed`, so that a value means the
same and is refused with the same words wherever it is set. Lists may stand for tuples and objects for
boundaries and windows, as JSON has them; what a value may be is checked by the settings themselves.
"""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import TypeVar

from ..checks import inside, keys, number, refuse
from ..network.local import LocalWindow
from .settings import StageSettings, averaged
from .stages import FRACTION, StageBoundaries

# Public name and name inside, for every part of the settings.
_PARTS = {
    "guidance": {"guidance": "mode", "guidance_end": "end", "reuse": "reuse"},
    "tokens": {
        "tokens": "mode",
        **{name: name for name in ("keep", "score", "evenness", "spans", "restoration")},
        **{name: name for name in ("code_weight", "resize")},
    },
    "cache": {name: name for name in ("attention", "window", "kv")},
}
NAMES = ("boundaries", "structure_end", *(name for part in _PARTS.values() for name in part), "skip")
"""What :func:`changed` takes. ``structure_end`` moves the boundaries, ``semantic_end`` only where it must."""
AUTO = "auto"
_OWN = ("keep", "code_weight", "structure_end", "skip")  # may be AUTO, or -1 as older workflows have it

Object = TypeVar("Object", StageBoundaries, LocalWindow)


def flat(settings: StageSettings) -> dict[str, object]:
    """All values by their public names; ``changed`` with them gives the same settings."""
    values: dict[str, object] = {"boundaries": settings.boundaries}
    for part, names in _PARTS.items():
        values |= {name: getattr(getattr(settings, part), own) for name, own in names.items()}
    return {**values, "skip": settings.skip}


def given(changes: Mapping[str, object]) -> dict[str, object]:
    """``changes`` without those that leave a preset's own value: 'auto', or -1, of the numbers that have one.

    Other negative numbers stay, and are refused where they are set.
    """

    def own(name: str, value: object) -> bool:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return name in _OWN and ((number and value == -1) or (isinstance(value, str) and value == AUTO))

    return {name: value for name, value in changes.items() if not own(name, value)}


def changed(settings: StageSettings, /, **changes: object) -> StageSettings:
    """``settings`` with some values replaced, by the names in :data:`NAMES`.

    Values that :func:`given` takes for the preset's own change nothing. Shares over the depth are averaged
    where all blocks are reduced at once. Raises ``ValueError`` for names that are none and values that cannot
    be used: the name, what was found, what is allowed.
    """
    keys("", changes, NAMES)
    changes = given(changes)
    values = {name: converted(name, value) for name, value in changes.items()}
    if "structure_end" in values:
        if "boundaries" in values:
            refuse(
                "structure_end", values["structure_end"], "it inside boundaries, or no boundaries beside it"
            )
        end = number("structure_end", values.pop("structure_end"), 0.0, 1.0, FRACTION)
        values["boundaries"] = StageBoundaries(min(settings.boundaries.semantic_end, end), end)
    for part, names in _PARTS.items():
        own = {names[name]: values.pop(name) for name in names if name in values}
        if own:
            values[part] = replace(getattr(settings, part), **own)
    found = replace(settings, **values)
    if "keep" in changes and found.tokens.spans == 1:
        return replace(found, tokens=replace(found.tokens, keep=averaged(found.tokens.keep)))
    return found


def converted(name: str, value: object, place: str = "") -> object:
    """``value`` as the settings hold it: boundaries and a window from the objects of a JSON text.

    ``place``: what refusals put before the name.
    """
    if name == "boundaries":
        return _built(place + name, StageBoundaries, value, complete=True)
    return _built(place + name, LocalWindow, value) if name == "window" else value


def _built(name: str, kind: type[Object], value: object, *, complete: bool = False) -> Object:
    """An object from its fields; ``complete``: all of them, None where one is missing, which is refused."""
    if isinstance(value, kind):
        return value
    known = [item.name for item in fields(kind)]
    given = {**dict.fromkeys(known if complete else ()), **keys(name, value, known)}
    with inside(f"{name}."):
        return kind(**given)
