"""The loop over scales: caching, batches, guidance, sampling and what a run leaves behind."""

import math
import random
import weakref

import numpy as np
import pytest
import torch
from torch import Tensor

from stagevar_core.autoencoders.bsq import BitwiseQuantizer
from stagevar_core.conditioning.types import TextConditioning
from stagevar_core.models.draws import bit_probabilities, sample_bits
from stagevar_core.models.guidance import mix
from stagevar_core.models.teacher import teacher_forced
from stagevar_core.network.attention import sdpa
from stagevar_core.network.cache import KVCache
from stagevar_core.sampling.editing import scale_masks
from stagevar_core.sampling.noise import SeededNoise
from stagevar_core.sampling.settings import SamplingSettings
from stagevar_core.schedule import Scale, ScaleSchedule
from tests.support.tiny import (
    NULL_ROWS,
    SQUARE,
    TALL,
    TEXT_WIDTH,
    InterruptAt,
    Interrupted,
    Logits,
    live_tensors,
    prompts,
    run,
    same_codes,
    tiny_infinity,
    tiny_tokenizer,
)

UNGUIDED = SamplingSettings(cfg_scale=1.0, temperature=1.0, top_p=0.0)


# ------------------------------------------------------------------------------------- cache and teacher


@pytest.mark.parametrize("schedule", [SQUARE, TALL], ids=["square", "tall"])
@pytest.mark.parametrize("patch", [1, 2])
def test_cached_generation_equals_the_one_pass_forward(patch: int, schedule: ScaleSchedule) -> None:
    model, text, seen = tiny_infinity(patch=patch), prompts(5, 9), Logits()
    result = run(model, text, schedule, settings=UNGUIDED, noise=SeededNoise(3, 2), monitor=seen)
    inputs = model.quantizer().teacher_inputs(result.codes, schedule)
    with torch.inference_mode():
        one_pass = teacher_forced(model, text, inputs, schedule)
    lengths = [scale.tokens for scale in schedule]
    for cached, forced in zip(seen.guided, one_pass.split(lengths, dim=1), strict=True):
        assert (cached - forced).abs().max() < 1e-4
        assert cached.std() > 0.1  # random weights must not have died out


def test_teacher_forcing_refuses_inputs_of_another_schedule() -> None:
    model = tiny_infinity()
    with pytest.raises(ValueError, match="7 tokens; this schedule has 65"):
        teacher_forced(model, prompts(3), torch.zeros(1, 7, 4), SQUARE)


def test_teacher_forcing_has_gradients() -> None:
    model = tiny_infinity()
    teacher_forced(model, prompts(3), torch.zeros(1, SQUARE.tokens - 1, 4), SQUARE).sum().backward()
    assert all(parameter.grad is not None for parameter in model.blocks.parameters())


# ----------------------------------------------------------------------------------- batches and repeats


@pytest.mark.parametrize("lengths", [(6, 6, 6), (6, 2, 11)], ids=["one length", "three lengths"])
@pytest.mark.parametrize("negative", [None, (4, 9, 1)], ids=["null text", "negative text"])
def test_an_image_does_not_depend_on_its_batch(lengths: tuple, negative: tuple | None) -> None:
    model, settings = tiny_infinity(), SamplingSettings(cfg_scale=3.0, temperature=1.0)
    three, one = Logits(), Logits()
    batch = run(
        model, prompts(*lengths, negative=negative), settings=settings, noise=SeededNoise(7, 3), monitor=three
    )
    single = run(
        model,
        prompts(lengths[0], negative=negative[:1] if negative else None),
        settings=settings,
        noise=SeededNoise(7, 1),
        monitor=one,
    )
    assert same_codes(batch, single, slice(0, 1))
    for many, alone in zip(three.guided, one.guided, strict=True):
        assert (many[:1] - alone).abs().max() < 1e-4


def test_the_negative_prompt_matters() -> None:
    model, plain, negative = tiny_infinity(), Logits(), Logits()
    run(model, prompts(6), monitor=plain)
    run(model, prompts(6, negative=(4,)), monitor=negative)
    assert (plain.guided[0] - negative.guided[0]).abs().max() > 1e-3


def test_two_runs_in_one_process_agree() -> None:
    model = tiny_infinity()
    settings = SamplingSettings(cfg_scale=[1.0, 2.0, 3.0, 3.0, 3.0], temperature=0.7)
    first, second = (run(model, prompts(5), settings=settings, noise=SeededNoise(1, 1)) for _ in range(2))
    other = run(model, prompts(5), settings=settings, noise=SeededNoise(2, 1))
    assert same_codes(first, second) and torch.equal(first.f_hat, second.f_hat)
    assert not same_codes(first, other)


