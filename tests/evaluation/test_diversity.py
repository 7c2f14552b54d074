"""How different layouts are, on scenes drawn for it."""

from dataclasses import replace

import numpy as np
import pytest

from stagevar_core.evaluation.diversity import SAME, distances, diversity, summarise
from stagevar_core.scenes import Scene, place, read, render
from stagevar_core.scenes.grammar import SceneObject, parse


def scene(*objects: tuple[str, str, float, float, float], background: str = "white") -> Scene:
    drawn = tuple(SceneObject(shape, colour, None, "plain", x, y, r) for shape, colour, x, y, r in objects)
    return Scene("single", drawn, None, background, "plain")


def moved(x: float = 0.0, y: float = 0.0, r: float = 0.0, background: str = "white") -> np.ndarray:
    return render(scene(("circle", "red", 60 + x, 64 + y, 26 + r), background=background))


def test_the_distance_is_of_place_and_size_in_pixels() -> None:
    here = read(moved())
    assert distances(here, here) == pytest.approx([0.0])
    assert distances(here, read(moved(x=6))) == pytest.approx([6.0], abs=0.5)
    assert distances(here, read(moved(x=3, y=-4))) == pytest.approx([5.0], abs=0.5)
    assert distances(here, read(moved(r=4))) == pytest.approx([4.0], abs=0.5)


def test_objects_are_matched_with_their_nearest_counterparts_of_the_same_kind() -> None:
    both = [("circle", "red", 36.0, 64.0, 18.0), ("circle", "red", 92.0, 64.0, 18.0)]
    swapped = [("circle", "red", 92.0, 68.0, 18.0), ("circle", "red", 36.0, 60.0, 18.0)]
    first, second = read(render(scene(*both))), read(render(scene(*swapped)))
    assert distances(first, second) == pytest.approx([4.0, 4.0], abs=0.5)
    kinds = [("circle", "red", 36.0, 64.0, 18.0), ("circle", "blue", 92.0, 64.0, 18.0)]
    crossed = [("circle", "blue", 36.0, 64.0, 18.0), ("circle", "red", 92.0, 64.0, 18.0)]
    first, second = read(render(scene(*kinds))), read(render(scene(*crossed)))
    assert distances(first, second) == pytest.approx([56.0, 56.0], abs=0.5)


def test_readings_of_other_objects_have_no_distance() -> None:
    with pytest.raises(ValueError, match="expected the same objects in both"):
        distances(read(moved()), read(render(scene(("circle", "blue", 60.0, 64.0, 26.0)))))


def test_the_same_picture_again_is_no_layout_of_its_own() -> None:
    found = diversity("a red circle", [moved()] * 3)
    assert (found.count, found.right, found.distinct) == (3, 3, 1)
    assert found.spread == pytest.approx(0.0) and found.backgrounds == 0.0


def test_places_sizes_and_backgrounds_make_layouts() -> None:
    images = [moved(), moved(x=SAME - 1), moved(x=SAME + 2), moved(r=SAME + 2), moved(background="black")]
    found = diversity("a red circle", images)
    assert found.right == 5 and found.distinct == 4
    assert found.backgrounds == pytest.approx(4 / 10)
    named = diversity("a red circle on a white background", images[:4])
    assert named.backgrounds is None and named.spread is not None and named.spread > 2.0


def test_broken_pictures_are_no_layouts() -> None:
    blank, wrong = np.full((128, 128, 3), 238, np.uint8), render(scene(("square", "red", 20.0, 20.0, 18.0)))
    found = diversity("a red circle", [moved(), blank, wrong])
    assert (found.count, found.right, found.distinct) == (3, 1, 1)
    assert found.spread is None and found.backgrounds is None
    assert diversity("a red circle", [blank]).distinct == 0


def test_captions_outside_the_grammar_are_refused() -> None:
    with pytest.raises(ValueError, match="not a caption of the scene grammar"):
        diversity("a horse", [moved()])


def test_drawn_scenes_are_right_and_all_but_always_distinct() -> None:
    rng = np.random.default_rng(0)
    captions = ["a red circle", "two small blue squares", "a pink ring left of a green cross"]
    found = []
    for caption in captions:
        spec = parse(caption)
        assert spec is not None
        found.append(diversity(caption, [render(place(spec, rng)) for _ in range(4)]))
    report = summarise(found)
    strict, spread, distinct = report["strict"], report["spread"], report["distinct"]
    assert strict and spread and distinct
    assert strict["mean"] == 1.0 and strict["n"] == 12
    assert spread["mean"] > 2 * SAME / 2 and 3.0 <= distinct["mean"] <= 4.0 and distinct["n"] == 3


def test_means_are_over_captions_and_the_strict_score_over_pictures() -> None:
    one = diversity("a red circle", [moved(), moved(x=8)])
    other = replace(one, right=0, spread=None, backgrounds=None, distinct=0)
    report = summarise([one, other])
    strict, spread, distinct = report["strict"], report["spread"], report["distinct"]
    assert strict and spread and distinct
    assert (strict["mean"], strict["n"]) == (0.5, 4)
    assert (spread["n"], distinct["mean"]) == (1, 1.0)
    assert summarise([other])["spread"] is None
