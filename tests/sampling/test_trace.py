"""The trace of a run: counted work against the formula, totals, the line for people, joined runs."""

import json
import time

import pytest
from torch import Tensor

from stagevar_core.acceleration.policy import RunInfo, ScalePlan
from stagevar_core.acceleration.presets import PRESETS
from stagevar_core.costs import Flops, schedule_flops
from stagevar_core.sampling.result import Monitor
from stagevar_core.sampling.settings import SamplingSettings
from stagevar_core.sampling.trace import Trace, joined
from stagevar_core.schedule import Scale
from tests.support.tiny import SQUARE, TALL, prompts, run, tiny_infinity

UNGUIDED = SamplingSettings(cfg_scale=1.0, temperature=1.0, greedy=True)


@pytest.fixture(scope="module")
def model():
    return tiny_infinity()


@pytest.mark.parametrize("schedule", [SQUARE, TALL], ids=["square", "tall"])
@pytest.mark.parametrize("lengths", [(5,), (5, 9)])
def test_a_dense_run_costs_what_the_formula_says(model, schedule, lengths) -> None:
    trace = run(model, prompts(*lengths), schedule).trace
    rows = 2 * len(lengths)
    costs = schedule_flops(model.config.unit_costs, schedule, rows=rows, text_tokens=max(lengths))
    assert [scale.flops for scale in trace.scales] == costs
    assert [scale.dense for scale in trace.scales] == costs
    assert trace.flops == trace.dense_flops == sum(cost.total for cost in costs)
    assert trace.ratio == 1.0 and trace.policy == "off" and trace.images == len(lengths)
    for scale, known in zip(trace.scales, schedule, strict=True):
        assert scale.scale == known and scale.computed == known.tokens and scale.rows == rows
        assert scale.visible == sum(s.tokens for s in schedule.scales[: known.index + 1])
        assert scale.guidance == "cfg 3" and scale.ran and scale.milliseconds > 0


def test_a_negative_prompt_counts_its_own_length(model) -> None:
    trace = run(model, prompts(5, negative=(11,))).trace
    costs = schedule_flops(model.config.unit_costs, SQUARE, rows=2, text_tokens=11)
    assert trace.dense_flops == trace.flops == sum(cost.total for cost in costs)


def test_without_guidance_there_is_one_row_per_image(model) -> None:
    trace = run(model, prompts(5, 9), settings=UNGUIDED).trace
    assert {scale.rows for scale in trace.scales} == {2}
    assert {scale.guidance for scale in trace.scales} == {"conditional"}
    costs = schedule_flops(model.config.unit_costs, SQUARE, rows=2, text_tokens=9)
    assert trace.flops == sum(cost.total for cost in costs)


@pytest.mark.parametrize("name", ["quality", "balanced", "fast", "turbo", "paper", "paper-released"])
def test_an_accelerated_run_is_counted_against_the_dense_one(model, name) -> None:
    text = prompts(5)
    dense, trace = run(model, text).trace, run(model, text, policy=PRESETS[name]).trace
    assert trace.dense_flops == dense.flops and trace.flops < dense.flops and trace.ratio > 1.0
    for scale, full in zip(trace.scales, dense.scales, strict=True):
        if scale.rows == 2:
            assert scale.flops == full.flops and scale.computed == full.computed
        elif scale.ran:
            assert scale.rows == 1 and scale.flops.linear <= full.flops.linear / 2
            assert scale.computed <= scale.scale.tokens
        else:
            assert scale.note == "skipped" and scale.flops == Flops()
        if scale.stage != "fidelity":
            assert scale.computed == full.computed
    assert trace.flops == pytest.approx(sum(scale.flops.total for scale in trace.scales))


def test_dropping_a_branch_halves_every_kind_of_work(model) -> None:
    dense, trace = run(model, prompts(5)).trace, run(model, prompts(5), policy=PRESETS["quality"]).trace
    assert trace.scales[-1].stage == "fidelity"
    for kind in ("linear", "attention", "text", "head"):
        halved, full = (getattr(each.scales[-1].flops, kind) for each in (trace, dense))
        assert halved == full / 2 > 0


class Skipping:
    """Skips the scales in ``places``."""

    name, per_image = "skipping", False

    def __init__(self, *places: int) -> None:
        self.places, self.notes = places, ["a note"]

    def start(self, info: RunInfo) -> "Skipping":
        return self

    def plan(self, scale) -> ScalePlan:
        return ScalePlan(run=scale.index not in self.places, note="because")

    def room(self, scale) -> int:
        return SQUARE.tokens

    def observe(self, seen) -> None:
        pass


def test_skipped_scales_cost_nothing_and_are_counted(model) -> None:
    trace = run(model, prompts(5), policy=Skipping(3, 4)).trace
    assert trace.skipped == 2 and [scale.ran for scale in trace.scales] == [True] * 3 + [False] * 2
    for scale in trace.scales[3:]:
        assert scale.flops == Flops() and scale.dense.total > 0
        assert (scale.rows, scale.computed, scale.visible, scale.note) == (0, 0.0, 0.0, "because")
    assert "2 of 5 scales skipped" in trace.summary()
    assert trace.notes == ["a note"]


def test_the_summary_is_one_line_with_policy_work_tokens_and_time(model) -> None:
    trace = run(model, prompts(5), policy=PRESETS["balanced"]).trace
    text = trace.summary()
    assert text.startswith(f"balanced: {trace.ratio:.2f}x fewer FLOPs, ") and "\n" not in text
    assert "of the tokens computed" in text and "KV " in text and "1 of 5 scales skipped" in text
    assert text.endswith(f"{trace.milliseconds / 1e3:.2f} s")
    dense = run(model, prompts(5)).trace.summary()
    assert dense.startswith("off: as many FLOPs as the dense run, 100% of the tokens computed")
    assert "skipped" not in dense


