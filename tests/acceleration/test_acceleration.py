"""Acceptance of the acceleration engine: what every preset must keep, whatever it saves."""

import threading

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stagevar_core.acceleration.policy import AccelerationPolicy, ScalePlan
from stagevar_core.acceleration.presets import OFF, PRESETS, preset
from stagevar_core.acceleration.reduction import RESTORATIONS, Memory, Reduction
from stagevar_core.acceleration.scores import SCORES
from stagevar_core.acceleration.staged import StagedPolicy
from stagevar_core.conditioning.types import TextConditioning
from stagevar_core.network.attention import sdpa
from stagevar_core.network.cache import KVCache
from stagevar_core.network.tokens import Site, TokenMap, resize_tokens
from stagevar_core.sampling.noise import SeededNoise
from stagevar_core.sampling.result import Generation, Monitor
from stagevar_core.sampling.settings import SamplingSettings
from stagevar_core.schedule import Scale, ScaleSchedule, infinity_aspect_table
from tests.support.pairs import pairs
from tests.support.plans import BRANCHES, SPANS, WHOLE, CacheWatch, Planned
from tests.support.tiny import (
    SQUARE,
    TALL,
    InterruptAt,
    Interrupted,
    Logits,
    live_tensors,
    prompts,
    run,
    same_codes,
    tiny_infinity,
)

ASPECTS = infinity_aspect_table()
STAGED = [name for name, policy in PRESETS.items() if isinstance(policy, StagedPolicy)]
LONG = ScaleSchedule.of([(1, 1), (2, 2), (4, 4), (6, 6), (8, 8), (10, 10), (12, 12)], (64, 64))
# Its last scale has more than 1,024 tokens and no multiple of 128.
LARGE = ScaleSchedule.of([(1, 1), (8, 8), (16, 16), (30, 35)], (64, 64))
SAMPLED = SamplingSettings(cfg_scale=3.0, temperature=1.0)


def sampled(model, text, schedule=LONG, *, seed: int = 3, noise=None, **options) -> Generation:
    """A seeded generation."""
    options.setdefault("settings", SAMPLED)
    return run(model, text, schedule, noise=noise or SeededNoise(seed, text.batch), **options)


def equal(first: Generation, second: Generation) -> bool:
    """The same bits in the codes and in the latent."""
    return same_codes(first, second) and torch.equal(first.f_hat, second.f_hat)


def fidelity(schedule: ScaleSchedule, name: str = "balanced") -> list[Scale]:
    """The scales that a staged preset counts to the fidelity stage."""
    return [s for s in schedule if PRESETS[name].settings.boundaries.stage(schedule, s) == "fidelity"]


# ----------------------------------------------------------------------------- nothing saved, nothing changed


@pytest.mark.parametrize("schedule", [LONG, TALL], ids=["square", "tall"])
def test_off_is_the_run_without_a_policy(schedule: ScaleSchedule) -> None:
    model, text, seen = tiny_infinity(), prompts(5, 9), (Logits(), Logits())
    off, none = (
        sampled(model, text, schedule, policy=policy, monitor=monitor)
        for policy, monitor in zip((OFF, None), seen, strict=True)
    )
    assert equal(off, none) and off.trace.ratio == 1.0
    assert all(torch.equal(a, b) for a, b in zip(seen[0].raw, seen[1].raw, strict=True))


@pytest.mark.parametrize(
    ("guidance", "spans", "schedule"),
    pairs(("both", "conditional", "unconditional", "reuse"), (1, 2, 8), (LARGE, TALL)),
)
def test_a_full_budget_is_the_dense_run(guidance: str, spans: int, schedule: ScaleSchedule) -> None:
    model, text = tiny_infinity(), prompts(5, 9)
    dense = sampled(model, text, schedule, policy=preset("quality", guidance=guidance))
    for tokens in ("gather", "projection"):
        full = {"tokens": tokens, "keep": 1.0, "spans": spans, "code_weight": 0.3}
        kept = sampled(model, text, schedule, policy=preset("quality", guidance=guidance, **full))
        assert equal(dense, kept) and kept.trace.flops == dense.trace.flops


