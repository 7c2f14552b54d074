"""FastVAR, SkipVAR and SparseVAR as policies of the same loop."""

from dataclasses import dataclass, field, replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stagevar_core.acceleration import sparsevar
from stagevar_core.acceleration.fastvar import FASTVAR, ON_HART, ON_INFINITY, FastVAR, PruningSetting
from stagevar_core.acceleration.policy import RunInfo, Seen
from stagevar_core.acceleration.presets import PRESETS, preset
from stagevar_core.acceleration.skipvar import (
    SKIPVAR,
    Regression,
    SkipVAR,
    allowed,
    edges,
    features,
    fit,
    high_frequencies,
)
from stagevar_core.acceleration.sparsevar import SPARSEVAR, SparseVAR, anchors, choose
from stagevar_core.conditioning.types import TextConditioning
from stagevar_core.models.infinity import Infinity
from stagevar_core.network.cache import KVCache
from stagevar_core.network.context import ScaleContext
from stagevar_core.sampling.noise import SeededNoise
from stagevar_core.sampling.result import Monitor
from stagevar_core.sampling.settings import SamplingSettings
from stagevar_core.schedule import (
    SIDES_256,
    SIDES_512,
    SIDES_1024,
    ScaleSchedule,
    infinity_aspect_table,
)
from tests.support.pairs import pairs
from tests.support.tiny import SQUARE, TALL, Logits, prompts, run, same_codes, tiny_infinity
from tests.support.tiny_var import squares

