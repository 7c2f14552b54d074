"""What precedes the scales in the cache: seen by all of them, resized where that is asked for, never lost."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stagevar_core.network.cache import CachePair, KVCache
from stagevar_core.network.local import LocalWindow, window_table
from stagevar_core.network.rotary import prefixed_coordinates, rotary_coordinates
from stagevar_core.network.tokens import resize_keys
from stagevar_core.schedule import Prefix, Scale, ScaleSchedule, infinity_aspect_table, whole_schedule

ROWS, HEADS, WIDTH, LAYERS = 2, 3, 4, 2
PREFIX = Prefix(2, 4, 4, aligned=(0,))
FIRST, SECOND, LAST = Scale(0, 1, 1), Scale(1, 3, 3), Scale(2, 4, 4)


def draw(tokens: int, seed: int, rows: int = ROWS) -> Tensor:
    return torch.randn(rows, HEADS, tokens, WIDTH, generator=torch.Generator().manual_seed(seed))


def preceded(dtype: torch.dtype = torch.float32, elsewhere: str | None = None) -> KVCache:
    cache = KVCache(LAYERS, ROWS, HEADS, WIDTH, dtype=dtype, device="cpu")
    if elsewhere is not None:
        cache.keep_on(elsewhere)
    cache.reserve(PREFIX.tokens + 10)
    for layer in range(LAYERS):
        cache.append(layer, torch.stack((draw(16, layer), -draw(16, layer))), PREFIX)
    cache.precede(PREFIX)
    return cache


def on(grid: tuple[int, int], layer: int = 0) -> Tensor:
    """The prefix of a layer as the official code resizes it: heads beside channels."""
    whole = draw(16, layer)
    maps = whole.transpose(2, 3).reshape(ROWS, HEADS * WIDTH, 4, 4)
    return F.interpolate(maps, size=grid, mode="area").reshape(ROWS, HEADS, WIDTH, -1).transpose(2, 3)


@pytest.mark.parametrize("elsewhere", [None, "cpu"])
def test_a_scale_sees_the_prefix_resized_in_the_blocks_that_say_so_and_whole_in_the_others(elsewhere) -> None:
    cache = preceded(elsewhere=elsewhere)
    for scale, before in ((FIRST, 0), (SECOND, 1)):
        new = draw(scale.tokens, 10 + scale.index)
        k, v = cache.append(0, torch.stack((new, -new)), scale)
        torch.testing.assert_close(k[:, :, : scale.tokens], on(scale.grid))
        assert k.shape[2] == 2 * scale.tokens + before and torch.equal(k[:, :, -scale.tokens :], new)
        assert torch.equal(v, -k)
        k, _ = cache.append(1, torch.stack((new, -new)), scale)
        assert torch.equal(k[:, :, :16], draw(16, 1)) and k.shape[2] == 16 + scale.tokens + before
    new = draw(16, 20)
    k, v = cache.append(0, torch.stack((new, -new)), LAST, keep=False)
    assert torch.equal(k, torch.cat((draw(16, 0), draw(1, 10), draw(9, 11), new), dim=2))


def test_a_part_of_a_scale_sees_the_prefix_on_the_grid_of_the_whole_one() -> None:
    k, _ = preceded().append(0, torch.stack((draw(2, 5), draw(2, 5))), SECOND, keep=False)
    torch.testing.assert_close(k[:, :, :9], on((3, 3)))
    assert k.shape[2] == 11


def test_segments_begin_with_the_prefix_as_it_is_seen() -> None:
    cache = preceded()
    for layer in range(LAYERS):
        cache.append(layer, torch.stack((draw(1, 3), draw(1, 3))), FIRST)
    assert cache.segments(0, SECOND) == [Prefix(2, 3, 3, (0,)), FIRST]
    assert cache.segments(1, SECOND) == cache.segments(0, LAST) == [PREFIX, FIRST]
    cache.append(1, torch.stack((draw(4, 3), draw(4, 3))), SECOND)
    assert cache.segments(1, LAST) is None


def test_it_survives_the_budget_and_the_loss_of_rows() -> None:
    cache = preceded()
    for layer in range(LAYERS):
        cache.append(layer, torch.stack((draw(1, 3), draw(1, 3))), FIRST)
        cache.append(layer, torch.stack((draw(9, 4), draw(9, 4))), SECOND)
        cache.compress(layer, draw(9, 6), 4)
    assert cache.length(0) == 20
    k, _ = cache.narrow(slice(0, 1), 5).append(1, torch.stack((draw(0, 0, 1), draw(0, 0, 1))), keep=False)
    assert torch.equal(k[:, :, :16], draw(16, 1)[:1])


def test_both_halves_of_rows_in_turn_keep_theirs() -> None:
    halves = [KVCache(1, 1, HEADS, WIDTH, dtype=torch.float32, device="cpu") for _ in range(2)]
    for half in halves:
        half.append(0, torch.stack((draw(16, 0, 1), draw(16, 0, 1))), PREFIX)
    CachePair(*halves).precede(PREFIX)
    assert [half.segments(0, LAST) for half in halves] == [[PREFIX]] * 2


def test_the_full_picture_is_stored_once() -> None:
    cache = preceded()
    stored = cache.bytes
    cache.append(0, torch.stack((draw(1, 3), draw(1, 3))), FIRST)
    assert cache.bytes - stored == 2 * ROWS * HEADS * 2 * WIDTH * 4  # two keys and values, seen at once


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_resized_keys_are_means_in_every_dtype(dtype: torch.dtype) -> None:
    x = draw(16, 0).to(dtype)
    means = x.unflatten(2, (2, 2, 2, 2)).float().mean(dim=(3, 5)).flatten(2, 3)
    torch.testing.assert_close(resize_keys(x, (4, 4), (2, 2)).float(), means, atol=1e-2, rtol=1e-2)
    assert resize_keys(x, (4, 4), (4, 4)) is x


def test_every_window_sees_the_prefix() -> None:
    segments = [PREFIX, FIRST, SECOND, LAST]
    table = window_table(segments, LocalWindow(sinks=0.0, tile=0.5, reach=0.0), torch.device("cpu"))
    assert all((keys[:, :16] == torch.arange(16)).all() for _, keys in table.groups)
    assert table.pairs == 16 * (16 + 4)


# ------------------------------------------------------------------------------------------------ positions


def behind(budget: str) -> tuple[ScaleSchedule, Prefix]:
    schedule = infinity_aspect_table().schedule(1.0, budget)
    return schedule, Prefix(schedule.final.index, *schedule.final.grid, aligned=(0,))


def test_both_ways_to_place_a_picture_agree_at_the_largest_size() -> None:
    schedule, prefix = behind("1M")
    for scale in (prefix, *schedule):
        ways = [prefixed_coordinates(schedule, scale, prefix, moved=moved) for moved in (True, False)]
        assert torch.equal(*ways)


@pytest.mark.parametrize("budget", ["0.06M", "0.25M"])
def test_the_table_is_read_in_order_and_moved_scales_stay_where_they_were(budget: str) -> None:
    schedule, prefix = behind(budget)
    entries = [prefixed_coordinates(schedule, scale, prefix) for scale in (prefix, *schedule)]
    places = torch.cat(entries) - 64
    assert torch.equal(places[:, 0] * 64 + places[:, 1], torch.arange(len(places), dtype=torch.int32))
    moved = prefixed_coordinates(schedule, schedule.final, prefix, moved=True)
    assert moved[:, 0].unique().tolist() == rotary_coordinates(schedule.final, (64, 64))[0]


def test_a_schedule_of_no_table_is_its_own_table() -> None:
    own = ScaleSchedule.of([(1, 1), (2, 2), (3, 3)])
    assert whole_schedule(own) == own
    assert len(whole_schedule(infinity_aspect_table().schedule(1.0, "0.25M"))) == 13
