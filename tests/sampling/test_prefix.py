"""Editing runs: what precedes the scales runs once, counts, and is refused where it has no place."""

from dataclasses import replace

import pytest
import torch

from stagevar_core.acceleration.policy import RunInfo
from stagevar_core.acceleration.presets import PRESETS
from stagevar_core.acceleration.staged import StagedPolicy
from stagevar_core.costs import kv_bytes
from stagevar_core.models.infinity_config import INFINITY_8B
from stagevar_core.models.teacher import teacher_forced
from stagevar_core.sampling.forecast import forecast
from stagevar_core.sampling.generate import generate
from stagevar_core.sampling.kept import KeptPrefix
from stagevar_core.sampling.loop import REUSED
from stagevar_core.sampling.noise import SeededNoise
from stagevar_core.sampling.settings import SamplingSettings
from stagevar_core.schedule import Prefix, ScaleSchedule, infinity_aspect_table
from tests.support.tiny import (
    GREEDY,
    SQUARE,
    TALL,
    InterruptAt,
    Interrupted,
    Logits,
    edits,
    live_tensors,
    prompts,
    run,
    same_codes,
    tiny_infinity,
)
from tests.support.tiny_star import encoded, tiny_star
from tests.support.tiny_var import labels, tiny_var, tiny_vq

PLANNED = [name for name, policy in PRESETS.items() if not policy.per_image]
SETTINGS = SamplingSettings(cfg_scale=3.0, temperature=1.0)


def editor(**options):
    return tiny_infinity(edits=True, **options)


def prefix(schedule: ScaleSchedule) -> Prefix:
    found = editor().prefix(edits(3), schedule)
    assert found is not None
    return found


def test_the_cached_run_is_the_one_pass_over_its_own_codes() -> None:
    model, given, seen = editor(), edits(5, 9), Logits()
    settings = replace(GREEDY, cfg_scale=1.0)
    found = generate(model, given, SQUARE, settings, noise=None, monitor=seen)
    inputs = model.quantizer().teacher_inputs(found.codes, SQUARE)
    with torch.no_grad():
        whole = teacher_forced(model, given, inputs, SQUARE)
    torch.testing.assert_close(torch.cat(seen.raw, dim=1), whole, atol=1e-5, rtol=1e-4)


def test_the_picture_matters_to_every_scale() -> None:
    model, given = editor(), edits(5)
    one, two = Logits(), Logits()
    run(model, given, monitor=one)
    run(model, replace(given, source=-given.source), monitor=two, known=[])
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(one.raw, two.raw, strict=True))


@pytest.mark.parametrize("name", PLANNED)
@pytest.mark.parametrize("cfg", [3.0, 1.0])
def test_keys_and_work_are_forecast(name: str, cfg: float) -> None:
    policy, model = PRESETS[name], editor()
    info = RunInfo(SQUARE, 3, 2, cfg != 1.0, False, (0, 1), prefix(SQUARE))
    found = forecast(policy, info, model.config.unit_costs, 7)
    settings = replace(SETTINGS, cfg_scale=cfg)
    trace = generate(model, edits(7, 7), SQUARE, settings, noise=SeededNoise(0, 2), policy=policy).trace
    assert 0 < trace.kv_peak_bytes <= kv_bytes(model.config, found.keys, rows=1, itemsize=4)
    if isinstance(policy, StagedPolicy):
        mixing = sum(scale.flops.reduction for scale in trace.scales)
        assert sum(found.flops) == pytest.approx(trace.flops - mixing, rel=0.03)
    assert sum(found.shares) == pytest.approx(1.0) and len(found.shares) == len(SQUARE)


def test_the_trace_has_the_pass_and_its_totals_count_it() -> None:
    trace = run(editor(), edits(5), policy=PRESETS["balanced"]).trace
    before = trace.prefix
    assert before is not None and before.computed == before.visible == 36 and before.rows == 2
    assert trace.flops == before.flops.total + sum(scale.flops.total for scale in trace.scales)
    assert trace.to_dict()["prefix"]["tokens"] == 36
    assert "prefix" not in run(tiny_infinity(), prompts(5)).trace.to_dict()


def test_images_one_after_the_other_have_one_trace() -> None:
    policy = next(policy for policy in PRESETS.values() if policy.per_image)
    trace = run(editor(), edits(5, 6), policy=policy).trace
    assert trace.prefix is not None and trace.prefix.rows == 4 and len(trace.scales) == len(SQUARE)


def test_rows_in_turn_and_keys_elsewhere_change_nothing() -> None:
    model, given = editor(), edits(5, 9, negative=(4, 3))
    together = run(model, given)
    assert same_codes(together, run(model, given, sequential=True))
    assert same_codes(together, run(model, given, sequential=True, offload="cpu"))


