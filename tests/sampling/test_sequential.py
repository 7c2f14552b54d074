"""Sequential guidance: the conditional and the unconditional rows in turn give what they give together."""

import functools
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from stagevar_core.acceleration.changes import changed
from stagevar_core.acceleration.policy import AccelerationPolicy
from stagevar_core.acceleration.presets import BALANCED, OFF, PRESETS
from stagevar_core.acceleration.reduction import Memory, Reduction
from stagevar_core.acceleration.settings import StageSettings
from stagevar_core.acceleration.staged import StagedPolicy
from stagevar_core.acceleration.stagevar import PAPER
from stagevar_core.network.attention import sdpa
from stagevar_core.network.cache import CachePair, KVCache
from stagevar_core.network.context import ScaleContext
from stagevar_core.network.tokens import Site, TokenMap
from stagevar_core.sampling.editing import KnownCodes
from stagevar_core.sampling.generate import generate
from stagevar_core.sampling.loop import Run
from stagevar_core.sampling.noise import SeededNoise
from stagevar_core.sampling.passage import Passage
from stagevar_core.sampling.result import Generation, Monitor
from stagevar_core.sampling.settings import SamplingSettings
from stagevar_core.schedule import Scale, ScaleSchedule
from tests.support.capability import FAMILIES, Family
from tests.support.tiny import (
    GREEDY,
    SQUARE,
    InterruptAt,
    Interrupted,
    live_tensors,
    prompts,
    run,
    same_codes,
    tiny_infinity,
)

SETTINGS = SamplingSettings(cfg_scale=3.0, temperature=1.0)
COUPLED = {  # both rows of an image together choose the tokens of the fidelity stage
    "gather": StagedPolicy("gather", changed(StageSettings(), guidance="both", tokens="gather", keep=0.5)),
    "projection": StagedPolicy(
        "projection", changed(StageSettings(), guidance="both", tokens="projection", keep=0.5)
    ),
    "window": StagedPolicy("window", changed(StageSettings(), guidance="both", attention="local")),
    "budget": StagedPolicy("budget", changed(StageSettings(), guidance="both", kv=0.5)),
    "codes": StagedPolicy(
        "codes",
        changed(StageSettings(), guidance="both", tokens="gather", keep=0.5, spans=3, code_weight=0.25),
    ),
}


@functools.lru_cache(maxsize=1)
def family(name: str) -> tuple[Family, ScaleSchedule, Any, Any]:
    """A family on its first schedule: itself, the schedule, a model, a quantizer."""
    found = next(each for each in FAMILIES if each.name == name)
    schedule = ScaleSchedule.of(found.grids[0])
    return found, schedule, found.build(schedule), found.quantizer(schedule)


def both_ways(name: str, policy: AccelerationPolicy, batch: int = 2, **options: Any) -> list[Generation]:
    """The same generation with all rows together, with rows in turn, and with half of the cache elsewhere."""
    found, schedule, model, quantizer = family(name)
    settings = options.pop("settings", SETTINGS)
    results = []
    for how in ({}, {"sequential": True}, {"sequential": True, "offload": "cpu"}):
        noise = SeededNoise(11, batch)
        texts = options.get("conditioning") or found.condition(batch)
        results.append(
            generate(
                *(model, texts, schedule, settings),
                **{"noise": noise, "quantizer": quantizer, "policy": policy, **how},
            )
        )
    return results


def check_same(together: Generation, in_turn: Generation) -> None:
    """The codes to the bit, the latent but for rounding, and what the trace counted."""
    assert same_codes(together, in_turn)
    assert (together.f_hat - in_turn.f_hat).abs().max() < 1e-5
    for a, b in zip(together.trace.scales, in_turn.trace.scales, strict=True):
        assert (a.ran, a.rows, a.guidance, a.budget) == (b.ran, b.rows, b.guidance, b.budget)
        assert (a.computed, a.visible, a.flops) == (b.computed, b.visible, b.flops)
        assert a.kv_length == b.kv_length


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", [each.name for each in FAMILIES])
def test_rows_in_turn_draw_the_same_codes(name: str, preset: str) -> None:
    together, *others = both_ways(name, PRESETS[preset])
    for other in others:
        check_same(together, other)


@pytest.mark.parametrize("policy", COUPLED.values(), ids=COUPLED)
@pytest.mark.parametrize("name", ["infinity", "star"])
def test_choices_that_look_at_both_rows_still_do(name: str, policy: AccelerationPolicy) -> None:
    together, *others = both_ways(name, policy)
    assert any(scale.budget for scale in together.trace.scales)
    for other in others:
        check_same(together, other)


@pytest.mark.parametrize("cfg_layers", [(-1,), (0, -2)])
def test_hidden_states_are_mixed_between_the_turns(cfg_layers: tuple[int, ...]) -> None:
    settings = SamplingSettings(cfg_scale=3.0, temperature=1.0, cfg_layers=cfg_layers)
    together, *others = both_ways("infinity", OFF, settings=settings)
    plain = both_ways("infinity", OFF)[0]
    assert not same_codes(together, plain)
    for other in others:
        check_same(together, other)


@pytest.mark.parametrize("policy", [OFF, PAPER, BALANCED], ids=lambda policy: policy.name)
def test_negative_prompts_have_their_turn(policy: AccelerationPolicy) -> None:
    texts = prompts(5, 9, negative=(4, 7))
    together, *others = both_ways("infinity", policy, conditioning=texts)
    for other in others:
        check_same(together, other)


