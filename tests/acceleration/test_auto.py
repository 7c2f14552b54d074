"""Stage boundaries found while sampling: what ends guidance and structure, and what it does to a run."""

import math
from dataclasses import dataclass

import pytest
import torch

from stagevar_core.acceleration.auto import AutoPolicy, AutoRun, AutoSettings
from stagevar_core.acceleration.changes import changed
from stagevar_core.acceleration.policy import RunInfo, Seen
from stagevar_core.acceleration.presets import PRESETS, preset
from stagevar_core.acceleration.settings import StageSettings
from stagevar_core.models.draws import BitHead
from stagevar_core.sampling.noise import SeededNoise
from stagevar_core.sampling.result import Generation
from stagevar_core.sampling.settings import SamplingSettings
from stagevar_core.schedule import Scale, ScaleSchedule, infinity_aspect_table
from tests.support.tiny import SQUARE, TALL, prompts, run, same_codes, tiny_infinity

MEGAPIXEL = infinity_aspect_table().schedule(1.0, "1M")  # sides 16, 20, 24, 32, 40, 48 and 64 at the end
LONG = ScaleSchedule.of([(1, 1), (2, 2), (4, 4), (6, 6), (8, 8), (10, 10), (12, 12)], (64, 64))
BITS = 10
HEAD = BitHead(BITS)
# Stops guidance and structure at the first chance, or never before the last scale.
SOON = {"disagreement": 1.0, "change": math.inf, "entropy": 1.0, "guidance_from": 0.0, "earliest": 0.0}
NEVER = {"disagreement": 0.0, "change": 0.0, "entropy": 0.0, "latest": 1.0}
SAMPLED = SamplingSettings(cfg_scale=3.0, temperature=1.0)


def started(schedule: ScaleSchedule = MEGAPIXEL, guided: bool = True, **settings) -> AutoRun:
    """A run of ``auto`` with some thresholds, without a model."""
    stages = settings.pop("stages", PRESETS["auto"].settings.stages)
    policy = AutoPolicy("tried", AutoSettings(stages=stages, **settings))
    return policy.start(RunInfo(schedule, 32, 1, guided, False, (0,)))


def outcome(
    scale: Scale, differing: float = 1.0, change: float = 1.0, sure: float = 20.0, guided: bool = True
) -> Seen:
    """A scale after which this share of the bits differs and which changed the latent by this share.

    ``sure``: how much more likely the likelier bit is, in logits.
    """
    bits = torch.zeros(2, scale.tokens * BITS, dtype=torch.long)
    bits[1, : round(differing * bits.shape[1])] = 1
    raw = sure * torch.nn.functional.one_hot(bits, 2).float().reshape(2, scale.tokens, 2 * BITS)
    f_hat = torch.ones(1, 4, 8, 8)
    return Seen(scale, f_hat, change * f_hat, raw[: 1 + guided], raw[:1], HEAD.choices, HEAD.entropy)


def feed(tried: AutoRun, **found) -> list:
    """Plans of all scales; ``found``: by the side of a scale, what differs there from an unsettled one."""
    plans = []
    for scale in tried.info.schedule:
        plans.append(tried.plan(scale))
        if plans[-1].run:
            options = found.get(f"at{scale.width}", {})
            tried.observe(outcome(scale, guided=tried.info.guided, **options))
    return plans


def rows(plans: list) -> str:
    """One letter per scale: both, conditional, or skipped."""
    return "".join(plan.rows[0] if plan.run else "s" for plan in plans)


def stages(plans: list) -> str:
    """One letter per scale: of its stage."""
    return "".join({"semantic": "m", "structure": "t", "fidelity": "f"}[plan.stage] for plan in plans)


# ------------------------------------------------------------------------------------------- the thresholds


def test_guidance_ends_after_the_first_scale_at_which_the_rows_agree() -> None:
    tried = started(latest=1.0)
    plans = feed(tried, at24={"differing": 0.08}, at32={"differing": 0.069}, at40={"differing": 0.0})
    assert rows(plans) == "b" * 10 + "ccc"
    assert tried.notes == ["guidance ended after 32x32: 6.9% of the codes differ"]
    assert [plan.reuse for plan in plans[-3:]] == [0.5, 0.25, 0.125]