def test_it_can_be_cancelled_before_the_first_scale() -> None:
    model, given = editor(), edits(5)
    before = live_tensors()
    with pytest.raises(Interrupted):
        run(model, given, monitor=InterruptAt(0, 1))
    assert live_tensors() == before


def test_8b_at_1024_px_saves_as_much_as_counted_by_hand() -> None:
    schedule = infinity_aspect_table().schedule(1.0, "1M")
    info = RunInfo(schedule, 40, 1, True, False, (0,), Prefix(12, 64, 64, aligned=(0,)))
    work = {
        name: sum(forecast(PRESETS[name], info, INFINITY_8B.unit_costs, 20).flops)
        for name in ("off", "balanced")
    }
    assert work["off"] == pytest.approx(568e12, rel=0.02)
    assert work["off"] / work["balanced"] >= 2.1


# ------------------------------------------------------------------------------------------------- refusals


def refused(model, given, schedule: ScaleSchedule = SQUARE, **options) -> str:
    with pytest.raises(ValueError) as error:
        generate(model, given, schedule, SETTINGS, noise=SeededNoise(0, 1), **options)
    return str(error.value)


def test_weights_of_the_other_task_are_refused_in_one_sentence() -> None:
    said = refused(tiny_infinity(), edits(5))
    assert said.startswith("a picture to edit is connected, but these Infinity weights were not trained")
    assert refused(editor(), prompts(5)).startswith("these Infinity weights edit a picture and none is conn")


def test_families_that_edit_nothing_refuse_a_picture() -> None:
    quantizer = tiny_vq().quantizer()
    pictured = replace(encoded(1), source=torch.zeros(1, 4, 8, 8))
    assert "STAR" in refused(tiny_star(levels=5).eval(), pictured, quantizer=quantizer).upper()
    sides = tuple(scale.height for scale in SQUARE)
    assert generate(
        tiny_var(sides), labels(1), SQUARE, SETTINGS, noise=SeededNoise(0, 1), quantizer=quantizer
    )


def test_pictures_of_another_tokenizer_and_other_shapes_are_refused() -> None:
    assert "have 5 channels" in refused(editor(), edits(5, dim=5))
    assert "squares only" in refused(editor(), edits(5), TALL)
    with pytest.raises(ValueError, match="one picture for each prompt"):
        replace(edits(5), source=torch.zeros(2, 4, 8, 8))


# ------------------------------------------------------------------------------------- tries on one picture


@pytest.mark.parametrize("sequential", [False, True])
def test_a_second_try_has_the_same_codes_without_the_pass(sequential: bool) -> None:
    model, given, kept = editor(), edits(5, 9), KeptPrefix()
    ways = {"settings": SETTINGS, "sequential": sequential, "offload": "cpu" if sequential else None}
    alone = run(model, given, settings=SETTINGS, noise=SeededNoise(1, 2))
    first, again, other = (
        run(model, given, noise=SeededNoise(seed, 2), kept=kept, **ways) for seed in (1, 1, 2)
    )
    assert same_codes(alone, first) and same_codes(first, again) and not same_codes(first, other)
    assert first.trace.prefix is not None and again.trace.prefix is None
    assert again.trace.notes == [REUSED]
    spared = first.trace.flops - again.trace.flops
    assert spared == first.trace.prefix.flops.total == first.trace.dense_flops - again.trace.dense_flops
    assert kept.bytes == 2 * 3 * 4 * 36 * 32 * 4  # keys and values, blocks, rows, tokens, width, float32


def test_another_picture_text_policy_or_model() -> None:
    kept, model, given = KeptPrefix(), editor(), edits(5)

    def passed(model, given, **options) -> bool:
        return run(model, given, kept=kept, **options).trace.prefix is not None

    assert passed(model, given)
    assert not passed(model, given, policy=PRESETS["balanced"])
    assert not passed(model, given, sequential=True)
    assert passed(model, replace(given, source=-given.source))
    assert passed(model, given), "a call forgets what it did not use"
    assert passed(model, edits(6)) and passed(model, edits(6, negative=(4,)))
    assert passed(editor(seed=1), edits(6, negative=(4,)))


def test_images_one_after_the_other_are_all_kept() -> None:
    policy = next(policy for policy in PRESETS.values() if policy.per_image)
    kept, model, given = KeptPrefix("cpu"), editor(), edits(5, 6)
    first, again = (run(model, given, policy=policy, kept=kept) for _ in range(2))
    assert same_codes(first, again) and again.trace.prefix is None
