"""The KV cache: parts of scales, scratch appends, the budget, and memory after rows were dropped."""

import pytest
import torch
from torch import Tensor

from stagevar_core.network.cache import KVCache
from stagevar_core.schedule import Scale
from tests.support.tiny import SQUARE

LAYERS, ROWS, HEADS, WIDTH = 3, 4, 2, 8


def draw(tokens: int, rows: int = ROWS, seed: int = 0) -> Tensor:
    """Random keys, values or queries."""
    return torch.randn(rows, HEADS, tokens, WIDTH, generator=torch.Generator().manual_seed(seed))


def filled(tokens: int, *, reserve: int = 0, dtype: torch.dtype = torch.float32) -> KVCache:
    """A cache with as many random tokens in every layer; the values are the keys negated."""
    cache = KVCache(LAYERS, ROWS, HEADS, WIDTH, dtype=dtype, device="cpu")
    cache.reserve(reserve)
    for layer in range(LAYERS):
        cache.append(layer, torch.stack((draw(tokens, seed=layer), -draw(tokens, seed=layer))))
    return cache


def size(rows: int, tokens: int, itemsize: int = 4) -> int:
    """Bytes of a cache with room for exactly this."""
    return LAYERS * 2 * rows * HEADS * tokens * WIDTH * itemsize


def shared(rows: int, tokens: int, itemsize: int = 4) -> int:
    """Bytes of the memory that all layers share, once a scale of so many tokens in all was not kept."""
    return size(rows, tokens, itemsize) // LAYERS


def contents(cache: KVCache, layer: int, rows: int = ROWS) -> tuple[Tensor, Tensor]:
    """All keys and values of a layer."""
    return cache.append(layer, torch.stack((draw(0, rows), draw(0, rows))), keep=False)


# -------------------------------------------------------------------------------------------- appending


def test_what_is_not_kept_is_seen_once_and_then_overwritten():
    cache, scratch, later = filled(5, reserve=9), draw(4, seed=7), draw(3, seed=8)
    k, v = cache.append(0, torch.stack((scratch, -scratch)), SQUARE[1], keep=False)
    assert k.shape[2] == 9 and torch.equal(k[:, :, 5:], scratch) and torch.equal(v, -k)
    assert cache.length(0) == 5 and cache.bytes == size(ROWS, 9) + shared(ROWS, 9)
    k, _ = cache.append(0, torch.stack((later, -later)))
    assert torch.equal(k, torch.cat((draw(5), later), dim=2)) and cache.length(0) == 8


def test_scratch_beyond_the_capacity_does_not_disturb_what_is_stored():
    cache = filled(5, reserve=5)
    cache.append(1, torch.stack((draw(6, seed=7), draw(6, seed=7))), keep=False)
    k, v = contents(cache, 1)
    assert torch.equal(k, draw(5, seed=1)) and torch.equal(v, -k)


def test_what_is_not_kept_lies_in_one_place_for_all_layers():
    cache, scratch, places = filled(5, reserve=12), draw(6, seed=7), set()
    untouched = [stored.clone() for stored in cache._stored]
    for layer in range(LAYERS):
        k, v = cache.append(layer, torch.stack((scratch, -scratch)), keep=False)
        assert torch.equal(k, torch.cat((draw(5, seed=layer), scratch), dim=2)) and torch.equal(v, -k)
        places.add((k.data_ptr(), v.data_ptr()))
    assert len(places) == 1 and cache.bytes == size(ROWS, 12) + shared(ROWS, 11)
    stores = cache._stored
    # As bits, because the room that was never written may hold what is no number.
    assert all(
        torch.equal(a.view(torch.int32), b.view(torch.int32)) for a, b in zip(stores, untouched, strict=True)
    )


def test_what_is_not_kept_fits_the_rows_and_the_length_of_the_day():
    cache = filled(5, reserve=5)
    for tokens, expected in ((6, 11), (2, 11), (9, 14)):  # it grows, and what is there is used again
        k, _ = cache.append(0, torch.stack((draw(tokens, seed=7), draw(tokens, seed=7))), keep=False)
        assert k.shape[2] == 5 + tokens and cache.bytes == size(ROWS, 5) + shared(ROWS, expected)
    cache.narrow(slice(0, 2))
    k, _ = cache.append(0, torch.stack((draw(2, rows=2), draw(2, rows=2))), keep=False)
    assert k.shape[0] == 2 and cache.bytes == size(2, 5) + shared(2, 7)
    assert torch.equal(k, torch.cat((draw(5)[:2], draw(2, rows=2)), dim=2))


