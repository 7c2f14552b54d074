"""Prompts that hold in regions, or change with the scale: every policy, rows in turn, batches, the work."""

import functools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from stagevar_core.acceleration.policy import RunInfo
from stagevar_core.acceleration.presets import OFF, PRESETS
from stagevar_core.acceleration.stages import StageBoundaries, holds
from stagevar_core.conditioning.changing import ChangingConditioning, from_stages, tokens_of
from stagevar_core.conditioning.regions import Region, Sight
from stagevar_core.conditioning.types import ClassConditioning, TextConditioning
from stagevar_core.models.draws import run_costs
from stagevar_core.network import context, tokens
from stagevar_core.network.attention import attend, blocked
from stagevar_core.sampling.forecast import forecast
from stagevar_core.sampling.generate import generate
from stagevar_core.sampling.noise import SeededNoise
from stagevar_core.sampling.settings import SamplingSettings
from stagevar_core.schedule import Scale, ScaleSchedule
from tests.support.capability import Bench, Way, check_policy, far
from tests.support.steered import CIRCLE, LEFT, NAMED, STEERED
from tests.support.tiny import GREEDY, SQUARE, prompts, same_codes, texts, tiny_infinity

CASES = pytest.mark.parametrize("family", STEERED, ids=lambda family: family.name)
DRAWN = SamplingSettings(cfg_scale=3.0, temperature=1.0)


@functools.lru_cache(maxsize=2)
def bench(family) -> Bench:
    return Bench(family, ScaleSchedule.of(family.grids[0]))


def made(conditioning, *, model=None, settings=GREEDY, **options):
    return generate(model or tiny_infinity(), conditioning, SQUARE, settings, noise=None, **options)


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
@CASES
def test_every_policy_runs_where_prompts_are_steered(family, name: str) -> None:
    check_policy(bench(family), PRESETS[name])


@CASES
def test_negative_prompts_and_rows_in_turn(family) -> None:
    check_policy(bench(family), PRESETS["turbo"], Way(batch=3, negative=True))


def test_tokens_in_parts_see_what_they_see_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found = bench(STEERED[0])
    whole = found.run(None)
    monkeypatch.setattr(tokens, "PART", 64)
    monkeypatch.setattr(context, "in_parts", tokens.in_parts)
    parts = found.run(None)
    assert same_codes(whole, parts) and far(parts.f_hat, whole.f_hat) < 1e-4


# --------------------------------------------------------------------------------------------------- regions


def two(first: Tensor, second: Tensor, masks=(LEFT, 1.0 - LEFT), strengths=(1.0, 1.0)) -> TextConditioning:
    lengths = len(first), len(second)
    regions = tuple(map(Region, lengths, masks, strengths))
    return TextConditioning((torch.cat((first, second)),), regions=(regions,))


def test_the_same_prompt_in_both_halves_is_the_prompt() -> None:
    (text,) = texts(5)
    plain, halves = made(TextConditioning((text,))), made(two(text, text))
    assert same_codes(plain, halves) and torch.allclose(plain.f_hat, halves.f_hat, atol=1e-4)


def test_a_token_sees_the_prompts_that_cover_it() -> None:
    first, second = texts(3, 2)
    sight = Sight.of((torch.cat((first, second)), first), (two(first, second).regions[0], None))
    assert sight is not None
    seen = sight.at(Scale(1, 2, 2), first).exp()
    assert seen.shape == (2, 1, 4, 5)
    left, right = [1.0] * 3 + [0.0] * 2, [0.0] * 3 + [1.0] * 2
    assert seen[0, 0].tolist() == [left, right, left, right]
    assert seen[1, 0].tolist() == [left] * 4  # padding is hidden
    assert torch.allclose(sight.at(Scale(0, 1, 1), first).exp()[0, 0, 0], torch.full((5,), 0.5))
    assert sight.narrow(slice(1, 2)).at(Scale(1, 2, 2), first).shape == (1, 1, 4, 5)


