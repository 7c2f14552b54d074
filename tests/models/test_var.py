"""VAR: sampling rules, quantizer, transformer and editing."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from stagevar_core.acceleration.policy import DensePolicy, ScalePlan
from stagevar_core.autoencoders.conv import PixelAttention
from stagevar_core.autoencoders.costs import decode_flops
from stagevar_core.autoencoders.vq import phi_index
from stagevar_core.conditioning.types import ClassConditioning
from stagevar_core.models.draws import filter_logits, sample_tokens, smooth_shares
from stagevar_core.models.guidance import ramped
from stagevar_core.models.teacher import teacher_forced
from stagevar_core.models.var import VARConfig
from stagevar_core.sampling.editing import scale_masks
from stagevar_core.sampling.generate import generate
from stagevar_core.sampling.noise import SeededNoise
from stagevar_core.sampling.settings import SamplingSettings
from stagevar_core.schedule import SIDES_256, SIDES_512, Scale, ScaleSchedule
from tests.support.editing import rectangle, source_codes
from tests.support.tiny import Logits, plain_attention, prompts, randomize, same_codes, tiny_infinity
from tests.support.tiny_var import CLASSES, DIM, SQUARES, VOCAB, labels, squares, tiny_var, tiny_vq

SAMPLED = SamplingSettings(cfg_scale=2.0, temperature=1.0, top_k=12, top_p=0.9)
GREEDY = SamplingSettings(cfg_scale=2.0, temperature=1.0, greedy=True)
SMOOTH = SamplingSettings(cfg_scale=2.0, temperature=1.0, top_k=12, top_p=0.9, smooth=True)


def run(model, conditioning, settings=SAMPLED, schedule=SQUARES, **options):
    """``generate`` with the tiny tokenizer's codebook and seeded noise."""
    noise = None if settings.greedy else SeededNoise(3, conditioning.batch)
    options = {"noise": noise, "quantizer": tiny_vq().quantizer(), **options}
    return generate(model, conditioning, schedule, settings, **options)


# ---------------------------------------------------------------------------------------------- categorical


def drawn_logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 3.0


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.0), (1, 0.0), (5, 0.0), (0, 0.7), (9, 0.8), (99, 0.0)])
def test_the_race_equals_multinomial(top_k: int, top_p: float) -> None:
    logits = drawn_logits(1, 50, 17)
    noise = SeededNoise(8, 1).exponential(Scale(0, 5, 10), logits.shape, torch.device("cpu"))
    filtered = filter_logits(logits, top_k, top_p).softmax(dim=-1).view(-1, 17)
    expected = torch.multinomial(filtered, 1, generator=torch.Generator().manual_seed(8)).view(1, 50)
    assert torch.equal(sample_tokens(logits, top_k=top_k, top_p=top_p, noise=noise), expected)


def test_top_k_keeps_ties_and_top_p_the_most_likely() -> None:
    logits = torch.tensor([2.0, 1.0, 1.0, 0.0, -4.0])
    assert filter_logits(logits, 2, 0.0).isfinite().tolist() == [True, True, True, False, False]
    assert filter_logits(logits, 0, 1e-6).isfinite().tolist() == [True, False, False, False, False]
    assert filter_logits(logits, 0, 1.0).isfinite().all()
    # Top-p counts the probabilities that top-k left: of two equal ones, one has half.
    assert filter_logits(torch.tensor([0.0, 0.0, -0.1]), 2, 0.5).isfinite().sum() == 1


def test_smooth_shares_leave_removed_tokens_out() -> None:
    logits, noise = drawn_logits(1, 6, 11), torch.rand(1, 6, 11) + 0.1
    shares = smooth_shares(logits, top_k=4, top_p=0.0, progress=0.5, noise=noise)
    assert torch.equal(shares > 0, filter_logits(logits, 4, 0.0).isfinite() & (shares > 0))
    assert ((shares > 0).sum(dim=-1) <= 4).all() and torch.allclose(shares.sum(dim=-1), torch.ones(1, 6))
    sharp = smooth_shares(logits, top_k=0, top_p=0.0, progress=1.0, noise=torch.ones_like(logits))
    assert torch.equal(sharp.argmax(dim=-1), logits.argmax(dim=-1))


