"""STAR: text in both guidance halves, rotary positions, the inner sampler, the presets, the pipeline."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from stagevar_core.acceleration.fastvar import FastVAR, PruningSetting
from stagevar_core.acceleration.presets import PRESETS
from stagevar_core.acceleration.reduction import Reduction
from stagevar_core.conditioning.clip import CLIPTextEncoder, read_tokenizer
from stagevar_core.conditioning.types import ClassConditioning
from stagevar_core.models.star import STAR
from stagevar_core.models.star_sampler import pass_counts
from stagevar_core.models.teacher import teacher_forced
from stagevar_core.network.rotary import normalised_angles
from stagevar_core.network.tokens import Site
from stagevar_core.pipeline import Pipeline
from stagevar_core.sampling.generate import generate
from stagevar_core.sampling.noise import SeededNoise
from stagevar_core.sampling.settings import SamplingSettings
from stagevar_core.schedule import Scale, SquareTable
from tests.support.tiny import FAR, Logits, plain_attention, same_codes
from tests.support.tiny_star import SIDES, SQUARES, TEXT, encoded, tiny_clip, tiny_star, write_vocabulary
from tests.support.tiny_var import DIM, labels, squares, tiny_vq

SETTINGS = SamplingSettings(cfg_scale=4.0, temperature=1.0, top_k=12, top_p=0.9)
GREEDY = replace(SETTINGS, greedy=True)
SHORT = squares(1, 2, 3, 4, 5, 6)


def run(model: STAR, conditioning, schedule=SQUARES, settings=SETTINGS, **options):
    """A seeded generation unless told otherwise."""
    options.setdefault("noise", SeededNoise(3, conditioning.batch))
    options.setdefault("quantizer", tiny_vq().quantizer())
    return generate(model, conditioning, schedule, settings, **options)


# ------------------------------------------------------------------------------------------------- model


def test_rotary_positions_span_every_scale_column_first() -> None:
    cosines, sines = normalised_angles(Scale(3, 3, 5), 8, norm=64.0, base=10000.0)
    angles = torch.atan2(sines, cosines)
    grid = angles.unflatten(0, (3, 5))
    wrapped = torch.atan2(torch.tensor(64.0).sin(), torch.tensor(64.0).cos())
    # Pairs 0 and 1 turn with the column, 2 and 3 with the row, each from 0 to the same reach.
    assert torch.allclose(grid[:, 4, 0], wrapped.expand(3)) and grid[:, 0, :2].abs().max() == 0
    assert torch.allclose(grid[2, :, 2], wrapped.expand(5)) and grid[0, :, 2:].abs().max() == 0
    middle = torch.tensor(64.0 / 2 * 10000.0**-0.5)
    assert torch.allclose(grid[1, :, 3], torch.atan2(middle.sin(), middle.cos()).expand(5), atol=1e-6)
    assert torch.equal(normalised_angles(Scale(0, 1, 1), 8, 64.0, 1e4)[0], torch.ones(1, 4))


def test_both_halves_read_the_text_of_the_prompt() -> None:
    model, seen = tiny_star(levels=6), []
    hook = model.blocks[0].cross_attn.register_forward_hook(lambda *call: seen.append(call[2]))
    text = encoded(2, negative=True)
    run(model, text, SHORT)
    hook.remove()
    assert [len(out) for out in seen] == [2] * 6  # one row per image, of four in the batch
    # Of the counterpart only the pooled text counts, the features of its end token.
    inner = tuple(torch.cat((torch.ones(3, row.shape[1]), row[-1:])) for row in text.negative)
    assert same_codes(run(model, text, SHORT), run(model, replace(text, negative=inner), SHORT))
    outer = tuple(row * 2.0 for row in text.negative)
    assert not same_codes(run(model, text, SHORT), run(model, replace(text, negative=outer), SHORT))


@pytest.mark.parametrize("sampler", [0, 2])
def test_an_image_does_not_depend_on_its_batch(sampler: int) -> None:
    model, noise = tiny_star(sampler=sampler), SeededNoise(3, 3)
    together = run(model, encoded(3), noise=noise)
    for index in range(3):
        alone = run(model, encoded(3).image(index), noise=SeededNoise(3, 3).image(index))
        assert (together.f_hat[index : index + 1] - alone.f_hat).abs().max() < 1e-4
        assert all(
            torch.equal(a[index : index + 1], b) for a, b in zip(together.codes, alone.codes, strict=True)
        )


def test_guidance_grows_with_the_scale() -> None:
    model = tiny_star(levels=6)
    assert model.guidance_weights(4.0, SHORT) == pytest.approx((1.0, 1.8, 2.6, 3.4, 4.2, 5.0))
    seen = Logits()
    run(model, encoded(2), SHORT, monitor=seen)
    for weight, raw, guided in zip(model.guidance_weights(4.0, SHORT), seen.raw, seen.guided, strict=True):
        conditional, unconditional = raw.chunk(2)
        expected = weight * conditional - (weight - 1.0) * unconditional
        assert torch.allclose(guided, expected, atol=1e-5)


def test_cached_scales_equal_one_pass_over_all() -> None:
    model, quantizer, seen = tiny_star(levels=6), tiny_vq().quantizer(), Logits()
    text = encoded(2)
    result = run(model, text, SHORT, GREEDY, noise=None, quantizer=quantizer, monitor=seen)
    with torch.inference_mode():
        inputs = quantizer.teacher_inputs(result.codes, SHORT)
        logits = teacher_forced(model, text, inputs, SHORT)
    cached = torch.cat([raw[:2] for raw in seen.raw], dim=1)
    assert torch.allclose(logits, cached, atol=1e-4)


def test_smooth_sampling_mixes_all_codes() -> None:
    model, codebook = tiny_star(levels=6), tiny_vq().quantizer()
    settings = replace(SETTINGS, smooth=True)
    smooth, drawn = run(model, encoded(1), SHORT, settings), run(model, encoded(1), SHORT)
    assert smooth.f_hat.isfinite().all() and (smooth.f_hat - drawn.f_hat).abs().max() > 1e-3
    with torch.inference_mode():
        rows = codebook.accumulate(smooth.codes, SHORT)  # of one code per token
    assert (smooth.f_hat - rows).abs().max() > 1e-3


@pytest.mark.parametrize("sampler", [0, 1])
def test_bfloat16_blocks_give_float32_logits(sampler: int) -> None:
    seen, exact = Logits(), Logits()
    result = run(tiny_star(sampler=sampler, dtype=torch.bfloat16), encoded(2), monitor=seen)
    assert all(raw.dtype == torch.float32 for raw in seen.raw) and result.f_hat.dtype == torch.float32
    run(tiny_star(sampler=sampler), encoded(2), monitor=exact)
    assert (seen.raw[0] - exact.raw[0]).abs().max() < 0.1


def test_inputs_that_cannot_be_used_are_named() -> None:
    model = tiny_star(levels=6)
    with pytest.raises(ValueError, match="STAR is conditioned on an encoded text, got a class label"):
        run(model, labels(1), SHORT)
    with pytest.raises(ValueError, match="encode the empty prompt and pass it as `null`"):
        run(model, replace(encoded(1), null=None), SHORT)
    with pytest.raises(ValueError, match="trained on .tokens, 24."):
        run(model, replace(encoded(1), features=(torch.zeros(3, 25),)), SHORT)
    with pytest.raises(ValueError, match="7 scales; this model was trained on 6"):
        run(model, encoded(1), squares(1, 2, 3, 4, 5, 6, 7))
    with pytest.raises(ValueError, match="needs the codebook of its tokenizer"):
        generate(model, encoded(1), SHORT, SETTINGS, noise=SeededNoise(0, 1))
    run(model, replace(encoded(1), null=None), SHORT, replace(SETTINGS, cfg_scale=0.0))  # nothing to guide by


# --------------------------------------------------------------------------------------- inner sampler


@pytest.mark.parametrize(
    ("tokens", "passes", "expected"),
    [
        (100, 8, [1, 7, 10, 13, 15, 17, 19, 18]),
        (4096, 15, [1, 106, 151, 186, 216, 243, 268, 292, 314, 336, 357, 377, 397, 417, 435]),
        (9, 8, [1, 1, 1, 1, 1, 2, 2, 0]),
    ],
)
def test_passes_decide_every_token(tokens: int, passes: int, expected: list[int]) -> None:
    assert pass_counts(tokens, passes) == expected and sum(expected) == tokens


@pytest.mark.parametrize("mode", ["mixed", "full"])
def test_the_sampler_draws_the_fine_scales(mode: str) -> None:
    model, seen, plain = tiny_star(sampler=2), Logits(), Logits()
    calls = []
    hook = model.sampler.head.register_forward_hook(lambda *call: calls.append(call[2].shape[1]))
    result = run(model, encoded(1), settings=replace(SETTINGS, refine=mode), monitor=seen)
    hook.remove()
    # The first scales are those of the plain loop, then the codes change.
    without = run(model, encoded(1), settings=replace(SETTINGS, refine="off"), monitor=plain)
    same = [torch.equal(a, b) for a, b in zip(result.codes, without.codes, strict=True)]
    assert all(same[:9]) and not any(same[9:])
    late, fine = 1 + SIDES[-1] ** 2, 1 + SIDES[9] ** 2
    assert calls.count(late) == (15 if mode == "mixed" else 8)
    assert calls.count(fine) == (3 if mode == "mixed" else 8)


def test_the_sampler_is_used_where_the_file_has_it() -> None:
    with_it, without = tiny_star(sampler=2), tiny_star()
    mixed = run(with_it, encoded(1), settings=replace(SETTINGS, refine="mixed"))
    assert same_codes(run(with_it, encoded(1)), mixed)
    assert same_codes(
        run(without, encoded(1)), run(without, encoded(1), settings=replace(SETTINGS, refine="off"))
    )


def test_a_sampler_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="refine is 'mixed', but this star file has no sampler network"):
        run(tiny_star(), encoded(1), settings=replace(SETTINGS, refine="mixed"))
    with pytest.raises(ValueError, match="'often'; expected one of .'auto', 'off', 'mixed', 'full'."):
        run(tiny_star(sampler=1), encoded(1), settings=replace(SETTINGS, refine="often"))


def test_greedy_sampling_needs_no_noise_in_the_sampler() -> None:
    model = tiny_star(sampler=1)
    first, second = (run(model, encoded(2), settings=GREEDY, noise=None) for _ in range(2))
    assert same_codes(first, second) and first.f_hat.isfinite().all()


def test_the_second_stream_is_that_of_the_global_generator() -> None:
    expected = torch.Generator().manual_seed(5)
    noise = SeededNoise(5, 1)
    noise.exponential(SQUARES[9], (1, 49, 24), torch.device("cpu"))  # of the other stream
    for _ in range(2):
        unused = noise.uniform(SQUARES[9], (1, 2, 49), torch.device("cpu"))
        assert torch.equal(unused[0], torch.rand(2, 49, generator=expected))
        drawn = noise.uniform(SQUARES[9], (1, 49), torch.device("cpu"))
        assert torch.equal(drawn, torch.rand(1, 49, generator=expected))


# ----------------------------------------------------------------------------------------- acceleration


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [0, 1], ids=["plain", "sampler"])
@pytest.mark.parametrize("name", PRESETS)
def test_presets_run_on_the_1024_schedule(name: str, sampler: int) -> None:
    model, policy = tiny_star(sampler=sampler), PRESETS[name]
    batch = 1 if sampler else 2
    dense, result = run(model, encoded(batch)), run(model, encoded(batch), policy=policy)
    assert result.f_hat.isfinite().all()
    assert all(torch.equal(a, b) for a, b in zip(dense.codes[:5], result.codes[:5], strict=True))
    assert dense.trace.flops == dense.trace.dense_flops
    assert result.trace.dense_flops == pytest.approx(dense.trace.flops, rel=0.01)  # texts padded otherwise
    if name == "off":
        assert torch.equal(dense.f_hat, result.f_hat)
    elif not policy.per_image:  # those decide by what was drawn
        # The sampler runs on all tokens of the last scale, whatever of it a preset runs: counted apart.
        least, most = (sum(s.flops.total - s.flops.refine for s in t.trace.scales) for t in (result, dense))
        assert most / least > 1.2 and result.trace.ratio > 1.1
        assert result.trace.ratio > 1.2 or result.trace.scales[-1].flops.refine > 0


class Texts:
    """What cross-attention adds to every token of every row, per block and scale that is reduced."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.found: list[tuple[Site, Tensor, Tensor]] = []
        restore = Reduction.restore

        def watched(reduction, x, y, tokens, site):
            full = restore(reduction, x, y, tokens, site)
            if site.part == "cross" and tokens is not None:
                self.found.append((site, tokens.keep, full - x))
            return full

        monkeypatch.setattr(Reduction, "restore", watched)


