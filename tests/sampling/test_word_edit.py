"""Changed words: what the prompts agree on stays under every policy; what cannot be compared is refused."""

from dataclasses import replace

import pytest
import torch

from stagevar_core.acceleration.presets import PRESETS
from stagevar_core.conditioning.types import TextConditioning
from stagevar_core.sampling.generate import generate
from stagevar_core.sampling.noise import SeededNoise
from stagevar_core.sampling.settings import SamplingSettings
from stagevar_core.sampling.word_edit import WordEdit, reworded
from tests.support.tiny import SQUARE, TALL, prompts, texts, tiny_infinity
from tests.support.tiny_star import encoded
from tests.support.tiny_var import labels, tiny_vq

SETTINGS = SamplingSettings(cfg_scale=3.0, temperature=1.0)


def features(batch: int, schedule=SQUARE, patch: int = 1):
    height, width = (side * patch for side in schedule.final.grid)
    return torch.randn(batch, 4, height, width, generator=torch.Generator().manual_seed(3))


def change(words, target=(5, 9), source=(4, 3), *, schedule=SQUARE, patch=1, settings=SETTINGS, **options):
    """A run from the source's texts to the target's."""
    asked = reworded(prompts(*target), TextConditioning(texts(*source, seed=int(source != target))))
    model, noise = tiny_infinity(patch=patch), SeededNoise(7, len(target))
    return generate(model, asked, schedule, settings, noise=noise, words=words, **options)


@pytest.mark.parametrize(("schedule", "patch"), [(SQUARE, 1), (TALL, 1), (SQUARE, 2)])
def test_the_same_prompt_keeps_the_picture(schedule, patch: int) -> None:
    given = features(2, schedule, patch)
    found = change(WordEdit(given), source=(5, 9), schedule=schedule, patch=patch)
    bits, f_hat = tiny_infinity(patch=patch).quantizer().encode(given, schedule)
    assert all(torch.equal(code, bit) for code, bit in zip(found.codes, bits, strict=True))
    assert torch.allclose(found.f_hat, f_hat, atol=1e-5)


def test_the_strength_goes_from_the_picture_to_a_plain_run() -> None:
    given = features(2)
    plain, everything = change(None), change(WordEdit(given, 1.0))
    assert torch.equal(everything.f_hat, plain.f_hat)
    kept = change(WordEdit(given, 1.0, first=len(SQUARE)))
    assert torch.allclose(kept.f_hat, tiny_infinity().quantizer().encode(given, SQUARE)[1], atol=1e-5)
    shares = []
    bits = tiny_infinity().quantizer().encode(given, SQUARE)[0]
    for strength in (0.0, 0.5, 1.0):
        codes = change(WordEdit(given, strength)).codes
        shares.append(
            sum(float((a == b).float().mean()) for a, b in zip(codes, bits, strict=True)) / len(bits)
        )
    assert shares == sorted(shares, reverse=True) and shares[0] > shares[-1]


def test_the_codes_make_up_for_what_was_drawn_before() -> None:
    """The last scales bring the sum back to the picture where only coarse ones were drawn."""
    quantizer, given = tiny_infinity().quantizer(), features(1)
    f_hat, errors = quantizer.empty(1, SQUARE, torch.device("cpu")), []
    for scale in SQUARE:
        bits = quantizer.requantized(given - f_hat, scale)
        wrong = 1 - bits if scale.index == 1 else bits
        f_hat = quantizer.add(f_hat, quantizer.codes(wrong), SQUARE, scale)
        errors.append(float((given - f_hat).square().mean()))
    assert errors[-1] < errors[1]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_keeps_what_the_prompts_agree_on(name: str) -> None:
    given = features(2)
    found = change(WordEdit(given), source=(5, 9), policy=PRESETS[name])
    f_hat = tiny_infinity().quantizer().encode(given, SQUARE)[1]
    assert torch.allclose(found.f_hat, f_hat, atol=1e-5)
    assert found.f_hat.shape == change(WordEdit(given, 0.7), policy=PRESETS[name]).f_hat.shape


def test_an_image_of_a_batch_is_the_one_alone_and_no_work_is_added() -> None:
    given, plain = features(2), change(None)
    both = change(WordEdit(given))
    one = change(WordEdit(given[:1]), target=(5,), source=(4,))
    assert torch.allclose(one.f_hat, both.f_hat[:1], atol=1e-4)
    assert both.trace.flops == plain.trace.flops
    turns = change(WordEdit(given), sequential=True)
    assert torch.allclose(turns.f_hat, both.f_hat, atol=1e-4)


@pytest.mark.parametrize(
    ("words", "options", "message"),
    [
        (WordEdit(features(1)), {}, r"the shape \[1, 4, 6, 6\]; this run needs \[2, 4, 6, 6\]"),
        (WordEdit(features(2), 1.5), {}, "strength is 1.5"),
        (WordEdit(features(2), first=9), {}, "first is 9"),
        (WordEdit(features(2)), {"settings": replace(SETTINGS, cfg_scale=1.0)}, "cfg is 1, which runs one"),
        (WordEdit(features(2)), {"settings": replace(SETTINGS, cfg_layers=(-1,))}, "compares the logits"),
    ],
)
def test_what_cannot_be_compared_is_refused(words, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        change(words, **options)


def test_other_families_are_refused() -> None:
    words = WordEdit(features(1))
    with pytest.raises(ValueError, match="needs an Infinity model"):
        words.check(labels(1), SETTINGS, SQUARE, tiny_vq().quantizer())
    with pytest.raises(ValueError, match="needs an Infinity model"):
        words.check(encoded(1), SETTINGS, SQUARE, tiny_vq().quantizer())
    with pytest.raises(ValueError, match="class labels, which have no words"):
        reworded(labels(1), labels(1))
