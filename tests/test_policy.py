"""The seam between the loop and acceleration: pruned tokens, fewer guidance rows, skipped scales."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from stagevar_core.acceleration.policy import ScalePlan
from stagevar_core.cache import KVCache
from stagevar_core.guidance import GuidanceRows
from stagevar_core.layers import Site
from stagevar_core.sampling import Monitor, SamplingSettings
from stagevar_core.schedule import Scale, ScaleSchedule, infinity_aspect_table
from tests.tiny import SQUARE, TALL, prompts, run, same_codes, tiny_infinity

ASPECTS = infinity_aspect_table()


@dataclass(frozen=True)
class Planned:
    """A policy that is its own state: a plan per scale, counted from the last one."""

    plans: dict[int, ScalePlan]
    otherwise: ScalePlan = ScalePlan()
    scales: int = 0

    def start(self, schedule: ScaleSchedule, depth: int) -> "Planned":
        return Planned(self.plans, self.otherwise, len(schedule))

    def plan(self, scale: Scale) -> ScalePlan:
        return self.plans.get(scale.index - self.scales, self.otherwise)

    def observe(self, scale: Scale, f_hat: Tensor) -> None:
        pass


class KeepAll:
    """Gathers every token in its place: the pruned path, with nothing pruned."""

    def select(self, x: Tensor, site: Site) -> Tensor:
        return torch.arange(x.shape[1]).expand(len(x), -1)

    def restore(self, y: Tensor, keep: Tensor | None, site: Site) -> Tensor:
        return y


class KeepHalf:
    """Runs every other token; the rest take the output of their neighbour."""

    def __init__(self) -> None:
        self.sites: list[Site] = []

    def select(self, x: Tensor, site: Site) -> Tensor:
        self.sites.append(site)
        return torch.arange(0, x.shape[1], 2).expand(len(x), -1)

    def restore(self, y: Tensor, keep: Tensor | None, site: Site) -> Tensor:
        return y.repeat_interleave(2, dim=1)[:, : site.scale.tokens]


class NoPruning(KeepHalf):
    """Declines at every site, which is the dense computation again."""

    def select(self, x: Tensor, site: Site) -> None:
        self.sites.append(site)

    def restore(self, y: Tensor, keep: Tensor | None, site: Site) -> Tensor:
        assert keep is None
        return y


class CacheWatch(Monitor):
    """Bytes and rows of the run's cache after every scale."""

    def __init__(self, model, monkeypatch: pytest.MonkeyPatch) -> None:
        self.caches: list[KVCache] = []
        self.bytes: list[int] = []
        self.rows: list[int] = []
        new_cache = model.new_cache
        monkeypatch.setattr(
            model, "new_cache", lambda *a: self.caches.append(new_cache(*a)) or self.caches[-1]
        )

    def scale(self, scale: Scale, f_hat: Tensor) -> None:
        self.bytes.append(self.caches[-1].bytes)
        self.rows.append(self.caches[-1].rows)


@pytest.mark.parametrize("schedule", [SQUARE, TALL], ids=["square", "tall"])
@pytest.mark.parametrize("pruning", [KeepAll, NoPruning])
def test_keeping_everything_is_the_dense_run_bit_for_bit(pruning: type, schedule: ScaleSchedule) -> None:
    model, text = tiny_infinity(), prompts(5, 9)
    dense = run(model, text, schedule)
    kept = run(model, text, schedule, policy=Planned({}, ScalePlan(pruning=pruning())))
    assert same_codes(dense, kept) and torch.equal(dense.f_hat, kept.f_hat)


def test_a_dense_run_after_an_accelerated_one_is_unchanged() -> None:
    model, text = tiny_infinity(), prompts(5, 9)
    before = run(model, text)
    half = ScalePlan(rows="conditional", pruning=KeepHalf())
    accelerated = run(model, text, policy=Planned({-1: half, -2: half}))
    after = run(model, text)
    assert not same_codes(before, accelerated)
    assert same_codes(before, after) and torch.equal(before.f_hat, after.f_hat)


def test_every_residual_branch_is_a_site() -> None:
    model, pruning = tiny_infinity(), KeepHalf()
    run(model, prompts(5), policy=Planned({-1: ScalePlan(pruning=pruning)}))
    assert [(site.layer, site.branch) for site in pruning.sites] == [
        (layer, branch) for layer in range(model.config.depth) for branch in ("self", "cross", "ffn")
    ]
    assert {site.scale for site in pruning.sites} == {SQUARE.final}