def test_rows_that_agree_too_early_go_on() -> None:
    agreeing = {f"at{side}": {"differing": 0.0} for side in (1, 2, 4, 6, 8, 12, 16, 20)}
    tried = started(latest=1.0)
    assert rows(feed(tried, **agreeing)) == "b" * 12 + "c" and not tried.notes
    early = started(latest=1.0, guidance_from=20 * 20 / 64 / 64)
    assert rows(feed(early, **agreeing)) == "b" * 8 + "c" * 5
    assert early.notes == ["guidance ended after 20x20: 0.0% of the codes differ"]


def test_structure_ends_after_the_first_scale_that_changes_little() -> None:
    tried = started()
    plans = feed(tried, at24={"change": 0.1}, at32={"change": 0.51}, at40={"change": 0.5})
    assert stages(plans) == "m" * 7 + "t" * 4 + "ff"  # 24x24 is too early
    assert rows(plans) == "b" * 11 + "sc"
    assert tried.notes == ["structure ended after 40x40: it changed the latent by 50%"]
    assert [plan.reuse for plan in plans[-2:]] == [0.0, 0.5]  # a skipped scale does not count


def test_structure_ends_at_the_latest_where_it_may() -> None:
    for latest, begins in ((9 / 16, 12), (0.39, 10), (1.0, 12)):
        tried = started(latest=latest)
        assert stages(feed(tried)) == "m" * 7 + "t" * (begins - 7) + "f" * (13 - begins)
        last = MEGAPIXEL[begins - 1]
        expected = [f"structure ended after {last.height}x{last.width}: no later start is allowed"]
        assert tried.notes == (expected if latest < 1.0 else [])


def test_nothing_is_settled_while_the_codes_are_undecided() -> None:
    undecided = {"differing": 0.0, "change": 0.0, "sure": 0.01}
    tried = started(latest=1.0)
    plans = feed(tried, at24=undecided, at32=undecided, at40=undecided)
    assert rows(plans) == "b" * 12 + "c" and stages(plans) == "m" * 7 + "t" * 5 + "f" and not tried.notes
    anyway = started(latest=1.0, entropy=1.0)
    plans = feed(anyway, at24=undecided, at32=undecided)
    assert stages(plans)[-4:] == "tfff" and rows(plans)[8:10] == "bc" and len(anyway.notes) == 2


def test_both_boundaries_are_those_of_balanced_where_they_fall_in_the_usual_places() -> None:
    plans = feed(started(), at24={"differing": 0.05}, at32={"change": 0.4})
    balanced = PRESETS["balanced"].start(RunInfo(MEGAPIXEL, 32, 1, True, False, (0,)))
    for plan, expected in zip(plans, map(balanced.plan, MEGAPIXEL), strict=True):
        for name in ("run", "rows", "reuse", "stage", "budget", "note"):
            assert getattr(plan, name) == getattr(expected, name)


