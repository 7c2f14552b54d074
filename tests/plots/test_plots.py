"""Plots: every part of a trace, a calibration and a schedule is drawn, and nothing falls off the canvas."""

import json

import numpy as np
import pytest
from PIL import Image

from stagevar_core.acceleration.presets import PRESETS, preset
from stagevar_core.acceleration.schedule_file import StageSchedule
from stagevar_core.acceleration.schedule_reader import CURVES
from stagevar_core.acceleration.stages import StageBoundaries
from stagevar_core.plots import canvas as drawing
from stagevar_core.plots.canvas import (
    BLUE,
    GREEN,
    GREY,
    INK,
    MUTED,
    ORANGE,
    PALE,
    PAPER,
    STAGES,
    VIOLET,
    Canvas,
    Panel,
    plain,
    ticks,
)
from stagevar_core.plots.schedules import curves, preview
from stagevar_core.plots.timeline import timeline
from stagevar_core.sampling.trace import Trace
from stagevar_core.schedule import infinity_aspect_table
from tests.support.tiny import prompts, run, tiny_infinity

FULL = infinity_aspect_table().schedule(1.0, "0.06M")


def area(image: Image.Image, colour: tuple[int, int, int]) -> int:
    """Number of pixels of exactly this colour."""
    return int((np.asarray(image) == np.array(colour, np.uint8)).all(axis=-1).sum())


def empty_border(image: Image.Image, width: int = 6) -> bool:
    """Whether the outermost pixels are plain paper: nothing was cut off."""
    pixels = np.asarray(image).astype(int)
    edges = (pixels[:width], pixels[-width:], pixels[:, :width], pixels[:, -width:])
    return all((edge == 255).all() for edge in edges)


@pytest.fixture(scope="module")
def traces() -> dict[str, dict]:
    model, text = tiny_infinity(), prompts(5)
    policies = {"off": None, "turbo": PRESETS["turbo"], "paper": PRESETS["paper"]}
    return {name: run(model, text, FULL, policy=policy).trace.to_dict() for name, policy in policies.items()}


def measured(scales: int = 7, chunks: int = 3, *, gaps: bool = False) -> StageSchedule:
    """A schedule with made-up curves."""
    grids = [[2**i, 2**i] for i in range(scales)]
    falling = [1.0 / (i + 1) for i in range(scales)]
    curves = {}
    for name in CURVES:
        if name.startswith("rank"):
            rows = [[value * ((c + 1) / chunks) ** 2 for c in range(chunks)] for value in falling]
            rows[0] = [None] * chunks
            curves[name] = {"mean": rows, "std": rows}
        elif not (gaps and name in ("disagreement", "image_psnr")):
            scale = 40.0 if name == "image_psnr" else 1.0
            values = [scale * value for value in falling]
            curves[name] = {"mean": [*values[:-1], None], "std": [*(v / 9 for v in values[:-1]), None]}
    return StageSchedule(
        model={"family": "infinity", "depth": 6, "width": 256},
        boundaries=StageBoundaries(1 / 16, 1 / 4),
        keep=((0.25, (0.5, 0.75, 0.6)), (1.0, (0.1, 0.3, 0.2))),
        measured={
            "alpha": 0.96,
            "chunks": chunks,
            "prompts": 20,
            "seed": 0,
            "width": 256,
            "schedule": grids,
            "curves": curves,
        },
    )


def test_a_timeline_shows_work_time_tokens_and_stages(traces) -> None:
    image = timeline(traces["paper"])
    assert image.mode == "RGB" and image.size[0] >= 900 and empty_border(image)
    for colour in (BLUE, ORANGE, GREEN, VIOLET, PALE, *STAGES.values()):
        assert area(image, colour) > 50


def test_a_dense_run_has_no_stages_and_leaves_nothing_out(traces) -> None:
    image = timeline(traces["off"])
    assert {area(image, colour) for colour in STAGES.values()} == {0}
    legend = 14 * 11
    assert area(image, PALE) <= legend  # all dense bars are covered


def test_skipped_scales_are_hatched(traces) -> None:
    skipping, running = timeline(traces["turbo"]), timeline(traces["paper"])
    assert not all(scale["ran"] for scale in traces["turbo"]["scales"])
    assert all(scale["ran"] for scale in traces["paper"]["scales"])
    assert area(skipping, GREY) > area(running, GREY) + 200