# Three scales beyond a quarter of the area, as the schedules of 1024 px.
LONG = ScaleSchedule.of([(1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (6, 6), (8, 8)], (64, 64))
WIDE = ScaleSchedule.of([(1, 1), (1, 2), (2, 3), (2, 5), (3, 6), (4, 8), (5, 10)], (48, 80))
SHAPES = {"square": SQUARE, "tall": TALL, "long": LONG, "wide": WIDE}


def always(number: int) -> Regression:
    """Decides the same for every image."""
    bias = tuple(float(n == number) for n in range(4))
    return Regression((0.0, 0.0), (1.0, 1.0), ((0.0, 0.0),) * 4, bias)


METHODS = {
    "fastvar": FASTVAR,
    "skipvar": SKIPVAR,
    "skipvar that skips": SkipVAR(skips=always(1)),
    "skipvar that drops": SkipVAR(skips=always(0), drops=always(2)),
    "sparsevar": SPARSEVAR,
    # The tokens of a random model change almost alike.
    "sparsevar that copies": SparseVAR(threshold=0.99, similarity=-1.0),
    "sparsevar that drops": SparseVAR(threshold=0.99, similarity=2.0),
}
EVERYTHING = {
    "fastvar": FastVAR(PruningSetting((0.0, 0.0), 0), PruningSetting((0.0, 0.0), 0)),
    "skipvar": SkipVAR(skips=always(0), drops=always(0)),
    "sparsevar": SparseVAR(threshold=-1.0),
}


def drawn(model: Infinity, text: TextConditioning, schedule: ScaleSchedule, cfg: float = 3.0, **options):
    """A run that samples; greedy codes of a random model hardly differ between tokens."""
    settings = SamplingSettings(cfg_scale=cfg, temperature=2.0, top_k=0, top_p=0.0)
    return run(model, text, schedule, settings=settings, noise=SeededNoise(5, text.batch), **options)


def info(schedule: ScaleSchedule, depth: int = 3, *, guided: bool = True) -> RunInfo:
    return RunInfo(schedule, depth, 1, guided, False, (0,))


@dataclass
class Spied:
    """A policy whose runs can be looked at."""

    policy: object
    per_image: bool = True
    name: str = "spied"
    runs: list = field(default_factory=list)

    def start(self, info: RunInfo):
        self.runs.append(self.policy.start(info))
        return self.runs[-1]


class Latents(Monitor):
    def __init__(self) -> None:
        self.found: list[Tensor] = []

    def scale(self, scale, f_hat: Tensor) -> None:
        self.found.append(f_hat)


@pytest.mark.parametrize(
    ("method", "shape", "way"), pairs(tuple(METHODS), tuple(SHAPES), ("guided", "unguided", "negative"))
)
def test_an_image_is_the_same_in_a_batch_and_alone(method: str, shape: str, way: str) -> None:
    model, schedule, policy = tiny_infinity(depth=4), SHAPES[shape], METHODS[method]
    cfg = 1.0 if way == "unguided" else 3.0
    batch = prompts(5, 5, 5, negative=(4, 4, 4) if way == "negative" else None)
    together = drawn(model, batch, schedule, cfg, policy=policy)
    assert together.f_hat.shape == (3, 4, *schedule.final.grid) and together.f_hat.isfinite().all()
    alone = drawn(model, batch.image(0), schedule, cfg, policy=policy)
    assert alone.f_hat.shape[0] == 1 and torch.allclose(together.f_hat[:1], alone.f_hat, atol=1e-5)
    assert together.trace.policy == policy.name and together.trace.images == 3


@pytest.mark.parametrize("method", METHODS)
def test_a_dense_run_after_one_of_the_methods_is_unchanged(method: str) -> None:
    model, text = tiny_infinity(), prompts(5, 9)
    before = drawn(model, text, LONG)
    accelerated = drawn(model, text, LONG, policy=METHODS[method])
    again = drawn(model, text, LONG, policy=METHODS[method])
    after = drawn(model, text, LONG)
    assert torch.equal(accelerated.f_hat, again.f_hat)
    assert same_codes(before, after) and torch.equal(before.f_hat, after.f_hat)
    if method not in ("skipvar", "sparsevar"):  # what these decide on random weights is not the matter here
        assert not torch.equal(before.f_hat, accelerated.f_hat)
        assert accelerated.trace.flops < before.trace.flops


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", EVERYTHING)
def test_keeping_everything_is_the_dense_run(method: str, shape: str) -> None:
    model, text, schedule = tiny_infinity(), prompts(5), SHAPES[shape]
    dense = drawn(model, text, schedule)
    kept = drawn(model, text, schedule, policy=EVERYTHING[method])
    assert same_codes(dense, kept)
    # Where no token is missing the deltas of FastVAR and the gathers of SparseVAR cancel exactly.
    assert torch.equal(dense.f_hat, kept.f_hat)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ratio", [0.4, 0.75, 1.25, 2.5])
def test_the_methods_run_on_trained_aspect_ratios(method: str, ratio: float) -> None:
    table = infinity_aspect_table()
    schedule = table.schedule(min(table.grids, key=lambda known: abs(known - ratio)), "0.06M")
    found = run(tiny_infinity(depth=2), prompts(5), schedule, policy=METHODS[method])
    assert found.f_hat.shape[-2:] == schedule.final.grid and found.f_hat.isfinite().all()


@pytest.mark.parametrize("method", METHODS)
def test_the_cache_is_made_large_enough_at_once(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    grown = []
    resize = KVCache._resize
    monkeypatch.setattr(KVCache, "_resize", lambda self, *a: grown.append(a) or resize(self, *a))
    run(tiny_infinity(depth=2), prompts(5), LONG, policy=METHODS[method])
    stored = LONG.tokens - LONG.final.tokens  # nothing looks at the last scale's keys
    assert grown == [(0, stored), (1, stored)] or method == "fastvar"
    assert len(grown) == 2  # one reservation per layer, nothing later


@pytest.mark.parametrize("method", ["fastvar", "skipvar", "sparsevar"])
def test_a_schedule_that_is_too_short_runs_dense_and_says_so(method: str) -> None:
    model, text, schedule = tiny_infinity(), prompts(5), ScaleSchedule.of([(2, 2)], (64, 64))
    found = run(model, text, schedule, policy=PRESETS[method])
    assert torch.equal(found.f_hat, run(model, text, schedule).f_hat)
    assert len(found.trace.notes) == 1 and found.trace.notes[0].endswith("all run dense")


def test_the_peers_are_presets_that_take_no_overrides() -> None:
    assert list(PRESETS)[-6:-1] == ["paper", "paper-released", "fastvar", "skipvar", "sparsevar"]
    assert list(PRESETS)[-1] == "faster-hart"
    assert preset("fastvar") is FASTVAR and preset("skipvar") is SKIPVAR and preset("sparsevar") is SPARSEVAR
    with pytest.raises(ValueError, match="preset 'fastvar' is a fixed method and takes no keep"):
        preset("fastvar", keep=0.5)


def test_fastvar_prunes_two_scales_and_skips_two() -> None:
    found = run(tiny_infinity(depth=32), prompts(5), LONG, policy=FASTVAR).trace
    assert [scale.ran for scale in found.scales] == [True] * 5 + [False] * 2
    assert [scale.budget for scale in found.scales] == [(), (), (), (10,), (13,), (), ()]
    assert found.notes == []
    # 25 of 32 blocks are pruned in all three branches.
    assert [scale.computed for scale in found.scales[3:5]] == [
        (25 * 10 + 7 * 16) / 32,
        (25 * 13 + 7 * 25) / 32,
    ]
    assert [scale.visible for scale in found.scales[:3]] == [1, 5, 14]
    keys, tokens = [30.0] * 7 + [24.0] * 25, [16] * 7 + [10] * 25
    visible = sum(k * t for k, t in zip(keys, tokens, strict=True)) / sum(tokens)
    assert found.scales[3].visible == pytest.approx(visible)  # only the kept tokens are in the cache


@pytest.mark.parametrize("shape", ["square", "tall"])
def test_fastvar_skips_nothing_where_few_scales_are_large(shape: str) -> None:
    schedule = SHAPES[shape]
    found = run(tiny_infinity(depth=32), prompts(5), schedule, policy=FASTVAR).trace
    kept = [
        scale.tokens - int(share * scale.tokens)
        for scale, share in zip(schedule.scales[-2:], (0.4, 0.5), strict=True)
    ]
    assert [scale.budget for scale in found.scales] == [()] * (len(schedule) - 2) + [(kept[0],), (kept[1],)]
    assert found.skipped == 0 and len(found.notes) == 1 and "none of them is skipped" in found.notes[0]
    # All three branches of 25 of the 32 blocks, as on the published schedules.
    last = schedule.final.tokens
    assert found.scales[-1].computed == pytest.approx((25 * kept[1] + 7 * last) / 32)


def test_fastvar_has_the_setting_for_hart_on_its_schedule_alone() -> None:
    started = FASTVAR.start(info(squares(*SIDES_1024), depth=24))
    plans = [started.plan(scale) for scale in started.info.schedule]
    assert all(plan.run for plan in plans) and started.anchor == 11  # side 36
    assert [plan.budget for plan in plans[-3:]] == [(), (48 * 48 // 2,), (64 * 64 // 4,)]
    assert started.setting is ON_HART and started.layers == range(24)
    assert len(started.notes) == 1 and "HART" in started.notes[0]
    for others in (
        SIDES_256,
        SIDES_512,
    ):  # of VAR and STAR: the public code has no setting, ours is Infinity's
        started = FASTVAR.start(info(squares(*others), depth=30))
        plans = [started.plan(scale) for scale in started.info.schedule]
        assert [plan.run for plan in plans] == [True] * 8 + [False] * 2 and not started.notes
        assert [bool(plan.budget) for plan in plans] == [False] * 6 + [True] * 2 + [False] * 2
        assert started.setting is ON_INFINITY and started.layers == range(3, 28)


@pytest.mark.parametrize("part", ["self", "cross", "ffn"])
def test_fastvar_adds_the_anchor_scales_branch_output_to_the_tokens_it_drops(part: str) -> None:
    policy = FastVAR(replace(ON_INFINITY, blocks=None))
    started = policy.start(info(WIDE))
    generator = torch.Generator().manual_seed(0)
    seen: list[Tensor] = []

    def branch(h: Tensor, positions: Tensor | None) -> Tensor:
        seen.append(h)
        return torch.sin(3.0 * h) * 2.0

    def residual(index: int) -> tuple[Tensor, Tensor]:
        scale, plan = WIDE[index], started.plan(WIDE[index])
        x = torch.randn(4, scale.tokens, 6, generator=generator)
        ctx = ScaleContext(
            scale, WIDE, None, None, torch.float32, attention=None, cache=None, reduction=plan.reduction
        )
        return x, ctx.residual(x, branch, 1, part)

    anchor, dense = residual(2)
    assert torch.equal(dense, anchor + branch(anchor, None))
    x, y = residual(3)
    kept = WIDE[3].tokens - int(0.4 * WIDE[3].tokens)
    cached = branch(anchor, None).transpose(1, 2).unflatten(2, WIDE[2].grid)
    cached = F.interpolate(cached, size=WIDE[3].grid, mode="area").flatten(2).transpose(1, 2)
    distance = (x - x.mean(dim=1, keepdim=True)).square().sum(dim=-1)
    for row in range(4):
        chosen = set(distance[row].argsort(descending=True)[:kept].tolist())
        for token in range(WIDE[3].tokens):
            added = branch(x[row, token], None) if token in chosen else cached[row, token]
            assert torch.allclose(y[row, token], x[row, token] + added, atol=1e-5)
    # The rows of the guidance pair choose for themselves, and the next scale restores from the anchor again.
    assert len({tuple(torch.sort(row).values.tolist()) for row in distance.topk(kept).indices}) > 1
    x, y = residual(4)
    grown = branch(anchor, None).transpose(1, 2).unflatten(2, WIDE[2].grid)
    grown = F.interpolate(grown, size=WIDE[4].grid, mode="area").flatten(2).transpose(1, 2)
    restored = torch.isclose(y, x + grown, atol=1e-5).all(dim=-1).sum(dim=1)
    assert restored.tolist() == [WIDE[4].tokens // 2] * 4


def test_fastvar_prunes_the_blocks_of_its_code_where_a_model_has_them() -> None:
    assert [FASTVAR.start(info(LONG, depth)).layers for depth in (28, 32, 40)] == [range(3, 28)] * 3
    # Fewer blocks: the same part of the depth, dense at the start and at the end.
    assert FASTVAR.start(info(LONG, 16)).layers == range(2, 14)
    assert FASTVAR.start(info(SQUARE, 6)).layers == range(1, 5)
    assert FASTVAR.start(info(LONG, 1)).layers == range(0, 1)


def test_the_ranks_are_those_of_the_public_code() -> None:
    started = PRESETS["paper"].start(info(infinity_aspect_table().schedule(1.0, "1M"), depth=32))
    plans = [started.plan(scale) for scale in started.info.schedule]
    assert [plan.budget for plan in plans[-3:]] == [
        (27, 219, 337, 401, 410, 317, 252, 306),
        (31, 271, 437, 512, 541, 422, 309, 376),
        (34, 223, 341, 273, 233, 122, 157, 228),
    ]


def test_sparsevar_runs_what_changed_and_a_lattice_of_anchors() -> None:
    before, after = LONG[3], LONG[6]  # 4 x 4 and 8 x 8
    assert anchors(after, 4).tolist() == [0, 4, 7, 32, 36, 39, 56, 60, 63]
    assert anchors(WIDE[4], 4).tolist() == [0, 4, 5, 12, 16, 17]
    change = torch.full((16,), 0.5)
    change[5], change[10] = 1.0, 0.61
    logits = torch.zeros(16, 2)
    logits[:, 0] = 1.0
    logits[3] = torch.tensor([0.0, 1.0])  # the top right cell resembles none of the anchors but its own
    choice = choose(change, logits, before, after, SPARSEVAR)
    hot = {8 * (2 * r + i) + 2 * c + j for r, c in ((1, 1), (2, 2)) for i in (0, 1) for j in (0, 1)}
    assert set(choice.keep.tolist()) == hot | set(anchors(after, 4).tolist())
    ran = torch.zeros(64, dtype=torch.bool)
    ran[choice.keep] = True
    assert torch.equal(choice.source[ran], torch.arange(64)[ran]) and choice.weights[ran].eq(1).all()
    # Tokens 6, 14 and 15 lie in the top right cell; anchor 7 does, too, and is what they copy.
    assert choice.source[[6, 14, 15]].tolist() == [7, 7, 7]
    assert choice.source[1].item() in (0, 4) and choice.weights.eq(1).all()


def test_sparsevar_gives_no_code_to_tokens_that_resemble_no_anchor() -> None:
    before = after = LONG[6]
    logits = torch.eye(64)  # no two tokens alike
    choice = choose(torch.ones(64) - torch.eye(64)[0] * 0.9, logits, before, after, SPARSEVAR)
    assert choice.weights.eq(1).all()  # all but one run, and that one is an anchor
    change = torch.zeros(64)
    change[9] = 1.0
    choice = choose(change, logits, before, after, SPARSEVAR)
    kept = {9, *anchors(after, 4).tolist()}
    assert set(choice.weights.nonzero().flatten().tolist()) == kept == set(choice.keep.tolist())
    assert torch.equal(choice.source, torch.arange(64))


@pytest.mark.parametrize("similarity", [-1.0, 2.0])
def test_sparsevar_copies_states_and_zeroes_codes_in_a_run(similarity: float) -> None:
    policy, logits, latents = Spied(SparseVAR(threshold=0.99, similarity=similarity)), Logits(), Latents()

    class Both(Monitor):
        def logits(self, *args) -> None:
            logits.logits(*args)

        def scale(self, *args) -> None:
            latents.scale(*args)

    found = drawn(tiny_infinity(depth=8), prompts(5), LONG, policy=policy, monitor=Both())
    choice = policy.runs[0]._choice
    assert found.trace.scales[-1].budget == (len(choice.keep),)
    assert found.trace.scales[-1].computed == len(choice.keep) < LONG.final.tokens
    last = logits.guided[-1][0]
    assert torch.allclose(last, last[choice.source], atol=1e-6)
    added = (latents.found[-1] - latents.found[-2])[0].flatten(1)
    assert torch.equal(added.abs().sum(dim=0) > 0, choice.weights > 0)
    dropped = LONG.final.tokens - len(choice.keep)
    assert (choice.weights == 0).sum().item() == (0 if similarity < 0 else dropped)


@pytest.mark.parametrize(("depth", "middle"), [(32, (12, 16)), (16, (6, 8)), (6, (2, 3)), (1, (0, 1))])
def test_sparsevar_judges_by_what_a_middle_chunk_changed(
    depth: int, middle: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs, outputs, judged = tiny_infinity(depth=depth), [], [], []
    monkeypatch.setattr(sparsevar, "choose", lambda *a: judged.append(a) or choose(*a))
    model.blocks[middle[0]].register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    model.blocks[middle[1] - 1].register_forward_hook(lambda module, args, out: outputs.append(out))
    drawn(model, prompts(5), LONG, policy=SPARSEVAR)
    change, logits, before, after, _ = judged[0]
    assert (before, after) == (LONG[3], LONG[4]) and logits.shape == (before.tokens, 8)
    assert torch.allclose(change, (outputs[3] - inputs[3]).square().mean(dim=(0, 2)))  # over both rows
    assert [call[2].index for call in judged] == [3, 4, 5]


def test_skipvar_features_tell_flat_from_busy_latents() -> None:
    flat = torch.ones(1, 3, 8, 12)
    checks = (torch.arange(8)[:, None] + torch.arange(12)[None, :]) % 2 * 2.0 - 1.0
    busy = checks.expand(1, 3, 8, 12)
    assert edges(flat).abs().max() == 0 and high_frequencies(flat).item() == 0
    assert high_frequencies(busy).item() == pytest.approx(1.0)
    ramp = torch.arange(12.0).expand(1, 1, 8, 12)
    assert edges(ramp)[0, 4, 5].item() == pytest.approx(8.0)  # four times the difference of two columns
    assert features(flat, flat).tolist() == [[0.0, 0.0]]
    assert (
        features(flat, ramp.expand(1, 3, 8, 12))[0, 0] > features(flat, 0.5 * ramp.expand(1, 3, 8, 12))[0, 0]
    )


# Skips two scales below 30% high frequencies, one below 50%, else none.
STEPS = Regression((0.0, 0.4), (1.0, 0.1), ((0.0, 2.0), (0.0, 0.0), (0.0, -2.0)), (-2.0, 0.0, -2.0))


@pytest.mark.parametrize(("share", "skip", "drop"), [(0.1, 2, 0), (0.4, 1, 0), (0.9, 0, 3)])
def test_skipvar_decides_by_the_latent_after_the_structure_stage(share: float, skip: int, drop: int) -> None:
    started = SkipVAR(skips=STEPS, drops=always(3)).start(info(LONG))
    checks = ((torch.arange(8)[:, None] + torch.arange(8)[None, :]) % 2 * 2.0 - 1.0).expand(1, 4, 8, 8)
    latent = (1.0 - share) + share * checks  # the mean and the highest frequency alone
    for scale in LONG.scales[:4]:
        assert started.plan(scale).run and started.plan(scale).rows == "both"
        old = scale.index == 2
        started.observe(Seen(scale, 0.0 * latent if old else latent, latent, *(None,) * 4))
    plans = [started.plan(scale) for scale in LONG.scales[4:]]
    assert [plan.run for plan in plans] == [True] * (3 - skip) + [False] * skip
    assert [plan.rows for plan in plans] == ["conditional" if drop else "both"] * 3
    assert started.room(LONG[4]) == sum(scale.tokens for scale in LONG.scales[4 : 7 - skip])
    assert len(started.notes) == 1 and f"{skip} scales skipped" in started.notes[0]
    assert f"{share:.1%} high frequencies" in started.notes[0]


def test_skipvar_skips_at_most_the_fidelity_stage() -> None:
    found = run(tiny_infinity(), prompts(5), SQUARE, policy=SkipVAR(skips=always(3))).trace
    assert [scale.ran for scale in found.scales] == [True] * 5  # four numbers known, none of them up to two
    better = Regression((0.0, 0.0), (1.0, 1.0), ((0.0, 0.0),) * 4, (0.0, 1.0, 2.0, 3.0))
    found = run(tiny_infinity(), prompts(5), SQUARE, policy=SkipVAR(skips=better)).trace
    assert [scale.ran for scale in found.scales] == [True] * 3 + [False] * 2


def test_skipvar_decides_for_every_image_on_its_own() -> None:
    median = drawn(tiny_infinity(), prompts(5, 5, 5), LONG, policy=SkipVAR(skips=always(0), drops=always(0)))
    values = [float(note.split("edges changed by ")[1].split(",")[0]) for note in median.trace.notes]
    middle = sorted(values)[1] + 1e-3
    split = Regression((middle, 0.0), (1e-4, 1.0), ((1.0, 0.0), (-1.0, 0.0)), (0.0, 0.0))
    found = drawn(tiny_infinity(), prompts(5, 5, 5), LONG, policy=SkipVAR(skips=split, drops=always(0)))
    skipped = ["1 scales skipped" in note for note in found.trace.notes]
    assert skipped == [value < middle for value in values] and any(skipped) and not all(skipped)
    assert found.trace.scales[-1].rows == 2 * skipped.count(False)


def test_a_regression_learns_what_decides() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(300, 2, generator=generator) * torch.tensor([3.0, 0.01]) + torch.tensor([5.0, 0.2])
    numbers = (values[:, 0] < 5.0).long() * 2  # nobody skips exactly one
    found = fit(values, numbers)
    decided = torch.tensor([found.decide(row.tolist(), 3) for row in values])
    assert (decided == numbers).float().mean() > 0.97
    assert all(found.decide(row.tolist(), 1) in (0, 1) for row in values)
    assert found.weights[0][0] > 0 > found.weights[2][0]
    with torch.inference_mode():
        assert torch.allclose(torch.tensor(fit(values.clone(), numbers).weights), torch.tensor(found.weights))
    with pytest.raises(ValueError, match="got 1 rows of features"):
        fit(values[:1], numbers[:1])


def test_an_image_may_skip_as_much_as_its_score_allows() -> None:
    assert allowed([0.95, 0.9, 0.7], 0.88) == 2
    assert allowed([0.8, 0.7, 0.6], 0.88) == 0 and allowed([], 0.88) == 0


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"prune\[1\] is 1.5; expected a number from 0 to 1"):
        replace(ON_HART, prune=(0.5, 1.5))
    with pytest.raises(ValueError, match="window is 0"):
        SparseVAR(window=0)
    with pytest.raises(ValueError, match="chunk is 8; expected 0 to 7"):
        SparseVAR(chunk=8)
