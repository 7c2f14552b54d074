"""Which rows run on when a policy drops some: what is said of it, and texts of any length."""

import pytest
import torch

from stagevar_core.acceleration.presets import PRESETS
from stagevar_core.conditioning.types import ClassConditioning, TextConditioning
from stagevar_core.sampling.settings import SamplingSettings
from tests.support.tiny import NULL_ROWS, SQUARE, prompts, run, tiny_infinity

UNGUIDED = SamplingSettings(cfg_scale=1.0, temperature=1.0, greedy=True)


@pytest.mark.parametrize("name", ["paper", "paper-released"])
def test_rows_that_an_unguided_run_does_not_have_are_named(name: str) -> None:
    said = "without guidance there are no unconditional rows; the conditional ones run on"
    trace = run(tiny_infinity(), prompts(5), settings=UNGUIDED, policy=PRESETS[name]).trace
    assert trace.notes == [said] and {scale.rows for scale in trace.scales if scale.ran} == {1}
    assert {scale.guidance for scale in trace.scales if scale.ran} == {"conditional"}
    assert run(tiny_infinity(), prompts(5), policy=PRESETS[name]).trace.notes == []
    assert run(tiny_infinity(), prompts(5), settings=UNGUIDED, policy=PRESETS["balanced"]).trace.notes == []


@pytest.mark.parametrize("length", [NULL_ROWS, NULL_ROWS + 1, 3 * NULL_ROWS])
def test_the_null_text_takes_over_from_prompts_of_any_length(length: int) -> None:
    """A long prompt runs with a negative one; the null text that follows it is as long as there is."""
    model, policy = tiny_infinity(), PRESETS["paper"]
    result = run(model, prompts(length, negative=(4,)), policy=policy)
    assert result.trace.scales[-1].guidance == "unconditional" and result.f_hat.isfinite().all()
    assert len(result.codes) == len(SQUARE)


def test_a_long_prompt_without_a_negative_one_is_refused_before_the_first_scale() -> None:
    seen = []
    model = tiny_infinity()
    model.blocks[0].register_forward_hook(lambda *call: seen.append(1))
    with pytest.raises(ValueError, match=f"the text has {NULL_ROWS + 1} tokens; .* takes 1 to {NULL_ROWS}"):
        run(model, prompts(NULL_ROWS + 1), policy=PRESETS["paper"])
    assert not seen


def test_nulled_conditioning_keeps_what_the_images_are() -> None:
    text = prompts(5, 20, negative=(3, 4))
    found = text.nulled(16)
    assert isinstance(found, TextConditioning) and [len(row) for row in found.features] == [5, 16]
    assert found.negative is None and torch.equal(found.features[1], text.features[1][:16])
    assert [len(row) for row in text.nulled(None).features] == [5, 20]
    assert ClassConditioning((1, 2), (3, 4)).nulled(None) == ClassConditioning((1, 2))
