"""Scenes, their captions, and the parser that reads a caption back into what it asks for."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CANVAS = 128
TASKS = ("single", "pair", "count")
SHAPES = ("circle", "square", "triangle", "cross", "ring", "diamond")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
SIZES = ("small", "large")
PATTERNS = ("plain", "striped", "checkered", "dotted")
RELATIONS = ("left", "right", "above", "below")
BACKGROUNDS = ("white", "grey", "black")

_INVERSE = {"left": "right", "right": "left", "above": "below", "below": "above"}
_SIZE_WORDS = {"small": ("small", "little"), "large": ("large", "big")}
_PATTERN_NOUNS = {"striped": "stripes", "checkered": "checks", "dotted": "dots"}
_RELATION_WORDS = {
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
_NUMBER_WORDS = {2: ("two", "2"), 3: ("three", "3"), 4: ("four", "4")}
_PREFIXES = ("a picture of ", "an image of ", "a drawing of ", "there is ", "")
_COUNT_PREFIXES = ("a picture of ", "an image of ", "a drawing of ", "a group of ", "there are ", "")
_PREPOSITIONS = ("on", "against", "in front of")

# Task weights, and which of {objects, background} carries a pattern.
_TASK_WEIGHTS = (0.3, 0.35, 0.35)
_PATTERN_CASES = ("none", "objects", "background", "both")
_PATTERN_WEIGHTS = (0.35, 0.27, 0.25, 0.13)
_SIZE_RANGES = {None: (22.0, 32.0), "small": (20.0, 24.0), "large": (30.0, 36.0)}
_COUNT_LAYOUTS = {
    2: ((36, 64), (92, 64)),
    3: ((64, 38), (36, 90), (92, 90)),
    4: ((36, 36), (92, 36), (36, 92), (92, 92)),
}


@dataclass(frozen=True)
class ObjectSpec:
    """What a caption says about one object; `size` None means any."""

    shape: str
    colour: str
    size: str | None = None
    pattern: str = "plain"


@dataclass(frozen=True)
class SceneSpec:
    """What a caption asks for: the first object is `relation` the second; background None means any."""

    task: str
    objects: tuple[ObjectSpec, ...]
    relation: str | None = None
    background: str | None = None
    background_pattern: str | None = None

    @property
    def count(self) -> int:
        """Number of objects."""
        return len(self.objects)


@dataclass(frozen=True)
class SceneObject:
    """An object on the canvas, in pixels."""

    shape: str
    colour: str
    size: str | None
    pattern: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Scene:
    """A complete scene, ready to be rendered."""

    task: str
    objects: tuple[SceneObject, ...]
    relation: str | None
    background: str
    background_pattern: str


def _choice(rng: np.random.Generator, items: Sequence, weights: Sequence[float] | None = None):
    """Pick one item; avoids turning strings into numpy strings."""
    if weights is None:
        return items[int(rng.integers(len(items)))]
    return items[int(np.searchsorted(np.cumsum(weights), rng.random() * sum(weights), side="right"))]


# ---- captions ---------------------------------------------------------------------------------------------


def _article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def _noun_phrase(spec: ObjectSpec, rng: np.random.Generator, plural: bool = False) -> str:
    words = [] if spec.size is None else [_choice(rng, _SIZE_WORDS[spec.size])]
    noun = spec.shape + ("es" if spec.shape == "cross" else "s") * plural
    tail = ""
    if spec.pattern == "plain":
        words += ["plain"] * bool(rng.random() < 0.15)
    elif rng.random() < 0.3:
        tail = f" with {_PATTERN_NOUNS[spec.pattern]}"
    else:
        words.append(spec.pattern)
    return " ".join([*words, spec.colour, noun]) + tail


def _background_phrase(spec: SceneSpec, rng: np.random.Generator) -> str:
    words = [spec.background, "background"]
    if spec.background_pattern != "plain":
        words.insert(0, spec.background_pattern)
    elif rng.random() < 0.2:
        words.insert(0, "plain")
    return f"{_choice(rng, _PREPOSITIONS)} a {' '.join(words)}"


def _pair_body(spec: SceneSpec, rng: np.random.Generator) -> str:
    first, second = (_article(_noun_phrase(o, rng)) for o in spec.objects)
    relation = spec.relation or RELATIONS[0]
    if rng.random() < 0.2:  # the same fact told from the second object
        first, second, relation = second, first, _INVERSE[relation]
    words = _choice(rng, _RELATION_WORDS[relation])
    return _choice(rng, (f"{first} {words} {second}", f"{words} {second} is {first}"), (0.85, 0.15))


def caption(spec: SceneSpec, rng: np.random.Generator) -> str:
    """One of the many captions that describe `spec`."""
    if spec.task == "count":
        number = _choice(rng, _NUMBER_WORDS[spec.count], (0.75, 0.25))
        body = f"{number} {_noun_phrase(spec.objects[0], rng, plural=True)}"
    elif spec.task == "pair":
        body = _pair_body(spec, rng)
    else:
        body = _article(_noun_phrase(spec.objects[0], rng))
    told_backwards = " is " in body
    if not told_backwards and rng.random() < 0.5:
        body = _choice(rng, _COUNT_PREFIXES if spec.task == "count" else _PREFIXES) + body
    if spec.background is None:
        return body
    background = _background_phrase(spec, rng)
    return f"{background}, {body}" if rng.random() < 0.2 else f"{body} {background}"


def is_held_out(text: str) -> bool:
    """True for the tenth of all captions that is never trained on."""
    return zlib.crc32(text.encode()) % 10 == 0


# ---- parsing ----------------------------------------------------------------------------------------------


def _alternatives(words: Sequence[str]) -> str:
    return "|".join(sorted(words, key=len, reverse=True))


_SIZE_OF = {w: size for size, words in _SIZE_WORDS.items() for w in words}
_RELATION_OF = {w: relation for relation, words in _RELATION_WORDS.items() for w in words}
_NUMBER_OF = {w: n for n, words in _NUMBER_WORDS.items() for w in words}
_PATTERN_OF = {noun: pattern for pattern, noun in _PATTERN_NOUNS.items()}
_NOUN = (
    rf"(?:({_alternatives(list(_SIZE_OF))}) )?(?:({_alternatives(PATTERNS)}) )?({_alternatives(COLOURS)}) "
    rf"({_alternatives(SHAPES)})"
)
_TAIL = rf"(?: with ({_alternatives(list(_PATTERN_OF))}))?"
_ONE = rf"an? {_NOUN}{_TAIL}"
_RELATION = rf"({_alternatives(list(_RELATION_OF))})"
_BACKGROUND = (
    rf"(?:{_alternatives(_PREPOSITIONS)}) an? (?:({_alternatives(PATTERNS)}) )?"
    rf"({_alternatives(BACKGROUNDS)}) background"
)
_LEADING = re.compile(rf"{_BACKGROUND},? (.+)")
_TRAILING = re.compile(rf"(.+?),? {_BACKGROUND}")
_PREFIX = re.compile(rf"(?:{_alternatives([p for p in _COUNT_PREFIXES + _PREFIXES if p])})(.+)")
_SINGLE = re.compile(_ONE)
_PAIR = re.compile(rf"{_ONE} {_RELATION} {_ONE}")
_PAIR_BACKWARDS = re.compile(rf"{_RELATION} {_ONE} is {_ONE}")
_COUNT = re.compile(rf"({_alternatives(list(_NUMBER_OF))}) {_NOUN}(?:es|s){_TAIL}")


def _object(groups: Sequence[str | None]) -> ObjectSpec:
    size, adjective, colour, shape, noun = groups
    if colour is None or shape is None:
        raise ValueError(f"a phrase without colour or shape: {groups}")
    pattern = _PATTERN_OF[noun] if noun else adjective or "plain"
    return ObjectSpec(shape, colour, _SIZE_OF[size] if size else None, pattern)


def _parse_body(body: str) -> tuple[str, tuple[ObjectSpec, ...], str | None] | None:
    """Task, objects and relation of a caption without prefix and background clause."""
    if m := _SINGLE.fullmatch(body):
        return "single", (_object(m.groups()),), None
    if m := _COUNT.fullmatch(body):
        return "count", (_object(m.groups()[1:]),) * _NUMBER_OF[m[1]], None
    if m := _PAIR.fullmatch(body):
        groups = m.groups()
        return "pair", (_object(groups[:5]), _object(groups[6:])), _RELATION_OF[groups[5]]
    if m := _PAIR_BACKWARDS.fullmatch(body):
        groups = m.groups()
        return "pair", (_object(groups[6:]), _object(groups[1:6])), _RELATION_OF[groups[0]]
    return None


def parse(text: str) -> SceneSpec | None:
    """What `text` asks for, or None when it is not a caption of this grammar."""
    body = " ".join(text.lower().split()).rstrip(".")
    pattern = background = None
    if m := _LEADING.fullmatch(body):
        pattern, background, body = m.groups()
    elif m := _TRAILING.fullmatch(body):
        body, pattern, background = m.groups()
    if m := _PREFIX.fullmatch(body):
        body = m[1]
    parsed = _parse_body(body)
    if parsed is None:
        return None
    task, objects, relation = parsed
    return SceneSpec(task, objects, relation, background, (pattern or "plain") if background else None)


def canonical(spec: SceneSpec) -> SceneSpec:
    """The spelling that equal scenes share: pairs are told as left or above."""
    if spec.relation in ("right", "below"):
        objects, relation = spec.objects[::-1], _INVERSE[spec.relation]
        return SceneSpec(spec.task, objects, relation, spec.background, spec.background_pattern)
    return spec


# ---- sampling ---------------------------------------------------------------------------------------------


def sample_spec(rng: np.random.Generator, task: str | None = None) -> SceneSpec:
    """A random request."""
    task = task or _choice(rng, TASKS, _TASK_WEIGHTS)
    case = _choice(rng, _PATTERN_CASES, _PATTERN_WEIGHTS)
    surface = [_choice(rng, PATTERNS[1:])] * 2 if case in ("objects", "both") else ["plain"] * 2
    if task == "pair" and rng.random() < 0.5:
        surface[int(rng.integers(2))] = "plain" if rng.random() < 0.5 or case == "none" else surface[0]
    size = _choice(rng, SIZES) if task == "single" and rng.random() < 0.4 else None
    colours = rng.permutation(len(COLOURS))
    objects = tuple(
        ObjectSpec(_choice(rng, SHAPES), COLOURS[int(c)], size, p)
        for c, p in zip(colours[:2], surface, strict=True)
    )
    objects = {"single": objects[:1], "pair": objects, "count": objects[:1] * int(rng.integers(2, 5))}[task]
    relation = _choice(rng, RELATIONS) if task == "pair" else None
    patterned = case in ("background", "both")
    if not patterned and rng.random() < 0.5:
        return SceneSpec(task, objects, relation)
    pattern = _choice(rng, PATTERNS[1:]) if patterned else "plain"
    return SceneSpec(task, objects, relation, _choice(rng, BACKGROUNDS), pattern)


def sample_caption(
    rng: np.random.Generator, split: str = "train", task: str | None = None
) -> tuple[SceneSpec, str]:
    """A random request and a caption of it that belongs to `split` ('train' or 'test')."""
    if split not in ("train", "test"):
        raise ValueError(f"split is {split!r}, expected 'train' or 'test'")
    while True:
        spec = sample_spec(rng, task)
        text = caption(spec, rng)
        if is_held_out(text) == (split == "test"):
            return spec, text


def place(spec: SceneSpec, rng: np.random.Generator) -> Scene:
    """Put the objects on the canvas; a background that is not named is plain and of a random colour."""
    if spec.task == "single":
        centres, jitter, radii = ((64, 64),), 7, _SIZE_RANGES[spec.objects[0].size]
    elif spec.task == "pair":
        near, far = ((35, 64), (93, 64)) if spec.relation in ("left", "right") else ((64, 35), (64, 93))
        centres = (near, far) if spec.relation in ("left", "above") else (far, near)
        jitter, radii = 4, (18.0, 22.0)
    else:
        centres, jitter, radii = _COUNT_LAYOUTS[spec.count], 3, (15.0, 18.5)
    radius = rng.uniform(*radii)
    objects = []
    for o, (x, y) in zip(spec.objects, centres, strict=True):
        dx, dy = rng.uniform(-jitter, jitter, 2)
        radius = rng.uniform(*radii) if spec.task == "pair" else radius
        objects.append(SceneObject(o.shape, o.colour, o.size, o.pattern, x + dx, y + dy, radius))
    background = spec.background or _choice(rng, BACKGROUNDS)
    return Scene(spec.task, tuple(objects), spec.relation, background, spec.background_pattern or "plain")


def sample_scene(
    rng: np.random.Generator, split: str = "train", task: str | None = None
) -> tuple[Scene, str]:
    """A random scene with its caption."""
    spec, text = sample_caption(rng, split, task)
    return place(spec, rng), text