def test_skipped_scales_count_as_tokens_that_were_not_computed(model) -> None:
    text = run(model, prompts(5), policy=Skipping(4)).trace.summary()
    assert f"{1 - SQUARE.final.tokens / SQUARE.tokens:.0%} of the tokens computed" in text


def test_the_trace_is_plain_json_with_totals(model) -> None:
    trace = run(model, prompts(5), policy=PRESETS["turbo"]).trace
    values = json.loads(json.dumps(trace.to_dict(), allow_nan=False))
    assert values["version"] == 1 and values["policy"] == "turbo" and values["images"] == 1
    totals = values["totals"]
    assert totals["flops"] == sum(scale["flops"]["total"] for scale in values["scales"])
    assert totals["dense_flops"] == sum(scale["dense"]["total"] for scale in values["scales"])
    assert totals["flop_ratio"] == totals["dense_flops"] / totals["flops"]
    assert totals["milliseconds"] == pytest.approx(sum(scale["milliseconds"] for scale in values["scales"]))
    assert totals["kv_peak_bytes"] == max(scale["kv_bytes"] for scale in values["scales"])
    for scale, known in zip(values["scales"], SQUARE, strict=True):
        assert scale["scale"] == {"index": known.index, "grid": list(known.grid)}
        assert scale["tokens"] == known.tokens
        kinds = {name: value for name, value in scale["flops"].items() if name != "total"}
        assert scale["flops"]["total"] == sum(kinds.values())


def test_dropping_a_branch_frees_half_of_the_cache(model) -> None:
    dense, trace = run(model, prompts(5)).trace, run(model, prompts(5), policy=PRESETS["quality"]).trace
    assert trace.scales[-1].kv_bytes == dense.scales[-1].kv_bytes / 2
    assert trace.kv_peak_bytes < dense.kv_peak_bytes


def test_traces_of_single_images_join_to_that_of_the_batch(model) -> None:
    single = [run(model, prompts(5, 5).image(index)).trace for index in range(2)]
    single[0].notes.append("a note")
    together, found = run(model, prompts(5, 5)).trace, joined(single)
    assert found.images == 2 and found.notes == ["image 0: a note"]
    assert found.flops == together.flops and found.dense_flops == together.dense_flops
    assert found.milliseconds == pytest.approx(sum(trace.milliseconds for trace in single))
    for one, both in zip(found.scales, together.scales, strict=True):
        assert (one.rows, one.computed, one.visible) == (both.rows, both.computed, both.visible)
        assert (one.guidance, one.stage, one.ran) == (both.guidance, both.stage, both.ran)
    # One after the other: at any time only one image's cache is there.
    assert found.kv_peak_bytes == max(trace.kv_peak_bytes for trace in single)


def test_images_that_ran_differently_are_all_in_the_joined_trace(model) -> None:
    text = prompts(5, 5)
    found = joined(
        [
            run(model, text.image(0), policy=Skipping(4)).trace,
            run(model, text.image(1), policy=PRESETS["balanced"]).trace,
        ]
    )
    last = found.scales[-1]
    assert last.ran and last.rows == 1 and last.note == "because"
    assert last.computed == last.budget[0] == round(0.67 * SQUARE.final.tokens)
    assert found.skipped == 0
    # Nothing of the last scale is stored, and the second image stored nothing of the one before.
    assert last.kv_length == sum(s.tokens for s in SQUARE.scales[:3]) + SQUARE[3].tokens / 2


def test_the_length_of_the_cache_is_that_of_what_later_scales_may_see(model) -> None:
    tokens = [scale.tokens for scale in SQUARE]
    for policy, stored in (
        (None, [*tokens[:4], 0]),
        (Skipping(1), [tokens[0], 0, *tokens[2:4], 0]),
        (PRESETS["balanced"], [*tokens[:3], 0, 0]),
    ):
        trace = run(model, prompts(5), policy=policy).trace
        assert [scale.kv_length for scale in trace.scales] == [sum(stored[: i + 1]) for i in range(5)]
    assert trace.to_dict()["scales"][-1]["kv_length"] == sum(tokens[:3])


class Slow(Monitor):
    """Takes an hour after every scale, by the clock that it is."""

    late = 0.0

    def perf_counter(self) -> float:
        return time.perf_counter() + self.late

    def scale(self, scale: Scale, f_hat: Tensor) -> None:
        self.late += 3600.0


def test_what_a_monitor_does_after_a_scale_does_not_count(model, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow()
    monkeypatch.setattr("stagevar_core.sampling.trace.time", slow)
    trace = run(model, prompts(5), monitor=slow).trace
    assert slow.late == 5 * 3600.0
    assert all(0 < scale.milliseconds < 3.6e6 for scale in trace.scales)


def test_a_trace_without_scales_has_totals_and_a_summary() -> None:
    trace = Trace()
    assert (trace.flops, trace.dense_flops, trace.kv_peak_bytes, trace.skipped) == (0, 0, 0, 0)
    assert trace.ratio == 1.0
    assert trace.summary().startswith("off: ")


def test_tokens_that_a_chunk_mixes_are_counted(model) -> None:
    trace = run(model, prompts(5), policy=PRESETS["paper"]).trace
    last = trace.scales[-1]
    assert len(last.budget) == 3 and last.flops.reduction > 0
    width, tokens = model.config.width, last.scale.tokens
    assert last.flops.reduction == sum(2 * tokens * budget * width for budget in last.budget)
    assert last.computed == pytest.approx(sum(last.budget) / 3)
    assert {scale.flops.reduction for scale in trace.scales if scale.stage != "fidelity"} == {0.0}