def test_bars_have_the_height_of_what_they_show(traces) -> None:
    def timed(*milliseconds: float) -> int:
        scales = [
            {**scale, "milliseconds": spent}
            for scale, spent in zip(traces["paper"]["scales"], milliseconds, strict=True)
        ]
        return area(timeline({**traces["paper"], "scales": scales}), GREEN)

    count = len(traces["paper"]["scales"])
    one, all_of_them = timed(*[1.0] * (count - 1), 100.0), timed(*[100.0] * count)
    legend = 14 * 14
    assert all_of_them - legend == pytest.approx((one - legend) * count, rel=0.2)


def test_notes_make_the_timeline_longer(traces) -> None:
    note = "no scale of this schedule has more than 0.25 of the area; all run dense " * 5
    plain, noted = (timeline({**traces["off"], "notes": notes}) for notes in ([], [note, note]))
    assert noted.size[1] == plain.size[1] + 4 * 18 and empty_border(noted)


def test_a_trace_without_scales_can_be_drawn() -> None:
    values = Trace().to_dict()
    assert timeline(values).size[0] >= 900


def test_a_timeline_of_the_longest_schedule_fits() -> None:
    schedule = infinity_aspect_table().schedule(1.0, "1M")
    trace = run(tiny_infinity(depth=1), prompts(5), schedule, policy=preset("balanced", skip=2)).trace
    assert empty_border(timeline(trace.to_dict()))


def test_curves_show_every_measurement() -> None:
    image = curves(measured())
    assert empty_border(image)
    for colour in (BLUE, ORANGE, GREEN, VIOLET, INK, *STAGES.values(), *drawing.ramp(3)):
        assert area(image, colour) > 20, colour


def test_what_was_not_measured_is_said_not_drawn() -> None:
    whole, gaps = curves(measured()), curves(measured(gaps=True))
    assert area(whole, VIOLET) > 100 and area(gaps, VIOLET) == 0


@pytest.mark.parametrize(("scales", "chunks"), [(1, 1), (2, 8), (13, 8)])
def test_curves_of_any_number_of_scales_fit(scales: int, chunks: int) -> None:
    assert empty_border(curves(measured(scales, chunks)))


def test_a_schedule_without_a_measurement_has_no_curves() -> None:
    with pytest.raises(ValueError, match="holds no measurement; make one with the calibrate command"):
        curves(StageSchedule(keep=0.5))


@pytest.mark.parametrize(
    "schedule",
    [
        StageSchedule(),
        StageSchedule(keep=0.25, settings={"guidance": "reuse", "spans": 8}),
        StageSchedule(boundaries=StageBoundaries(0.0, 0.0), keep=((1.0, 0.5),)),
        StageSchedule(boundaries=StageBoundaries(1.0, 1.0), keep=((0.5, (0.5, 0.4)), (1.0, 0.5))),
        measured(),
    ],
)
def test_previews_of_all_schedules_fit(schedule: StageSchedule) -> None:
    image = preview(schedule)
    assert image.size == (1000, 500) and empty_border(image)
    boundaries = schedule.boundaries or StageBoundaries()
    wanted = {
        "semantic": boundaries.semantic_end > 0,
        "structure": boundaries.structure_end > boundaries.semantic_end,
        "fidelity": boundaries.structure_end < 1,
    }
    assert {name: area(image, STAGES[name]) > 100 for name in STAGES} == wanted


def test_a_preview_draws_the_share_where_it_is() -> None:
    low, high = (
        np.asarray(preview(StageSchedule(boundaries=StageBoundaries(0.0, 0.0), keep=keep)))
        for keep in (0.25, 0.75)
    )
    rows = [int(np.median(np.nonzero((image[120:370, 600] == INK).all(axis=-1))[0])) for image in (low, high)]
    panel = 270 / 1.05  # pixels of the share 1
    assert rows[0] - rows[1] == pytest.approx(0.5 * panel, abs=3)


def test_ticks_are_round_and_reach_the_end() -> None:
    assert ticks(1.0) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert ticks(38.0) == [0.0, 10.0, 20.0, 30.0, 40.0]
    assert ticks(0.0) == ticks(float("nan")) == ticks(float("inf")) == [0.0, 1.0]
    for high in (1e-7, 0.3, 7.0, 1234.0, 9.9e12):
        found = ticks(high)
        assert high <= found[-1] * (1 + 1e-9) and 3 <= len(found) <= 7