def test_guidance_grows_from_nothing_to_its_strength() -> None:
    assert ramped(4.0, SQUARES) == (1.0, 2.0, 3.0, 4.0, 5.0)
    assert ramped([0.0, 1.0, 1.0, 2.0, 3.0], SQUARES) == (1.0, 2.0, 2.0, 3.0, 4.0)
    assert ramped(4.0, squares(1)) == (1.0,)


# ------------------------------------------------------------------------------------------------ quantizer


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (4, "0123"),
        (5, "01223"),
        (6, "001233"),
        (7, "0012233"),
        (10, "0011122333"),
        (14, "00011112222333"),
    ],
)
def test_which_phi_a_scale_uses(count: int, expected: str) -> None:
    schedule = squares(*range(1, count + 1))
    found = "".join(str(phi_index(schedule, scale, 4)) for scale in schedule)
    assert found == expected


@pytest.mark.parametrize("phis", [1, 3, 4])
def test_encoded_tokens_give_the_latent_back(phis: int) -> None:
    tokenizer, generator = tiny_vq(phis=phis), torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, 24, 24, generator=generator) * 2 - 1
    with torch.inference_mode():
        quantizer, features = tokenizer.quantizer(), tokenizer.encode(image)
        ids, f_hat = quantizer.encode(features, SQUARES)
        assert [tuple(level.shape) for level in ids] == [(2, *scale.grid) for scale in SQUARES]
        assert torch.allclose(quantizer.accumulate(ids, SQUARES), f_hat, atol=1e-6)
        inputs = quantizer.teacher_inputs(ids, SQUARES)
        assert inputs.shape == (2, SQUARES.tokens - 1, DIM)
        empty = quantizer.empty(2, SQUARES, image.device)
        first = quantizer.add(empty, quantizer.codes(ids[0]), SQUARES, SQUARES[0])
        assert torch.equal(inputs[:, :4], quantizer.next_input(first, SQUARES[1]))
        assert tokenizer.decode(f_hat).shape == image.shape
        again = source_codes(tokenizer, image, SQUARES)
        assert all(torch.equal(a, b) for a, b in zip(again, ids, strict=True))
    with pytest.raises(ValueError, match="ends at"):
        quantizer.encode(features, squares(1, 2))


def test_tokens_are_the_nearest_codes() -> None:
    quantizer = tiny_vq().quantizer()
    features = drawn_logits(2, DIM, 3, 5)
    distances = torch.cdist(features.movedim(1, -1).reshape(-1, DIM), quantizer.codebook)
    assert torch.equal(quantizer.nearest(features).flatten(), distances.argmin(dim=1))


def test_a_mixture_of_one_token_is_its_code() -> None:
    quantizer, scale = tiny_vq().quantizer(), Scale(2, 3, 5)
    ids = torch.randint(VOCAB, (2, scale.tokens), generator=torch.Generator().manual_seed(0))
    mixed = quantizer.mixture(F.one_hot(ids, VOCAB), scale)
    assert torch.allclose(mixed, quantizer.codes(quantizer.to_latent(ids, scale)), atol=1e-6)
    weights = torch.arange(2.0 * scale.tokens).view(2, -1)
    assert quantizer.spread(weights, scale)[1, 0, 2, 4] == weights[1, 14]


