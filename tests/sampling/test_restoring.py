"""Restoring in one pass: what it depends on, what it draws, and what it needs."""

import pytest
import torch

from stagevar_core.checkpoints import build, prepare
from stagevar_core.conditioning.types import TextConditioning
from stagevar_core.models.infinity_config import INFINITY_2B
from stagevar_core.models.restoring import RestoringLayout, restoring_inputs, restoring_logits
from stagevar_core.network.attention import attend, sdpa
from stagevar_core.sampling.generate import generate
from stagevar_core.sampling.noise import SeededNoise
from stagevar_core.sampling.restoring import NULL_TOKENS, Restorer, restoring_memory
from stagevar_core.sampling.settings import SamplingSettings
from stagevar_core.schedule import SIDES_256, ScaleSchedule, SquareTable, infinity_aspect_table
from tests.support.official_restorer import TINY, restorer
from tests.support.tiny import Interrupted

LAYOUT = RestoringLayout.of(infinity_aspect_table(8).restrict([1.0], ["0.06M"]))


@pytest.fixture(scope="module")
def model():
    return build(prepare(dict(restorer(TINY, rank=4, chunks=2, device="cpu")), None, "tiny"))


def features(seed: int = 0) -> torch.Tensor:
    return torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(seed))


def text(length: int = 5, seed: int = 0) -> TextConditioning:
    return TextConditioning((torch.randn(length, 24, generator=torch.Generator().manual_seed(seed)),))


def test_layouts():
    assert LAYOUT.schedule.grids[-1] == (16, 16) and LAYOUT.full.grids[LAYOUT.count] == (20, 20)
    assert LAYOUT.tokens == 777
    published = RestoringLayout.of(infinity_aspect_table().restrict([1.0], ["0.25M"]))
    assert published.tokens == 3545 and published.schedule.tokens == 2521
    full = infinity_aspect_table().restrict([1.0], ["1M"])
    with pytest.raises(ValueError, match="trained to restore"):
        RestoringLayout.of(full)
    with pytest.raises(ValueError, match="trained to restore"):
        RestoringLayout.of(SquareTable.of(SIDES_256))
    with pytest.raises(ValueError, match="trained to restore"):  # positions for fewer tokens than there are
        RestoringLayout(ScaleSchedule.of([(1, 1), (4, 4), (3, 3)]), 2)


def test_every_token_sees_every_other(model):
    """A change of the last input reaches the logits of the first scale, and the complete sum all of them."""
    run = Restorer(model, LAYOUT, model.quantizer(), text(), attention=sdpa)
    inputs = restoring_inputs(model.quantizer(), features(), LAYOUT.schedule)
    assert inputs.shape == (1, LAYOUT.tokens - 1, 16)
    with torch.inference_mode():
        before = restoring_logits(model, run.conditioned, inputs, LAYOUT, sdpa)
        inputs[:, -1] += 1.0
        after = restoring_logits(model, run.conditioned, inputs, LAYOUT, sdpa)
    assert before.shape == (1, LAYOUT.schedule.tokens, 32)
    assert ((after - before).abs().amax(dim=(0, 2)) > 0).all()


def test_draws_and_texts(model):
    run = Restorer(model, LAYOUT, model.quantizer(), text())
    found = run(features(), SeededNoise(3, 1))
    assert found.f_hat.shape == (1, 16, 16, 16) and len(found.codes) == len(LAYOUT.schedule)
    assert torch.equal(found.f_hat, model.quantizer().accumulate(found.codes, LAYOUT.schedule))
    assert torch.equal(run(features(), SeededNoise(3, 1)).f_hat, found.f_hat)
    assert not torch.equal(run(features(), SeededNoise(4, 1)).f_hat, found.f_hat)
    assert torch.equal(run(features(), None).f_hat, run(features(), None).f_hat)
    assert not torch.equal(run(features(1), SeededNoise(3, 1)).f_hat, found.f_hat)
    other = Restorer(model, LAYOUT, model.quantizer(), text(seed=1))
    assert not torch.equal(other(features(), SeededNoise(3, 1)).f_hat, found.f_hat)


def test_without_a_text_the_null_text_stands_there(model):
    count = min(NULL_TOKENS, model.config.null_rows)
    null = TextConditioning((model.null_text[:count],))
    by_itself = Restorer(model, LAYOUT, model.quantizer(), None)(features(), None)
    assert torch.equal(
        by_itself.f_hat, Restorer(model, LAYOUT, model.quantizer(), null)(features(), None).f_hat
    )


def test_what_is_raised_after_a_block_ends_the_pass(model):
    seen = []

    def stop(layer: int) -> None:
        seen.append(layer)
        raise Interrupted

    with pytest.raises(Interrupted):
        Restorer(model, LAYOUT, model.quantizer(), None)(features(), None, stop)
    assert seen == [0]


def test_batches_of_tiles_and_attention_agree(model):
    inputs = restoring_inputs(model.quantizer(), features(), LAYOUT.schedule)
    with torch.inference_mode():
        one = Restorer(model, LAYOUT, model.quantizer(), text()).conditioned
        both = model.condition(TextConditioning(text().features * 2), False, inputs.device, attend)
        single = restoring_logits(model, one, inputs, LAYOUT, sdpa)
        double = restoring_logits(model, both, inputs.repeat(2, 1, 1), LAYOUT, attend)
    assert torch.allclose(double, single.expand(2, -1, -1), atol=1e-5)


def test_the_global_random_state_is_left_alone(model):
    state = torch.random.get_rng_state()
    Restorer(model, LAYOUT, model.quantizer(), None)(features(), SeededNoise(0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_tile_of_the_published_size_needs_little_memory():
    model = type("Sized", (), {"config": INFINITY_2B, "compute_dtype": torch.bfloat16, "longest_text": 512})
    layout = RestoringLayout.of(infinity_aspect_table().restrict([1.0], ["0.25M"]))
    needed = restoring_memory(model, layout, 0).total
    assert 0.1 * 2**30 < needed < 0.6 * 2**30


def test_weights_that_restore_make_no_pictures(model):
    with pytest.raises(ValueError, match="restore pictures in one pass"):
        generate(model, text(), LAYOUT.schedule, SamplingSettings(), noise=SeededNoise(0, 1))
