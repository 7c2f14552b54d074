"""HART: the text that opens the scales, its positions, guidance, and the head with its steps."""

from dataclasses import replace

import pytest
import torch

from stagevar_core.acceleration.policy import RunInfo
from stagevar_core.acceleration.presets import PRESETS, preset
from stagevar_core.conditioning.changing import ChangingConditioning
from stagevar_core.conditioning.regions import Region
from stagevar_core.conditioning.types import TextConditioning
from stagevar_core.models.contract import signed
from stagevar_core.models.draws import run_costs
from stagevar_core.models.hart import HART, last_weight
from stagevar_core.models.hart_config import HART_0_7B
from stagevar_core.models.residual_diffusion import chain, spaced
from stagevar_core.models.teacher import teacher_forced
from stagevar_core.network.attention import sdpa
from stagevar_core.network.rotary import grid_turns, line_turns, turn_halves
from stagevar_core.network.tokens import TokenMap
from stagevar_core.sampling.forecast import forecast
from stagevar_core.sampling.generate import generate
from stagevar_core.sampling.noise import SeededNoise
from stagevar_core.sampling.rows import Rows
from stagevar_core.sampling.settings import SamplingSettings
from stagevar_core.sampling.state import RunState
from stagevar_core.schedule import Prefix, Scale
from tests.support.tiny import TEXT_WIDTH, Logits, same_codes
from tests.support.tiny_hart import CONTEXT, MODULATED, SQUARES, padded, tiny_hart, tiny_hybrid
from tests.support.tiny_var import squares

SETTINGS = SamplingSettings(cfg_scale=3.0, temperature=1.0)
VARIANTS = [{}, MODULATED, {"modulation": "shared"}, {"context_norm": False, "modulation": "own"}]


def draw(model: HART, texts=None, settings=SETTINGS, *, seed: int = 5, **options):
    texts = texts or padded(1)
    return generate(
        *(model, texts, SQUARES, settings),
        noise=None if settings.greedy else SeededNoise(seed, texts.batch),
        quantizer=tiny_hybrid().quantizer(),
        **options,
    )


# ----------------------------------------------------------------------------------------------- text


def test_it_signs_the_contract() -> None:
    model = signed(tiny_hart())
    assert (model.family, model.text_family, model.longest_text) == ("hart", "qwen2", CONTEXT)
    prefix = model.prefix(padded(1), SQUARES)
    assert prefix == Prefix(0, 1, CONTEXT, opens=True)
    assert SQUARES.entering(SQUARES[0], prefix) == 0 and SQUARES.entering(SQUARES[1], prefix) == 4


@pytest.mark.parametrize("options", VARIANTS, ids=lambda options: options.get("modulation", "plain"))
def test_the_loop_draws_what_one_pass_over_the_same_codes_says(options: dict) -> None:
    model, seen = tiny_hart(**options), Logits()
    made = draw(model, settings=replace(SETTINGS, cfg_scale=0.0), monitor=seen)
    inputs = tiny_hybrid().quantizer().teacher_inputs(made.codes, SQUARES)
    expected = teacher_forced(model, padded(1), inputs, SQUARES, attention=sdpa)
    assert torch.cat(seen.raw, dim=1).shape == expected.shape == (1, SQUARES.tokens, 24)
    assert torch.allclose(torch.cat(seen.raw, dim=1), expected, atol=2e-5)


def test_padding_counts_where_it_stands_and_moves_the_picture() -> None:
    model, texts = tiny_hart(), padded(1)
    first, changed = Logits(), Logits()
    draw(model, monitor=first)
    other = texts.features[0].clone()
    other[-1] += 1.0  # of padding, which is read as well
    draw(model, replace(texts, features=(other,)), monitor=changed)
    assert not torch.allclose(first.raw[0], changed.raw[0])
    moved = Logits()
    draw(model, replace(texts, padding=(1,)), monitor=moved)
    assert not torch.allclose(first.raw[1], moved.raw[1])