def test_without_guidance_only_structure_is_looked_for() -> None:
    tried = started(guided=False)
    plans = feed(tried, at24={"differing": 0.0}, at32={"change": 0.2})
    assert stages(plans) == "m" * 7 + "t" * 3 + "fff"
    assert tried.notes == ["structure ended after 32x32: it changed the latent by 20%"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"disagreement": 1.5}, "disagreement is 1.5; expected a number from 0 to 1"),
        ({"entropy": -0.1}, "entropy is -0.1"),
        ({"guidance_from": 2.0}, "guidance_from is 2.0"),
        ({"earliest": math.nan}, "earliest is nan"),
        ({"latest": -1.0}, "latest is -1.0"),
        ({"change": -0.5}, "change is -0.5; expected a number, 0 or more"),
        ({"change": math.nan}, "change is nan; expected a number, 0 or more"),
        ({"earliest": 0.6, "latest": 0.5}, "earliest is 0.6, after latest 0.5; swap them"),
    ],
)
def test_thresholds_that_cannot_be_used_are_named(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AutoSettings(**values)


def test_the_preset_takes_no_settings_of_fixed_stages() -> None:
    with pytest.raises(ValueError, match="preset 'auto' is a fixed method and takes no keep"):
        preset("auto", keep=0.5)


# ------------------------------------------------------------------------------------------------ the cache


def test_room_is_up_to_where_the_fidelity_stage_usually_begins() -> None:
    tried, tokens = started(), [scale.tokens for scale in MEGAPIXEL]
    assert tried.room(MEGAPIXEL[0]) == sum(tokens[:10])
    assert tried.room(MEGAPIXEL[9]) == tokens[9] and tried.room(MEGAPIXEL[10]) == tokens[10]


def auto(**settings) -> AutoPolicy:
    """``auto`` with other thresholds."""
    return AutoPolicy("auto", AutoSettings(**{"stages": PRESETS["auto"].settings.stages, **settings}))


def sampled(policy, text=None, schedule: ScaleSchedule = LONG, noise=None, **options) -> Generation:
    """A seeded generation with a tiny model."""
    text = text or prompts(5, 9)
    options.setdefault("settings", SAMPLED)
    noise = noise or SeededNoise(3, text.batch)
    return run(tiny_infinity(), text, schedule, noise=noise, policy=policy, **options)


@pytest.mark.parametrize("schedule", [LONG, TALL], ids=["square", "tall"])
def test_a_cache_that_grows_past_its_room_leaves_the_run_as_it_was(schedule: ScaleSchedule) -> None:
    late = sampled(auto(**NEVER, stages=changed(StageSettings(), guidance="both")), schedule=schedule)
    alone = [sampled(None, prompts(5, 9).image(i), schedule, SeededNoise(3, 2).image(i)) for i in range(2)]
    assert torch.equal(late.f_hat, torch.cat([one.f_hat for one in alone]))
    sizes = [scale.kv_bytes for scale in late.trace.scales]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-2]  # it had to grow
    assert [scale.kv_length for scale in late.trace.scales] == [
        scale.kv_length for scale in alone[0].trace.scales
    ]


# -------------------------------------------------------------------------------------------------- in runs


def test_early_boundaries_show_in_the_report() -> None:
    trace = sampled(auto(**SOON), prompts(5)).trace
    found = [(s.rows, s.stage) for s in trace.scales if s.ran]
    assert found == [(2, "semantic"), (1, "fidelity")] and trace.skipped == 5
    assert [scale.note for scale in trace.scales if not scale.ran] == ["skipped"] * 5
    first, second = trace.notes
    assert first.startswith("guidance ended after 1x1: ") and second.startswith("structure ended after 1x1: ")
    assert trace.to_dict()["notes"] == trace.notes


def test_what_is_remembered_loses_the_rows_that_guidance_dropped() -> None:
    found = []

    class Watched(AutoRun):
        def plan(self, scale: Scale):
            plan = super().plan(scale)
            found.append({len(value) for _, value in self.memory._found.values()})
            return plan

        def narrow(self, rows: slice) -> None:
            super().narrow(rows)
            found[-1] = {len(value) for _, value in self.memory._found.values()}

    class Watching(AutoPolicy):
        def start(self, info: RunInfo) -> AutoRun:
            return Watched(self.settings, info)

    never = {**NEVER, "disagreement": 1.0, "entropy": 1.0, "guidance_from": LONG.area_fraction(LONG[3])}
    stages = PRESETS["auto"].settings.stages
    result = sampled(Watching("auto", AutoSettings(**never, stages=stages)), prompts(5))
    assert [scale.rows for scale in result.trace.scales] == [2, 2, 2, 2, 1, 1, 1]
    assert found == [set(), {2}, {2}, {2}, {1}, {1}, {1}]


@dataclass(frozen=True)
class Measured(AutoPolicy):
    """Changes nothing and writes down by how much the rows differ at one scale, per image."""

    def start(self, info: RunInfo) -> AutoRun:
        tried, observe = AutoRun(self.settings, info), AutoRun.observe

        def measured(seen: Seen) -> None:
            observe(tried, seen)
            if seen.scale.index == 4:
                conditional, unconditional = seen.choices(seen.raw).chunk(2)
                tried.notes.append(str(float((conditional != unconditional).float().mean())))

        tried.observe = measured
        return tried


