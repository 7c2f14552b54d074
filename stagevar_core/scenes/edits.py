"""Edits of scenes: an instruction, the scene before and after it, and how far a picture follows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from .grammar import (
    BACKGROUNDS,
    COLOURS,
    PATTERNS,
    SHAPES,
    Scene,
    SceneObject,
    is_held_out,
    place,
    sample_spec,
)
from .scorer import Reading, ReadObject, read

KINDS = ("recolour", "pattern", "background", "move", "add", "remove")

_PATTERN_NOUNS = {"striped": "stripes", "checkered": "checks", "dotted": "dots"}
_RELATION_WORDS = {
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
# Places of a grid of two by two, and what is beside each of them.
_SLOTS = ((36, 36), (92, 36), (36, 92), (92, 92))
_BESIDE = (
    {"right": 1, "below": 2},
    {"left": 0, "below": 3},
    {"right": 3, "above": 0},
    {"left": 2, "above": 1},
)
_GRID_SHARE = 0.6  # of scenes whose objects lie on that grid; the others are those that captions describe
_NEAR, _SAME_PLACE, _SAME_SIZE = 14.0, 8.0, 0.25  # px, px, share of the radius
_TRIANGLE = 0.29  # of the radius, from the centre down to the middle of the area


@dataclass(frozen=True)
class SceneEdit:
    """``target`` is ``source`` after the instruction.

    ``touched``: indices of the target's objects that it is about; of the source's where it removes one.
    """

    kind: str
    instruction: str
    source: Scene
    target: Scene
    touched: tuple[int, ...] = ()


@dataclass(frozen=True)
class EditScore:
    """Whether a picture shows what the instruction asks for, and everything else as it was."""

    kind: str
    followed: bool
    unchanged: bool


# ---- sampling -------------------------------------------------------------------------------------------


def sample_edit(rng: np.random.Generator, split: str = "train", kind: str | None = None) -> SceneEdit:
    """A random edit of a random scene; its instruction belongs to ``split`` ('train' or 'test').

    There are too few instructions about backgrounds to keep some away: of those only the scenes are new.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split is {split!r}, expected 'train' or 'test'")
    wanted = kind or _pick(rng, KINDS)
    while True:
        found = edit_of(sample_source(rng), rng, wanted)
        if found is not None and belongs(found, split):
            return found


def belongs(edit: SceneEdit, split: str) -> bool:
    """Whether an edit is of 'train' or 'test'."""
    return edit.kind == "background" or is_held_out(edit.instruction) == (split == "test")


def sample_source(rng: np.random.Generator) -> Scene:
    """A scene to edit: objects on a grid of two by two, or one that captions describe."""
    if rng.random() >= _GRID_SHARE:
        return place(sample_spec(rng), rng)
    count = int(rng.integers(1, 4))
    slots, colours = rng.permutation(4)[:count], rng.permutation(len(COLOURS))[:count]
    objects = []
    for slot, colour in zip(slots.tolist(), colours.tolist(), strict=True):
        (x, y), (dx, dy) = _SLOTS[slot], rng.uniform(-3, 3, 2)
        shape, pattern, radius = _pick(rng, SHAPES), _pattern(rng, 0.35), rng.uniform(17.5, 20.0)
        objects.append(SceneObject(shape, COLOURS[colour], None, pattern, x + dx, y + dy, radius))
    return Scene("grid", tuple(objects), None, _pick(rng, BACKGROUNDS), _pattern(rng, 0.25))


def edit_of(scene: Scene, rng: np.random.Generator, kind: str) -> SceneEdit | None:
    """A random edit of a kind; None where the scene has no room for one."""
    return _MAKERS[kind](scene, rng)


def undone(edit: SceneEdit, rng: np.random.Generator) -> SceneEdit | None:
    """The edit that leads back, where an instruction says it."""
    before, after = edit.source, edit.target
    if edit.kind == "recolour":
        name, touched = _name(after, edit.touched[0])
        return SceneEdit(
            "recolour", _painted(rng, name, before.objects[touched[0]].colour), after, before, touched
        )
    if edit.kind == "pattern":
        name, touched = _name(after, edit.touched[0])
        text = _patterned(rng, name, before.objects[touched[0]].pattern)
        return SceneEdit("pattern", text, after, before, touched)
    if edit.kind == "background":
        value = before.background if before.background != after.background else before.background_pattern
        return SceneEdit("background", f"make the background {value}", after, before)
    if edit.kind == "add":
        text = _removed(rng, _name(after, edit.touched[0])[0])
        return SceneEdit("remove", text, after, before, edit.touched) if before.objects else None
    return None


