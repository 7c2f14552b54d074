"""Scenes: captions round trip, drawing is deterministic, and the scorer accepts right and refuses wrong."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from stagevar_core.evaluation.score import summarise
from stagevar_core.scenes import (
    ObjectSpec,
    canonical,
    is_held_out,
    parse,
    place,
    read,
    render,
    render_batch,
    sample_caption,
    sample_scene,
    score,
    shape_map,
)
from stagevar_core.scenes.grammar import COLOURS, PATTERNS, SHAPES


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def scenes():
    generator = rng(7)
    return [sample_scene(generator, "test") for _ in range(2000)]


@pytest.fixture(scope="module")
def images(scenes):
    return render_batch(scene for scene, _ in scenes)


@pytest.fixture(scope="module")
def scores(scenes, images):
    return [score(text, image) for (_, text), image in zip(scenes, images, strict=True)]


def test_same_seed_same_scene_and_pixels():
    (scene, text), (again, text_again) = sample_scene(rng(3)), sample_scene(rng(3))
    assert scene == again and text == text_again
    assert np.array_equal(render(scene), render(again))


def test_captions_round_trip():
    generator = rng(1)
    for _ in range(5000):
        spec, text = sample_caption(generator)
        assert text == text.lower()
        assert canonical(parse(text)) == canonical(spec), text


@pytest.mark.parametrize(
    "text", ["", "a cat", "a red circle and a blue", "five red circles", "red circle of left"]
)
def test_other_text_is_not_parsed(text):
    assert parse(text) is None
    with pytest.raises(ValueError, match="grammar"):
        score(text, np.zeros((128, 128, 3), np.uint8))


def test_splits_are_disjoint():
    generator = rng(2)
    train = {sample_caption(generator, "train")[1] for _ in range(3000)}
    test = {sample_caption(generator, "test")[1] for _ in range(1000)}
    assert not train & test
    assert not any(map(is_held_out, train)) and all(map(is_held_out, test))
    with pytest.raises(ValueError, match="split"):
        sample_caption(generator, "valid")


def test_distribution(scenes):
    tasks = Counter(scene.task for scene, _ in scenes)
    assert min(tasks.values()) > 0.25 * len(scenes)
    surface = np.array([any(o.pattern != "plain" for o in scene.objects) for scene, _ in scenes])
    background = np.array([scene.background_pattern != "plain" for scene, _ in scenes])
    assert 0.25 < (~surface & ~background).mean() < 0.45
    assert (surface & background).mean() < 0.25


def test_objects_keep_their_distance(scenes):
    for scene, _ in scenes:
        for i, a in enumerate(scene.objects):
            assert min(a.x, a.y, 128 - a.x, 128 - a.y) > a.radius
            for b in scene.objects[:i]:
                assert np.hypot(a.x - b.x, a.y - b.y) - a.radius - b.radius >= 5


@pytest.mark.slow
def test_rendered_scenes_pass(scores):
    summary = summarise(scores)
    assert summary["all"]["strict"]["mean"] >= 0.98 and summary["all"]["texture"]["mean"] >= 0.98
    for part in ("shape", "colour", "count", "position", "size", "background"):
        assert summary["all"][part]["mean"] >= 0.98, part
    assert (
        summary["pair"]["n"] + summary["single"]["n"] + summary["count"]["n"] == summary["all"]["n"] == 2000
    )


def test_noise_and_blur_are_tolerated(scenes, images):
    generator, results = rng(4), []
    for (_, text), image in list(zip(scenes, images, strict=True))[:300]:
        soft = np.pad(image.astype(np.float32), ((1, 1), (1, 1), (0, 0)), mode="edge")
        for axis in (0, 1):  # 1 2 1 in both directions
            n = soft.shape[axis]
            a, b, c = (np.take(soft, range(i, n - 2 + i), axis) for i in range(3))
            soft = (a + 2 * b + c) / 4
        noisy = soft + generator.normal(0, 8, soft.shape)
        results.append(score(text, np.clip(noisy, 0, 255).astype(np.uint8)))
    summary = summarise(results)["all"]
    assert summary["strict"]["mean"] >= 0.97 and summary["texture"]["mean"] >= 0.95


def test_flat_scenes_keep_meaning_and_lose_texture(scenes):
    flat = [score(text, render(scene, flat=True)) for scene, text in scenes[:300]]
    summary = summarise(flat)["all"]
    assert summary["strict"]["mean"] >= 0.98 and summary["texture"]["mean"] <= 0.02


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_shape_colour_and_pattern_is_told_apart(shape, pattern):
    generator = rng(5)
    for colour in COLOURS:
        spec = replace(parse("a small red circle on a grey background"), objects=())
        spec = replace(spec, objects=(ObjectSpec(shape, colour, "small", pattern),))
        (found,) = read(render(place(spec, generator))).objects
        assert (found.shape, found.colour, found.pattern) == (shape, colour, pattern)


def wrong(text: str, drawn: str):
    """Score of the picture of `drawn` against the caption `text`."""
    return score(text, render(place(parse(drawn), rng(6))))


def test_swapped_colours_are_caught():
    result = wrong("a red circle left of a blue square", "a blue circle left of a red square")
    assert result.shape and result.colour and result.count and not result.strict


def test_reversed_relation_is_caught():
    result = wrong("a red circle above a blue square", "a red circle below a blue square")
    assert result.position is False and not result.strict
    assert not wrong("a red circle above a blue square", "a red circle left of a blue square").strict


@pytest.mark.parametrize("other", SHAPES[1:])
def test_wrong_shape_is_caught(other):
    result = wrong("three green circles", f"three green {other}{'es' if other == 'cross' else 's'}")
    assert not result.shape and result.colour and result.count and not result.strict


def test_missing_and_extra_objects_are_caught():
    assert not wrong("four red rings", "three red rings").strict
    assert not wrong("two red rings", "three red rings").strict
    assert not wrong("a pink ring left of a cyan cross", "a pink ring").strict
    assert not score("a red ring", np.full((128, 128, 3), 150, np.uint8)).strict


def test_extra_object_fails_and_speck_does_not():
    image = render(place(parse("a large red circle on a white background"), rng(8)))
    speck, extra = image.copy(), image.copy()
    speck[4:6, 4:6] = (0, 0, 255)
    extra[4:16, 4:16] = (0, 0, 255)
    assert score("a red circle", speck).strict and read(speck).specks == 1
    assert not score("a red circle", extra).strict


@pytest.mark.parametrize("drawn", ["plain", "checkered", "dotted"])
def test_other_pattern_is_caught(drawn):
    result = wrong("a striped blue square", f"a {drawn} blue square")
    assert result.strict and result.texture is False
    result = wrong(
        "a blue square on a striped grey background", f"a blue square on a {drawn} grey background"
    )
    assert result.strict and result.texture is False and result.background


def test_wrong_size_and_background_are_reported():
    result = wrong("a small red ring on a white background", "a large red ring on a black background")
    assert result.strict and result.size is False and result.background is False
    assert wrong("a red ring", "a large red ring on a black background").background is None


def test_shape_map_and_bad_input():
    scene = place(parse("a red square left of a blue ring"), rng(9))
    assert set(np.unique(shape_map(scene))) == {0, 1 + SHAPES.index("square"), 1 + SHAPES.index("ring")}
    with pytest.raises(ValueError, match="shape"):
        read(np.zeros((64, 64, 3), np.uint8))