def test_one_step_of_rows_runs_at_a_time() -> None:
    seen: Counter = Counter()

    def attention(q, k, v, *, scale=None, mask=None):
        seen[q.shape[0]] += 1
        return sdpa(q, k, v, scale=scale, mask=mask)

    model = tiny_infinity()
    run(model, prompts(5, 5), attention=attention, sequential=True, device="cpu")
    pooling = seen.pop(4)  # the text of all rows, once per run
    assert pooling == 1
    assert seen == {2: 2 * 2 * model.config.depth * len(SQUARE)}  # self and cross, for either half


def test_without_guidance_there_is_nothing_to_take_in_turn() -> None:
    settings = SamplingSettings(cfg_scale=1.0, temperature=1.0)
    together, in_turn, _ = both_ways("infinity", OFF, settings=settings)
    assert torch.equal(together.f_hat, in_turn.f_hat)
    assert {scale.rows for scale in in_turn.trace.scales} == {2}


def test_half_of_the_cache_waits_elsewhere() -> None:
    """What is on the device beside the other half is one layer of the half that waits."""
    sizes: list[tuple[int, int]] = []

    class Watch(Monitor):
        def block(self, scale: Scale, layer: int) -> None:
            first, second = current.rows.cache.halves
            kept = sum(t.nbytes for t in second._stored)
            sizes.append((first.bytes, second.bytes - kept))

    model = tiny_infinity(depth=6)
    current = Run(model, prompts(5), SQUARE, GREEDY, sdpa, "cpu", sequential=True, offload="cpu")
    given, every = KnownCodes(), len(SQUARE)
    passage = Passage.of(given, prompts(5), (0,), every, (), None, apart=True)
    current.generate(None, model.quantizer(), OFF, Watch(), given, passage)
    stored = SQUARE.tokens - SQUARE.final.tokens
    per_token = 2 * model.config.width * 4
    # The keys of the last scale are not stored; they pass through memory that all layers share.
    assert max(first for first, _ in sizes) == per_token * (6 * stored + SQUARE.tokens)
    assert max(second for _, second in sizes) == per_token * SQUARE.tokens


def test_what_waited_elsewhere_moves_once_it_runs_alone() -> None:
    first, second = (KVCache(2, 1, 2, 4, dtype=torch.float32, device="cpu") for _ in range(2))
    second.keep_on("cpu")
    pair = CachePair(first, second)
    pair.reserve(6)
    k = torch.randn(1, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    for cache in (first, second):
        for layer in range(2):
            assert torch.equal(cache.append(layer, torch.stack((k, -k)))[1], -k)
    assert pair.rows == 2 and pair.length(1) == 3 and pair.bytes > 2 * 2 * 2 * 6 * 2 * 4 * 4
    left = pair.narrow(slice(1, 2), more=2)
    assert left is second and left.rows == 1 and not pair.halves
    keys, values = left.append(0, torch.stack((k[:, :, :2], k[:, :, :2])))
    assert torch.equal(keys[:, :, :3], k) and torch.equal(values[:, :, :3], -k)
    assert keys.data_ptr() == left._stored[0].data_ptr()  # not a copy any more


def test_offloading_needs_turns() -> None:
    with pytest.raises(ValueError, match="offload is 'cpu'.*sequential=True"):
        run(tiny_infinity(), prompts(5), offload="cpu")


def test_an_interrupted_run_leaves_nothing_behind() -> None:
    model, texts = tiny_infinity(), prompts(5)
    run(model, texts, sequential=True, offload="cpu")
    before = live_tensors()
    with pytest.raises(Interrupted):
        run(model, texts, sequential=True, offload="cpu", monitor=InterruptAt(2, 1))
    assert live_tensors() == before


def test_memory_of_halves_narrows_to_the_one_that_is_left() -> None:
    for rows, kept in ((slice(0, 1), 0), (slice(1, 2), 1)):
        memory = Memory()
        for half in (0, 1):
            memory.put(Site(SQUARE[1], range(1), "self", half), torch.full((1, 4, 2), float(half)))
        memory.put(Site(SQUARE[1], range(1, 2), "self"), torch.arange(2.0).view(2, 1, 1).expand(2, 4, 2))
        memory.narrow(rows)
        for layers in (range(1), range(1, 2)):
            assert torch.equal(
                memory.get(Site(SQUARE[1], layers, "self")), torch.full((1, 4, 2), float(kept))
            )


def test_positions_of_reduced_tokens_follow_their_rows() -> None:
    seen = []

    def block(x, ctx, layer):
        seen.append(ctx.positions)
        return x

    rest = dict.fromkeys(("conditioned", "attention", "cache"))
    turns = [SimpleNamespace(conditioned=None, cache=None)] * 2
    own = torch.arange(2.0 * 2 * 4).view(2, 2, 4, 1)
    for positions, expected in ((own, own.split(1, dim=1)), (own[:, 0], [own[:, 0]] * 2)):
        seen.clear()
        ctx = ScaleContext(SQUARE[1], SQUARE, positions, dtype=torch.float32, turns=turns, **rest)
        ctx.run([block], torch.zeros(2, 4, 1))
        assert all(torch.equal(found, wanted) for found, wanted in zip(seen, expected, strict=True))


def test_codes_count_by_the_regions_of_the_conditional_rows() -> None:
    """Both halves run the same tokens; counting them twice would make half regions of whole ones."""
    keep = torch.tensor([[0, 2]])
    reduction = Reduction((), Memory(), lambda x, site: TokenMap(keep), code_weight=0.5)
    for half in (0, 1):
        reduction.reduce(torch.zeros(1, 4, 2), Site(SQUARE[1], range(1), "self", half))
    reduction.reduce(torch.zeros(1, 4, 2), Site(SQUARE[1], range(1), "ffn", 1))
    assert torch.equal(reduction.code_weights(), torch.tensor([[1.0, 0.5, 1.0, 0.5]]))
    assert reduction._regions == 1
