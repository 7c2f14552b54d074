"""Plots of what a calibration found and what a schedule asks for."""

import math
from collections.abc import Sequence

from PIL.Image import Image

from ..acceleration.schedule_file import StageSchedule
from ..acceleration.schedule_reader import Curve, Measured
from ..acceleration.settings import share_at
from ..acceleration.stages import STAGES, StageBoundaries
from ..schedule import ScaleSchedule
from .canvas import (
    BLUE,
    GREEN,
    GREY,
    INK,
    LEFT,
    MUTED,
    ORANGE,
    RIGHT,
    VIOLET,
    Band,
    Canvas,
    Colour,
    Panel,
    Place,
    bands_of,
    centre,
    ramp,
    ticks,
    wrapped,
)

# The small charts of a calibration: (title of the axis, its upper end) and its lines (name, curve, colour).
_CHARTS = (
    (
        ("latent and bits, 0 to 1", 1.0),
        (
            ("cosine with the final latent", "latent_cosine", BLUE),
            ("equal bits", "bit_agreement", ORANGE),
            ("change by the scale", "latent_change", GREEN),
        ),
    ),
    (("PSNR to the final image, dB", None), (("decoded image", "image_psnr", VIOLET),)),
    (
        ("share of the codes", None),
        (("most likely codes that guidance disputes", "disagreement", ORANGE),),
    ),
    (("entropy of a choice, bits", None), (("what is sampled from", "entropy", GREEN),)),
)