class Identity(Reduction):
    """Gathers all tokens in their places and restores them, so that the whole mechanism runs."""

    def __init__(self, spans: tuple[range, ...], restoration: str) -> None:
        def choose(x: Tensor, site: Site) -> TokenMap:
            return TokenMap(torch.arange(x.shape[1]).expand(len(x), -1))

        super().__init__(spans, Memory(), choose, restoration=restoration, code_weight=0.3, images=2)


@pytest.mark.parametrize(
    ("rows", "spans", "restoration", "dtype"),
    pairs(
        ("both", "conditional", "unconditional"),
        (WHOLE, SPANS, BRANCHES),
        RESTORATIONS,
        (torch.float32, torch.bfloat16),
    ),
)
def test_gathering_every_token_is_the_dense_run(rows: str, spans: tuple, restoration: str, dtype) -> None:
    model, text = tiny_infinity(dtype=dtype), prompts(5, 9)

    def generation(reductions: list) -> Generation:
        plans = [ScalePlan(rows=rows, reduction=reduction) for reduction in reductions]
        return sampled(model, text, SQUARE, policy=Planned({-2: plans[0], -1: plans[1]}))

    assert equal(generation([None, None]), generation([Identity(spans, restoration) for _ in range(2)]))


@pytest.mark.parametrize("name", PRESETS)
def test_schedules_of_one_scale_are_dense_and_of_two_run(name: str) -> None:
    model, text = tiny_infinity(depth=1), prompts(5, 9)
    one, two = ScaleSchedule.of([(3, 5)]), ScaleSchedule.of([(2, 2), (5, 4)])
    # Without cfg, because nothing before the only scale could be reused.
    assert equal(sampled(model, text, one, policy=PRESETS[name]), sampled(model, text, one))
    assert sampled(model, text, two, policy=PRESETS[name]).f_hat.isfinite().all()


# ------------------------------------------------------------------------------- every ratio, batch and text


# Every ratio with a quarter of the presets, every preset with a quarter of the ratios, all neighbours apart.
PAIRS = [
    pytest.param(place, name, id=f"{ratio:g}-{name}")
    for place, ratio in enumerate(ASPECTS.grids)
    for number, name in enumerate(PRESETS)
    if (place + number) % 4 == 0
]


@pytest.mark.parametrize(("place", "name"), PAIRS)
def test_every_preset_and_every_aspect_ratio_run(place: int, name: str) -> None:
    model, ratio = tiny_infinity(depth=2), list(ASPECTS.grids)[place]
    schedule, batch = ASPECTS.schedule(ratio, "0.06M"), 1 + (place + len(name)) % 4
    negative = (7, 2, 6, 3)[:batch] if place % 2 else None
    text = prompts(*(5, 9, 1, 4)[:batch], negative=negative)
    result = sampled(model, text, schedule, policy=PRESETS[name])
    assert result.f_hat.shape == (batch, 4, *schedule.final.grid) and result.f_hat.isfinite().all()
    assert result.trace.images == batch and result.trace.scales[0].rows == 2 * batch
    if name in STAGED and name != "quality":
        assert not result.trace.notes  # nothing is declined anywhere
        cut = [s for s in result.trace.scales if s.stage == "fidelity"]
        cut = cut[-1:] if name == "faster-hart" else cut  # which leaves tokens out at the last scale alone
        assert cut and all(not s.ran or s.computed < 0.9 * s.scale.tokens for s in cut)


@pytest.mark.parametrize("negative", [None, (4, 9, 1, 6)], ids=["null text", "negative text"])
@pytest.mark.parametrize("name", PRESETS)
def test_every_image_of_a_batch_is_its_own_run(name: str, negative: tuple | None) -> None:
    # Kernels may round by batch size, so latents agree to 1e-4; the codes agree exactly.
    model, text, policy = tiny_infinity(), prompts(6, 2, 11, 6, negative=negative), PRESETS[name]
    noise = SeededNoise(7, 4)
    alone = [sampled(model, text.image(i), noise=noise.image(i), policy=policy) for i in range(4)]
    for batch in (1, 4):
        part = prompts(*(6, 2, 11, 6)[:batch], negative=negative[:batch] if negative else None)
        together = sampled(model, part, seed=7, policy=policy)
        for image in range(batch):
            found = together.f_hat[image : image + 1]
            assert torch.allclose(found, alone[image].f_hat, atol=1e-4)
            for many, one in zip(together.codes, alone[image].codes, strict=True):
                # Image by image, a scale that one image skipped has no codes of the batch.
                assert many is None or torch.equal(many[image : image + 1], one)