@pytest.mark.parametrize("place", [1, len(SQUARES) - 1], ids=["resampled", "last"])
def test_codes_count_as_much_as_their_weights_say(place: int) -> None:
    """Among tokens that count nothing nothing of phi is left, its bias neither."""
    quantizer, scale = tiny_vq().quantizer(), SQUARES[place]
    ids = torch.randint(VOCAB, (2, *scale.grid), generator=torch.Generator().manual_seed(0))
    f_hat, codes = drawn_logits(2, DIM, *SQUARES.final.grid), quantizer.codes(ids)

    def added(weights: torch.Tensor | None) -> torch.Tensor:
        return quantizer.add(f_hat, codes, SQUARES, scale, weights) - f_hat

    whole, one = added(None), torch.ones(2, 1, *scale.grid)
    assert torch.allclose(added(one), whole, atol=1e-6) and whole.abs().max() > 0.1
    assert torch.equal(added(0.0 * one), torch.zeros_like(whole))
    some = torch.rand(2, 1, *scale.grid, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(added(some) + added(1.0 - some), whole, atol=1e-5)
    if scale == SQUARES.final:
        one[..., 2:] = 0.0  # a column further phi still reaches
        beyond = added(one)[..., 3:]
        assert torch.equal(beyond, torch.zeros_like(beyond))


def test_a_scale_whose_codes_count_nothing_adds_nothing() -> None:
    """Whether no token of a scale runs, or the scale itself does not: the rest of the picture is the same."""

    class Weightless:
        spans = ()

        def reduce(self, x, site):
            return None

        def restore(self, x, y, tokens, site):
            return y

        def code_weights(self):
            return torch.zeros(1, SQUARES.final.tokens)

    def last(plan: ScalePlan) -> torch.Tensor:
        class Policy(DensePolicy):
            def start(self, info):
                run = super().start(info)
                run.plan = lambda scale: plan if scale == SQUARES.final else ScalePlan()
                return run

        return run(tiny_var(), labels(1), policy=Policy()).f_hat

    assert torch.equal(last(ScalePlan(reduction=Weightless())), last(ScalePlan(run=False)))


def test_pixel_attention_is_one_head_over_all_pixels() -> None:
    layer, x = PixelAttention(32), drawn_logits(2, 32, 3, 4)
    randomize(layer, 0)
    with torch.no_grad():
        q, k, v = layer.qkv(layer.norm(x)).flatten(2).chunk(3, dim=1)
        weights = (q.mT @ k / math.sqrt(32)).softmax(dim=-1)
        expected = x + layer.proj_out((v @ weights.mT).view_as(x))
        assert torch.allclose(layer(x), expected, atol=1e-5)


# ---------------------------------------------------------------------------------------------- transformer


@pytest.mark.parametrize("options", [{}, {"shared": True}, {"cosine": False}], ids=str)
def test_cached_logits_equal_those_of_one_pass(options: dict) -> None:
    model, seen, quantizer = tiny_var(**options), Logits(), tiny_vq().quantizer()
    result = run(model, labels(2), SamplingSettings(cfg_scale=0.0, temperature=1.0), monitor=seen)
    with torch.inference_mode():
        inputs = quantizer.teacher_inputs(result.codes, SQUARES)
        logits = teacher_forced(model, labels(2), inputs, SQUARES)
    assert torch.allclose(torch.cat(seen.raw, dim=1), logits, atol=1e-4)
    assert torch.equal(result.f_hat, quantizer.accumulate(result.codes, SQUARES))


def test_guided_rows_are_labels_then_no_class_or_the_negative_label() -> None:
    def raw(conditioning: ClassConditioning, settings: SamplingSettings = GREEDY) -> list[torch.Tensor]:
        seen = Logits()
        run(tiny_var(), conditioning, settings, monitor=seen)
        return seen.raw

    alone = raw(ClassConditioning((-1, 4)), SamplingSettings(cfg_scale=0.0, temperature=1.0, greedy=True))
    for negative, image in ((None, 0), ((4,), 1)):
        rows = raw(ClassConditioning((2,), negative))[0]
        assert rows.shape == (2, 1, VOCAB)
        assert torch.allclose(rows[1], alone[0][image], atol=1e-6)


def test_bfloat16_blocks_give_float32_logits() -> None:
    seen = Logits()
    result = run(tiny_var(dtype=torch.bfloat16), labels(2), monitor=seen)
    assert all(raw.dtype == torch.float32 for raw in seen.raw) and result.f_hat.dtype == torch.float32
    exact = Logits()
    run(tiny_var(), labels(2), monitor=exact)
    assert (seen.raw[0] - exact.raw[0]).abs().max() < 0.1


def test_the_counted_work_is_what_pytorch_counts() -> None:
    model, tokenizer = tiny_var(), tiny_vq()
    with FlopCounterMode(display=False) as counter:
        trace = run(model, labels(1), GREEDY, attention=plain_attention).trace
    once = model.config.condition_flops(2, 0)
    embedded = 2 * (SQUARES.tokens - 1) * DIM * model.config.width
    phi = sum(2 * 9 * DIM**2 * SQUARES.final.tokens for _ in SQUARES)
    assert counter.get_total_flops() - once - embedded - phi == trace.flops == trace.dense_flops
    with FlopCounterMode(display=False) as counter:  # with gradients every layer runs as it is defined
        tokenizer.post_quant_conv(torch.zeros(2, DIM, 3, 5))
        for module in tokenizer.decoder.modules():
            if isinstance(module, PixelAttention):
                module.forward = explicit_attention(module)
        tokenizer.decoder(torch.zeros(2, DIM, 3, 5))
    assert counter.get_total_flops() == decode_flops(tokenizer.config, (3, 5), batch=2)


def explicit_attention(layer: PixelAttention):
    """The layer's forward in matrix products that the counter sees on every device."""

    def forward(x: torch.Tensor) -> torch.Tensor:
        q, k, v = layer.qkv(layer.norm(x)).flatten(2).mT.unsqueeze(1).chunk(3, dim=-1)
        return x + layer.proj_out(plain_attention(q, k, v).squeeze(1).mT.unflatten(2, x.shape[-2:]))

    return forward


def test_other_sizes_than_the_trained_one_are_refused() -> None:
    tall = ScaleSchedule.of([(1, 1), (2, 1)])
    with pytest.raises(ValueError, match=r"scale 1 is 2 x 1 tokens; .* sides \[1, 2, 3, 4, 6\]"):
        run(tiny_var(), labels(1), schedule=tall)
    with pytest.raises(ValueError, match="scale 5 is 7 x 7"):
        run(tiny_var(), labels(1), schedule=squares(1, 2, 3, 4, 6, 7))
    assert run(tiny_var(), labels(1), schedule=squares(1, 2, 3)).f_hat.shape == (1, DIM, 3, 3)


def test_conditioning_that_does_not_fit_is_refused() -> None:
    for label in (CLASSES, -2):
        with pytest.raises(ValueError, match=f"class label is {label}; this model knows 0 to {CLASSES - 1}"):
            run(tiny_var(), ClassConditioning((label,)))
    with pytest.raises(ValueError, match="VAR is conditioned on a class label, got an encoded text"):
        run(tiny_var(), prompts(5))
    with pytest.raises(ValueError, match="Infinity is conditioned on an encoded text, got a class label"):
        generate(tiny_infinity(), labels(1), SQUARES, SAMPLED, noise=SeededNoise(0, 1))
    with pytest.raises(ValueError, match="codebook of its tokenizer"):
        run(tiny_var(), labels(1), quantizer=None)
    with pytest.raises(ValueError, match="2 negative labels for 1"):
        ClassConditioning((1,), (2, 3))


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="smooth and greedy"):
        run(tiny_var(), labels(1), SamplingSettings(smooth=True, greedy=True))
    with pytest.raises(ValueError, match="bitwise models"):
        generate(tiny_infinity(), prompts(5), SQUARES, SMOOTH, noise=SeededNoise(0, 1))


