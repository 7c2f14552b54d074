"""Runs that stop, are picked from and go on end where they would have ended, bit for bit."""

from dataclasses import replace

import pytest
import torch

from stagevar_core.acceleration.policy import RunInfo
from stagevar_core.acceleration.presets import PRESETS, preset
from stagevar_core.acceleration.stages import kept_scales
from stagevar_core.models.compiling import CompiledTransformer, Compiler
from stagevar_core.models.draws import run_costs
from stagevar_core.network.eight_bit import eight_bit
from stagevar_core.pipeline import Pipeline
from stagevar_core.sampling.drafts import draft_grid, reduced
from stagevar_core.sampling.forecast import forecast
from stagevar_core.sampling.generate import generate
from stagevar_core.sampling.loop import ALL_GIVEN, GONE_ON
from stagevar_core.sampling.noise import SeededNoise
from stagevar_core.sampling.paused import PausedRun
from stagevar_core.sampling.result import Generation, Monitor
from stagevar_core.sampling.settings import SamplingSettings
from stagevar_core.sampling.state import RunState
from stagevar_core.schedule import Scale, ScaleSchedule
from tests.support.capability import FAMILIES, Family, encoded_texts
from tests.support.tiny import FAR, tiny_infinity

SETTINGS = SamplingSettings(cfg_scale=3.0, temperature=1.0)
HALF = Family(
    "infinity in bfloat16",
    lambda schedule: tiny_infinity(spread=FAR, dtype=torch.bfloat16),
    encoded_texts,
)
EIGHT = Family(
    "infinity in 8 bits",
    lambda schedule: eight_bit(tiny_infinity(spread=FAR, dtype=torch.bfloat16)),
    encoded_texts,
)
BY_NAME = {family.name: family for family in (*FAMILIES, HALF, EIGHT)}
PICKED = ["infinity", "infinity in bfloat16", "infinity that edits", "var", "star with its sampler"]
SEED, BATCH = 11, 3
# Two or three mixed tokens are products of fewer than four rows, which round by the batch, and HART adds a
# continuous function of them to its last codes. Here there are up to eleven; real schedules have hundreds.
LONGER = ((1, 1), (2, 2), (3, 3), (4, 4), (8, 8), (12, 12))


class Draws:
    """One family on its first schedule."""

    def __init__(self, family: Family, name: str = "off", settings: SamplingSettings = SETTINGS) -> None:
        self.schedule = ScaleSchedule.of(family.grids[0])
        self.model, self.quantizer = family.build(self.schedule), family.quantizer(self.schedule)
        self.texts, self.policy, self.settings = family.condition(BATCH), preset(name), settings

    def __call__(self, images=range(BATCH), seeds=None, **options) -> Generation:
        """A run of these images with their own seeds, or with others."""
        options.setdefault("policy", self.policy)
        settings, noise = options.pop("settings", self.settings), SeededNoise(SEED, BATCH)
        noise = SeededNoise.of(seeds or [noise.seeds[image] for image in images])
        asked = (self.model, options.pop("texts", self.texts).images(list(images)), self.schedule, settings)
        return generate(*asked, noise=noise, quantizer=self.quantizer, **options)

    def state(self, generation: Generation) -> RunState:
        """What a stopped run handed on, written and read as bytes."""
        state = RunState.of(generation, SeededNoise(SEED, BATCH).seeds, self.settings, model="m")
        read = RunState.from_bytes([state.to_bytes(index) + b"\0\0" for index in range(BATCH)])
        assert read is not None
        return read