@pytest.mark.parametrize("name", PRESETS)
def test_runs_repeat_and_leave_the_dense_run_alone(name: str) -> None:
    model, text = tiny_infinity(), prompts(5, 9, negative=(3, 8))
    before = sampled(model, text)
    first, second = (sampled(model, text, policy=PRESETS[name]) for _ in range(2))
    other = sampled(model, text, policy=PRESETS[name], seed=4)
    assert equal(first, second) and not same_codes(first, other)
    assert equal(before, sampled(model, text))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_run_in_bfloat16_without_guidance_and_with_ones_and_zeros(name: str) -> None:
    model, text = tiny_infinity(dtype=torch.bfloat16), prompts(5, 9)
    for cfg in (1.0, [3.0, 1.0, 0.0, 1.0, 3.0, 1.0, 0.0], [1.0] * 6 + [3.0], 0.0):
        settings = SamplingSettings(cfg_scale=cfg, temperature=[0.5, 1.0] * 3 + [0.7])
        result = sampled(model, text, policy=PRESETS[name], settings=settings)
        assert result.f_hat.isfinite().all() and result.f_hat.dtype == torch.float32
        assert result.trace.scales[0].rows == (2 if cfg == 1.0 else 4)


CHOICES = [{"score": score} for score in SCORES] + [{"restoration": name} for name in RESTORATIONS]
CHOICES += [{"tokens": "projection", "spans": 3}, {"kv": "none"}, {"kv": 0.3}, {"evenness": 0.5}]
CHOICES += [{"tokens": "dense", "attention": "local"}, {"guidance": "unconditional"}, {"guidance": "both"}]


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: "-".join(map(str, choice.values())))
def test_choices_run_where_the_model_is(choice: dict) -> None:
    # The meta device has no values, but it refuses tensors that were left on the CPU.
    model, text = tiny_infinity(depth=2).to("meta"), prompts(5, 9, negative=(4, 4))
    there = TextConditioning(*(tuple(t.to("meta") for t in part) for part in (text.features, text.negative)))
    settings = {"tokens": "gather", "keep": 0.4, "code_weight": 0.5} | choice
    result = sampled(model, there, SQUARE, policy=preset("quality", **settings))
    assert result.f_hat.device.type == "meta" and result.f_hat.shape == (2, 4, 6, 6)


# ----------------------------------------------------------------------------------------------- guidance


class Conditioned:
    """The state of the text that the first block sees at every scale."""

    def __init__(self, model) -> None:
        self.states: list = []
        model.blocks[0].register_forward_pre_hook(
            lambda block, inputs: self.states.append(inputs[1].conditioned)
        )


@pytest.mark.parametrize("name", [n for n in STAGED if PRESETS[n].settings.guidance.mode == "unconditional"])
def test_the_null_text_alone_never_is_the_negative_text(name: str) -> None:
    known = sampled(tiny_infinity(), prompts(6, 4)).codes[: -len(fidelity(LONG))]
    logits, states = [], []
    for negative in ((4, 9), (7, 1)):
        model, seen = tiny_infinity(), Logits()
        watch, text = Conditioned(model), prompts(6, 4, negative=negative)
        result = sampled(model, text, policy=PRESETS[name], monitor=seen, known=known)
        logits.append(seen.raw)
        states.append(watch.states)
        ran = sum(code is not None for code in result.codes)
    null = model.condition(prompts(6, 4), True, torch.device("cpu"), sdpa)
    for index in range(ran):
        first, second = (every[index] for every in logits)
        if index < len(known):
            assert (first[2:] - second[2:]).abs().max() > 1e-3  # the negative text matters until then
            assert torch.allclose(first[:2], second[:2], atol=1e-5)
        else:
            assert torch.allclose(first, second, atol=1e-5)
            assert all(torch.equal(every[index].start, null.start[2:]) for every in states)