@pytest.mark.parametrize("sequential", [False, True], ids=["together", "in turn"])
def test_pruned_tokens_of_both_rows_read_the_text_at_their_own_place(
    sequential: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, model = Texts(monkeypatch), tiny_star(depth=4, levels=6, spread=FAR)
    run(model, encoded(2), SHORT, policy=FastVAR(PruningSetting((0.4, 0.5), 0)), sequential=sequential)
    assert seen.found
    if sequential:
        halves = seen.found[::2], seen.found[1::2]
        pairs = [(a, b) for a, b in zip(*halves, strict=True)]
    else:
        pairs = [
            ((site, keep[:2], added[:2]), (site, keep[2:], added[2:])) for site, keep, added in seen.found
        ]
    differing = 0
    for (_, keep, given), (_, own, got) in pairs:
        assert torch.equal(keep, own)
        index = keep.unsqueeze(-1).expand(-1, -1, given.shape[-1])
        assert torch.allclose(given.gather(1, index), got.gather(1, index), atol=1e-4)
        differing += int((given.gather(1, index)[:, 1:] - given.gather(1, index)[:, :-1]).abs().max() > 0.01)
    assert differing == len(pairs)  # tokens do not read the same, so that their order matters


def test_rows_of_star_choose_their_own_tokens_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: dict[str, int] = {"self": 0, "ffn": 0}
    reduce = Reduction.reduce

    def watched(reduction, x, site):
        tokens = reduce(reduction, x, site)
        if tokens is not None and site.part in kept:
            kept[site.part] += int((tokens.keep[:1] != tokens.keep[1:]).sum())
        return tokens

    monkeypatch.setattr(Reduction, "reduce", watched)
    model = tiny_star(depth=4, levels=6, spread=FAR)
    run(model, encoded(1), SHORT, policy=FastVAR(PruningSetting((0.4, 0.5), 0)))
    assert all(kept.values())


def test_the_text_is_counted_once_per_image() -> None:
    model = tiny_star(levels=6)
    for cfg in (4.0, 0.0):
        trace = run(model, encoded(2), SHORT, replace(SETTINGS, cfg_scale=cfg)).trace
        for scale in trace.scales:
            assert scale.computed == pytest.approx(scale.scale.tokens)
            assert scale.flops == scale.dense


def test_the_counted_work_is_what_pytorch_counts() -> None:
    model = tiny_star(levels=6)
    with FlopCounterMode(display=False) as counter:
        trace = run(model, encoded(1), SHORT, attention=plain_attention).trace
    once = model.config.condition_flops(2, 5)
    embedded = 2 * (SHORT.tokens - 1) * DIM * model.config.width  # before it is doubled for both rows
    phi = sum(2 * 9 * DIM**2 * SHORT.final.tokens for _ in SHORT)
    difference = counter.get_total_flops() - once - embedded - phi
    assert difference == trace.flops == trace.dense_flops


# --------------------------------------------------------------------------------------------- pipeline


def test_prompts_to_pictures(tmp_path) -> None:
    encoder = CLIPTextEncoder(
        TEXT, tiny_clip().state_dict(), read_tokenizer(write_vocabulary(tmp_path / "tokenizer"))
    )
    model = tiny_star(levels=6, text=TEXT.hidden_size)
    table = SquareTable.of((1, 2, 3, 4, 5, 6), pixels_per_token=4)
    pipeline = Pipeline(model, tiny_vq(), encoder, table, defaults={"cfg": 4.0, "temperature": 1.0})
    pictures = pipeline(["a red circle", "a"], seed=4)
    assert pictures.images.shape == (2, 24, 24, 3)
    assert torch.equal(pipeline.encode(["a"]).null, encoder.encode([""])[0])
    alone = pipeline("a", seed=5)
    assert (pictures.images[1].int() - alone.images[0].int()).abs().max() <= 1
    against = pipeline("a", negative="red", seed=5)
    assert not torch.equal(against.images, alone.images)
    with pytest.raises(ValueError, match="the text encoder is a t5; this transformer was trained on a clip"):
        t5 = SimpleNamespace(width=TEXT.hidden_size, family="t5", device="cpu")
        Pipeline(model, tiny_vq(), t5, table)
    with pytest.raises(ValueError, match="STAR is conditioned on an encoded text"):
        generate(
            model,
            ClassConditioning((1,)),
            SHORT,
            SETTINGS,
            noise=SeededNoise(0, 1),
            quantizer=tiny_vq().quantizer(),
        )