def test_generation_leaves_the_global_random_state_alone() -> None:
    model = tiny_infinity()
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()
    run(model, prompts(5), settings=UNGUIDED, noise=SeededNoise(1, 1))
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()
    assert torch.equal(before[0], after[0]) and before[1] == after[1]
    assert all(np.array_equal(a, b) for a, b in zip(before[2], after[2], strict=True))


def test_attention_is_the_injected_function() -> None:
    model, calls = tiny_infinity(), []

    def attention(q: Tensor, k: Tensor, v: Tensor, *, scale=None, mask=None) -> Tensor:
        calls.append(scale)
        return sdpa(q, k, v, scale=scale, mask=mask)

    injected, default = run(model, prompts(5), attention=attention), run(model, prompts(5))
    assert same_codes(injected, default)
    # Self-attention and cross-attention of every block and scale, and the text pooling once.
    assert len(calls) == 2 * model.config.depth * len(SQUARE) + 1


def test_bfloat16_blocks_agree_with_float32_on_most_bits() -> None:
    wide, narrow = Logits(), Logits()
    result = run(tiny_infinity(), prompts(5, 9), monitor=wide)
    model = tiny_infinity(dtype=torch.bfloat16)
    assert model.blocks[0].ffn.fc1.weight.dtype == torch.bfloat16 and model.head.weight.dtype == torch.float32
    run(model, prompts(5, 9), monitor=narrow, known=result.codes)
    bits = [torch.cat([sample_bits(x).flatten() for x in seen.guided]) for seen in (wide, narrow)]
    assert narrow.guided[0].dtype == torch.float32
    assert (bits[0] == bits[1]).float().mean() > 0.95


# --------------------------------------------------------------------------------------------- guidance


def test_guidance_of_hidden_states_mixes_after_the_named_block() -> None:
    model, seen, outputs, entered = tiny_infinity(), Logits(), [], []
    hooks = [
        model.blocks[1].register_forward_hook(lambda block, inputs, output: outputs.append(output)),
        model.blocks[2].register_forward_pre_hook(lambda block, inputs: entered.append(inputs[0])),
    ]
    settings = SamplingSettings(
        cfg_scale=[3.0, 1.0, 2.0, 3.0, 3.0], temperature=1.0, cfg_layers=(-2,), greedy=True
    )
    run(model, prompts(5, 8), settings=settings, monitor=seen)
    for hook in hooks:
        hook.remove()
    for out, entering, cfg in zip(outputs, entered, settings.cfg_scale, strict=True):
        mixed = mix(*out.chunk(2), cfg)
        assert torch.equal(entering, out if cfg == 1.0 else torch.cat((mixed, mixed)))
    # The logits are not mixed on top: they are those of the conditional rows.
    assert all(torch.equal(guided, raw[:2]) for raw, guided in zip(seen.raw, seen.guided, strict=True))


def test_guidance_of_one_runs_the_conditional_rows_alone() -> None:
    model, seen = tiny_infinity(), Logits()
    run(model, prompts(5, 8), settings=UNGUIDED, noise=SeededNoise(0, 2), monitor=seen)
    assert all(len(raw) == 2 for raw in seen.raw)


def test_a_list_with_a_one_keeps_the_other_rows_running() -> None:
    model, seen = tiny_infinity(), Logits()
    settings = SamplingSettings(cfg_scale=[1.0, 3.0, 1.0, 3.0, 3.0], temperature=0.5, greedy=True)
    run(model, prompts(5), settings=settings, monitor=seen)
    for raw, guided, cfg in zip(seen.raw, seen.guided, settings.cfg_scale, strict=True):
        assert len(raw) == 2
        assert torch.allclose(guided, mix(*(raw * 2.0).chunk(2), cfg), atol=1e-6)


def test_known_codes_replace_the_sampled_ones_and_noise_is_drawn_all_the_same() -> None:
    model = tiny_infinity()
    plain = run(model, prompts(5), settings=UNGUIDED, noise=SeededNoise(5, 1))
    leaked = [1 - code for code in plain.codes[:2]]
    noise = SeededNoise(5, 1)
    result = run(model, prompts(5), settings=UNGUIDED, noise=noise, known=leaked)
    assert all(torch.equal(a, b) for a, b in zip(result.codes[:2], leaked, strict=True))
    again = run(model, prompts(5), settings=UNGUIDED, noise=SeededNoise(5, 1), known=plain.codes[:2])
    assert same_codes(plain, again)