def test_segments_name_whole_scales_only():
    cache = KVCache(2, ROWS, HEADS, WIDTH, dtype=torch.float32, device="cpu")
    for scale in SQUARE.scales[:3]:
        cache.append(0, torch.stack((draw(scale.tokens), draw(scale.tokens))), scale)
    assert cache.segments(0) == list(SQUARE.scales[:3]) and cache.segments(1) == []
    cache.append(0, torch.stack((draw(3), draw(3))), Scale(3, 1, 3), keep=False)
    assert cache.segments(0) == list(SQUARE.scales[:3])
    cache.append(0, torch.stack((draw(3), draw(3))), None)
    assert cache.segments(0) is None


# ------------------------------------------------------------------------------------------- the budget


def test_budget_keeps_the_first_tokens_and_those_that_the_queries_want_most():
    cache, queries = filled(40), draw(30, seed=5)
    before, values = (tensor.clone() for tensor in contents(cache, 0))
    cache.compress(0, queries, 20)
    after, kept_values = contents(cache, 0)
    observers = queries[:, :, [29 * i // 15 for i in range(16)]]
    for row in range(ROWS):
        for head in range(HEADS):
            wanted = (observers[row, head] @ before[row, head].T).sum(dim=0)
            best = 2 + wanted[2:].argsort(descending=True)[:18]
            places = [0, 1, *sorted(best.tolist())]
            assert torch.equal(after[row, head], before[row, head, places])
            assert torch.equal(kept_values[row, head], values[row, head, places])


def test_rows_and_heads_choose_for_themselves():
    cache = filled(40)
    cache.compress(0, draw(30, seed=5), 10)
    k, _ = contents(cache, 0)
    kept = [
        tuple((draw(40)[row, head] == key).all(dim=1).nonzero().item() for key in k[row, head])
        for row in range(ROWS)
        for head in range(HEADS)
    ]
    assert len(set(kept)) == ROWS * HEADS and all(0 in places for places in kept)


def test_budget_changes_one_layer_and_no_memory():
    cache = filled(40, reserve=50)
    cache.compress(1, draw(9), 20)
    assert [cache.length(layer) for layer in range(LAYERS)] == [40, 20, 40]
    assert cache.bytes == size(ROWS, 50)
    k, _ = cache.append(1, torch.stack((draw(30, seed=9), draw(30, seed=9))))
    assert torch.equal(k[:, :, 20:], draw(30, seed=9)) and cache.bytes == size(ROWS, 50)
    assert torch.equal(contents(cache, 2)[0], draw(40, seed=2))


def test_tokens_that_remain_are_no_scale_any_more():
    cache = KVCache(1, ROWS, HEADS, WIDTH, dtype=torch.float32, device="cpu")
    cache.append(0, torch.stack((draw(36), draw(36))), SQUARE[4])
    cache.compress(0, draw(36), 36)
    assert cache.segments(0) == [SQUARE[4]]  # nothing had to go
    cache.compress(0, draw(36), 35)
    assert cache.segments(0) is None


@pytest.mark.parametrize("queries", [1, 16, 200])
def test_budget_of_one_token_takes_any_number_of_queries(queries):
    cache = filled(12)
    cache.compress(0, draw(queries, seed=3), 1)
    assert cache.length(0) == 1


# ------------------------------------------------------------------------------------------ fewer rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [slice(0, 2), slice(2, 4)], ids=["first half", "second half"])
def test_narrowing_leaves_exactly_the_rows_and_the_room_that_is_asked_for(rows, dtype):
    cache = filled(7, reserve=50, dtype=dtype)
    cache.narrow(rows, 6)
    assert cache.rows == 2 and cache.bytes == size(2, 7 + 6, dtype.itemsize)
    for layer in range(LAYERS):
        k, v = contents(cache, layer, rows=2)
        assert torch.equal(k, draw(7, seed=layer)[rows].to(dtype)) and torch.equal(v, -k)
        cache.append(layer, torch.stack((draw(6, rows=2), draw(6, rows=2))))
    assert cache.bytes == size(2, 7 + 6, dtype.itemsize) + shared(2, 7, dtype.itemsize)


def test_narrowing_counts_the_length_of_each_layer():
    cache = filled(7)
    cache.append(1, torch.stack((draw(5), draw(5))))
    cache.compress(2, draw(7), 3)
    cache.narrow(slice(0, 1), 2)
    assert cache.bytes == 2 * HEADS * WIDTH * 4 * ((7 + 2) + (12 + 2) + (3 + 2))


def test_narrowing_needs_the_new_layer_beside_the_old_ones_and_no_more(monkeypatch):
    cache, peak = filled(7, reserve=50), []
    allocate = cache._empty

    def watched(capacity: int) -> Tensor:
        fresh = allocate(capacity)
        peak.append(cache.bytes + fresh.numel() * fresh.element_size())
        return fresh

    monkeypatch.setattr(cache, "_empty", watched)
    cache.narrow(slice(0, 2), 6)
    assert max(peak) == size(ROWS, 50) + size(2, 13) // LAYERS
    assert peak == sorted(peak, reverse=True)
