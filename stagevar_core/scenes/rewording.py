"""Changes of a word in a caption, on scenes of which the caption says little: a prompt alone repeats none."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .edits import SceneEdit
from .grammar import (
    BACKGROUNDS,
    CANVAS,
    COLOURS,
    PATTERNS,
    SHAPES,
    Scene,
    SceneObject,
    SceneSpec,
    caption,
    sample_spec,
)

WORDS = ("recolour", "shape", "pattern", "background")
# Sizes in px are those of captioned scenes, as the test is about what is where.
_RADII = {None: (22.0, 32.0), "small": (20.0, 24.0), "large": (30.0, 36.0)}  # of an object alone
_SEVERAL = {"pair": (18.0, 22.0), "count": (15.0, 18.5)}
_EDGE, _GAP, _ASIDE = 5.0, 6.0, 4.0  # px to the edge, between objects, and past the diagonal of a relation
_HIDDEN = 0.5  # share of scenes whose patterns, and of those whose background, the caption leaves out
_TRIES = 200


@dataclass(frozen=True)
class Rewording:
    """``edit.instruction`` is the caption after the change of a word, ``caption`` the one before."""

    caption: str
    edit: SceneEdit


def sample_rewording(rng: np.random.Generator, kind: str | None = None) -> Rewording:
    """A random scene with freely placed objects, a caption of a part of it, and a change of one word.

    ``kind``: one of ``WORDS``. Positions, sizes, and in half of the scenes patterns or the background are
    not in the captions; a word that changes is.
    """
    kind = kind or WORDS[int(rng.integers(len(WORDS)))]
    while True:
        shown = sample_spec(rng)
        if kind == "background" and shown.background is None:
            continue
        source = _placed(shown, rng)
        if source is None:
            continue
        if kind != "pattern" and rng.random() < _HIDDEN:
            shown = replace(shown, objects=tuple(replace(o, pattern="plain") for o in shown.objects))
        if kind != "background" and rng.random() < _HIDDEN:
            shown = replace(shown, background=None, background_pattern=None)
        words, target, touched = _changed(shown, source, kind, rng)
        seed = int(rng.integers(2**32))
        before, after = (caption(spec, np.random.default_rng(seed)) for spec in (shown, words))
        return Rewording(before, SceneEdit(kind, after, source, target, touched))


def _placed(spec: SceneSpec, rng: np.random.Generator) -> Scene | None:
    """Objects anywhere, apart from each other and as the relation says; None where that fails."""
    background = spec.background or str(rng.choice(BACKGROUNDS))
    hidden = spec.background is None and rng.random() < _HIDDEN
    pattern = spec.background_pattern or (str(rng.choice(PATTERNS)) if hidden else "plain")
    for _ in range(_TRIES):
        objects = []
        for o in spec.objects:
            radius = rng.uniform(*(_SEVERAL.get(spec.task) or _RADII[o.size]))
            x, y = rng.uniform(radius + _EDGE, CANVAS - radius - _EDGE, 2)
            objects.append(SceneObject(o.shape, o.colour, o.size, o.pattern, x, y, radius))
        if _apart(objects) and _related(objects, spec.relation):
            return Scene(spec.task, tuple(objects), spec.relation, background, pattern)
    return None


def _apart(objects: list[SceneObject]) -> bool:
    pairs = [(a, b) for i, a in enumerate(objects) for b in objects[:i]]
    return all(np.hypot(a.x - b.x, a.y - b.y) > a.radius + b.radius + _GAP for a, b in pairs)


def _related(objects: list[SceneObject], relation: str | None) -> bool:
    if relation is None:
        return True
    first, second = objects
    right, down = second.x - first.x, second.y - first.y
    along, across = {
        "left": (right, down),
        "right": (-right, down),
        "above": (down, right),
        "below": (-down, right),
    }[relation]
    return along > abs(across) + _ASIDE


def _changed(
    shown: SceneSpec, source: Scene, kind: str, rng: np.random.Generator
) -> tuple[SceneSpec, Scene, tuple[int, ...]]:
    """What the caption says after the change, the scene after it, and the objects that it is about."""
    if kind == "background":
        value = _other(rng, BACKGROUNDS, source.background)
        return replace(shown, background=value), replace(source, background=value), ()
    touched = tuple(range(shown.count)) if shown.task == "count" else (int(rng.integers(shown.count)),)
    old = source.objects[touched[0]]
    change = {
        "recolour": lambda: {"colour": _other(rng, COLOURS, *(o.colour for o in source.objects))},
        "shape": lambda: {"shape": _other(rng, SHAPES, old.shape)},
        "pattern": lambda: {"pattern": _other(rng, PATTERNS, old.pattern)},
    }[kind]()

    def after(objects):
        return tuple(replace(o, **change) if i in touched else o for i, o in enumerate(objects))

    words = replace(shown, objects=after(shown.objects))
    return words, replace(source, objects=after(source.objects)), touched


def _other(rng: np.random.Generator, items: tuple[str, ...], *without: str) -> str:
    return str(rng.choice([item for item in items if item not in without]))
