"""Plans of the stage-aware engine: stages, guidance, budgets, room in the cache and what is remembered."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from stagevar_core.acceleration.changes import changed
from stagevar_core.acceleration.policy import RunInfo, Seen
from stagevar_core.acceleration.presets import PRESETS, preset
from stagevar_core.acceleration.reduction import best
from stagevar_core.acceleration.scores import evened
from stagevar_core.acceleration.settings import StageSettings, interpolate, share_at
from stagevar_core.acceleration.staged import StagedPolicy, StagedRun, chunks
from stagevar_core.acceleration.stages import StageBoundaries, boundaries_of, kept_scales
from stagevar_core.network.tokens import resize_tokens
from stagevar_core.schedule import SIDES_256, Scale, ScaleSchedule, infinity_aspect_table
from tests.support.tiny import SQUARE, Logits, prompts, run, tiny_infinity

ASPECTS = infinity_aspect_table()
MEGAPIXEL = ASPECTS.schedule(1.0, "1M")
LATE = ScaleSchedule.of([(1, 1), (2, 2), (4, 4), (6, 6), (7, 7), (8, 8)])


def started(
    schedule: ScaleSchedule = MEGAPIXEL, depth: int = 32, guided: bool = True, **settings
) -> StagedRun:
    """A run of some settings, without a model."""
    policy = StagedPolicy("tried", changed(StageSettings(), **settings))
    return policy.start(RunInfo(schedule, depth, 1, guided, False, (0,)))


# ------------------------------------------------------------------------------------------------- stages


def test_the_stages_of_the_paper() -> None:
    stages = StageBoundaries().stages(MEGAPIXEL)
    assert [scale.width for scale in MEGAPIXEL][6:] == [16, 20, 24, 32, 40, 48, 64]
    assert stages == ["semantic"] * 7 + ["structure"] * 3 + ["fidelity"] * 3


@pytest.mark.parametrize("budget", list(ASPECTS.budgets))
@pytest.mark.parametrize("ratio", list(ASPECTS.grids))
def test_every_trained_schedule_has_a_fidelity_stage(ratio: float, budget: str) -> None:
    schedule = ASPECTS.schedule(ratio, budget)
    stages = StageBoundaries().stages(schedule)
    assert stages == sorted(stages, key=["semantic", "structure", "fidelity"].index)
    assert stages.count("fidelity") in {"1M": [3], "0.06M": [2, 3]}.get(budget, [3, 4])


def test_the_first_scale_is_never_in_the_fidelity_stage() -> None:
    nothing = StageBoundaries(0.0, 0.0)
    assert nothing.stages(SQUARE) == ["structure"] + ["fidelity"] * 4
    whole = StageBoundaries(1.0, 1.0)
    assert set(whole.stages(SQUARE)) == {"semantic"}
    assert "all run dense" in started(boundaries=whole).notes[0] and not started().notes


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((-0.1, 0.5), "semantic_end is -0.1; expected a fraction"),
        ((0.1, float("nan")), "structure_end is nan"),
        ((0.5, 0.25), "semantic_end is 0.5, after structure_end 0.25"),
    ],
)
def test_boundaries_that_cannot_be_used_are_named(values: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StageBoundaries(*values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"guidance": "none"}, "guidance is 'none'; expected one of"),
        ({"tokens": "drop"}, "tokens is 'drop'"),
        ({"score": "size"}, "score is 'size'"),
        ({"restoration": "copy"}, "restoration is 'copy'"),
        ({"resize": "cubic"}, "resize is 'cubic'"),
        ({"attention": "sparse"}, "attention is 'sparse'"),
        ({"kv": "all"}, "kv is 'all'"),
        ({"kv": 1.5}, "kv is 1.5"),
        ({"reuse": -1.0}, "reuse is -1.0"),
        ({"guidance_end": 1.01}, "guidance_end is 1.01"),
        ({"evenness": -0.1}, "evenness is -0.1"),
        ({"code_weight": float("nan")}, "code_weight is nan"),
        ({"keep": 1.01}, "keep is 1.01"),
        ({"keep": ((0.5, 2.0),)}, r"keep\[0\]\[1\] is 2.0; expected .* from 0 to 1"),
        ({"keep": ((0.5, (0.1, "x")),)}, r"keep\[0\]\[1\]\[1\] is 'x'"),
        ({"keep": ()}, r"keep is \(\); expected 1 to 64 points \[area fraction, share\]"),
        ({"keep": ((0.5, 0.1), (0.5, 0.2))}, r"keep\[1\]\[0\] is 0.5; expected more than 0.5"),
        ({"keep": ((0.5, ()),)}, r"keep\[0\]\[1\] is \(\); expected 1 to 256 shares"),
        ({"spans": 0}, "spans is 0"),
        ({"spans": 2.0}, "spans is 2.0"),
        ({"skip": -2}, "skip is -2"),
    ],
)
def test_settings_that_cannot_be_used_are_named(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        changed(StageSettings(), **values)


def test_presets_take_changes_by_name() -> None:
    assert preset("balanced") is PRESETS["balanced"]
    before = PRESETS["balanced"].settings
    assert preset("balanced", keep=0.5).settings == replace(before, tokens=replace(before.tokens, keep=0.5))
    for name, changes, message in (
        ("best", {}, "preset is 'best'; expected one of"),
        ("fast", {"speed": 2}, "'speed' is unknown; expected any of .*'keep'"),
        ("off", {"keep": 0.5}, "preset 'off' is a fixed method and takes no keep"),
    ):
        with pytest.raises(ValueError, match=message):
            preset(name, **changes)


@pytest.mark.parametrize(
    "schedule",
    [*(ASPECTS.schedule(ratio, budget) for ratio in ASPECTS.grids for budget in ASPECTS.budgets), LATE],
    ids=str,
)
def test_a_variation_keeps_fewer_scales_the_larger_it_is(schedule: ScaleSchedule) -> None:
    """From all to none; its middle is the end of structure, three quarters that of the semantic stage."""
    kept = [kept_scales(schedule, step / 1000) for step in range(1001)]
    assert kept == sorted(kept, reverse=True) and kept[0] == len(schedule) and kept[1] == len(schedule) - 1
    assert kept[1000] == 0 and set(kept) >= set(range(1, len(schedule)))
    stages = StageBoundaries().stages(schedule)
    assert kept[500] == len(schedule) - stages.count("fidelity")
    assert kept[750] == stages.count("semantic")


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), None, "half", True])
def test_a_variation_is_a_number_from_0_to_1(value: object) -> None:
    with pytest.raises(ValueError, match="variation"):
        kept_scales(MEGAPIXEL, value)  # pyright: ignore[reportArgumentType]


# ------------------------------------------------------------------------------------------------ budgets


def test_shares_are_interpolated_over_area_and_depth() -> None:
    assert [interpolate([(0.2, 1.0), (0.4, 3.0)], at) for at in (0.0, 0.2, 0.25, 0.4, 1.0)] == pytest.approx(
        [1.0, 1.0, 1.5, 3.0, 3.0]
    )
    keep = ((0.5, (0.0, 1.0)), (1.0, 0.5))
    assert share_at(keep, 0.5, 0.25) == 0.0 and share_at(keep, 0.5, 0.75) == 1.0
    assert share_at(keep, 0.75, 0.5) == pytest.approx(0.5) and share_at(0.3, 0.9, 0.1) == 0.3


@pytest.mark.parametrize(("depth", "count"), [(32, 8), (40, 8), (3, 8), (1, 8), (7, 3), (5, 1)])
def test_chunks_are_all_blocks_in_order(depth: int, count: int) -> None:
    spans = chunks(depth, count)
    assert [layer for span in spans for layer in span] == list(range(depth))
    assert len(spans) == min(depth, count) and max(map(len, spans)) - min(map(len, spans)) <= 1


def test_gathered_budgets_are_multiples_of_64_on_large_scales() -> None:
    for share, expected in (
        (0.25, [384, 576, 1024]),
        (0.05, [64, 128, 192]),
        (0.03, [48, 64, 128]),
        (1.0, [1600, 2304, 4096]),
        (0.97, [1536, 2240, 3968]),
        (0.0, [0, 0, 0]),
    ):
        tried = started(tokens="gather", keep=share)
        assert [tried.budgets(scale) for scale in MEGAPIXEL.scales[-3:]] == [(n,) for n in expected]
    odd = ASPECTS.schedule(1.25, "1M")  # its last grid, 70 x 56, holds no multiple of 64
    assert started(odd, tokens="gather", keep=1.0).budgets(odd.final) == (3920,)
    small = started(LATE, tokens="gather", keep=0.005)
    assert small.budgets(LATE.final) == (1,)  # something runs unless nothing is asked for


def test_projected_budgets_are_those_of_the_public_code() -> None:
    tried = started(depth=40, tokens="projection", keep=PRESETS["paper"].settings.tokens.keep, spans=8)
    assert tried.budgets(MEGAPIXEL[-3]) == (27, 219, 337, 401, 410, 317, 252, 306)
    assert tried.budgets(MEGAPIXEL[-1]) == (34, 223, 341, 273, 233, 122, 157, 228)
    assert started(tokens="projection", keep=1.0).budgets(MEGAPIXEL[-1]) == (4096,)


@pytest.mark.parametrize(("skip", "expected"), [(0, []), (1, [5]), (2, [4, 5]), (3, [4, 5]), (9, [4, 5])])
def test_one_fidelity_scale_always_runs(skip: int, expected: list[int]) -> None:
    tried = started(LATE, skip=skip)
    assert [s.index for s in tried.fidelity()] == [3, 4, 5]
    assert [scale.index for scale in LATE if not tried.plan(scale).run] == expected


def test_scales_without_tokens_and_codes_do_not_run() -> None:
    late = {"tokens": "gather", "keep": ((0.75, 0.0), (0.9, 0.5))}
    plans = {w: started(code_weight=w, **late) for w in (0.0, 0.5)}
    runs = {w: [run.plan(scale).run for scale in MEGAPIXEL.scales[-4:]] for w, run in plans.items()}
    assert runs == {0.0: [True, False, False, True], 0.5: [True] * 4}
    assert [plan.note for plan in map(started(code_weight=0.0, **late).plan, MEGAPIXEL)].count("skipped") == 2
    half = started(code_weight=0.0, tokens="gather", keep=((0.75, (0.0, 0.5)), (0.9, 0.0)), spans=2)
    assert [half.plan(scale).run for scale in MEGAPIXEL.scales[-3:]] == [True, True, False]
    assert half.budgets(MEGAPIXEL[-3]) == (0, 768)  # one span of two runs, so the scale does


def test_evenness_goes_from_the_score_to_an_even_spread() -> None:
    model, text, found = tiny_infinity(), prompts(5, 9), {}
    for score, evenness in (
        ("detail", 0.0),
        ("detail", 0.4),
        ("detail", 1.0),
        ("grid", 0.0),
        ("random", 1.0),
    ):
        settings = changed(
            StageSettings(), tokens="gather", keep=0.4, score=score, evenness=evenness, code_weight=0.0
        )
        found[score, evenness] = run(model, text, LATE, policy=StagedPolicy("even", settings)).f_hat
    assert torch.equal(found["detail", 1.0], found["grid", 0.0])
    assert torch.equal(found["detail", 1.0], found["random", 1.0])  # the score no longer matters
    distinct = [found["detail", evenness] for evenness in (0.0, 0.4, 1.0)]
    assert not any(torch.equal(distinct[i], distinct[i - 1]) for i in range(3))


def test_ranks_take_the_same_tokens_as_their_scores() -> None:
    scores = torch.randn(2, LATE.final.tokens, generator=torch.Generator().manual_seed(0)) ** 3
    for budget in (1, 20, 63):
        assert torch.equal(best(evened(scores, LATE.final, 0.0), budget, 2), best(scores, budget, 2))
    spread = best(evened(scores, LATE.final, 1.0), 16, 2)
    corners = [((spread[0] // 8 // 4 == i) & (spread[0] % 8 // 4 == j)).sum() for i in (0, 1) for j in (0, 1)]
    assert torch.equal(spread[0], spread[1]) and min(corners) >= 3 and max(corners) <= 5


def test_guidance_ends_at_its_area_or_with_the_structure_stage() -> None:
    late = MEGAPIXEL.scales[-5:]  # sides 24, 32, 40, 48 and 64 of 64

    def plans(**settings) -> list[tuple[str, float]]:
        tried = started(**settings)
        return [(plan.rows, plan.reuse) for plan in map(tried.plan, late) if plan.run]

    both, alone = ("both", 0.0), ("conditional", 0.0)
    assert plans() == [both, both, alone, alone, alone]
    assert plans(guidance_end=0.2) == [both, alone, alone, alone, alone]
    assert plans(guidance_end=0.0, guidance="both") == [both] * 5
    reused = [("conditional", 0.5**n) for n in (1, 2, 3, 4)]
    assert plans(guidance_end=0.2, guidance="reuse") == [both, *reused]
    assert plans(guidance_end=0.2, guidance="reuse", skip=2) == [both, *reused[:2]]
    none = {"tokens": "gather", "keep": ((0.75, 0.0), (0.9, 0.5)), "code_weight": 0.0}
    assert plans(guidance_end=0.2, guidance="reuse", **none) == [both, *reused[:2]]
    assert started(guidance_end=0.0).plan(MEGAPIXEL[0]).rows == "both"  # nothing comes before it


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("guidance", ["both", "reuse"])
@pytest.mark.parametrize("kv", ["append", "none", 0.25])
def test_room_is_the_longest_that_the_cache_gets(kv, guidance: str, guided: bool) -> None:
    tried = started(guided=guided, guidance=guidance, tokens="gather", keep=0.25, kv=kv)
    before, first, second = sum(s.tokens for s in MEGAPIXEL.scales[:-3]), 384, 576
    lengths = {
        "append": [before + first, before + first + second],
        "none": [before],
        0.25: [before + first, 1030 + second],  # a quarter of the 4,121 tokens so far
    }[kv]  # nothing looks at the last scale's keys
    whole = max(before, *lengths)
    narrows = guided and guidance == "reuse"
    assert tried.room(MEGAPIXEL[0]) == (before if narrows else whole)
    assert tried.room(MEGAPIXEL[-3]) == whole - before


# ---------------------------------------------------------------------------------------- what is remembered


class Kept(StagedPolicy):
    """Keeps the state of its last run."""

    def start(self, info: RunInfo) -> StagedRun:
        object.__setattr__(self, "last", Watched(self.settings, info))
        return self.last


class Watched(StagedRun):
    """Notes the scale and the rows of what is remembered, when a scale is planned and after it ran."""

    def __init__(self, *values) -> None:
        super().__init__(*values)
        self.found: list[tuple] = []

    def plan(self, scale: Scale):
        plan = super().plan(scale)
        self.found.append(("plan", scale.index, *self.remembered()))
        return plan

    def narrow(self, rows: slice) -> None:
        super().narrow(rows)
        self.found[-1] = (*self.found[-1][:2], *self.remembered())  # right after the plan

    def observe(self, seen: Seen) -> None:
        super().observe(seen)
        self.found.append(("ran", seen.scale.index, *self.remembered()))

    def remembered(self) -> list[tuple[int, int]]:
        return sorted({(scale.index, len(value)) for scale, value in self.memory._found.values()})


def kept(schedule: ScaleSchedule = LATE, **settings) -> list[tuple]:
    """What a run of two images remembered when."""
    policy = Kept("kept", changed(StageSettings(), **settings))
    run(tiny_infinity(), prompts(5, 9), schedule, policy=policy)
    return policy.last.found


def test_the_scale_before_one_that_is_cut_is_remembered() -> None:
    found = kept(tokens="gather", keep=0.25, spans=2)
    assert found[-7:] == [
        ("ran", 2, (2, 4)),
        ("plan", 3, (2, 2)),  # the rows are dropped with those of the cache
        ("ran", 3, (3, 2)),
        ("plan", 4, (3, 2)),
        ("ran", 4, (4, 2)),
        ("plan", 5, (4, 2)),
        ("ran", 5, (4, 2)),  # nothing follows that could need it
    ]
    assert all(len(entry) == 2 for entry in found[:-7])


def test_what_is_remembered_has_the_rows_that_guidance_left() -> None:
    found = kept(tokens="gather", keep=0.25, guidance="reuse", guidance_end=0.1)
    assert [entry for entry in found if len(entry) > 2][:3] == [
        ("ran", 2, (2, 2)),  # structure, already without the other rows
        ("plan", 3, (2, 2)),
        ("ran", 3, (3, 2)),
    ]


def test_a_scale_that_runs_in_full_is_remembered_as_well() -> None:
    late = ((LATE.area_fraction(LATE[4]), 1.0), (1.0, 0.25))
    found = kept(tokens="gather", keep=late)
    assert [entry for entry in found if len(entry) > 2] == [
        ("ran", 4, (4, 2)),
        ("plan", 5, (4, 2)),
        ("ran", 5, (4, 2)),
    ]
    assert all(len(entry) == 2 for entry in kept(tokens="gather", keep=1.0) + kept())


@pytest.mark.parametrize("negative", [None, (4, 9)], ids=["null text", "negative text"])
@pytest.mark.parametrize("guidance", ["both", "conditional", "unconditional"])
@pytest.mark.parametrize("restoration", ["delta", "state"])
def test_rows_are_restored_from_their_own_past(
    restoration: str, guidance: str, negative: tuple | None
) -> None:
    # With no tokens at all the fidelity scale is its input and what is remembered: a direct reference.
    schedule, model, seen = ScaleSchedule.of([(1, 1), (3, 3), (6, 6)]), tiny_infinity(), Logits()
    text, inside, states = prompts(5, 9, negative=negative), [], []
    model.blocks[0].register_forward_pre_hook(lambda block, inputs: inside.append(inputs[0]))
    model.blocks[-1].register_forward_hook(lambda block, inputs, output: inside.append(output))
    narrowed = model.logits

    def watched(x: Tensor, state) -> Tensor:
        states.append(state)
        return narrowed(x, state)

    model.logits = watched
    settings = changed(StageSettings(), guidance=guidance, tokens="gather", keep=0.0, restoration=restoration)
    result = run(model, text, schedule, policy=StagedPolicy("none", settings), monitor=seen)
    assert len(inside) == 4  # two scales ran
    rows = {"both": slice(0, 4), "conditional": slice(0, 2), "unconditional": slice(2, 4)}[guidance]
    if guidance == "unconditional" and negative:
        rows = slice(0, 2)  # the null text goes on from the rows of the prompt
    before, after = (x[rows] for x in inside[2:])
    quantizer = model.quantizer()
    f_hat = quantizer.accumulate(result.codes[:2], schedule)
    with torch.inference_mode():
        x = model.embed(quantizer.next_input(f_hat, schedule[2])) + model.level_embed[2]
        past = resize_tokens(
            after - before if restoration == "delta" else after, schedule[1], schedule[2], "area"
        )
        past = past + x.repeat(len(past) // 2, 1, 1) if restoration == "delta" else past
        expected = narrowed(past, states[-1])
    assert torch.allclose(seen.raw[-1], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("grids", "semantic", "structure"),
    [
        ([(s, s) for s in (1, 2, 4, 6, 8, 12, 16)], 3, 5),
        ([(s, s) for s in SIDES_256], 4, 7),
        ([(1, 1), (8, 8)], 1, 1),
        ([(1, 1)], 1, 1),
    ],
    ids=str,
)
def test_a_stage_ends_after_its_last_scale(grids: list, semantic: int, structure: int) -> None:
    schedule, stages = ScaleSchedule.of(grids), StageBoundaries()
    assert stages.end(schedule, "semantic") == semantic and stages.end(schedule, "structure") == structure
    assert stages.end(schedule, "fidelity") == len(schedule)
    assert StageBoundaries(0.0, 0.0).end(schedule, "structure") == 1


def test_boundaries_are_those_of_the_policy() -> None:
    assert boundaries_of(preset("off")) == boundaries_of(preset("skipvar")) == StageBoundaries()
    assert boundaries_of(preset("balanced", structure_end=0.5)).structure_end == 0.5
    assert boundaries_of(preset("auto")) == preset("auto").settings.stages.boundaries
    assert boundaries_of(preset("fastvar")) == preset("fastvar").boundaries
