"""Class labels by name or number: a model's own names, else those of ImageNet (ILSVRC 2012) in order."""

import difflib
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from ..checks import SHOWN

_NAMES = Path(__file__).parents[1] / "data" / "imagenet_classes.json"


@cache
def imagenet_names() -> tuple[str, ...]:
    """The names of the 1000 classes by number."""
    return tuple(json.loads(_NAMES.read_text(encoding="utf-8")))


def class_index(label: str | int, classes: int = 1000, names: Sequence[str] = ()) -> int:
    """The number of a class from its number or name; an empty name and -1 are no class, -1.

    ``names``: of the model's own classes; without them a thousand ``classes`` are ImageNet's, and models of
    another number know numbers alone. Case does not matter, and a part of a name is enough where only one has
    it. Raises ``ValueError`` saying what there is.
    """
    text = str(label).strip()
    if not text:
        return -1
    if text.removeprefix("-").isdecimal():
        if len(text) > 9 or not -1 <= int(text) < classes:  # int() refuses very long ones in its own way
            raise ValueError(
                f"the class is {text[:SHOWN]}; this model knows the numbers 0 to {classes - 1}, and -1 "
                "for no class"
            )
        return int(text)
    if names:
        return _named(text, names, f"the {len(names)} names of this model's classes")
    if classes != len(imagenet_names()):
        raise ValueError(
            f"the class is {text!r}; this model has no names for its classes, give a number from 0 to "
            f"{classes - 1}, or -1 for no class"
        )
    return _named(text, imagenet_names(), "the 1000 names of ImageNet")


def _named(text: str, listed: Sequence[str], known: str) -> int:
    """The number of the one name that is ``text`` or has it as a part; ``known``: what the names are."""
    names = {name.lower(): index for index, name in enumerate(listed)}
    wanted = text.lower()
    if wanted in names:
        return names[wanted]
    found = [name for name in names if wanted in name]
    if len(found) == 1:
        return names[found[0]]
    close = [listed[names[name]] for name in found[:6] or difflib.get_close_matches(wanted, names)]
    found_as = "a part of several names" if found else "not known"
    raise ValueError(
        f"the class {text!r} is {found_as}; expected one of {known} or a number from 0 to {len(names) - 1}"
        f"{', for example ' + ', '.join(close) if close else ''}"
    )


def spread_classes(count: int, classes: int) -> list[str]:
    """``count`` class numbers, evenly spread over all; over again where there are fewer classes."""
    every = min(count, classes)
    return [str(place % every * classes // every) for place in range(count)]
