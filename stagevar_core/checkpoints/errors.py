"""The errors of this package, and how their messages list keys."""

from collections.abc import Iterable


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: names the file, what was found, what was expected and what to do."""


class NeedsCodeError(CheckpointError):
    """A pickle with other Python objects than tensors, which is never unpickled."""


def listed(names: Iterable[str], limit: int = 8) -> str:
    """The first names in order, and how many more there are."""
    ordered = sorted(names)
    text = ", ".join(ordered[:limit])
    return f"{text} and {len(ordered) - limit} more" if len(ordered) > limit else text
