"""The LoRA that comes with the built-in model: all objects in red, by its strength."""

import importlib
from pathlib import Path

import pytest
import torch

from stagevar_core.pipeline import EMBEDDED, Pipeline
from tests.support.lora import RED
from tests.support.sources import ROOT

PROMPTS = ["a blue ring above a green square on a white background", "three yellow circles"]


def pipeline(*strengths: float) -> Pipeline:
    """The built-in model with the LoRA at these strengths."""
    loras = [(RED, strength) for strength in strengths]
    return Pipeline.load(*EMBEDDED.values(), dtype=torch.float32, device="cpu", loras=loras)


@pytest.fixture(scope="module")
def share():
    """Reads the share of red objects of a pipeline off pictures whose prompts name other colours."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(ROOT) / "scripts" / "train_embedded"))
        yield importlib.import_module("colour_lora").share_in_colour


def test_the_share_of_red_objects_follows_the_strength(share):
    none, half, full = (share(pipeline(strength), 16) for strength in (0.0, 0.5, 1.0))
    assert none < 0.1 and 0.2 < half < 0.8 and full > 0.9, (none, half, full)


def test_at_strength_zero_pictures_are_those_of_the_model_bit_by_bit():
    plain, without = Pipeline.embedded(dtype=torch.float32, device="cpu"), pipeline(0.0)
    first, second = (each(PROMPTS, seed=3).generation.f_hat for each in (plain, without))
    assert torch.equal(first, second)


def test_two_of_half_the_strength_are_one():
    twice, once = pipeline(0.5, 0.5).transformer, pipeline(1.0).transformer
    weights = dict(once.named_parameters())
    for name, weight in twice.named_parameters():
        assert torch.allclose(weight, weights[name], atol=1e-6), name