# -------------------------------------------------------------------------------------- smooth and editing


def test_smooth_mode_draws_as_before_and_adds_mixtures() -> None:
    model, quantizer = tiny_var(), tiny_vq().quantizer()
    hard, smooth = run(model, labels(1)), run(model, labels(1), SMOOTH)
    assert torch.equal(hard.codes[0], smooth.codes[0])  # the draw comes first
    assert not torch.allclose(smooth.f_hat, quantizer.accumulate(smooth.codes, SQUARES), atol=1e-3)
    assert torch.equal(smooth.f_hat, run(model, labels(1), SMOOTH).f_hat)


def test_masks_follow_the_rule_of_the_official_demo() -> None:
    keep = rectangle((16, 16), 0.1, 0.1, 0.8, 0.8, inside=False)
    assert keep[2:13, 2:13].sum() == 0 and keep.sum() == 16 * 16 - 11 * 11
    masks = scale_masks(keep, squares(*SIDES_256))
    assert masks[0].all() and torch.equal(masks[-1][0], keep > 0.5)
    bilinear = F.interpolate(keep[None, None], size=(5, 5), mode="bilinear", align_corners=False)
    assert torch.equal(masks[4], bilinear[:, 0] > 0.5)
    fine = scale_masks(keep.repeat_interleave(16, 0).repeat_interleave(16, 1), squares(*SIDES_256))
    assert all(torch.equal(a, b) for a, b in zip(masks, fine, strict=True))
    with pytest.raises(ValueError, match="the mask has the shape"):
        scale_masks(torch.ones(1, 1, 4, 4), SQUARES)