def same(found: Generation, whole: Generation, images=range(BATCH)) -> bool:
    """Whether the images have the same latents and the same codes, bit for bit."""
    if not torch.equal(found.f_hat, whole.f_hat[list(images)]):
        return False
    pairs = [(found.image(at), whole.image(image)) for at, image in enumerate(images)]
    return all(
        (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b))
        for first, second in pairs
        for one, other in zip(first, second, strict=True)
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("name", sorted(PRESETS))
@pytest.mark.parametrize("family", BY_NAME.values(), ids=lambda family: family.name)
def test_a_stopped_run_goes_on_to_the_same_end(family: Family, name: str) -> None:
    """At every scale, from its codes alone and from its kept keys and values."""
    draws = Draws(family, name)
    whole = draws()
    for until in range(1, len(draws.schedule)):
        paused = PausedRun()
        draft = draws(until=until, paused=paused)
        assert len(draft.scales) == until and len(draft.trace.scales) == until
        state = draws.state(draft)
        assert same(draws(resumed=state), whole), f"{until} scales, from codes"
        kept = draws(resumed=state, paused=paused)
        assert same(kept, whole), f"{until} scales, kept"
        assert all(not scale.ran and scale.note == GONE_ON for scale in kept.trace.scales[:until])
        assert kept.trace.flops < whole.trace.flops


def picked(draws: Draws, images: tuple[int, ...]) -> tuple[Generation, Generation, Generation]:
    """A whole run, and images picked after its fourth scale: from their codes, and from what was kept."""
    whole, paused = draws(), PausedRun()
    state = draws.state(draws(until=4, paused=paused)).pick(images)
    return whole, draws(images, resumed=state), draws(images, resumed=state, paused=paused)


@pytest.mark.parametrize("images", [(1,), (2, 0), (1, 1), (0, 1, 2, 1)], ids=str)
@pytest.mark.parametrize("name", ["off", "balanced", "paper", "auto", "skipvar"])
@pytest.mark.parametrize(
    "family",
    [
        *("infinity", "infinity in bfloat16", "infinity that edits", "var", "star", "star with its sampler"),
        *("switti", "hart", "hart modulated"),
    ],
)
def test_picked_images_go_on_as_in_their_batch(family: str, name: str, images: tuple[int, ...]) -> None:
    asked = BY_NAME[family]
    if family.startswith("hart") and name == "paper":
        whole, *finished = picked(Draws(asked, name), images)
        for found in finished:
            for place, image in enumerate(images):
                for one, other in zip(found.image(place), whole.image(image), strict=True):
                    assert one.drawn is other.drawn is None or torch.equal(one.drawn, other.drawn)
            assert torch.allclose(found.f_hat, whole.f_hat[list(images)], rtol=0, atol=1e-5)
        asked = replace(asked, grids=(LONGER,))
    whole, *finished = picked(Draws(asked, name), images)
    assert all(same(found, whole, images) for found in finished)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["off", "balanced"])
def test_a_picture_of_the_built_in_model_does_not_depend_on_its_batch(name: str, dtype: torch.dtype) -> None:
    """Alone, picked from a draft and in its batch it is the same to the bit, at real widths and lengths."""
    pipeline = Pipeline.embedded(dtype)
    texts = pipeline.encode(["a red circle", "two blue squares", "a green star above a white ring"])
    seeds, policy = SeededNoise(SEED, BATCH).seeds, preset(name)

    def run(images: list[int], **options) -> Generation:
        asked = (pipeline.transformer, texts.images(images), pipeline.schedule(), pipeline.settings())
        noise = SeededNoise.of([seeds[image] for image in images])
        return generate(*asked, noise=noise, quantizer=pipeline.quantizer, policy=policy, **options)

    whole, draft = run([0, 1, 2]), run([0, 1, 2], until=4)
    state = RunState.of(draft, seeds, pipeline.settings())
    for image in range(BATCH):
        assert same(run([image]), whole, [image])
        assert same(run([image], resumed=state.pick([image])), whole, [image])


def test_two_stops_lead_to_the_same_end() -> None:
    draws, paused = Draws(BY_NAME["infinity"], "balanced"), PausedRun()
    first = draws.state(draws(until=2, paused=paused))
    second = draws.state(draws(until=4, resumed=first, paused=paused))
    assert second.scales == 4 and same(draws(resumed=second, paused=paused), draws())


