"""Local-window attention against dense attention under an explicit mask, and inside a run."""

import math

import pytest
import torch
from torch import Tensor

from stagevar_core.acceleration.changes import changed
from stagevar_core.acceleration.settings import StageSettings
from stagevar_core.acceleration.staged import StagedPolicy
from stagevar_core.network import local
from stagevar_core.network.attention import sdpa
from stagevar_core.network.local import LocalWindow, local_attention, tiles, window_table
from stagevar_core.schedule import Scale, ScaleSchedule, infinity_aspect_table
from tests.support.tiny import TALL, prompts, run, same_codes, tiny_infinity

GRIDS = {
    "square": [(1, 1), (2, 2), (4, 4), (8, 8), (12, 12), (16, 16)],
    "not divisible": [(1, 1), (3, 3), (5, 5), (7, 7), (11, 11), (17, 17)],
    "tall": [(1, 1), (2, 1), (6, 4), (13, 7), (19, 11)],
    "wide": [(1, 1), (1, 3), (4, 9), (6, 17), (9, 26)],
    "strip": [(1, 1), (1, 5), (2, 14), (3, 41)],
    "gap": [(1, 1), (9, 9), (14, 15)],
}
SCHEDULES = {name: ScaleSchedule.of(grids) for name, grids in GRIDS.items()}
WINDOWS = {
    "default": LocalWindow(),
    "small tiles": LocalWindow(tile=1 / 8, reach=1 / 8),
    "no sinks": LocalWindow(sinks=0.0, tile=1 / 3, reach=0.0),
    "many sinks": LocalWindow(sinks=0.3, tile=1 / 5, reach=1 / 10),
}
everything = pytest.mark.parametrize("window", WINDOWS.values(), ids=list(WINDOWS))
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=list(SCHEDULES))
EVERYTHING = LocalWindow(sinks=1.0)
REDUCED = ScaleSchedule.of([(1, 1), (4, 4), (8, 8), (12, 12), (16, 16)])


def tensors(schedule: ScaleSchedule, rows: int = 2, heads: int = 3, width: int = 4) -> list[Tensor]:
    """Queries of the last scale, keys and values of all scales."""
    generator = torch.Generator().manual_seed(0)
    lengths = (schedule.final.tokens, schedule.tokens, schedule.tokens)
    return [torch.randn(rows, heads, length, width, generator=generator) for length in lengths]


