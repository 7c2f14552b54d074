"""The seam between the loop and acceleration: reduced tokens, fewer guidance rows, skipped scales."""

import pytest
import torch
from torch import Tensor

from stagevar_core.acceleration.policy import ScalePlan, Seen
from stagevar_core.network.cache import KVCache
from stagevar_core.network.tokens import Site, TokenMap
from stagevar_core.sampling.clock import Clock
from stagevar_core.sampling.noise import SeededNoise
from stagevar_core.sampling.result import Monitor
from stagevar_core.sampling.rows import GuidanceRows
from stagevar_core.sampling.settings import SamplingSettings
from stagevar_core.schedule import Scale, ScaleSchedule, infinity_aspect_table
from tests.support.plans import BRANCHES, SPANS, WHOLE, CacheWatch, Planned
from tests.support.tiny import SQUARE, TALL, prompts, run, same_codes, tiny_infinity

ASPECTS = infinity_aspect_table()


class KeepHalf:
    """Runs every other token of a region; the rest take the output of their neighbour."""

    def __init__(self, spans: tuple[range, ...] = BRANCHES) -> None:
        self.spans = spans
        self.sites: list[Site] = []

    def reduce(self, x: Tensor, site: Site) -> TokenMap | None:
        self.sites.append(site)
        return TokenMap(torch.arange(0, x.shape[1], 2).expand(len(x), -1))

    def restore(self, x: Tensor, y: Tensor, tokens: TokenMap | None, site: Site) -> Tensor:
        return y.repeat_interleave(2, dim=1)[:, : site.scale.tokens]

    def code_weights(self) -> Tensor | None:
        return None


class KeepAll(KeepHalf):
    """Gathers every token in its place: the reduced path, with nothing left out."""

    def reduce(self, x: Tensor, site: Site) -> TokenMap:
        return TokenMap(torch.arange(x.shape[1]).expand(len(x), -1))

    def restore(self, x: Tensor, y: Tensor, tokens: TokenMap | None, site: Site) -> Tensor:
        return y


class Decline(KeepHalf):
    """Declines at every site, which is the dense computation again."""

    def reduce(self, x: Tensor, site: Site) -> None:
        self.sites.append(site)

    def restore(self, x: Tensor, y: Tensor, tokens: TokenMap | None, site: Site) -> Tensor:
        assert tokens is None
        return y


@pytest.mark.parametrize("schedule", [SQUARE, TALL], ids=["square", "tall"])
@pytest.mark.parametrize("spans", [WHOLE, SPANS, BRANCHES], ids=["scale", "spans", "branches"])
@pytest.mark.parametrize("reduction", [KeepAll, Decline])
def test_keeping_everything_is_the_dense_run_bit_for_bit(
    reduction: type, spans: tuple[range, ...], schedule: ScaleSchedule
) -> None:
    model, text = tiny_infinity(), prompts(5, 9)
    dense = run(model, text, schedule)
    kept = run(model, text, schedule, policy=Planned({}, ScalePlan(reduction=reduction(spans))))
    assert same_codes(dense, kept) and torch.equal(dense.f_hat, kept.f_hat)


def test_a_dense_run_after_an_accelerated_one_is_unchanged() -> None:
    model, text = tiny_infinity(), prompts(5, 9)
    before = run(model, text)
    half = ScalePlan(rows="conditional", reduction=KeepHalf())
    accelerated = run(model, text, policy=Planned({-1: half, -2: half}))
    after = run(model, text)
    assert not same_codes(before, accelerated)
    assert same_codes(before, after) and torch.equal(before.f_hat, after.f_hat)


def test_without_spans_every_residual_branch_is_a_site() -> None:
    model, reduction = tiny_infinity(), KeepHalf()
    run(model, prompts(5), policy=Planned({-1: ScalePlan(reduction=reduction)}))
    assert [(site.layers, site.part) for site in reduction.sites] == [
        (range(layer, layer + 1), part)
        for layer in range(model.config.depth)
        for part in ("self", "cross", "ffn")
    ]
    assert {site.scale for site in reduction.sites} == {SQUARE.final}


def test_with_spans_every_span_of_blocks_is_a_site() -> None:
    model, reduction = tiny_infinity(), KeepHalf(SPANS)
    run(model, prompts(5), policy=Planned({-1: ScalePlan(reduction=reduction)}))
    assert [(site.layers, site.part) for site in reduction.sites] == [(span, "blocks") for span in SPANS]