@pytest.mark.parametrize("unit", [1.0, 0.5])
def test_reused_guidance_is_the_last_one_resized_and_decayed(unit: float) -> None:
    model, text, seen = tiny_infinity(), prompts(5, 9), Logits()
    cfg, heat = [3.0, 1.0, 2.0, 0.0, 2.5, 4.0, 1.5], [0.5, 0.9, 1.1, 0.7, 0.6, 1.3, 0.8]
    settings = SamplingSettings(cfg_scale=cfg, temperature=heat)
    policy = preset("quality", reuse=unit)
    result = sampled(model, text, policy=policy, settings=settings, monitor=seen)
    late = fidelity(LONG)
    last = LONG[late[0].index - 1]
    difference = torch.sub(*seen.raw[last.index].chunk(2))
    for nth, scale in enumerate(late, start=1):
        raw, guided = seen.raw[scale.index], seen.guided[scale.index]
        resized = resize_tokens(difference, last, scale, "bilinear") / heat[scale.index]
        expected = raw / heat[scale.index] + unit**nth * (cfg[scale.index] - 1.0) * resized
        assert len(raw) == 2 and torch.allclose(guided, expected, atol=1e-4)
        assert result.trace.scales[scale.index].guidance == f"conditional + {unit**nth:g} reused"


def test_all_of_the_guidance_reused_on_the_same_grid_is_guidance() -> None:
    # Two scales of one grid: the difference of the last one needs no resizing.
    plan = ScalePlan(rows="conditional", reuse=1.0)
    schedule, model, seen = ScaleSchedule.of([(1, 1), (4, 4), (4, 4)], (4, 4)), tiny_infinity(), Logits()
    run(model, prompts(5), schedule, monitor=seen, policy=Planned({-1: plan}))
    expected = seen.raw[2] + 2.0 * torch.sub(*seen.raw[1].chunk(2))
    assert torch.allclose(seen.guided[2], expected, atol=1e-5)


# --------------------------------------------------------------------------------------- codes and noise


@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_codes_of_tokens_that_did_not_run_weigh_as_told(weight: float, patch: int) -> None:
    model, text, scale = tiny_infinity(patch=patch), prompts(5, 9), SQUARE[3]
    keeps = {0: torch.tensor([[0, 3, 9]] * 4), 2: torch.tensor([[3, 4]] * 4)}

    def choose(x: Tensor, site: Site) -> TokenMap:
        return TokenMap(keeps[site.layers.start])

    reduction = Reduction(SPANS, Memory(), choose, code_weight=weight, images=2)
    result = sampled(model, text, SQUARE, policy=Planned({-2: ScalePlan(reduction=reduction)}))
    weights = torch.full((scale.tokens,), weight)
    weights[[0, 9, 4]] = weight + 0.5 * (1.0 - weight)
    weights[3] = 1.0
    grid = weights.reshape(1, 1, *scale.grid).repeat_interleave(patch, 2).repeat_interleave(patch, 3)
    expected = torch.zeros_like(result.f_hat)
    for level, bits in zip(SQUARE, result.codes, strict=True):
        codes = (2.0 * bits - 1.0) / bits.shape[1] ** 0.5
        codes = codes * grid if level is scale else codes
        expected += F.interpolate(codes, size=expected.shape[-2:], mode="bilinear")
    assert torch.allclose(result.f_hat, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["turbo", "paper-released", "sparsevar"])
def test_codes_that_are_given_count_in_full(name: str) -> None:
    model, text = tiny_infinity(), prompts(5, 9)
    given = sampled(model, text, seed=9).codes
    result = sampled(model, text, policy=PRESETS[name], known=given)
    assert torch.allclose(result.f_hat, model.quantizer().accumulate(given, LONG), atol=1e-6)
    masks = [torch.zeros(1, *scale.grid, dtype=torch.bool) for scale in LONG]
    plain, none = (
        sampled(model, text, policy=PRESETS[name], **extra)
        for extra in ({}, {"known": given, "masks": masks})
    )
    assert equal(plain, none)


class DrawnNoise(SeededNoise):
    """Keeps the draws of every scale."""

    def __init__(self, seed: int, batch: int) -> None:
        super().__init__(seed, batch)
        self.drawn: dict[int, Tensor] = {}

    def exponential(self, scale: Scale, shape, device) -> Tensor:
        self.drawn[scale.index] = super().exponential(scale, shape, device)
        return self.drawn[scale.index]


@pytest.mark.parametrize("policy", [Planned({-3: ScalePlan(run=False)}), PRESETS["turbo"], PRESETS["paper"]])
def test_every_scale_has_the_noise_of_the_dense_run(policy) -> None:
    model, text = tiny_infinity(), prompts(5, 9)
    dense, other = DrawnNoise(5, 2), DrawnNoise(5, 2)
    sampled(model, text, noise=dense)
    sampled(model, text, noise=other, policy=policy)
    assert list(dense.drawn) == list(other.drawn) == list(range(len(LONG)))
    assert all(torch.equal(dense.drawn[i], other.drawn[i]) for i in dense.drawn)