def part_of(place: int, side: int, count: int) -> tuple[int, int]:
    """The part with ``place`` of a side in ``count`` parts."""
    bounds = [side * i // count for i in range(count + 1)]
    return next((a, b) for a, b in zip(bounds[:-1], bounds[1:], strict=True) if a <= place < b)


def reference_mask(segments: tuple[Scale, ...], window: LocalWindow) -> Tensor:
    """Which keys each query sees (L, K), token by token from the rule."""
    final, rows = segments[-1], []
    side = (final.height * final.width) ** 0.5
    for token in range(final.tokens):
        near = torch.zeros(final.grid, dtype=torch.bool)
        spans = []
        for length, place in zip(final.grid, divmod(token, final.width), strict=True):
            first, last = part_of(place, length, max(1, round(length / (window.tile * side))))
            first, last = first - math.ceil(window.reach * side), last + math.ceil(window.reach * side)
            first, last = first - max(0, last - length), last + max(0, -first)
            spans.append(slice(max(0, first), last))
        near[tuple(spans)] = True
        whole = [segment.tokens <= window.sinks * final.tokens for segment in segments]
        seen = [torch.full((segment.tokens,), known) for segment, known in zip(segments, whole, strict=True)]
        seen[-1] = seen[-1] | near.flatten()
        rows.append(torch.cat(seen))
    return torch.stack(rows)


# ------------------------------------------------------------------------------------------- arithmetic


@everything
@every_schedule
def test_output_and_pairs_equal_dense_attention_under_the_mask(monkeypatch, schedule, window):
    monkeypatch.setattr(local, "WORTH", 2.0)  # gather even where it does not pay
    q, k, v = tensors(schedule)
    mask = reference_mask(schedule.scales, window)
    y, pairs = local_attention(q, k, v, schedule.scales, window, sdpa)
    assert pairs == int(mask.sum())
    assert (y - sdpa(q, k, v, scale=1.0, mask=mask)).abs().max() < 1e-6


@every_schedule
def test_a_window_over_everything_equals_dense_attention(monkeypatch, schedule):
    q, k, v = tensors(schedule)
    dense, seen = sdpa(q, k, v, scale=1.0), q.shape[2] * k.shape[2]
    y, pairs = local_attention(q, k, v, schedule.scales, EVERYTHING, sdpa)
    assert torch.equal(y, dense) and pairs == seen
    monkeypatch.setattr(local, "WORTH", 2.0)
    y, pairs = local_attention(q, k, v, schedule.scales, EVERYTHING, sdpa)
    assert (y - dense).abs().max() < 1e-6 and pairs == seen


def test_windows_that_hide_too_little_run_dense():
    schedule, window = SCHEDULES["square"], LocalWindow(sinks=0.6, reach=0.2)
    q, k, v = tensors(schedule)
    seen = q.shape[2] * k.shape[2]
    assert local.WORTH < window_table(schedule.scales, window, q.device).pairs / seen < 0.9
    y, pairs = local_attention(q, k, v, schedule.scales, window, sdpa)
    assert torch.equal(y, sdpa(q, k, v, scale=1.0)) and pairs == seen


def test_few_tiles_at_a_time_give_the_same(monkeypatch):
    schedule, calls = SCHEDULES["not divisible"], []
    q, k, v = tensors(schedule)

    def attention(q, k, v, *, scale=None, mask=None):
        calls.append(k.numel())
        return sdpa(q, k, v, scale=scale)

    at_once, pairs = local_attention(q, k, v, schedule.scales, LocalWindow(), attention)
    largest, bound = max(calls), max(calls) // 2
    calls.clear()
    monkeypatch.setattr(local, "GATHERED", bound)
    split, same = local_attention(q, k, v, schedule.scales, LocalWindow(), attention)
    assert torch.equal(at_once, split) and pairs == same
    assert max(calls) <= bound < largest


def test_tables_are_worked_out_once_for_the_same_scales():
    schedule, tables = SCHEDULES["square"], {}
    q, k, v = tensors(schedule)
    first, _ = local_attention(q, k, v, schedule.scales, LocalWindow(), sdpa, tables)
    (known,) = tables.values()
    again, _ = local_attention(q, k, v, list(schedule.scales), LocalWindow(), sdpa, tables)
    assert torch.equal(first, again) and list(tables.values()) == [known]


# ---------------------------------------------------------------------------------------------- windows


@pytest.mark.parametrize("side", [1, 2, 7, 40, 64])
def test_tiles_cover_a_side_in_nearly_equal_parts(side):
    for wanted in (0.3, 1.5, 7.0, 100.0):
        found = tiles(side, wanted)
        assert [place for a, b in found for place in range(a, b)] == list(range(side))
        assert max(b - a for a, b in found) - min(b - a for a, b in found) <= 1


@pytest.mark.parametrize("ratio", [0.333, 0.75, 1.0, 1.75, 3.0])
def test_every_token_sees_its_surroundings_and_all_sinks(ratio):
    table = infinity_aspect_table()
    schedule = table.schedule(table.nearest_ratio(ratio, 1.0), "0.25M")
    segments, window = schedule.scales, LocalWindow()
    final = segments[-1]
    queries_keys = [
        (int(query), set(keys.tolist()))
        for group in window_table(segments, window, torch.device("cpu")).groups
        for queries, keys in zip(*group, strict=True)
        for query in queries
    ]
    assert sorted(query for query, _ in queries_keys) == list(range(final.tokens))
    sinks = sum(segment.tokens for segment in segments if segment.tokens * 8 <= final.tokens)
    start, reach = schedule.tokens - final.tokens, math.ceil(3 / 32 * final.tokens**0.5)
    for query, keys in queries_keys:
        assert keys.issuperset(range(sinks)) and not keys.intersection(range(sinks, start))
        row, column = divmod(query, final.width)
        for down in range(max(0, row - reach), min(final.height, row + reach + 1)):
            left = start + down * final.width + max(0, column - reach)
            right = start + down * final.width + min(final.width, column + reach + 1)
            assert keys.issuperset(range(left, right))


@pytest.mark.parametrize("ratio", list(infinity_aspect_table().grids))
def test_density_hardly_depends_on_the_aspect_ratio(ratio):
    schedule = infinity_aspect_table().schedule(ratio, "1M")
    for scale in schedule.scales[-3:]:
        segments = schedule.scales[: scale.index + 1]
        pairs = window_table(segments, LocalWindow(), torch.device("cpu")).pairs
        assert 0.1 < pairs / (scale.tokens * sum(segment.tokens for segment in segments)) < 0.2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sinks": -0.1}, "sinks is -0.1; expected a share from 0 to 1"),
        ({"tile": 0.0}, "tile is 0.0; expected a share from 0.015625 to 1"),
        ({"reach": 1.5}, "reach is 1.5"),
        ({"reach": math.nan}, "reach is nan"),
        ({"tile": "8"}, "tile is '8'"),
    ],
)
def test_settings_outside_their_range_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        LocalWindow(**values)