def _pick(rng: np.random.Generator, items):
    return items[int(rng.integers(len(items)))]


def _other(rng: np.random.Generator, items, *without):
    return _pick(rng, [item for item in items if item not in without])


def _pattern(rng: np.random.Generator, share: float) -> str:
    return _pick(rng, PATTERNS[1:]) if rng.random() < share else "plain"


def _slots_of(scene: Scene) -> list[int]:
    """Where the objects lie on the grid; empty for other scenes."""
    if scene.task != "grid":
        return []
    return [
        min(range(4), key=lambda s: np.hypot(o.x - _SLOTS[s][0], o.y - _SLOTS[s][1])) for o in scene.objects
    ]


def _name(scene: Scene, index: int) -> tuple[str, tuple[int, ...]]:
    """How an object is told from the others, and all that are meant: a group of equal ones is one thing."""
    o = scene.objects[index]
    if scene.task == "count":
        plural = "crosses" if o.shape == "cross" else f"{o.shape}s"
        return f"the {o.colour} {plural}", tuple(range(len(scene.objects)))
    return f"the {o.colour} {o.shape}", (index,)


def _any_of(scene: Scene, rng: np.random.Generator) -> tuple[str, tuple[int, ...]]:
    return _name(scene, int(rng.integers(len(scene.objects))))


def _with_objects(scene: Scene, touched: tuple[int, ...], **changes) -> Scene:
    objects = tuple(replace(o, **changes) if i in touched else o for i, o in enumerate(scene.objects))
    return replace(scene, objects=objects)


def _painted(rng: np.random.Generator, name: str, colour: str) -> str:
    return f"{_pick(rng, ('make', 'paint'))} {name} {colour}"


def _patterned(rng: np.random.Generator, name: str, pattern: str) -> str:
    if pattern != "plain" and rng.random() < 0.3:
        return f"make {name} with {_PATTERN_NOUNS[pattern]}"
    return f"make {name} {pattern}"


def _removed(rng: np.random.Generator, name: str) -> str:
    return f"{_pick(rng, ('remove', 'take away'))} {name}"


def _recolour(scene: Scene, rng: np.random.Generator) -> SceneEdit:
    name, touched = _any_of(scene, rng)
    colour = _other(rng, COLOURS, *(o.colour for o in scene.objects))
    target = _with_objects(scene, touched, colour=colour)
    return SceneEdit("recolour", _painted(rng, name, colour), scene, target, touched)


def _repattern(scene: Scene, rng: np.random.Generator) -> SceneEdit:
    name, touched = _any_of(scene, rng)
    pattern = _other(rng, PATTERNS, scene.objects[touched[0]].pattern)
    target = _with_objects(scene, touched, pattern=pattern)
    return SceneEdit("pattern", _patterned(rng, name, pattern), scene, target, touched)


def _background(scene: Scene, rng: np.random.Generator) -> SceneEdit:
    field, values = _pick(rng, (("background", BACKGROUNDS), ("background_pattern", PATTERNS)))
    value = _other(rng, values, getattr(scene, field))
    target = replace(scene, **{field: value})
    return SceneEdit("background", f"make the background {value}", scene, target)


def _beside(rng: np.random.Generator, slots: list[int], index: int) -> tuple[str, tuple[float, float]] | None:
    """Words for a free place beside an object, and the middle of that place."""
    free = [(how, slot) for how, slot in _BESIDE[slots[index]].items() if slot not in slots]
    if not free:
        return None
    relation, slot = _pick(rng, free)
    dx, dy = rng.uniform(-2, 2, 2)
    return _pick(rng, _RELATION_WORDS[relation]), (_SLOTS[slot][0] + dx, _SLOTS[slot][1] + dy)


def _move(scene: Scene, rng: np.random.Generator) -> SceneEdit | None:
    slots = _slots_of(scene)
    if len(slots) < 2:
        return None
    moved, to = (int(index) for index in rng.permutation(len(slots))[:2])
    found = _beside(rng, slots, to)
    if found is None:
        return None
    words, (x, y) = found
    text = f"move {_name(scene, moved)[0]} {words} {_name(scene, to)[0]}"
    return SceneEdit("move", text, scene, _with_objects(scene, (moved,), x=x, y=y), (moved,))


