"""Picking the pictures that look least alike."""

import numpy as np
import pytest
import torch

from stagevar_core.evaluation.diversity import diversity
from stagevar_core.sampling.variety import most_different
from stagevar_core.scenes import render
from stagevar_core.scenes.grammar import parse, place


def flat(*levels: float) -> torch.Tensor:
    """Pictures of one grey each."""
    return torch.tensor(levels)[:, None, None, None].expand(-1, 40, 24, 3)


def test_the_first_stays_and_the_farthest_join_it() -> None:
    pictures = flat(0.5, 0.52, 1.0, 0.49, 0.0, 0.75)
    assert most_different(pictures, 1) == [0]
    assert most_different(pictures, 3) == [0, 2, 4]
    assert most_different(pictures, 4) == [0, 2, 4, 5]


def test_all_are_picked_where_there_are_no_more() -> None:
    assert most_different(flat(0.1, 0.1, 0.1), 5) == [0, 1, 2]
    assert most_different(flat(0.3), 4) == [0]
    assert most_different(flat(0.1, 0.1, 0.9, 0.1), 3) == [0, 1, 2]


def test_fine_texture_makes_no_difference() -> None:
    generator = torch.Generator().manual_seed(0)
    noisy = flat(0.5, 0.5, 0.6)[:, :, :, :].clone().repeat(1, 4, 8, 1)
    noisy[1] += torch.rand(noisy[1].shape, generator=generator) - 0.5
    assert most_different(noisy, 2) == [0, 2]


def test_pictures_of_bytes_and_a_single_pixel_are_compared_too() -> None:
    assert most_different((flat(0.5, 0.51, 0.9) * 255).to(torch.uint8), 2) == [0, 2]
    assert most_different(torch.tensor([[[[0.1]]], [[[0.2]]], [[[0.9]]]]), 2) == [0, 2]


@pytest.mark.parametrize(
    ("pictures", "count", "words"),
    [
        (flat(0.5)[0], 2, r"the shape \[40, 24, 3\]; expected \(N, H, W, C\)"),
        (flat(0.5)[:0], 2, "not empty"),
        (flat(0.5, 0.6), 0, "count is 0"),
        (flat(0.5, float("nan")), 2, "NaN or infinity"),
    ],
)
def test_what_cannot_be_compared_is_refused(pictures: torch.Tensor, count: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        most_different(pictures, count)


def test_picked_scenes_have_more_layouts_than_the_first_ones() -> None:
    """Two backgrounds and a few places: four at random seldom show as much."""
    caption, rng = "a red circle", np.random.default_rng(1)
    spec = parse(caption)
    assert spec is not None
    images = np.stack([render(place(spec, rng)) for _ in range(24)])
    picked = most_different(torch.from_numpy(images), 4)
    chosen, first = diversity(caption, list(images[picked])), diversity(caption, list(images[:4]))
    assert chosen.backgrounds is not None and first.backgrounds is not None
    assert chosen.backgrounds > first.backgrounds and chosen.distinct == 4