def test_every_image_of_a_batch_has_boundaries_of_its_own() -> None:
    whole = {**NEVER, "guidance_from": LONG.area_fraction(LONG[4]), "entropy": 1.0}
    notes = sampled(Measured("measured", AutoSettings(**whole))).trace.notes
    shares = [float(note.rpartition(" ")[2]) for note in notes if "guidance" not in note]
    assert len(shares) == 2 and shares[0] != shares[1] and min(shares) > 0
    between = auto(**{**whole, "disagreement": sum(shares) / 2, "guidance_from": 0.4, "latest": 0.45})
    trace = sampled(between).trace
    ended = [f"image {i}: guidance" in " ".join(trace.notes) for i in range(2)]
    assert ended == [share < sum(shares) / 2 for share in shares]
    assert all(any(note.startswith(f"image {i}: structure") for note in trace.notes) for i in range(2))


@pytest.mark.parametrize(
    "thresholds", [{}, SOON, {**NEVER, "disagreement": 0.4}], ids=["auto", "soon", "late"]
)
@pytest.mark.parametrize("negative", [None, (4, 6)], ids=["null text", "negative text"])
def test_an_image_of_a_batch_equals_the_single_run(thresholds: dict, negative: tuple | None) -> None:
    policy, text, noise = auto(**thresholds), prompts(5, 9, negative=negative), SeededNoise(3, 2)
    together = sampled(policy, text)
    for image in range(2):
        alone = sampled(policy, text.image(image), noise=noise.image(image))
        assert torch.equal(together.f_hat[image], alone.f_hat[0])
        own = [
            note.removeprefix(f"image {image}: ") for note in together.trace.notes if f" {image}: " in note
        ]
        assert own == alone.trace.notes


def test_a_run_is_the_same_again_and_the_next_dense_one_unchanged() -> None:
    before, first, second, after = (sampled(policy) for policy in (None, auto(), auto(), None))
    assert same_codes(first, second) and torch.equal(first.f_hat, second.f_hat)
    assert first.trace.notes == second.trace.notes and torch.equal(before.f_hat, after.f_hat)
    assert not torch.equal(before.f_hat, first.f_hat)


@pytest.mark.parametrize("cfg", [3.0, 1.0], ids=["guided", "unguided"])
@pytest.mark.parametrize("thresholds", [{}, SOON, NEVER], ids=["auto", "soon", "late"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_short_schedules_run(count: int, thresholds: dict, cfg: float) -> None:
    schedule = ScaleSchedule.of([(6, 5), (3, 2), (1, 1)][:count][::-1])
    options = {"schedule": schedule, "settings": SamplingSettings(cfg_scale=cfg, temperature=1.0)}
    found, dense = (sampled(policy, prompts(5), **options) for policy in (auto(**thresholds), None))
    assert found.f_hat.shape == dense.f_hat.shape and found.f_hat.isfinite().all()
    assert torch.equal(found.codes[0], dense.codes[0])
    assert found.trace.scales[0].rows == (2 if cfg != 1.0 else 1)
    assert torch.equal(found.f_hat, dense.f_hat) == (count == 1)
    last = found.trace.scales[-1]
    assert last.ran and (last.stage == "fidelity") == (count > 1)
    if count > 1:
        assert last.rows == 1 and last.computed == round(0.67 * 30)


@pytest.mark.parametrize("cfg", [3.0, 1.0], ids=["guided", "unguided"])
def test_less_work_than_dense_with_and_without_guidance(cfg: float) -> None:
    settings = SamplingSettings(cfg_scale=cfg, temperature=1.0)
    result = sampled(PRESETS["auto"], prompts(5), SQUARE, settings=settings)
    assert result.trace.ratio > 1.0 and result.trace.policy == "auto"
    assert any("guidance" in note for note in result.trace.notes) <= (cfg != 1.0)
    assert any("structure ended" in note for note in result.trace.notes)
