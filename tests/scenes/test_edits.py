"""Edits of scenes: every instruction says what changes, and the scorer tells whether it did."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stagevar_core.scenes import render
from stagevar_core.scenes.edits import (
    KINDS,
    EditScore,
    belongs,
    edit_of,
    sample_edit,
    sample_source,
    score_edit,
    undone,
)
from stagevar_core.scenes.grammar import is_held_out, parse, place

ROOT = Path(__file__).resolve().parents[2]
WORKFLOW = ROOT / "workflows" / "05_edit_by_text_no_download.json"


def edits(kind: str | None = None, split: str = "test", count: int = 40, seed: int = 0):
    rng = np.random.default_rng([seed, count])
    return [sample_edit(rng, split, kind) for _ in range(count)]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_asked_for_is_read_back_from_its_picture(kind: str) -> None:
    scores = [score_edit(edit, render(edit.target)) for edit in edits(kind)]
    assert {score.kind for score in scores} == {kind}
    assert np.mean([score.followed for score in scores]) == 1.0
    assert np.mean([score.unchanged for score in scores]) >= 0.95


@pytest.mark.parametrize("kind", KINDS)
def test_the_picture_as_it_was_follows_nothing(kind: str) -> None:
    assert not any(score_edit(edit, render(edit.source)).followed for edit in edits(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_what_should_have_stayed_and_did_not_is_seen(kind: str) -> None:
    for edit in edits(kind, count=12):
        other = "white" if edit.target.background == "black" else "black"
        if kind != "background":
            spoilt = replace(edit.target, background=other)
            assert score_edit(edit, render(spoilt)) == EditScore(kind, True, False)
        touched = set(edit.touched) if kind != "remove" else set()
        kept = [index for index in range(len(edit.target.objects)) if index not in touched]
        if kept:
            fewer = tuple(o for index, o in enumerate(edit.target.objects) if index != kept[0])
            assert not score_edit(edit, render(replace(edit.target, objects=fewer))).unchanged


def test_instructions_of_the_two_splits_differ() -> None:
    for split in ("train", "test"):
        for edit in edits(split=split, count=80):
            assert belongs(edit, split)
            assert edit.kind == "background" or is_held_out(edit.instruction) == (split == "test")
    with pytest.raises(ValueError, match="expected 'train' or 'test'"):
        sample_edit(np.random.default_rng(0), "all")


def test_the_way_back_leads_back() -> None:
    rng, found = np.random.default_rng(3), 0
    for edit in edits(split="train", count=120):
        back = undone(edit, rng)
        if back is not None:
            found += 1
            assert (back.source, back.target) == (edit.target, edit.source)
            assert score_edit(back, render(back.target)).followed
    assert found > 50


def test_scenes_without_room_have_no_such_edit() -> None:
    rng = np.random.default_rng(5)
    scenes = [sample_source(rng) for _ in range(60)]
    assert {scene.task for scene in scenes} == {"grid", "single", "pair", "count"}
    for scene in scenes:
        moved, added, removed = (edit_of(scene, rng, kind) for kind in ("move", "add", "remove"))
        assert (moved is None and added is None) or scene.task == "grid"
        assert removed is None or (scene.task != "count" and len(scene.objects) > 1)


def test_the_workflow_proposes_what_the_editor_was_trained_on_for_its_picture() -> None:
    """Other words, a colour twice and things that cannot move there are followed badly or not at all."""
    nodes = json.loads(WORKFLOW.read_text(encoding="utf-8"))["nodes"]
    texts = {node.get("title"): node["widgets_values"][0] for node in nodes if node.get("widgets_values")}
    rng = np.random.default_rng(0)
    scene = place(parse(texts["The picture"]), rng)
    known = {edit.instruction for kind in KINDS for _ in range(300) if (edit := edit_of(scene, rng, kind))}
    (line,) = [line for line in texts["How to use"].splitlines() if "For this picture:" in line]
    proposed = re.findall(r"\*((?:make|paint|remove|take away|move|add) [^*]+)\*", line)
    assert len(proposed) >= 4
    assert {*proposed, texts["What to change"]} <= known