def test_the_null_text_is_zeros_with_one_token() -> None:
    state = tiny_hart().condition(padded(2), True, torch.device("cpu"), sdpa)
    assert state.places.tolist() == [
        [0, 1, 2, 3, 4, 4, 4, 4, 4],
        list(range(9)),
        *[[0] * 9] * 2,
    ]
    assert torch.equal(state.start[2], state.start[3]) and len(state.start[2].unique(dim=0)) == 1
    negative = tiny_hart().condition(padded(2, negative=True), True, torch.device("cpu"), sdpa)
    assert negative.places[2, -1] == 5 and not torch.equal(negative.start[2], state.start[2])


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (TextConditioning((torch.zeros(12, TEXT_WIDTH),)), r"shape \(12, 24\).*trained on \(9, 24\)"),
        (TextConditioning((torch.zeros(9, 32),)), r"shape \(9, 32\).*trained on \(9, 24\), with padding"),
        (replace(padded(1), source=torch.zeros(1, 4, 6, 6)), "these HART weights were not trained to edit"),
        (
            ChangingConditioning((padded(1), padded(1, negative=True)), (0, 0, 1)),
            "this model reads its text once, before the first scale",
        ),
    ],
)
def test_texts_that_it_cannot_read_are_refused(texts, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw(tiny_hart(), texts)


def test_prompts_that_hold_in_a_region_are_refused() -> None:
    regions = (Region(5), Region(4, torch.ones(4, 4)))
    with pytest.raises(ValueError, match="prompts that hold in a region need cross-attention"):
        draw(tiny_hart(), replace(padded(1), regions=(regions,)))


def test_padding_is_a_part_of_the_text() -> None:
    with pytest.raises(ValueError, match=r"texts of \[9\] tokens have \[10\] of padding"):
        replace(padded(1), padding=(10,))
    empty = tiny_hart(**MODULATED).condition(
        replace(padded(1), padding=(9,)), False, torch.device("cpu"), sdpa
    )
    assert empty.places.tolist() == [[-1] * 9] and empty.block_ada[0].isfinite().all()


@pytest.mark.parametrize("schedule", [squares(1, 2, 3, 4), squares(1, 2, 3, 4, 5), squares(1, 2, 3, 4, 6, 8)])
def test_other_schedules_are_refused(schedule) -> None:
    with pytest.raises(ValueError, match=r"trained on squares with the sides \[1, 2, 3, 4, 6\] only"):
        tiny_hart().check(schedule)


# ------------------------------------------------------------------------------------------ positions


def test_halves_of_a_scale_turn_by_row_and_column() -> None:
    scale, behind = Scale(2, 2, 3), torch.tensor([4, 0])
    turns = grid_turns(scale, (6, 6), behind, 8)
    assert turns.shape == (2, 2, 6, 8)
    rates = torch.tensor([1.0, 0.01])
    row, column = 1 * 6 / 2 + 4, 2 * 6 / 3 + 4  # of the last token of the first row
    expected = torch.cat((row * rates, row * rates, column * rates, column * rates))
    assert torch.allclose(turns[0, 0, -1], expected.cos(), atol=1e-6)
    assert torch.allclose(turns[1, 0, -1], expected.sin(), atol=1e-6)
    x = torch.randn(2, 6, 3, 8, generator=torch.Generator().manual_seed(0))
    found, (cos, sin) = turn_halves(x, turns), turns.unsqueeze(-2)
    assert torch.allclose(found, x * cos + torch.cat((-x[..., 4:], x[..., :4]), dim=-1) * sin)


def test_a_line_turns_as_usual() -> None:
    turns = line_turns(torch.tensor([[0, 3]]), 4)
    assert torch.allclose(turns[0, 0, 1], torch.tensor([3.0, 0.03, 3.0, 0.03]).cos())


def test_tokens_that_are_kept_keep_the_positions_of_their_row() -> None:
    angles = torch.arange(24.0).view(1, 2, 6, 2).expand(2, -1, -1, -1)
    keep = torch.tensor([[0, 5], [2, 3]])
    found = TokenMap(keep).positions(angles)
    assert found is not None and torch.equal(found[0, 1, 0], angles[0, 1, 2])
    assert torch.equal(found[1, 0, 1], angles[1, 0, 5])


def test_the_null_text_that_takes_over_from_a_negative_one_stays_where_the_keys_are() -> None:
    texts = padded(2, negative=True)
    rows = Rows(tiny_hart(), texts, torch.device("cpu"), sdpa, guided=True)
    before = rows.conditioned.places
    rows.narrow("unconditional", 0, PRESETS["paper"].start(RunInfo(SQUARES, 3, 2, True, True, (0, 1))))
    assert torch.equal(rows.conditioned.places, before[:2])
    null = tiny_hart().condition(padded(2), True, torch.device("cpu"), sdpa)
    assert torch.equal(rows.conditioned.head_ada, null.head_ada[2:])


# ------------------------------------------------------------------------------------------- guidance


def test_the_last_scale_has_the_strength_of_the_one_before() -> None:
    weights = tiny_hart().guidance_weights(4.0, SQUARES)
    assert weights == (1.0, 2.0, 3.0, 4.0, 4.0)
    assert tiny_hart().guidance_weights((0.0, 1.0, 1.0, 2.0, 5.0), SQUARES)[-1] == 6.0


def test_a_strength_next_to_one_is_not_one() -> None:
    """The official code takes exactly 1 for no guidance, which ordinary settings reach."""
    assert last_weight(1.25, 6) == 2.0
    for strength in (1.0 - 2**-53, 1.0 + 2**-52):
        assert last_weight(strength * 2, 3) != 2.0


def test_exactly_one_leaves_the_residual_unguided() -> None:
    model, inside = tiny_hart(), []
    network = model.diffusion
    sample = network.sample
    object.__setattr__(network, "sample", lambda *given: inside.append(given) or sample(*given))
    for cfg, rows in ((4.0 / 3.0, 1), (2.0, 2), (0.0, 1)):
        draw(model, settings=replace(SETTINGS, cfg_scale=cfg))
        seen, _, weight, _ = inside.pop()
        assert len(seen) == rows and (weight is None) == (rows == 1)


# ----------------------------------------------------------------------------------------------- head


def test_steps_of_the_chain() -> None:
    assert spaced(8) == [0, 143, 285, 428, 571, 714, 856, 999]
    assert spaced(5) == [0, 250, 500, 749, 999] and spaced(6) == [0, 200, 400, 599, 799, 999]
    steps = chain(8)
    assert [step.time for step in steps] == spaced(8)[::-1] and [step.last for step in steps][-1]
    assert steps[-1].low == steps[-2].low and steps[-1].mean_clean == pytest.approx(1.0)
    for count in (1, 1001):
        with pytest.raises(ValueError, match=f"takes {count} steps; expected 2 to 1000"):
            chain(count)


def test_the_last_scale_alone_has_a_residual_and_keeps_it() -> None:
    model = tiny_hart()
    made, plain = draw(model), draw(model, settings=replace(SETTINGS, refine="off"))
    assert same_codes(made, plain) and not torch.allclose(made.f_hat, plain.f_hat)
    assert [scale.mixed is not None for scale in made.scales] == [False] * 4 + [True]
    assert all(scale.mixed is None for scale in plain.scales)
    quantizer = tiny_hybrid().quantizer()
    again = RunState.of(made, (5,), SETTINGS).latents(quantizer)[0]
    assert torch.allclose(again, made.f_hat, atol=1e-6)
    assert torch.allclose(quantizer.accumulate(plain.codes, SQUARES), plain.f_hat, atol=1e-6)


def test_a_run_that_stopped_ends_where_it_would_have_ended() -> None:
    model = tiny_hart()
    whole, begun = draw(model), draw(model, until=3)
    state = RunState.of(begun, (5,), SETTINGS)
    assert torch.equal(draw(model, resumed=state).f_hat, whole.f_hat)
    finished = RunState.from_bytes([RunState.of(whole, (5,), SETTINGS).to_bytes(0)])
    assert finished is not None and torch.equal(draw(model, resumed=finished).f_hat, whole.f_hat)


@pytest.mark.parametrize("smooth", [False, True])
def test_a_scale_that_does_not_run_draws_all_the_same(smooth: bool) -> None:
    model = tiny_hart()
    head, used, passed = model.drawing_head(), SeededNoise(1, 1), SeededNoise(1, 1)
    settings = replace(SETTINGS, smooth=smooth)
    generate(model, padded(1), SQUARES, settings, noise=used, quantizer=tiny_hybrid().quantizer())
    for scale in SQUARES:
        head.pass_over(scale, 1, passed, torch.device("cpu"), smooth=smooth)
    shape = ((1, 3), torch.device("cpu"))
    assert torch.equal(used.normal(SQUARES[0], *shape), passed.normal(SQUARES[0], *shape))
    assert torch.equal(used.exponential(SQUARES[0], *shape), passed.exponential(SQUARES[0], *shape))


def test_greedy_runs_need_no_noise() -> None:
    greedy = replace(SETTINGS, greedy=True)
    first, second = draw(tiny_hart(), settings=greedy), draw(tiny_hart(), settings=greedy)
    assert torch.equal(first.f_hat, second.f_hat) and first.f_hat.isfinite().all()


def test_top_k_is_half_as_large_from_the_eighth_scale_on() -> None:
    sides = (1, 1, 1, 1, 1, 1, 1, 2, 3)
    model, asked = tiny_hart(sides), []
    head = model.drawing_head()
    plain = head.plain.draw
    head.plain.draw = lambda drawing: asked.append((drawing.top_k, drawing.progress)) or plain(drawing)
    model.drawing_head = lambda refine: head
    settings = replace(SETTINGS, top_k=6)
    noise = SeededNoise(0, 1)
    generate(model, padded(1), squares(*sides), settings, noise=noise, quantizer=tiny_hybrid().quantizer())
    assert [top_k for top_k, _ in asked] == [6] * 7 + [3, 3]
    assert asked[-1][1] == asked[-2][1] == 7 / 8


# --------------------------------------------------------------------------------------------- counts


@pytest.mark.parametrize("name", ["off", "quality", "balanced", "turbo", "paper-released"])
def test_its_work_is_forecast_and_reported(name: str) -> None:
    model = tiny_hart()
    prefix = model.prefix(padded(1), SQUARES)
    info = RunInfo(SQUARES, model.config.depth, 1, True, False, (5,), prefix, corrects=model.corrects)
    planned = forecast(PRESETS[name], info, run_costs(model, SQUARES, model.drawing_head())).flops
    trace = draw(model, policy=PRESETS[name]).trace
    assert sum(planned) == pytest.approx(trace.flops, rel=0.02)
    refined = trace.scales[-1].flops.refine
    rows = trace.scales[-1].rows
    assert refined == (rows * 36 * model.config.residual_flops if trace.scales[-1].ran else 0.0)
    if name == "off":
        assert trace.flops == pytest.approx(trace.dense_flops, rel=1e-9)
        first = trace.scales[0].flops
        assert first.total == first.head == 2 * model.config.unit_costs.head


def test_the_steps_of_the_head_are_counted_at_full_size() -> None:
    """Per token and row: one reading of the hidden state, and eight passes over 33.65 M weights."""
    assert HART_0_7B.residual_flops == pytest.approx(2 * 1536 * 1024 + 8 * 2 * 33.65e6, rel=0.001)
    schedule = squares(*HART_0_7B.sides)
    info = RunInfo(schedule, 24, 1, True, False, (0,), Prefix(0, 1, 300, opens=True), corrects=False)
    with torch.device("meta"):
        model = HART(HART_0_7B)
    costs = run_costs(model, schedule, model.drawing_head())
    dense = forecast(PRESETS["off"], info, costs).flops
    assert sum(dense) == pytest.approx(55.6e12, rel=0.5)
    assert costs.refine[-1] * 2 / sum(dense) < 0.12 and not any(costs.refine[:-1])


def test_the_released_transformer_runs_at_full_shape_without_storage() -> None:
    model = HART(HART_0_7B, dtype=torch.bfloat16, device="meta")
    text = torch.zeros(300, 1536, device="meta")
    texts, schedule = TextConditioning((text,), padding=(280,)), squares(*HART_0_7B.sides)
    made = generate(
        *(model, texts, schedule, replace(SETTINGS, top_k=600)),
        noise=SeededNoise(0, 1),
        quantizer=_meta_quantizer(),
        policy=preset("balanced"),
        device="meta",
    )
    assert made.f_hat.shape == (1, 32, 64, 64) and made.trace.ratio > 1.5


def _meta_quantizer():
    from stagevar_core.autoencoders.hybrid import HybridQuantizer

    return HybridQuantizer(4096, 32, 4, device="meta")