# ------------------------------------------------------------------------------------------------- runs


def local_policy(**settings) -> StagedPolicy:
    """Dense tokens and local attention in the fidelity stage, unless told otherwise."""
    return StagedPolicy("local", changed(StageSettings(), attention="local", **settings))


def test_a_run_counts_the_pairs_of_its_windows():
    trace = run(tiny_infinity(), prompts(5, 9), REDUCED, policy=local_policy()).trace
    for scale in trace.scales:
        segments = REDUCED.scales[: scale.scale.index + 1]
        if scale.stage == "fidelity":
            pairs = window_table(segments, LocalWindow(), torch.device("cpu")).pairs
            assert scale.visible == pytest.approx(pairs / scale.scale.tokens)
        else:
            assert scale.visible == sum(segment.tokens for segment in segments)
    assert [scale.stage for scale in trace.scales].count("fidelity") == 2


@pytest.mark.parametrize("schedule", [REDUCED, TALL], ids=["square", "tall"])
def test_windows_over_everything_leave_a_run_as_it_was(schedule):
    model, text = tiny_infinity(), prompts(5, 9)
    whole = local_policy(window=EVERYTHING, guidance="both")
    dense, local_run = run(model, text, schedule), run(model, text, schedule, policy=whole)
    assert same_codes(dense, local_run) and torch.equal(dense.f_hat, local_run.f_hat)


def test_local_attention_changes_a_run_and_not_the_next_one():
    model, text = tiny_infinity(), prompts(5, 9)
    before = run(model, text, REDUCED)
    local_run = run(model, text, REDUCED, policy=local_policy(guidance="both"))
    after = run(model, text, REDUCED)
    assert not same_codes(before, local_run)
    assert same_codes(before, after) and torch.equal(before.f_hat, after.f_hat)


def test_an_image_of_a_batch_equals_the_single_run():
    model = tiny_infinity()
    both = run(model, prompts(5, 9), REDUCED, policy=local_policy())
    alone = run(model, prompts(5), REDUCED, policy=local_policy())
    assert same_codes(both, alone, slice(0, 1))


@pytest.mark.parametrize(("kv", "expected"), [(0.5, ["local", "dense"]), ("none", ["local", "local"])])
def test_attention_is_dense_where_the_cache_does_not_hold_whole_scales(kv, expected):
    # Nothing stored leaves whole scales in the cache, a share of the tokens does not.
    dense_tokens = run(tiny_infinity(), prompts(5), REDUCED, policy=local_policy(kv=kv)).trace
    stored = sum(scale.tokens for scale in REDUCED.scales[:3])
    found = []
    for scale in dense_tokens.scales[3:]:
        found.append("dense" if scale.visible == stored + scale.scale.tokens else "local")
        stored += scale.scale.tokens if kv != "none" else 0
        stored = round(stored * kv) if kv != "none" else stored
    assert found == expected