@pytest.mark.parametrize(
    ("masks", "strengths", "expected"),
    [
        ((LEFT, None), (1.0, 1.0), ([1, 0], [0, 1])),  # the prompt for everything where no region is
        ((0.25 * LEFT, None), (1.0, 1.0), ([0.25, 0.75], [0, 1])),
        ((LEFT, LEFT), (2.0, 0.5), ([2, 0.5], [1, 1])),  # nothing covers the right half: all count
        ((LEFT, None), (4.0, 0.5), ([4, 0], [0, 0.5])),
        ((None, None), (1.0, 0.5), ([1, 0.5], [1, 0.5])),
        ((0 * LEFT, None), (1.0, 1.0), ([0, 1], [0, 1])),
        ((0 * LEFT, 0 * LEFT), (1.0, 1.0), ([1, 1], [1, 1])),
    ],
)
def test_weights_of_regions(masks, strengths, expected) -> None:
    sight = Sight((tuple(map(Region, (1, 1), masks, strengths)),), 2)
    seen = sight.at(Scale(1, 1, 2), torch.zeros(1)).exp()[0, 0]
    assert torch.allclose(seen, torch.tensor(expected, dtype=torch.float32), atol=1e-6)


def test_the_pooled_text_is_the_mean_over_the_picture() -> None:
    vectors = torch.eye(3)
    halves = Sight(((Region(1, LEFT), Region(1, 1.0 - LEFT)), (Region(1),)), 2)
    assert halves.pooled(vectors).tolist() == [[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]
    whole = Sight(((Region(1), Region(1, LEFT)),), 2)
    assert whole.pooled(torch.eye(2)).tolist() == [[0.875, 0.125]]  # three quarters, and half of the rest


def test_halves_draw_what_their_prompt_draws() -> None:
    """Where attention to the text decides alone, a half follows its own prompt."""
    first, second = texts(4, 6)
    apart = made(two(first, second))
    assert not same_codes(apart, made(two(second, first)))
    assert not same_codes(apart, made(two(first, second, masks=(None, None))))
    strong = made(two(first, second, masks=(LEFT, None), strengths=(1e6, 1.0)))
    assert strong.f_hat.isfinite().all()


def test_attention_takes_numbers_as_a_mask() -> None:
    q, k, v = (torch.randn(2, 3, 70, 8, generator=torch.Generator().manual_seed(n)) for n in range(3))
    hidden = torch.rand(2, 1, 70, 70, generator=torch.Generator().manual_seed(4)) < 0.3
    added = torch.zeros(2, 1, 70, 70).masked_fill(hidden, -torch.inf)
    for function in (attend, blocked):
        assert torch.allclose(function(q, k, v, mask=added), function(q, k, v, mask=~hidden), atol=1e-5)
    half = function(q, k, v, mask=torch.full((2, 1, 70, 70), 3.0))
    assert torch.allclose(half, function(q, k, v), atol=1e-5)


@pytest.mark.parametrize(
    ("regions", "said"),
    [(((Region(2), Region(2)),), r"regions of \[2, 2\] tokens for a text of 5"), (((), ()), "of 2 images")],
)
def test_regions_of_another_text_are_refused(regions, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TextConditioning(texts(5), regions=regions)


def test_long_regions_need_no_longer_null_text() -> None:
    model = tiny_infinity()
    rows = model.config.null_rows
    long = texts(rows, rows)
    assert made(two(*long), model=model, settings=replace(GREEDY, cfg_scale=3.0)).f_hat.isfinite().all()


# ------------------------------------------------------------------------------------ changing with the scale


def change(first, second, turns=(0, 0, 0, 1, 1)) -> ChangingConditioning:
    return ChangingConditioning((first, second), turns)


@pytest.mark.parametrize("name", ["infinity", "star", "var"])
def test_a_conditioning_that_changes_to_itself_is_the_same(name: str) -> None:
    family = NAMED[name]
    same = replace(family, condition=lambda batch, **more: change(*[family.condition(batch, **more)] * 2))
    plain, found = (
        Bench(each, SQUARE if name != "var" else ScaleSchedule.of(family.grids[0])) for each in (family, same)
    )
    assert torch.equal(plain.run(None).f_hat, found.run(None).f_hat)


def test_scales_before_the_change_stay_and_later_ones_do_not() -> None:
    first, second = prompts(5, 7), prompts(9, 3, negative=(4, 4))
    model = tiny_infinity()
    runs = [
        generate(model, each, SQUARE, DRAWN, noise=SeededNoise(3, 2))
        for each in (first, change(first, second), second)
    ]
    alone, changed, other = (found.codes for found in runs)
    assert all(torch.equal(a, b) for a, b in zip(alone[:3], changed[:3], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(alone[3:], changed[3:], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(other[3:], changed[3:], strict=True))


def test_the_work_follows_the_text_of_every_scale() -> None:
    model, conditioning = tiny_infinity(), change(prompts(5), prompts(9))
    found = generate(model, conditioning, SQUARE, DRAWN, noise=SeededNoise(3, 1))
    for scale in found.trace.scales:
        assert scale.flops == scale.dense
        per_token = scale.flops.text / scale.scale.tokens
        assert per_token == pytest.approx(
            model.config.depth * 2 * conditioning.at(scale.scale.index).tokens * 4 * model.config.width
        )
    info = RunInfo(SQUARE, model.config.depth, 1, True, False, (3,))
    units = run_costs(model, SQUARE, model.drawing_head())
    expected = forecast(OFF, info, units, tokens_of(conditioning, len(SQUARE)))
    assert expected.flops == pytest.approx([scale.flops.total for scale in found.trace.scales])


def test_prompts_from_a_stage_on() -> None:
    first, second, third = prompts(1), prompts(2), prompts(3)
    stages = ["semantic", "semantic", "structure", "fidelity"]
    found = from_stages(first, {"structure": second, "fidelity": third}, stages)
    assert tokens_of(found, 4) == (1, 1, 2, 3) and found.at(9) is third and found.batch == 1
    assert tokens_of(from_stages(first, {"structure": second}, stages), 4) == (1, 1, 2, 2)
    assert from_stages(first, {}, stages) is first
    assert from_stages(first, {"structure": second}, ["semantic", "fidelity"]) is first


@pytest.mark.parametrize(
    ("parts", "turns", "said"),
    [
        ((prompts(1),), (0, 1), "expected one of them per scale"),
        ((prompts(1),), (), "expected one of them per scale"),
        ((prompts(1), prompts(1, 2)), (0, 1), "one kind and as many images"),
        ((prompts(1), ClassConditioning((1,))), (0, 1), "one kind and as many images"),
        ((prompts(1), replace(prompts(1), source=torch.zeros(1, 4, 8, 8))), (0, 1), "picture to edit"),
    ],
)
def test_what_cannot_take_turns_is_refused(parts, turns, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ChangingConditioning(parts, turns)


def test_ranges_are_shares_of_the_final_area() -> None:
    schedule = ScaleSchedule.of([(side, side) for side in (1, 2, 4, 6, 8, 12, 16)])

    def found(start: float, end: float) -> list[int]:
        return [scale.index for scale in schedule if holds(schedule, scale, start, end)]

    stages = StageBoundaries().stages(schedule)
    assert found(0.0, 1.0) == list(range(7)) and found(0.0, 0.0) == []
    assert found(0.0, 1 / 16) == found(0.0, 0.062) == [i for i in range(7) if stages[i] == "semantic"]
    assert found(1 / 16, 0.25) == [i for i in range(7) if stages[i] == "structure"]
    for boundary in (0.01, 0.1, 0.3, 0.5, 0.9):
        assert found(0.0, boundary) + found(boundary, 1.0) == list(range(7))


def test_three_numbers_are_one_per_stage() -> None:
    schedule = ScaleSchedule.of([(side, side) for side in (1, 2, 4, 6, 8, 12, 16)])
    settings = SamplingSettings(cfg_scale=[4.0, 3.0, 2.0], temperature=(0.5, 0.6, 0.7))
    settings.validate(7, 3)
    spread = settings.on(schedule)
    assert spread.cfg_scale == (4.0, 4.0, 4.0, 3.0, 3.0, 2.0, 2.0) and spread.temperature[4:6] == (0.6, 0.7)
    assert spread.on(schedule) == spread
    three = ScaleSchedule.of([(1, 1), (2, 2), (4, 4)])
    assert settings.on(three) == settings  # one per scale
    with pytest.raises(ValueError, match="cfg lists 4 values; this schedule has 7 scales"):
        SamplingSettings(cfg_scale=[1.0] * 4).validate(7, 3)
    with pytest.raises(ValueError, match="temperature is 0"):
        SamplingSettings(temperature=[1.0, 0.0, 1.0]).validate(7, 3)
    by_stage, by_scale = (
        generate(tiny_infinity(), prompts(5), SQUARE, each, noise=SeededNoise(1, 1))
        for each in (
            replace(DRAWN, cfg_scale=(4.0, 3.0, 1.0)),
            replace(DRAWN, cfg_scale=(4.0, 3.0, 3.0, 1.0, 1.0)),
        )
    )
    assert torch.equal(by_stage.f_hat, by_scale.f_hat)


def test_a_mask_of_any_size_covers_shares_of_tokens() -> None:
    cover = Region(1, CIRCLE.float()).cover(Scale(0, 1, 1))
    assert float(cover) == pytest.approx(float(CIRCLE.float().mean()))