@pytest.mark.parametrize("spans", [BRANCHES, WHOLE], ids=["branches", "scale"])
@pytest.mark.parametrize("ratio", list(ASPECTS.grids))
def test_reducing_and_narrowing_run_on_every_aspect_ratio(
    ratio: float, spans: tuple[range, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, schedule = tiny_infinity(), ASPECTS.schedule(ratio, "0.06M")
    watch, half = CacheWatch(model, monkeypatch), ScalePlan(rows="conditional", reduction=KeepHalf(spans))
    result = run(model, prompts(5, 9), schedule, policy=Planned({-1: half, -2: half}), monitor=watch)
    assert result.f_hat.shape == (2, 4, *schedule.final.grid) and result.f_hat.isfinite().all()
    tokens = [scale.tokens for scale in schedule]
    kept = sum(tokens[:-2]) + (tokens[-2] + 1) // 2  # nothing looks at the last scale's keys
    cache = watch.caches[0]
    assert [cache.length(layer) for layer in range(3)] == [kept] * 3
    assert watch.rows == [4] * (len(schedule) - 2) + [2, 2]
    one_layer = 2 * model.config.width * 4  # keys and values, float32
    whole = 4 * sum(tokens[:-1]) * 3 * one_layer
    assert set(watch.bytes[:-2]) == {whole}  # reserved at once
    assert watch.bytes[-2] == whole // 2  # half of it is gone with the rows
    assert watch.bytes[-1] == whole // 2 + 2 * (kept + (tokens[-1] + 1) // 2) * one_layer


def test_narrowing_frees_the_memory_of_the_dropped_rows() -> None:
    cache = KVCache(2, 4, 2, 8, dtype=torch.float32, device="cpu")
    cache.reserve(10)
    values = torch.randn(4, 2, 3, 8, generator=torch.Generator().manual_seed(0))
    for layer in range(2):
        cache.append(layer, torch.stack((values, -values)))
    reserved = cache.bytes
    assert reserved == 2 * 2 * 4 * 2 * 10 * 8 * 4
    cache.narrow(slice(2, 4), 1)
    assert cache.rows == 2 and cache.bytes == reserved * 4 // 10 // 2
    k, v = cache.append(0, torch.stack((values[2:], -values[2:])))
    assert torch.equal(k, torch.cat((values[2:], values[2:]), 2)) and torch.equal(v, -k)
    assert (cache.length(0), cache.length(1)) == (6, 3)


def test_a_grown_cache_equals_a_reserved_one() -> None:
    parts = [torch.randn(2, 2, n, 8, generator=torch.Generator().manual_seed(n)) for n in (1, 4, 9)]
    caches = [KVCache(1, 2, 2, 8, dtype=torch.float32, device="cpu") for _ in range(2)]
    caches[0].reserve(14)
    for part in parts:
        first, second = (cache.append(0, torch.stack((part, part)))[0] for cache in caches)
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
    assert watch.caches[0].length(0) == SQUARE.tokens - SQUARE[skipped].tokens - SQUARE.final.tokens
    assert result.f_hat.isfinite().all()


class SkipSome(Planned):
    """Decides for every image on its own: the one with seed 4 skips a scale."""

    per_image = True

    def plan(self, scale: Scale) -> ScalePlan:
        assert self.info.batch == 1
        return ScalePlan(run=(scale.index, self.info.seeds) != (3, (4,)))


def test_images_that_run_one_after_the_other_are_one_batch() -> None:
    model, text, runs = tiny_infinity(), prompts(5, 9), []
    outer = Monitor()
    outer.restart = runs.append
    clock = Clock(torch.device("cpu"), True, outer)
    settings = SamplingSettings(temperature=1.0)
    options = {"settings": settings, "policy": SkipSome()}
    result = run(model, text, noise=SeededNoise(3, 2), monitor=clock, **options)
    alone = [run(model, text.image(i), noise=SeededNoise(3 + i, 1), **options) for i in range(2)]
    assert torch.equal(result.f_hat, torch.cat([one.f_hat for one in alone]))
    assert result.codes[3] is None and alone[0].codes[3] is not None and result.codes[4].shape[0] == 2
    assert runs == [2] and list(clock.latents) == list(range(5)) == list(clock.seconds)
    assert torch.equal(clock.latents[4], result.f_hat)
    assert torch.equal(clock.latents[3][1], clock.latents[2][1])  # the second image skipped it
    assert not torch.equal(clock.latents[3][0], clock.latents[2][0])


def test_the_policy_sees_every_scale_that_ran() -> None:
    found: list[Seen] = []

    class Watching(Planned):
        def observe(self, seen: Seen) -> None:
            assert (len(self.info.schedule), self.info.depth, self.info.batch) == (5, 3, 1)
            found.append(seen)

    result = run(tiny_infinity(), prompts(5), policy=Watching({-2: ScalePlan(run=False)}))
    assert [seen.scale.index for seen in found] == [0, 1, 2, 4]
    assert torch.equal(found[-1].f_hat, result.f_hat)
    assert torch.allclose(sum(seen.change for seen in found), result.f_hat, atol=1e-5)
    for seen in found:
        assert seen.raw.shape == (2, seen.scale.tokens, 8) and seen.guided.shape == (1, seen.scale.tokens, 8)
        codes = result.codes[seen.scale.index].flatten(2).transpose(1, 2)
        assert torch.equal(seen.choices(seen.guided), codes)