@pytest.mark.parametrize("settings", [SAMPLED, GREEDY, SMOOTH], ids=["sampled", "greedy", "smooth"])
def test_masked_codes_stay_and_the_others_are_drawn(settings: SamplingSettings) -> None:
    model, source = tiny_var(), run(tiny_var(), labels(2), SAMPLED, noise=SeededNoise(77, 2))
    keep = rectangle((6, 6), 0.0, 0.0, 0.5, 1.0, inside=True)
    options = {"known": source.codes, "masks": scale_masks(keep, SQUARES)}
    edited, free = run(model, labels(2), settings, **options), run(model, labels(2), settings)
    for scale, code, known, mask in zip(SQUARES, edited.codes, source.codes, options["masks"], strict=True):
        inside = mask.expand_as(code)
        assert torch.equal(code[inside], known[inside]), f"scale {scale.index}"
    assert not torch.equal(edited.codes[-1], source.codes[-1]) and not same_codes(edited, free)
    everything = run(model, labels(2), settings, known=source.codes)
    assert torch.equal(everything.f_hat, source.f_hat)


def test_known_codes_that_do_not_fit_are_refused() -> None:
    known = run(tiny_var(), labels(1)).codes
    with pytest.raises(ValueError, match="known codes of 5 scales and 1 masks"):
        run(tiny_var(), labels(1), known=known, masks=[torch.ones(1, 1, 1)])
    for wrong, words in (
        ([known[0], known[2]], "codes of scale 1 have the grid"),
        ([known[0].repeat(2, 1, 1)], r"shape \(2, 1, 1\); this tokenizer has \(1, 1, 1\) for 1 images"),
        ([known[0][None]], "codes of scale 0 have the shape"),
        ([known[0] + 10**6], "codes of scale 0 go from .*expected 0 to"),
        ([-1 - known[0]], "codes of scale 0 go from -"),
    ):
        with pytest.raises(ValueError, match=words):
            run(tiny_var(), labels(1), known=wrong)
    for mask in (torch.ones(2, 1, 1), torch.ones(1, 1), torch.ones(1, 1, 1, 1)):
        with pytest.raises(ValueError, match="mask of scale 0 has the shape"):
            run(tiny_var(), labels(1), known=known[:1], masks=[mask])


def test_published_schedules_have_their_length() -> None:
    assert [VARConfig.released(16, sides).schedule.tokens for sides in (SIDES_256, SIDES_512)] == [680, 2240]