@pytest.mark.parametrize("changed", ["preset", "prompt", "cfg", "model"])
def test_what_is_kept_of_another_run_is_not_used(changed: str) -> None:
    """The scales run again on their codes, and the result does not depend on what was kept."""
    draws, paused = Draws(BY_NAME["infinity"], "balanced"), PausedRun()
    state = draws.state(draws(until=4, paused=paused))
    options = {
        "preset": {"policy": preset("off")},
        "prompt": {"texts": BY_NAME["infinity"].condition(BATCH, negative=True)},
        "cfg": {"settings": SamplingSettings(cfg_scale=2.0, temperature=1.0)},
        "model": {},
    }[changed]
    if changed == "model":
        draws.model = BY_NAME["infinity"].build(draws.schedule)
    kept, again = draws(resumed=state, paused=paused, **options), draws(resumed=state, **options)
    assert same(kept, again) and all(scale.note != GONE_ON for scale in kept.trace.scales)
    assert all(torch.equal(a, b.drawn) for a, b in zip(again.codes[:4], state.joined(), strict=True))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_variations_of_one_picture_run_its_first_scales_once(family: Family) -> None:
    draws, until, images, seeds = Draws(family), 3, (0, 0, 1, 0, 1), (5, 6, 7, 8, 9)
    state = draws.state(draws()).first(until).pick(images)
    together = draws(images, seeds, resumed=state)
    rows = [scale.rows for scale in together.trace.scales]
    assert rows == [2 * 2] * until + [2 * 5] * (len(rows) - until)
    for place, (image, seed) in enumerate(zip(images, seeds, strict=True)):
        alone = draws([image], [seed], resumed=state.pick([place]))
        assert all(
            torch.equal(a.drawn[0], b.drawn[place])
            for a, b in zip(alone.scales, together.scales, strict=True)
        )
        assert torch.equal(alone.f_hat[0], together.f_hat[place])
    late = sum(scale.flops.total for scale in together.trace.scales[until:])
    assert sum(scale.flops.total for scale in together.trace.scales) - late < 0.5 * sum(
        scale.dense.total for scale in together.trace.scales[:until]
    )


@pytest.mark.parametrize("name", ["off", "balanced", "skipvar"])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_finished_picture_comes_back_without_a_block(family: Family, name: str) -> None:
    """Whatever the seeds."""
    draws = Draws(family, name)
    whole = draws()
    again = draws(seeds=(5, 6, 7), resumed=draws.state(whole))
    assert same(again, whole) and not any(scale.ran for scale in again.trace.scales)
    assert ALL_GIVEN in {scale.note for scale in again.trace.scales}


def test_none_of_a_picture_is_another_one() -> None:
    draws = Draws(BY_NAME["infinity"])
    assert same(draws(resumed=draws.state(draws()).first(0)), draws())


def test_sixteen_variations_cost_sixteen_late_stages_and_one_early_one() -> None:
    """On the built-in model's schedule, by its own count and by the time its blocks are asked."""
    draws, blocks = Draws(BY_NAME["infinity"]), []

    class Count(Monitor):
        def logits(self, scale: Scale, raw: torch.Tensor, guided: torch.Tensor) -> None:
            blocks.append((scale.index, len(guided)))

    keep = kept_scales(draws.schedule, 0.5)
    state = draws.state(draws()).first(keep).pick([1] * 16)
    varied = draws([1] * 16, tuple(range(16)), resumed=state, monitor=Count())
    assert blocks == [(index, 1 if index < keep else 16) for index in range(len(draws.schedule))]
    one = draws([1], [5]).trace.scales
    early, late = (sum(scale.flops.total for scale in part) for part in (one[:keep], one[keep:]))
    assert varied.trace.flops <= (early + 16 * late) * 1.0001