def curves(schedule: StageSchedule) -> Image:
    """The curves of a calibration over the scales, with the stages behind them."""
    measured = schedule.measured
    if not measured:
        raise ValueError(f"{schedule.source} holds no measurement; make one with the calibrate command")
    grids = ScaleSchedule.of(measured["schedule"])
    boundaries = schedule.stages() or StageBoundaries()
    bands = bands_of(boundaries.stages(grids))
    found = measured["curves"]
    half = max(430, 46 * len(grids))
    canvas = Canvas(2 * (half + 100) + 30, 980)
    canvas.text((24, 28), f"Calibration of {_model(schedule)}", 22, INK, "lm")
    ends = f"semantic up to {boundaries.semantic_end:.4g} of the final area, structure up to "
    count = f"{measured['prompts']} prompts; mean and, shaded, one standard deviation"
    canvas.text((24, 58), f"{ends}{boundaries.structure_end:.4g}   |   {count}", 13, MUTED, "lm")
    _rank_panel(canvas, ((100, 120), (2 * half + 100, 200)), measured, grids, bands)
    for number, (axis, lines) in enumerate(_CHARTS):
        corner = (100 + number % 2 * (half + 100), 430 + number // 2 * 294)
        named = [(name, found.get(key), colour) for name, key, colour in lines]
        _chart(canvas, (corner, (half, 180)), axis, named, (grids, bands))
    return canvas.finish()


def _rank_panel(
    canvas: Canvas, place: Place, measured: Measured, grids: ScaleSchedule, bands: Sequence[Band]
) -> None:
    """Ranks relative to tokens, a line per chunk of blocks, and their mean relative to tokens and width."""
    curves = measured["curves"]
    panel = Panel(canvas, *place, 1.0)
    panel.bands(bands, named=True)
    panel.axes(
        f"rank for {measured['alpha']:.3%} of the energy".replace(".000%", "%"),
        [0.0, 0.25, 0.5, 0.75, 1.0],
        "{:.0%}",
    )
    rows = (curves.get("rank_of_tokens") or {}).get("mean") or []
    colours = ramp(len(rows[0])) if rows else []
    for chunk, colour in enumerate(colours):
        points = [(centre(i, len(grids)), row[chunk]) for i, row in enumerate(rows)]
        panel.curve(points, colour, width=1.3, dots=False)
    for name, colour, dash in (("rank_of_tokens", INK, 0.0), ("rank_of_width", ORANGE, 6.0)):
        means = [mean_of_known(row) for row in (curves.get(name) or {}).get("mean", [])]
        panel.curve([(centre(i, len(grids)), mean) for i, mean in enumerate(means)], colour, dash=dash)
    _grid_names(panel, grids)
    entries = [("share of the tokens, mean of all blocks", INK, "line")]
    entries.append(("share of the width, mean of all blocks", ORANGE, "dash"))
    if colours:
        entries.append((f"share of the tokens, first of {len(colours)} chunks of blocks", colours[0], "line"))
        entries.append(("last chunk", colours[-1], "line"))
    canvas.legend((panel.left, panel.bottom + 46), entries)


def _chart(
    canvas: Canvas,
    place: Place,
    axis: tuple[str, float | None],
    lines: Sequence[tuple[str, Curve | None, Colour]],
    scales: tuple[ScaleSchedule, Sequence[Band]],
) -> None:
    """A panel with a curve per (name, means and deviations, colour); ``axis``: title and upper end."""
    (title, high), (grids, bands) = axis, scales
    lines = [(name, curve, colour) for name, curve, colour in lines if curve is not None]
    values = [
        mean + (std or 0.0)
        for _, curve, _ in lines
        for mean, std in zip(curve["mean"], curve["std"], strict=True)
        if mean is not None
    ]
    marks = ticks(high or max(values, default=1.0))
    panel = Panel(canvas, *place, high or marks[-1])
    panel.bands(bands, named=True)
    panel.axes(title, marks)
    for _, curve, colour in lines:
        points = [(centre(i, len(grids)), mean) for i, mean in enumerate(curve["mean"])]
        panel.curve(points, colour, spread=curve["std"])
    if not values:
        canvas.text(panel.at(0.5, panel.high / 2), "not measured", 13, MUTED, "mm")
    _grid_names(panel, grids)
    canvas.legend((panel.left, panel.bottom + 46), [(name, colour, "line") for name, _, colour in lines])


def preview(schedule: StageSchedule) -> Image:
    """The share of tokens that run at every area fraction, with the stages behind it.

    The axis is stretched like the side of a grid: half the side is a quarter of the area.
    """
    boundaries = schedule.stages() or StageBoundaries()
    canvas = Canvas(1000, 500)
    canvas.text((24, 28), f"Stage schedule for {_model(schedule)}", 22, INK, "lm")
    whose = "" if schedule.stages() is not None else " (of the preset; the usual ones are shown)"
    ends = f"semantic up to {boundaries.semantic_end:.4g}, structure up to {boundaries.structure_end:.4g}"
    canvas.text((24, 58), f"{ends} of the final area{whose}", 13, MUTED, "lm")
    panel = Panel(canvas, (LEFT, 110), (1000 - LEFT - RIGHT, 270), 1.05)
    sides = [0.0, math.sqrt(boundaries.semantic_end), math.sqrt(boundaries.structure_end), 1.0]
    panel.bands([(n, a, b) for n, a, b in zip(STAGES, sides, sides[1:], strict=False) if b > a], named=True)
    panel.axes("tokens that run", [0.0, 0.25, 0.5, 0.75, 1.0], "{:.0%}")
    entries = _budget_lines(panel, schedule, sides[2])
    for area, name in ((1 / 64, "1/64"), (1 / 16, "1/16"), (1 / 4, "1/4"), (1 / 2, "1/2"), (1.0, "1")):
        x, y = panel.at(math.sqrt(area), 0.0)
        canvas.line([(x, y), (x, y + 4)], MUTED, 1.2)
        canvas.text((x, y + 16), name, 12, MUTED, "mm")
    middle = panel.at(0.5, 0.0)
    canvas.text((middle[0], middle[1] + 38), "area of the scale, fraction of the final grid", 12, MUTED, "mm")
    canvas.legend((LEFT, 446), entries)
    settings = ", ".join(f"{name} {value}" for name, value in schedule.settings.items())
    if settings:
        canvas.text((LEFT, 474), wrapped(f"settings: {settings}", 130, 1)[0], 12, MUTED, "lm")
    return canvas.finish()


def _budget_lines(panel: Panel, schedule: StageSchedule, start: float) -> list[tuple]:
    """Draws the shares of tokens from the side ``start`` on; returns the entries of the legend."""
    if start > 0:
        panel.curve([(0.0, 1.0), (start, 1.0)], GREY, dots=False, width=2.5)
    entries: list[tuple] = [("all tokens", GREY, "line")]
    if schedule.keep is None:
        if start < 1.0:
            middle = panel.at((start + 1.0) / 2, 0.6)
            panel.canvas.text(middle, "as the preset has it", 13, MUTED, "mm")
        return entries
    keep = schedule.keep
    points = keep if isinstance(keep, tuple) else ()
    count = max([len(share) for _, share in points if isinstance(share, tuple)], default=1)
    depths = [(i + 0.5) / count for i in range(count)]
    sides = sorted({start + (1.0 - start) * i / 200 for i in range(201)} | {math.sqrt(a) for a, _ in points})
    sides = [side for side in sides if side >= start]
    shares = [[share_at(keep, side**2, depth) for depth in depths] for side in sides]
    if count > 1:
        for chunk, colour in enumerate(ramp(count)):
            line = [(side, row[chunk]) for side, row in zip(sides, shares, strict=True)]
            panel.curve(line, colour, width=1.3, dots=False)
        entries.append((f"first of {count} chunks of blocks", ramp(count)[0], "line"))
        entries.append(("last chunk", ramp(count)[-1], "line"))
    line = [(side, mean_of_known(row)) for side, row in zip(sides, shares, strict=True)]
    panel.curve(line, INK, width=2.6, dots=False)
    for area, share in points:
        mean = mean_of_known(share) if isinstance(share, tuple) else share
        if math.sqrt(area) >= start and mean is not None:
            panel.canvas.dot(panel.at(math.sqrt(area), mean), INK, 3.6)
    return [*entries, ("share of the fidelity stage, mean of all blocks", INK, "line")]


def _grid_names(panel: Panel, grids: ScaleSchedule) -> None:
    """Every scale's grid and area under its place."""
    for scale in grids:
        x = panel.at(centre(scale.index, len(grids)), 0.0)[0]
        panel.canvas.text((x, panel.bottom + 12), f"{scale.height}x{scale.width}", 11, INK, "mm")
        area = f"{grids.area_fraction(scale):.2g}"
        panel.canvas.text((x, panel.bottom + 26), area, 10, MUTED, "mm")


def _model(schedule: StageSchedule) -> str:
    """A model in a few words."""
    model = schedule.model
    if model is None:
        return "any model"
    sizes = ", ".join(f"{name} {model[name]}" for name in ("depth", "width") if name in model)
    return f"{model['family']} ({sizes})" if sizes else str(model["family"])


def mean_of_known(values: Sequence[float | None]) -> float | None:
    """The mean over the chunks of blocks; None where nothing was measured."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
