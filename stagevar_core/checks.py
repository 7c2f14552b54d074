"""One way to refuse a value: ``ValueError`` with its name, what was found and what was expected.

``what`` is everything after "expected", for example "1 to 64 images"; without it the range is said.
"""

import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import inf
from typing import NoReturn, TypeVar

SHOWN = 60  # characters of a value in a message: enough to recognise it, short enough for one line
LISTED = 20  # choices in a message
_LARGEST = sys.float_info.max  # infinities and whole numbers that no float holds are beyond it

Known = TypeVar("Known")

MAX_BATCH = 1024  # images of a prompt
MAX_SEED = 2**64 - 1


def shown(value: object) -> str:
    """A value for a message, at most ``SHOWN`` characters whatever it is."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def refuse(name: str, value: object, what: str) -> NoReturn:
    """Raise the ``ValueError`` of a value that is not ``what`` was expected."""
    raise ValueError(f"{name} is {shown(value)}; expected {what}")


def number(name: str, value: object, low: float = -inf, high: float = inf, what: str = "") -> float:
    """A finite number from ``low`` to ``high`` as a float; booleans, NaN and infinities are none."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        if max(low, -_LARGEST) <= value <= min(high, _LARGEST):
            return float(value)
    refuse(name, value, what or f"a number{_range(f'{low:g}', f'{high:g}')}")


def whole(name: str, value: object, low: float = -inf, high: float = inf, what: str = "") -> int:
    """A whole number from ``low`` to ``high``; booleans and floats are none, 2.0 neither."""
    if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
        return value
    refuse(name, value, what or f"a whole number{_range(str(low), str(high))}")


def one_of(name: str, value: object, known: Iterable[Known]) -> Known:
    """The one of ``known`` that ``value`` is; True is not 1."""
    choices = list(known)
    for choice in choices:
        if choice == value and isinstance(choice, bool) == isinstance(value, bool):
            return choice
    refuse(name, value, f"one of {some(choices)}")


def some(known: Iterable[object]) -> str:
    """A list for a message, the first ``LISTED`` entries and how many more there are."""
    choices = list(known)
    rest = len(choices) - LISTED
    return f"{choices[:LISTED]} and {rest} more" if rest > 0 else str(choices)


def keys(name: str, value: object, known: Collection[str]) -> Mapping[str, object]:
    """An object (a mapping) with no other keys than ``known``; ``name`` is empty for the outermost one."""
    if not isinstance(value, Mapping):
        refuse(name, value, f"an object with any of {list(known)}")
    for key in value:
        if key not in known:
            where = f"{name}.{key}" if name else key
            raise ValueError(f"{shown(where)} is unknown; expected any of {list(known)}")
    return value


@contextmanager
def inside(place: str) -> Iterator[None]:
    """Put ``place``, a file or an outer key with its full stop or colon, before the refusals of a block."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{place}{error}") from None


def _range(low: str, high: str) -> str:
    """The range in words, without a side that has no end."""
    if low == "-inf":
        return "" if high == "inf" else f", {high} or less"
    return f", {low} or more" if high == "inf" else f" from {low} to {high}"


def check_request(prompts: int, batch: int, seed: int) -> None:
    """Raise ``ValueError`` naming the field that cannot be used."""
    if prompts < 1:
        raise ValueError("no prompt was given; pass a text, which may be empty")
    if not 1 <= batch <= MAX_BATCH:
        raise ValueError(f"batch is {batch}; expected 1 to {MAX_BATCH} images per prompt")
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"seed is {seed}; expected 0 to {MAX_SEED}")


def requested(
    prompt: str | Sequence[str], batch: int, seed: int | Sequence[int]
) -> tuple[list[str], tuple[int, ...]]:
    """The text and the seed of every image; ``ValueError`` naming what cannot be used."""
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    for each in [seed] if isinstance(seed, int) else seed:
        check_request(len(prompts), batch, each)
    texts = [text for text in prompts for _ in range(batch)]
    if isinstance(seed, int):
        return texts, tuple((seed + index) % (MAX_SEED + 1) for index in range(len(texts)))
    if len(seed) != len(texts):
        raise ValueError(f"seed has {len(seed)} values for {len(texts)} images; expected one for each")
    return texts, tuple(seed)