def test_a_scale_that_was_skipped_stays_skipped() -> None:
    """`balanced` skips scales; going on with `off` behind them must not draw them after all."""
    draws = Draws(BY_NAME["infinity"], "turbo")
    whole = draws()
    skipped = [scale.drawn is None for scale in whole.scales]
    assert any(skipped), "this preset skips a scale here"
    until = skipped.index(True) + 1
    found = draws(resumed=draws.state(draws(until=until)), policy=preset("off"))
    assert [code is None for code in found.codes[:until]] == skipped[:until]


def test_smooth_mixtures_go_on_bit_for_bit() -> None:
    settings = SamplingSettings(cfg_scale=3.0, temperature=1.0, smooth=True)
    draws, paused = Draws(BY_NAME["var"], "off", settings), PausedRun()
    for until in (1, 3):  # mixtures of one token lie in memory as channels last
        state = draws.state(draws(until=until, paused=paused))
        assert same(draws(resumed=state), draws()) and same(draws(resumed=state, paused=paused), draws())


def test_what_does_not_fit_is_not_kept() -> None:
    draws, paused = Draws(BY_NAME["infinity"]), PausedRun()
    draws(until=3, paused=paused)
    short, enough = PausedRun(room=paused.bytes - 1), PausedRun(room=paused.bytes)
    for each in (short, enough):
        draws(until=3, paused=each)
    assert short.bytes == 0 and enough.bytes == paused.bytes > 0


def test_what_earlier_runs_left_is_found_and_stays_theirs() -> None:
    draws, first = Draws(BY_NAME["infinity"]), PausedRun()
    state, held = draws.state(draws(until=2, paused=first)), first.bytes
    second = PausedRun(before=first)
    later = draws(until=4, resumed=state, paused=second)
    assert later.trace.scales[0].note == GONE_ON and first.bytes == held
    second.before = None
    assert same(draws(resumed=draws.state(later), paused=second), draws())


@pytest.mark.parametrize("name", ["off", "balanced", "turbo"])
def test_drafts_are_forecast(name: str) -> None:
    """The work of a run that stops, and no more keys than it holds room for."""
    draws, until = Draws(BY_NAME["infinity"], name), 4
    units = run_costs(draws.model, draws.schedule, draws.model.drawing_head())
    info = RunInfo(draws.schedule, draws.model.config.depth, BATCH, True, False, tuple(range(BATCH)))
    tokens = draws.texts.tokens
    draft, whole = (forecast(draws.policy, info, units, tokens, until=each) for each in (until, None))
    trace = draws(until=until).trace
    assert draft.flops == whole.flops[:until] and sum(draft.shares) == pytest.approx(1.0)
    assert [scale.flops.total for scale in trace.scales] == pytest.approx(draft.flops, rel=0.02)
    assert draft.keys < whole.keys and draft.loads == whole.loads[:until]
    assert trace.kv_peak_bytes < draws().trace.kv_peak_bytes


@pytest.mark.parametrize(
    ("whole", "last", "grid"),
    [
        ((64, 64), (32, 32), (32, 32)),
        ((64, 64), (16, 16), (16, 16)),
        ((64, 64), (8, 8), (12, 12)),
        ((16, 16), (8, 8), (12, 12)),
        ((8, 8), (4, 4), (8, 8)),
        ((90, 46), (45, 23), (45, 23)),
        ((24, 48), (3, 6), (12, 24)),
    ],
    ids=str,
)
def test_drafts_are_no_smaller_than_their_decoder_draws(whole, last, grid) -> None:
    assert draft_grid(whole, last) == grid
    latent = torch.randn(2, 3, *whole)
    assert reduced(latent, last).shape == (2, 3, *grid)
    assert (reduced(latent, whole) is latent) and draft_grid(whole, whole) == whole