def test_long_texts_are_wrapped_and_cut() -> None:
    assert drawing.wrapped("a bb ccc", 4, 3) == ["a bb", "ccc"]
    assert drawing.wrapped("", 10, 2) == []
    lines = drawing.wrapped("word " * 50, 20, 2)
    assert len(lines) == 2 and max(map(len, lines)) <= 20 and lines[-1].endswith("...")


def test_a_panel_places_values_and_keeps_them_inside() -> None:
    panel = Panel(Canvas(200, 100), (10, 10), (100, 50), 2.0)
    assert panel.at(0.0, 0.0) == (10, 60) and panel.at(1.0, 2.0) == (110, 10)
    assert panel.at(0.5, 9.0)[1] == 10 and panel.at(0.5, -1.0)[1] == 60


def test_a_curve_breaks_at_a_gap() -> None:
    canvas = Canvas(220, 100)
    Panel(canvas, (10, 10), (200, 80), 1.0).curve(
        [(0.0, 0.5), (0.4, 0.5), (0.5, None), (0.6, 0.5), (1.0, 0.5)], BLUE, dots=False
    )
    row = (np.asarray(canvas.finish())[50] == BLUE).all(axis=-1)
    assert row[30:80].all() and not row[100:120].any() and row[140:200].all()


@pytest.mark.parametrize("value", [5e-324, 1e-310, 1e-301, 1e9])
def test_a_curve_of_any_numbers_is_drawn(value: float) -> None:
    """Subnormal numbers have no logarithm of their tenth."""
    curve = {"mean": [value, value], "std": [value, 0.0]}
    text = json.dumps(
        {
            "format": "stagevar-schedule",
            "version": 1,
            "measured": {
                **{"alpha": 0.96, "chunks": 2, "prompts": 3, "seed": 0, "width": 32},
                "schedule": [[1, 1], [2, 2]],
                "curves": {name: curve for name in ("entropy", "image_psnr", "disagreement")},
            },
        }
    )
    schedule = StageSchedule.parse(text)
    assert curves(schedule).size[0] > 900 and preview(schedule).size == (1000, 500)
    assert ticks(value)[-1] >= min(value, 1.0)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((0, "0"), (1.18, "1.18"), (1180.0, "1180"), (123456.7, "123457"), (1e6, "1000000")),
        *((0.0123456, "0.0123"), (999.6, "1000"), (85.24, "85.2"), (2.5, "2.5"), (3e-7, "3e-07")),
    ],
)
def test_numbers_have_no_exponent_where_people_need_none(value: float, text: str) -> None:
    assert plain(value) == text


def test_times_and_tokens_are_said_in_units_that_people_read(traces, monkeypatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(Canvas, "text", lambda self, at, text, *rest: said.append(text))
    trace = json.loads(json.dumps(traces["paper"]))
    for number, scale in enumerate(trace["scales"]):
        scale["milliseconds"] = 1.18 * 10**number
        scale["tokens"], scale["computed"] = 20_000, 12_345.678
    trace["totals"]["milliseconds"] = 1_311_000.0
    timeline(trace)
    assert {"1.18 ms", "118 ms", "1.18 s", "118 s", "1180 s", "12346 of 20000"} <= set(said)
    assert any("1311 s in the transformer" in text for text in said)
    assert not any("e+" in text for text in said)


def test_a_dark_plot_is_the_same_with_other_colours(traces) -> None:
    light, dark = timeline(traces["paper"]), timeline(traces["paper"], dark=True)
    canvas = Canvas(8, 8, dark=True)
    colours = (PAPER, INK, BLUE, ORANGE, GREEN, VIOLET, PALE, *STAGES.values())
    assert light.size == dark.size and len({canvas.shade(colour) for colour in colours}) == len(colours)
    for colour in colours:
        found = area(light, colour)  # a few pixels of what is smoothed have any colour by chance
        assert area(dark, canvas.shade(colour)) == pytest.approx(found, rel=0.01) and found > 50
    for text in (INK, MUTED):  # 4.5 is what text needs to be read
        for ground in (PAPER, *STAGES.values()):
            assert contrast(canvas.shade(text), canvas.shade(ground)) > 4.5


def contrast(a: tuple[int, int, int], b: tuple[int, int, int]) -> float:
    """The contrast of two colours after WCAG 2, 1 to 21."""

    def luminance(colour: tuple[int, int, int]) -> float:
        shares = (c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour)
        return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), shares, strict=True))

    darker, lighter = sorted((luminance(a), luminance(b)))
    return (lighter + 0.05) / (darker + 0.05)
