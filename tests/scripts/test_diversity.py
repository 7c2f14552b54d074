"""The experiment on layouts: what it changes in a model, and what its table says."""

from __future__ import annotations

import pytest
import torch

from scripts.diversity.__main__ import OFF, TRIVIAL, table
from scripts.diversity.lab import DRAFTS, SEED, Seeds, numbered
from scripts.diversity.methods import Changed, Damped, NoisyText, SpatialGuidance, cosines, enhanced
from stagevar_core.acceleration.policy import FirstScales
from stagevar_core.pipeline import Pipeline
from stagevar_core.sampling.generate import generate
from stagevar_core.sampling.noise import SeededNoise


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.embedded(device="cpu")


def latent(pipeline: Pipeline, model: Changed | None = None) -> torch.Tensor:
    """After 6x6 tokens."""
    found = generate(
        model or pipeline.transformer,
        pipeline.encode(["a red circle", "two blue squares"]),
        pipeline.schedule(),
        pipeline.settings(),
        noise=SeededNoise(1, 2),
        policy=FirstScales(4),
    )
    return found.f_hat


def test_a_method_without_strength_changes_nothing_and_with_it_something(pipeline: Pipeline) -> None:
    inner = pipeline.transformer
    plain = latent(pipeline)
    for model in (SpatialGuidance(inner, 0.0), Damped(inner, set(), 1.0), NoisyText(inner, 0.5, 0)):
        assert torch.equal(latent(pipeline, model), plain), type(model)
    changed = (
        SpatialGuidance(inner, 5.0),
        Damped(inner, {2, 3}, 3.0),
        Damped(inner, {2, 3}, 1.0, 1.0),
        NoisyText(inner, 0.9, 4),
    )
    for model in changed:
        assert not torch.equal(latent(pipeline, model), plain), type(model)


def test_a_prior_keeps_its_own_low_frequencies() -> None:
    x = torch.randn(2, 4 * 4, 3, generator=torch.Generator().manual_seed(0))
    grown = enhanced(x, (4, 4), (6, 6)).mT.unflatten(2, (6, 6))
    spectrum = cosines(6) @ grown @ cosines(6).T
    own = cosines(4) @ x.mT.unflatten(2, (4, 4)) @ cosines(4).T
    assert torch.allclose(spectrum[..., :4, :4], own * 1.5, atol=1e-5)
    level = torch.full((1, 4, 2), 0.7)
    assert torch.allclose(enhanced(level, (2, 2), (8, 8)), torch.full((1, 64, 2), 0.7), atol=1e-6)


def test_seeds_of_any_order_give_each_image_its_own_draws(pipeline: Pipeline) -> None:
    scale = pipeline.schedule()[2]
    whole = Seeds([9, 3]).exponential(scale, (2, 16, 4), torch.device("cpu"))
    assert torch.equal(whole[1:], SeededNoise(3, 1).exponential(scale, (1, 16, 4), torch.device("cpu")))
    assert numbered(range(2, 4), [[0, 5], [1, 15]]) == [
        SEED + DRAFTS * i + j for i, j in ((2, 0), (2, 5), (3, 1), (3, 15))
    ]


def test_the_table_compares_with_trivial_rows_that_are_right_as_often() -> None:
    def row(kind: str, strict: float, distinct: float) -> dict:
        means = {"strict": strict, "spread": 2.0, "distinct": distinct}
        cells = {name: {"mean": mean, "low": mean, "high": mean, "n": 4} for name, mean in means.items()}
        cells["strict"]["high"] = strict + 0.01
        return {"kind": kind, "backgrounds": None, **cells}

    rows = {
        OFF: row(TRIVIAL, 0.97, 1.5),
        "hot": row(TRIVIAL, 0.8, 3.0),
        "good": row("papers", 0.9, 2.0),
        "poor": row("papers", 0.805, 2.0),
        "perfect": row("papers", 0.99, 1.5),
    }
    machine = {"processor": "a processor", "torch": "2"}
    text = table({"variants": rows, "hardware": machine, "prompts": 4, "command": "run"})
    ends = {line.split(" | ")[0].removeprefix("| "): line.split(" | ")[-1] for line in text.splitlines()[2:7]}
    assert ends == {OFF: " |", "hot": " |", "good": "1.50 |", "poor": "3.00 |", "perfect": " |"}