@pytest.mark.parametrize("patch", [1, 2])
def test_masks_of_a_picture_fit_tokens_of_any_size(patch: int) -> None:
    model, schedule = tiny_infinity(patch=patch), SQUARE
    source = run(model, prompts(5), settings=UNGUIDED, noise=SeededNoise(5, 1)).codes
    left = torch.zeros(32, 32)
    left[:, :16] = 1.0
    options = {"known": source, "masks": scale_masks(left, schedule, patch)}
    drawn = run(model, prompts(5), settings=UNGUIDED, noise=SeededNoise(6, 1), **options).codes
    for found, given, kept in zip(drawn, source, options["masks"], strict=True):
        there = kept.unsqueeze(1).expand_as(given)
        assert torch.equal(found[there], given[there])
    assert not torch.equal(drawn[-1], source[-1])
    for wrong in (
        [bits[:, :-1] for bits in source],
        [bits + 2 for bits in source],
        [bits[0] for bits in source],
    ):
        with pytest.raises(ValueError, match="known codes of scale 0"):
            run(model, prompts(5), settings=UNGUIDED, noise=SeededNoise(6, 1), known=wrong)
    if patch > 1:
        with pytest.raises(ValueError, match="mask of scale 0 has the grid"):
            options["masks"] = scale_masks(left, schedule)
            run(model, prompts(5), settings=UNGUIDED, noise=SeededNoise(6, 1), **options)


# --------------------------------------------------------------------------------------------- sampling