def test_a_run_that_stopped_says_what_it_cost() -> None:
    draws = Draws(BY_NAME["infinity"])
    draft, whole = draws(until=4), draws()
    share = draft.trace.flops / whole.trace.dense_flops
    assert any(f"{share:.1%} of the FLOPs of the whole dense picture" in note for note in draft.trace.notes)


def test_nothing_of_a_stopped_run_stays_without_a_place_for_it() -> None:
    draws, blocks = Draws(BY_NAME["infinity"]), []

    class Count(Monitor):
        def block(self, scale: Scale, layer: int) -> None:
            blocks.append(scale.index)

    state = draws.state(draws(until=3))
    draws(resumed=state, monitor=Count())
    assert set(blocks) == set(range(len(draws.schedule)))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-8], "damaged"),
        (lambda data: data[:40] + bytes([data[40] ^ 1]) + data[41:], "damaged"),
        (lambda data: data[:8] + b"\xff\0" + data[10:], "update"),
    ],
    ids=["cut", "changed", "newer"],
)
def test_damaged_states_are_refused(damage, message: str) -> None:
    draws = Draws(BY_NAME["infinity"])
    state = RunState.of(draws(until=3), (1, 2, 3), SETTINGS)
    with pytest.raises(ValueError, match=message):
        RunState.from_bytes([damage(state.to_bytes(0))])


def test_other_bytes_are_no_state() -> None:
    assert RunState.from_bytes([b"\0" * 100]) is None and RunState.from_bytes([b""]) is None


def test_images_of_runs_with_other_settings_say_in_which() -> None:
    """They go on with those of the first, which a host has to say."""
    draws = Draws(BY_NAME["infinity"])
    state = draws.state(draws(until=3))
    other = replace(state, settings=replace(SETTINGS, cfg_scale=(3.0, 2.0, 1.0), top_k=7))
    joined = RunState.from_bytes([state.to_bytes(0), other.to_bytes(1)])
    assert joined is not None and joined.differing == ("cfg_scale", "top_k")
    assert state.differing == () and joined.settings == SETTINGS


def test_states_of_other_runs_are_refused_by_name() -> None:
    draws = Draws(BY_NAME["infinity"])
    state = draws.state(draws(until=3))
    other = Draws(BY_NAME["infinity patchified"])
    with pytest.raises(ValueError, match="codes of scale 0 have the shape"):
        other(resumed=state)
    with pytest.raises(ValueError, match="3 images are to go on with 2 prompts"):
        draws((0, 1), resumed=state)
    with pytest.raises(ValueError, match="choose at most 3"):
        state.first(4)
    with pytest.raises(ValueError, match="one model, size and scale"):
        RunState.from_bytes([state.to_bytes(0), state.first(2).to_bytes(1)])
    with pytest.raises(ValueError, match="until"):
        draws(until=0)


def test_noise_of_seeds_is_that_of_each() -> None:
    scale, device = ScaleSchedule.of([(2, 2)])[0], torch.device("cpu")
    several = SeededNoise.of((7, 3, 2**64 + 3))
    assert several.seeds == (7, 3, 3)
    for ways in ("exponential", "uniform"):
        found = getattr(several, ways)(scale, (3, 4), device)
        alone = [getattr(SeededNoise(seed, 1), ways)(scale, (1, 4), device) for seed in (7, 3, 3)]
        assert torch.equal(found, torch.cat(alone))


def test_models_with_compiled_blocks_go_on_from_their_own() -> None:
    """The wrapper is made anew for every run."""
    draws, paused = Draws(BY_NAME["infinity"]), PausedRun()
    plain, compiler = draws.model, Compiler("eager")
    draws.model = CompiledTransformer(plain, compiler)
    state = draws.state(draws(until=3, paused=paused))
    draws.model = CompiledTransformer(plain, compiler)
    assert draws(resumed=state, paused=paused).trace.scales[0].note == GONE_ON
    draws.model = plain
    assert draws(resumed=state, paused=paused).trace.scales[0].ran