@pytest.mark.parametrize("ratio", list(ASPECTS.grids))
def test_pruning_and_narrowing_run_on_every_aspect_ratio(
    ratio: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, schedule = tiny_infinity(depth=2), ASPECTS.schedule(ratio, "0.06M")
    watch, half = CacheWatch(model, monkeypatch), ScalePlan(rows="conditional", pruning=KeepHalf())
    result = run(model, prompts(5, 9), schedule, policy=Planned({-1: half, -2: half}), monitor=watch)
    assert result.f_hat.shape == (2, 4, *schedule.final.grid) and result.f_hat.isfinite().all()
    tokens = [scale.tokens for scale in schedule]
    kept = sum(tokens[:-2]) + sum((count + 1) // 2 for count in tokens[-2:])
    cache = watch.caches[0]
    assert [cache.length(layer) for layer in range(2)] == [kept, kept]
    assert watch.rows == [4] * (len(schedule) - 2) + [2, 2]
    per_token = 2 * 2 * model.config.width * 4  # layers, keys and values, float32
    assert watch.bytes[0] == 4 * schedule.tokens * per_token  # reserved at once
    assert watch.bytes[-2] == 2 * (kept - (tokens[-1] + 1) // 2) * per_token
    assert watch.bytes[-1] == 2 * kept * per_token


def test_narrowing_frees_the_memory_of_the_dropped_rows() -> None:
    cache = KVCache(2, 4, 2, 8, dtype=torch.float32, device="cpu")
    cache.reserve(10)
    values = torch.randn(4, 2, 3, 8, generator=torch.Generator().manual_seed(0))
    for layer in range(2):
        cache.append(layer, values, -values)
    reserved = cache.bytes
    assert reserved == 2 * 2 * 4 * 2 * 10 * 8 * 4
    cache.narrow(slice(2, 4))
    assert cache.rows == 2 and cache.bytes == reserved * 3 // 10 // 2
    k, v = cache.append(0, values[2:], -values[2:])
    assert torch.equal(k, torch.cat((values[2:], values[2:]), 2)) and torch.equal(v, -k)
    assert (cache.length(0), cache.length(1)) == (6, 3)


def test_a_grown_cache_equals_a_reserved_one() -> None:
    parts = [torch.randn(2, 2, n, 8, generator=torch.Generator().manual_seed(n)) for n in (1, 4, 9)]
    caches = [KVCache(1, 2, 2, 8, dtype=torch.float32, device="cpu") for _ in range(2)]
    caches[0].reserve(14)
    for part in parts:
        first, second = (cache.append(0, part, part)[0] for cache in caches)
        assert torch.equal(first, second)


@pytest.mark.parametrize("kept", ["conditional", "unconditional"])
def test_one_branch_alone_equals_its_guidance_weight(kept: str) -> None:
    # cfg 1 (or 0) in the mix leaves one branch; dropping the other rows must give the same bits.
    model, text = tiny_infinity(), prompts(5, 9)
    weight = 1.0 if kept == "conditional" else 0.0
    settings = SamplingSettings(cfg_scale=[3.0, 3.0, 3.0, weight, weight], temperature=1.0, greedy=True)
    mixed = run(model, text, settings=settings)
    narrowed = run(model, text, policy=Planned({-1: ScalePlan(rows=kept), -2: ScalePlan(rows=kept)}))
    assert same_codes(mixed, narrowed)


@pytest.mark.parametrize("wider", ["both", "unconditional"])
def test_rows_that_stopped_cannot_come_back(wider: str) -> None:
    plans = {-3: ScalePlan(rows="conditional"), -2: ScalePlan(rows=wider)}
    with pytest.raises(ValueError, match=f"wants {wider} rows, which are not part of this run any more"):
        run(tiny_infinity(), prompts(5), policy=Planned(plans))


def test_rows_have_three_names() -> None:
    with pytest.raises(ValueError, match="guidance rows are one of"):
        GuidanceRows(2).narrow("all")
    assert GuidanceRows(2).narrow("both") == (GuidanceRows(2), None)
    narrowed, rows = GuidanceRows(3).narrow("unconditional")
    assert narrowed.count == 3 and rows == slice(3, 6)
    assert narrowed.narrow("unconditional") == (narrowed, None)


def test_skipped_scales_leave_the_latent_as_it_was() -> None:
    model, text = tiny_infinity(), prompts(5)
    dense = run(model, text)
    skipping = run(model, text, policy=Planned({-1: ScalePlan(run=False), -2: ScalePlan(run=False)}))
    assert skipping.codes[-2:] == [None, None]
    assert all(torch.equal(a, b) for a, b in zip(dense.codes[:-2], skipping.codes, strict=False))
    assert torch.equal(skipping.f_hat, model.quantizer().accumulate(dense.codes[:-2], SQUARE))


@pytest.mark.parametrize("skipped", [-5, -3])
def test_later_scales_run_after_a_skipped_one(skipped: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_infinity()
    watch = CacheWatch(model, monkeypatch)
    result = run(model, prompts(5), policy=Planned({skipped: ScalePlan(run=False)}), monitor=watch)
    assert [code is None for code in result.codes] == [index == skipped + 5 for index in range(5)]
    assert watch.caches[0].length(0) == SQUARE.tokens - SQUARE[skipped].tokens
    assert result.f_hat.isfinite().all()


def test_the_policy_sees_the_latent_after_every_scale_that_ran() -> None:
    seen: list[tuple[int, Tensor]] = []

    class Watching(Planned):
        def start(self, schedule: ScaleSchedule, depth: int) -> "Watching":
            assert (len(schedule), depth) == (5, 3)
            return Watching(self.plans, self.otherwise, len(schedule))

        def observe(self, scale: Scale, f_hat: Tensor) -> None:
            seen.append((scale.index, f_hat))

    result = run(tiny_infinity(), prompts(5), policy=Watching({-2: ScalePlan(run=False)}))
    assert [index for index, _ in seen] == [0, 1, 2, 4]
    assert torch.equal(seen[-1][1], result.f_hat)