def reference_distribution(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Top-k and top-p by sorting and summing, as it is written for any number of values."""
    logits = logits.clone()
    if top_k > 0:
        kth = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[..., -1:]
        logits[logits < kth] = -math.inf
    if top_p > 0:
        ascending, order = logits.sort(dim=-1)
        removed = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1.0 - top_p
        removed[..., -1] = False
        logits[removed.scatter(-1, order, removed)] = -math.inf
    return logits.softmax(dim=-1)


@pytest.mark.parametrize("top_k", [0, 1, 2, 900])
@pytest.mark.parametrize("top_p", [0.0, 0.3, 0.8, 0.97, 1.0])
def test_bit_filters_equal_sorting_and_summing(top_k: int, top_p: float) -> None:
    pairs = 4.0 * torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    ours = bit_probabilities(pairs, top_k, top_p)
    assert torch.allclose(
        ours / ours.sum(-1, keepdim=True), reference_distribution(pairs, top_k, top_p), atol=1e-6
    )


def test_seeded_noise_equals_multinomial_for_one_image() -> None:
    logits = torch.randn(1, 30, 8, generator=torch.Generator().manual_seed(0))
    noise = SeededNoise(11, 1)
    official = torch.Generator().manual_seed(11)
    for index in range(3):  # scale after scale from one stream
        draws = noise.exponential(Scale(index, 5, 6), (1, 30, 4, 2), torch.device("cpu"))
        probabilities = logits.unflatten(-1, (-1, 2)).softmax(-1).reshape(-1, 2)
        expected = torch.multinomial(probabilities, 1, replacement=True, generator=official)
        assert torch.equal(sample_bits(logits, noise=draws).flatten().long(), expected.flatten())


def test_seeds_of_any_size_are_accepted() -> None:
    shape = (2, 4, 2, 2)
    wrapped = SeededNoise(2**64 - 1, 2).exponential(Scale(0, 2, 2), shape, torch.device("cpu"))
    zero = SeededNoise(0, 1).exponential(Scale(0, 2, 2), (1, *shape[1:]), torch.device("cpu"))
    assert torch.equal(wrapped[1:], zero)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (SamplingSettings(cfg_scale=math.nan), "cfg is nan"),
        (SamplingSettings(cfg_scale=-0.3), "cfg is -0.3; expected a finite number, 0 or more"),
        (SamplingSettings(cfg_scale=True), "cfg is True"),
        (SamplingSettings(cfg_scale="auto"), "cfg is 'auto'"),
        (SamplingSettings(cfg_scale=None), "cfg is None"),
        (SamplingSettings(temperature=[0.5, 0.5, "x", 1.0, 1.0]), "temperature is 'x'"),
        (SamplingSettings(top_k=2.5), "top_k is 2.5"),
        (SamplingSettings(top_p=-0.5), "top_p is -0.5"),
        (SamplingSettings(cfg_scale=[3.0, math.inf, 3.0, 3.0, 3.0]), "cfg is inf"),
        (SamplingSettings(cfg_scale=[3.0, 3.0]), "cfg lists 2 values; this schedule has 5"),
        (SamplingSettings(temperature=-1.0), "temperature is -1.0"),
        (SamplingSettings(temperature=0.0), "temperature is 0.0"),
        (SamplingSettings(temperature=math.nan), "temperature is nan"),
        (SamplingSettings(temperature=[1.0]), "temperature lists 1 values"),
        (SamplingSettings(top_p=math.nan), "top_p is nan"),
        (SamplingSettings(top_p=1.5), "top_p is 1.5"),
        (SamplingSettings(top_k=-1), "top_k is -1"),
        (SamplingSettings(cfg_layers=(-3,)), "cfg_layers holds -3"),
        (SamplingSettings(cfg_layers=(1,)), "cfg_layers holds 1"),
    ],
)
def test_settings_that_cannot_be_used_are_named(settings: SamplingSettings, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(tiny_infinity(), prompts(5), settings=settings, noise=SeededNoise(0, 1))


def test_inputs_that_cannot_be_used_are_named() -> None:
    model = tiny_infinity()
    with pytest.raises(ValueError, match="noise source"):
        run(model, prompts(5), settings=SamplingSettings())
    with pytest.raises(ValueError, match=f"trained on .tokens, {TEXT_WIDTH}."):
        run(model, TextConditioning((torch.zeros(4, TEXT_WIDTH + 1),)))
    with pytest.raises(ValueError, match=f"{NULL_ROWS + 1} tokens; this transformer takes 1 to {NULL_ROWS}"):
        run(model, prompts(NULL_ROWS + 1))
    with pytest.raises(ValueError, match="0 tokens"):
        run(model, TextConditioning((torch.zeros(0, TEXT_WIDTH),)))
    with pytest.raises(ValueError, match="at least one prompt"):
        TextConditioning(())
    with pytest.raises(ValueError, match="1 negative prompts for 2 prompts"):
        prompts(3, 4, negative=(2,))


# ----------------------------------------------------------------------------------- what a run leaves


def test_an_interrupt_leaves_no_tensor_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    model, text, caches = tiny_infinity(), prompts(5), []
    new_cache = model.new_cache

    def watched(*arguments) -> KVCache:
        cache = new_cache(*arguments)
        caches.append(weakref.ref(cache))
        return cache

    monkeypatch.setattr(model, "new_cache", watched)
    before = live_tensors()
    with pytest.raises(Interrupted) as caught:
        run(model, text, monitor=InterruptAt(3, 1))
    assert caches[0]() is not None  # the traceback still holds it, so the check below means something
    del caught
    assert live_tensors() == before
    assert caches[0]() is None
    monkeypatch.undo()
    assert same_codes(run(model, text), run(tiny_infinity(), text))


def test_a_finished_run_keeps_only_its_result() -> None:
    model, text = tiny_infinity(), prompts(5)
    before = live_tensors()
    result = run(model, text)
    assert live_tensors() - before == len(result.codes) + 1  # the codes of each scale and f_hat


# -------------------------------------------------------------------------------------------- tokenizer


@pytest.mark.parametrize("patch", [1, 2])
def test_tokens_and_latent_grid_are_inverses(patch: int) -> None:
    quantizer, scale = BitwiseQuantizer(3, patch), Scale(2, 3, 5)
    tokens = torch.randn(
        2, scale.tokens, quantizer.dim * patch**2, generator=torch.Generator().manual_seed(0)
    )
    latent = quantizer.to_latent(tokens, scale)
    assert latent.shape == (2, 3, 3 * patch, 5 * patch)
    assert torch.equal(quantizer.to_tokens(latent), tokens)


def test_bits_alone_give_the_latent_back() -> None:
    tokenizer = tiny_tokenizer()
    image = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(0)) * 2.0 - 1.0
    quantizer = tokenizer.quantizer()
    with torch.inference_mode():
        bits, f_hat = quantizer.encode(tokenizer.encode(image), SQUARE)
        decoded = tokenizer.decode(f_hat)
    assert [tuple(level.shape[-2:]) for level in bits] == list(SQUARE.grids)
    assert torch.allclose(quantizer.accumulate(bits, SQUARE), f_hat, atol=1e-6)
    assert decoded.shape == image.shape and decoded.abs().max() <= 1.0
    with pytest.raises(ValueError, match="this schedule ends at"):
        quantizer.encode(f_hat, TALL)