def _add(scene: Scene, rng: np.random.Generator) -> SceneEdit | None:
    slots = _slots_of(scene)
    if not slots:
        return None
    to = int(rng.integers(len(slots)))
    found = _beside(rng, slots, to)
    if found is None:
        return None
    words, (x, y) = found
    shape, colour = _pick(rng, SHAPES), _other(rng, COLOURS, *(o.colour for o in scene.objects))
    pattern = _pattern(rng, 0.35)
    thing = f"{colour} {shape}" if pattern == "plain" else f"{pattern} {colour} {shape}"
    article = "an" if thing[0] in "aeiou" else "a"
    text = f"add {article} {thing} {words} {_name(scene, to)[0]}"
    new = SceneObject(shape, colour, None, pattern, x, y, 18.0)
    target = replace(scene, objects=(*scene.objects, new))
    return SceneEdit("add", text, scene, target, (len(scene.objects),))


def _remove(scene: Scene, rng: np.random.Generator) -> SceneEdit | None:
    if scene.task == "count" or len(scene.objects) < 2:
        return None
    index = int(rng.integers(len(scene.objects)))
    kept = tuple(o for i, o in enumerate(scene.objects) if i != index)
    text = _removed(rng, _name(scene, index)[0])
    return SceneEdit("remove", text, scene, replace(scene, objects=kept), (index,))


_MAKERS: dict[str, Callable[[Scene, np.random.Generator], SceneEdit | None]] = {
    "recolour": _recolour,
    "pattern": _repattern,
    "background": _background,
    "move": _move,
    "add": _add,
    "remove": _remove,
}


# ---- scoring --------------------------------------------------------------------------------------------


def score_edit(edit: SceneEdit, image: np.ndarray) -> EditScore:
    """Score a picture (128, 128, 3) in bytes, read back from its pixels alone."""
    found = read(image)
    return EditScore(edit.kind, _followed(edit, found), _unchanged(edit, found))


def _away(found: ReadObject, wanted: SceneObject) -> float:
    """Pixels between the middles of two areas; that of a triangle lies below its centre."""
    lower = _TRIANGLE * wanted.radius if wanted.shape == "triangle" else 0.0
    return float(np.hypot(found.x - wanted.x, found.y - wanted.y - lower))


def _at(found: Reading, wanted: SceneObject) -> ReadObject | None:
    """What is found nearest to the place of an object."""
    near = [(_away(o, wanted), o) for o in found.objects]
    near = [pair for pair in near if pair[0] < _NEAR]
    return min(near, key=lambda pair: pair[0])[1] if near else None


def _followed(edit: SceneEdit, found: Reading) -> bool:
    source, target = edit.source, edit.target
    if edit.kind == "background":
        named = ("background", "background_pattern")
        changed = [name for name in named if getattr(source, name) != getattr(target, name)]
        return all(getattr(found, name) == getattr(target, name) for name in changed)
    if edit.kind == "remove":
        return _at(found, source.objects[edit.touched[0]]) is None
    names = {
        "recolour": ("colour",),
        "shape": ("shape",),
        "pattern": ("pattern",),
        "move": ("colour",),
    }.get(edit.kind, ("shape", "colour", "pattern"))
    for index in edit.touched:
        wanted = target.objects[index]
        at = _at(found, wanted)
        if at is None or any(getattr(at, name) != getattr(wanted, name) for name in names):
            return False
    if edit.kind == "move":
        left = _at(found, source.objects[edit.touched[0]])
        return left is None or left.colour != source.objects[edit.touched[0]].colour
    return True


def _unchanged(edit: SceneEdit, found: Reading) -> bool:
    """Every other object and attribute, the number of objects, and the background."""
    target = edit.target
    for name in ("background", "background_pattern"):
        kept = getattr(edit.source, name) == getattr(target, name)
        if kept and getattr(found, name) != getattr(target, name):
            return False
    if len(found.objects) != len(target.objects):
        return False
    touched = () if edit.kind == "remove" else edit.touched
    for index, wanted in enumerate(target.objects):
        if index in touched and edit.kind == "add":
            continue
        at = _at(found, wanted)
        if at is None or not _same(wanted, at, edit.kind if index in touched else ""):
            return False
    return True


def _same(wanted: SceneObject, at: ReadObject, changed: str) -> bool:
    """Whether what is found is the object, but for what the instruction changes of it."""
    names = [name for name in ("shape", "colour", "pattern") if (changed, name) not in _ASKED]
    moved = 0.0 if changed == "move" else _away(at, wanted)
    return (
        all(getattr(at, name) == getattr(wanted, name) for name in names)
        and moved <= _SAME_PLACE
        and abs(at.radius - wanted.radius) <= _SAME_SIZE * wanted.radius
    )


_ASKED = {("recolour", "colour"), ("shape", "shape"), ("pattern", "pattern")}