def test_a_last_scale_that_does_not_run_draws_nothing() -> None:
    model, text, noise = tiny_infinity(), prompts(5, 9), DrawnNoise(5, 2)
    sampled(model, text, noise=noise, policy=Planned({-2: ScalePlan(run=False), -1: ScalePlan(run=False)}))
    assert list(noise.drawn) == list(range(len(LONG) - 1))


# ------------------------------------------------------------------------------------------------ KV cache


@pytest.mark.parametrize("kv", ["append", "none", 0.5, 0.1])
def test_the_cache_holds_what_the_preset_keeps(kv, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_infinity()
    watch, policy = CacheWatch(model, monkeypatch), preset("quality", tokens="gather", keep=0.25, kv=kv)
    result = sampled(model, prompts(5, 9), policy=policy, monitor=watch)
    late = fidelity(LONG)
    length = sum(scale.tokens for scale in LONG.scales[: late[0].index])
    seen = length
    for scale in late:
        seen += scale.tokens
        ran = result.trace.scales[scale.index].budget[0]
        assert result.trace.scales[scale.index].visible == length + ran
        if kv != "none" and scale != LONG.final:
            length = length + ran if kv == "append" else min(length + ran, round(kv * seen))
    assert [watch.caches[0].length(layer) for layer in range(3)] == [length] * 3


KEEPING = [preset(name, kv=kv) for name in STAGED for kv in ("append", "none", 0.2)]
# The others are fixed methods, and 'auto' learns its stages late.
KEEPING += [policy for name, policy in PRESETS.items() if name not in STAGED and name != "auto"]


@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("policy", KEEPING, ids=lambda policy: policy.name)
def test_the_cache_is_made_once_and_once_more_for_fewer_rows(
    policy: AccelerationPolicy, cfg: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    resized, resize = [], KVCache._resize
    monkeypatch.setattr(KVCache, "_resize", lambda *a: resized.append(a) or resize(*a))
    model = tiny_infinity()
    sampled(model, prompts(5), policy=policy, settings=SamplingSettings(cfg_scale=cfg, temperature=1.0))
    assert len(resized) == model.config.depth


# --------------------------------------------------------------------------------- interrupts and sharing


@pytest.mark.parametrize("name", PRESETS)
def test_an_interrupt_in_the_last_scale_leaves_nothing_behind(name: str) -> None:
    model, text, policy = tiny_infinity(), prompts(5, 9), PRESETS[name]
    expected = sampled(model, text, policy=policy)
    last = max(index for index, code in enumerate(expected.codes) if code is not None)
    before = live_tensors()
    with pytest.raises(Interrupted) as caught:
        sampled(model, text, policy=policy, monitor=InterruptAt(last, 1))
    assert live_tensors() > before  # the traceback still holds the run
    del caught
    assert live_tensors() == before
    assert equal(expected, sampled(model, text, policy=policy))


class RunInside(Monitor):
    """Makes another generation in the middle of one."""

    def __init__(self, other) -> None:
        self.other, self.result = other, None

    def scale(self, scale: Scale, f_hat: Tensor) -> None:
        if scale.index == fidelity(LONG)[0].index - 1 and self.result is None:
            self.result = self.other()


@pytest.mark.parametrize("name", PRESETS)
def test_one_policy_serves_runs_at_the_same_time(name: str) -> None:
    model, policy, text = tiny_infinity(), PRESETS[name], prompts(5)
    alone = [sampled(model, text, policy=policy, seed=seed) for seed in (1, 2)]
    inner = RunInside(lambda: sampled(model, text, policy=policy, seed=2))
    outer = sampled(model, text, policy=policy, seed=1, monitor=inner)
    assert equal(outer, alone[0]) and equal(inner.result, alone[1])
    found: dict[int, Generation] = {}
    threads = [
        threading.Thread(target=lambda s=s: found.update({s: sampled(model, text, policy=policy, seed=s)}))
        for s in (1, 2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(equal(found[seed], alone[seed - 1]) for seed in (1, 2))
