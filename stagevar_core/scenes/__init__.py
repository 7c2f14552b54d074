"""Procedural captioned scenes: the task on which the embedded model is trained and scored."""

from .grammar import (
    CANVAS,
    ObjectSpec,
    Scene,
    SceneObject,
    SceneSpec,
    canonical,
    caption,
    is_held_out,
    parse,
    place,
    sample_caption,
    sample_scene,
    sample_spec,
)
from .render import render, render_batch, shape_map
from .scorer import Reading, Score, compare, read, score

__all__ = [
    "CANVAS",
    "ObjectSpec",
    "Reading",
    "Scene",
    "SceneObject",
    "SceneSpec",
    "Score",
    "canonical",
    "caption",
    "compare",
    "is_held_out",
    "parse",
    "place",
    "read",
    "render",
    "render_batch",
    "sample_caption",
    "sample_scene",
    "sample_spec",
    "score",
    "shape_map",
]
