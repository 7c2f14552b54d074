"""Switti: scales that see those before or themselves alone, crop condition, guidance that ends, mixtures."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from stagevar_core.acceleration.policy import RunInfo
from stagevar_core.acceleration.presets import PRESETS
from stagevar_core.conditioning.types import TextConditioning
from stagevar_core.models.guidance import guided_until
from stagevar_core.models.switti import Switti
from stagevar_core.models.switti_config import SWITTI_512, SWITTI_1024, SWITTI_1024_AR
from stagevar_core.models.teacher import teacher_forced
from stagevar_core.network.cache import KVCache
from stagevar_core.sampling.forecast import forecast
from stagevar_core.sampling.generate import generate
from stagevar_core.sampling.noise import SeededNoise
from stagevar_core.sampling.settings import SamplingSettings
from tests.parity.switti import crops
from tests.support.tiny import Logits, plain_attention, same_codes, texts
from tests.support.tiny_star import encoded
from tests.support.tiny_switti import tiny_switti
from tests.support.tiny_var import DIM, labels, squares, tiny_vq

SETTINGS = SamplingSettings(cfg_scale=4.0, temperature=1.0, top_k=12, top_p=0.9)
GREEDY = replace(SETTINGS, greedy=True)
SHORT = squares(1, 2, 3, 4, 5, 6)
KINDS = pytest.mark.parametrize("ar", [True, False], ids=["AR", "alone"])


def run(model: Switti, conditioning, schedule=SHORT, settings=SETTINGS, **options):
    """A seeded generation unless told otherwise."""
    options.setdefault("noise", SeededNoise(3, conditioning.batch))
    options.setdefault("quantizer", tiny_vq().quantizer())
    return generate(model, conditioning, schedule, settings, **options)


@KINDS
def test_scale_by_scale_equals_one_pass_over_all(ar: bool) -> None:
    model, quantizer, seen = tiny_switti(ar=ar), tiny_vq().quantizer(), Logits()
    text = encoded(2)
    result = run(model, text, settings=GREEDY, noise=None, quantizer=quantizer, monitor=seen)
    with torch.inference_mode():
        logits = teacher_forced(model, text, quantizer.teacher_inputs(result.codes, SHORT), SHORT)
    cached = torch.cat([raw[:2] for raw in seen.raw], dim=1)
    assert torch.allclose(logits, cached, atol=1e-4)


def test_the_two_kinds_see_different_tokens() -> None:
    seen, alone = Logits(), Logits()
    run(tiny_switti(ar=True), encoded(1), monitor=seen)
    run(tiny_switti(ar=False), encoded(1), monitor=alone)
    assert torch.equal(seen.raw[0], alone.raw[0])  # nothing comes before the first scale
    assert (seen.raw[1] - alone.raw[1]).abs().max() > 1e-2


@pytest.mark.parametrize("name", PRESETS)
def test_scales_that_see_themselves_alone_keep_no_keys(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = []
    append = KVCache.append

    def watched(cache, layer, kv, scale=None, *, keep=True):
        seen, _ = found = append(cache, layer, kv, scale, keep=keep)
        lengths.append((keep, seen.shape[2] - kv.shape[3]))
        return found

    monkeypatch.setattr(KVCache, "append", watched)
    for sequential in (False, True):
        trace = run(tiny_switti(ar=False), encoded(1), policy=PRESETS[name], sequential=sequential).trace
        assert all(scale.kv_length == 0 == scale.kv_bytes for scale in trace.scales)
        assert all(scale.visible <= scale.scale.tokens for scale in trace.scales)
    assert set(lengths) == {(False, 0)}


@KINDS
def test_the_counted_work_is_what_pytorch_counts(ar: bool) -> None:
    model = tiny_switti(ar=ar)
    with FlopCounterMode(display=False) as counter:
        trace = run(model, encoded(1), attention=plain_attention).trace
    once = model.config.condition_flops(2, 5)
    embedded = 2 * (SHORT.tokens - 1) * DIM * model.config.width  # before it is doubled for both rows
    phi = sum(2 * 9 * DIM**2 * SHORT.final.tokens for _ in SHORT)
    assert counter.get_total_flops() - once - embedded - phi == trace.flops == trace.dense_flops


@KINDS
@pytest.mark.parametrize("name", ["off", "quality", "balanced", "paper"])
def test_a_forecast_counts_what_runs(ar: bool, name: str) -> None:
    for guided in (10, 4):
        model, text = tiny_switti(ar=ar, guided=guided), encoded(2)
        until = guided_until(model.guidance_weights(4.0, SHORT), model.config.unit_costs)
        info = RunInfo(SHORT, model.config.depth, 2, True, False, (0, 1), None, until, model.corrects)
        expected = forecast(PRESETS[name], info, model.config.unit_costs, text.tokens)
        trace = run(model, text, policy=PRESETS[name]).trace
        flops = [scale.flops.total for scale in trace.scales]
        assert sum(expected.flops) == pytest.approx(sum(flops), rel=0.02)
        held = max(scale.kv_bytes for scale in trace.scales)
        assert held <= 2 * model.config.depth * expected.keys * model.config.width * 4


def test_the_scales_of_released_models_are_guided_as_published() -> None:
    for config, guided in ((SWITTI_512, 10), (SWITTI_1024, 10)):
        schedule = squares(*config.sides)
        weights = Switti(replace(config, depth=1), device="meta").guidance_weights(6.0, schedule)
        last = len(schedule) - 1
        wanted = [1.0 + 6.0 * k / last if k < guided else 1.0 for k in range(len(schedule))]
        assert weights == pytest.approx(wanted) and guided_until(weights, config.unit_costs) == min(
            guided, len(schedule)
        )
        told = Switti(replace(config, depth=1), device="meta").guidance_weights([1.0] * 14, schedule)
        assert set(told) == {2.0}  # a list is for all scales


def test_conditional_rows_run_alone_where_guidance_is_over() -> None:
    seen, model = Logits(), tiny_switti(guided=4)
    result = run(model, encoded(2), monitor=seen)
    assert [scale.rows for scale in result.trace.scales] == [4, 4, 4, 4, 2, 2]
    assert all(torch.equal(raw, guided) for raw, guided in list(zip(seen.raw, seen.guided, strict=True))[4:])
    assert result.trace.flops == result.trace.dense_flops
    both = Logits()  # the rows do not depend on each other
    weights = tuple(4.0 * k / 5 for k in range(4))
    run(tiny_switti(), encoded(2), settings=replace(SETTINGS, cfg_scale=(*weights, 0.0, 0.01)), monitor=both)
    assert torch.allclose(seen.raw[4], both.raw[4][:2], atol=1e-4)


def test_mixtures_begin_late_and_end_with_the_guidance(monkeypatch: pytest.MonkeyPatch) -> None:
    mixed, codebook = [], tiny_vq().quantizer()
    monkeypatch.setattr(codebook, "mixture", lambda shares, scale: watched(shares, scale, codebook, mixed))
    smooth = replace(SETTINGS, smooth=True)
    result = run(tiny_switti(guided=4), encoded(1), settings=smooth, quantizer=codebook)
    assert mixed == [2, 3]
    drawn = run(tiny_switti(guided=4), encoded(1))
    assert all(torch.equal(a, b) for a, b in zip(result.codes[:3], drawn.codes[:3], strict=True))
    mixed.clear()
    run(tiny_switti(), encoded(1), settings=replace(smooth, cfg_scale=0.0), quantizer=codebook)
    assert mixed == [2, 3, 4, 5]  # nothing ends that never began


def watched(shares, scale, codebook, seen: list):
    seen.append(scale.index)
    return type(codebook).mixture(codebook, shares, scale)


def test_an_image_does_not_depend_on_its_batch() -> None:
    model, noise = tiny_switti(guided=4), SeededNoise(3, 3)
    together = run(model, encoded(3), noise=noise)
    for index in range(3):
        alone = run(model, encoded(3).image(index), noise=SeededNoise(3, 3).image(index))
        assert (together.f_hat[index : index + 1] - alone.f_hat).abs().max() < 1e-4
        assert same_codes(alone, together, slice(None)) or torch.equal(
            alone.codes[-1], together.codes[-1][index : index + 1]
        )


def test_the_text_as_one_vector_is_what_the_second_encoder_says_at_the_end() -> None:
    model, (text,) = tiny_switti(), texts(5)
    pooled = model.config.pooled_width
    assert torch.equal(model.pooled([text])[0], text[-1, -pooled:])
    state = model.condition(TextConditioning((text,)), False, torch.device("cpu"), plain_attention)
    other = text.clone()
    other[-1, :-pooled] += 1.0  # of the first encoder
    again = model.condition(TextConditioning((other,)), False, torch.device("cpu"), plain_attention)
    assert torch.equal(state.start, again.start)
    assert not torch.equal(state.keys_values[0][0], again.keys_values[0][0])


def test_the_crop_moves_every_block() -> None:
    model, text = tiny_switti(), TextConditioning(texts(4))
    told = []
    for numbers in ([512.0, 512.0, 0.0, 0.0], [512.0, 682.0, 0.0, 85.0]):
        model.crop_numbers = lambda rows, device, n=numbers: torch.tensor([n]).expand(rows, -1)
        told.append(model.condition(text, False, torch.device("cpu"), plain_attention))
    assert torch.equal(told[0].start, told[1].start) and torch.equal(told[0].head_ada, told[1].head_ada)
    for a, b in zip(told[0].block_ada, told[1].block_ada, strict=True):
        assert (a - b).abs().max() > 1e-3
    assert tiny_switti(crop=False).crop is None


def test_crops_are_truncated_in_float32() -> None:
    heights, widths = torch.tensor([768, 512, 282, 400]), torch.tensor([1024, 512, 282, 300])
    expected = [[512, 682, 0, 85], [512, 512, 0, 0], [511, 511, 0, 0], [682, 512, 85, 0]]
    assert crops(heights, widths).int().tolist() == expected
    squares_ = torch.arange(256, 2049)
    assert int((crops(squares_, squares_)[:, 0] == 511).sum()) == 242


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_logits_are_float32(dtype: torch.dtype) -> None:
    seen, exact = Logits(), Logits()
    result = run(tiny_switti(dtype=dtype), encoded(2), monitor=seen)
    assert all(raw.dtype == torch.float32 for raw in seen.raw) and result.f_hat.dtype == torch.float32
    run(tiny_switti(), encoded(2), monitor=exact)
    assert (seen.raw[0] - exact.raw[0]).abs().max() < 0.1


def test_inputs_that_cannot_be_used_are_named() -> None:
    model = tiny_switti()
    with pytest.raises(ValueError, match="Switti is conditioned on an encoded text, got a class label"):
        run(model, labels(1))
    with pytest.raises(ValueError, match="encode the empty prompt and pass it as `null`"):
        run(model, replace(encoded(1), null=None))
    with pytest.raises(ValueError, match=r"shape \(3, 25\); this transformer was trained on \(tokens, 24\)"):
        run(model, replace(encoded(1), features=(torch.zeros(3, 25),)))
    with pytest.raises(
        ValueError, match="the text has 78 tokens; this transformer was trained on at most 77"
    ):
        run(model, replace(encoded(1), features=(torch.zeros(78, 24),)))
    with pytest.raises(
        ValueError, match="the text has 90 tokens; this transformer was trained on at most 77"
    ):
        run(model, replace(encoded(1), negative=(torch.zeros(90, 24),)))
    with pytest.raises(ValueError, match="7 scales; this model was trained on 6"):
        run(model, encoded(1), squares(1, 2, 3, 4, 5, 6, 7))
    with pytest.raises(ValueError, match="needs the codebook of its tokenizer"):
        generate(model, encoded(1), SHORT, SETTINGS, noise=SeededNoise(0, 1))
    with pytest.raises(ValueError, match="switti weights were not trained to edit one"):
        run(model, replace(encoded(1), source=torch.zeros(1, 4, 6, 6)))
    with pytest.raises(ValueError, match="switti file has no sampler network"):
        run(model, encoded(1), settings=replace(SETTINGS, refine="full"))
    run(model, replace(encoded(1), null=None), settings=replace(SETTINGS, cfg_scale=0.0))


def test_released_models_without_earlier_scales_need_no_cache() -> None:
    for config, keys in ((SWITTI_1024, False), (SWITTI_1024_AR, True)):
        schedule = squares(*config.sides)
        info = RunInfo(schedule, config.depth, 1, True, False, (0,), guided_until=10, corrects=False)
        found = forecast(PRESETS["off"], info, config.unit_costs, 20)
        stored = 2 * sum(side**2 for side in config.sides[:-1])
        assert (found.keys > 0.7 * stored / 2) == keys
