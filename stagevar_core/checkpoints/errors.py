"""The errors of this package, and how their messages list keys."""

from collections.abc import Iterable


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: names the file, what was found, what was expected and what to do."""


class NeedsCodeError(CheckpointError):
    """A pickle with other Python objects than tensors, which is never unpickled."""


def listed(names: Iterable[str], limit: int = 8) -> str:
    """The first names in order, each :func:`short`, and how many more there are."""
    ordered = sorted(names)
    text = ", ".join(short(name, 120) for name in ordered[:limit])
    return f"{text} and {len(ordered) - limit} more" if len(ordered) > limit else text


def short(name: object, limit: int = 300) -> str:
    """A name out of a file for a message: on one line, without its middle where it is very long."""
    text = str(name)
    if len(text) > limit:
        text = f"{text[: limit // 2]}...{text[-limit // 4 :]}"
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def article(title: str) -> str:
    """A title with its indefinite article."""
    return f"{'an' if title[0] in 'AEIOU' else 'a'} {title}"
