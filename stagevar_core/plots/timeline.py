"""A plot of what a run did, scale by scale."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from PIL.Image import Image

from .canvas import (
    BLUE,
    GREEN,
    GREY,
    INK,
    LEFT,
    MUTED,
    ORANGE,
    PALE,
    RIGHT,
    VIOLET,
    Band,
    Canvas,
    Colour,
    Panel,
    Place,
    bands_of,
    centre,
    plain,
    ticks,
    wrapped,
)

Scales = Sequence[Mapping[str, Any]]  # of Trace.to_dict()
_UNITS = ((1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"), (1.0, "FLOP"))


def timeline(trace: Mapping[str, Any], *, dark: bool = False) -> Image:
    """What a generation did scale by scale, from ``Trace.to_dict()``: work, time and tokens against dense.

    ``dark``: for a dark page.
    """
    scales = trace["scales"]
    width = max(900, LEFT + RIGHT + 84 * len(scales))
    notes = [line for note in trace["notes"] for line in wrapped(note, width // 7, 2)][:6]
    canvas = Canvas(width, 800 + 18 * len(notes), dark=dark)
    _heading(canvas, trace)
    if not scales:
        canvas.text((24, 110), "no scale ran", 14, MUTED)
        return canvas.finish()
    bands = bands_of([scale["stage"] for scale in scales])
    inner = width - LEFT - RIGHT
    _work_panel(canvas, ((LEFT, 146), (inner, 220)), scales, bands)
    _time_panel(canvas, ((LEFT, 396), (inner, 120)), scales, bands)
    last = _token_panel(canvas, ((LEFT, 546), (inner, 140)), scales, bands)
    for index, scale in enumerate(scales):
        x = last.at(centre(index, len(scales)), 0.0)[0]
        grid = scale["scale"]["grid"]
        canvas.text((x, last.bottom + 14), f"{grid[0]}x{grid[1]}", 13, INK, "mm")
        rows = f"{scale['rows']} row" + ("s" if scale["rows"] != 1 else "")
        words = wrapped(scale["guidance"] or scale["note"], 14, 2) if scale["ran"] else ["did not run"]
        for number, text in enumerate([rows, *words] if scale["ran"] else words):
            canvas.text((x, last.bottom + 34 + 16 * number), text, 11, MUTED, "mm")
    canvas.text((24, last.bottom + 14), "grid", 12, MUTED, "lm")
    for number, line in enumerate(notes):
        canvas.text((24, 786 + 18 * number), line, 12, MUTED, "lm")
    return canvas.finish()


def _heading(canvas: Canvas, trace: Mapping[str, Any]) -> None:
    """Policy and totals, then what the colours mean."""
    totals = trace["totals"]
    size, unit = _unit(totals["dense_flops"])
    images = f"{trace['images']} image" + ("s" if trace["images"] != 1 else "")
    saved = totals["dense_flops"] > 1.005 * totals["flops"]
    result = f"{totals['flop_ratio']:.2f}x fewer FLOPs" if saved else "as many FLOPs as the dense run"
    canvas.text((24, 28), f"{trace['policy']}: {result}", 22, INK, "lm")
    parts = [
        f"{plain(totals['flops'] / size)} of {plain(totals['dense_flops'] / size)} {unit}",
        f"{_time(totals['milliseconds'])} in the transformer",
        f"KV cache {_bytes(totals['kv_peak_bytes'])}",
        f"{totals['scales_skipped']} of {len(trace['scales'])} scales skipped",
        images,
    ]
    canvas.text((24, 58), "   |   ".join(parts), 13, MUTED, "lm")
    entries = [
        ("projections", BLUE, "box"),
        ("attention", ORANGE, "box"),
        ("text, head, mixing", VIOLET, "box"),
        ("dense run, or all tokens", PALE, "box"),
        ("skipped", GREY, "hatch"),
    ]
    canvas.legend((24, 92), entries)


class _Bar(NamedTuple):
    """One scale: ``parts`` (height, colour) on top of each other, before the ``whole`` that they are of."""

    label: str
    ran: bool
    whole: float
    parts: Sequence[tuple[float, Colour]]
    colour: Colour = INK  # of the label


def _bars(panel: Panel, bars: Sequence[_Bar]) -> None:
    """A bar per scale under its label; the whole of a scale that did not run is hatched."""
    for index, bar in enumerate(bars):
        left, right = (index + 0.2) / len(bars), (index + 0.8) / len(bars)
        ends = panel.at(left, 0.0), panel.at(right, bar.whole)
        if bar.ran:
            panel.canvas.box(*ends, fill=PALE)
        else:
            panel.canvas.hatch(*ends)
        top = 0.0
        for height, colour in bar.parts:
            panel.canvas.box(panel.at(left, top), panel.at(right, top + height), fill=colour)
            top += height
        x, y = panel.at(centre(index, len(bars)), max(bar.whole, top))
        panel.canvas.text((x, y - 8), bar.label, 11, bar.colour, "mm")


def _work_panel(canvas: Canvas, place: Place, scales: Scales, bands: Sequence[Band]) -> None:
    """FLOPs of every scale by kind over those of the dense run."""
    most = max(max(scale["dense"]["total"], scale["flops"]["total"]) for scale in scales)
    unit, name = _unit(most)
    panel = Panel(canvas, *place, 1.12 * most / unit)
    panel.bands(bands, named=True)
    panel.axes(f"work, {name}", ticks(most / unit))
    bars = []
    for scale in scales:
        flops, dense = scale["flops"], scale["dense"]["total"]
        others = flops["text"] + flops["head"] + flops["reduction"] + flops.get("refine", 0.0)
        parts = ((flops["linear"], BLUE), (flops["attention"], ORANGE), (others, VIOLET))
        total = sum(amount for amount, _ in parts)
        ratio = dense / total if total else 0.0
        label = "skipped" if not scale["ran"] else f"{ratio:.1f}x less" if ratio > 1.005 else "as dense"
        colour = MUTED if label == "as dense" else INK
        heights = [(amount / unit, kind) for amount, kind in parts]
        bars.append(_Bar(label, scale["ran"], dense / unit, heights, colour))
    _bars(panel, bars)


def _time_panel(canvas: Canvas, place: Place, scales: Scales, bands: Sequence[Band]) -> None:
    """Seconds or milliseconds of every scale."""
    most = max(scale["milliseconds"] for scale in scales)
    size, unit = (1e3, "s") if most >= 1e3 else (1.0, "ms")
    panel = Panel(canvas, *place, 1.2 * most / size)
    panel.bands(bands)
    panel.axes(f"time, {unit}", ticks(most / size, 3))
    spent = [(scale["milliseconds"], scale["ran"]) for scale in scales]
    _bars(panel, [_Bar(_time(ms) if ran else "-", ran, 0.0, [(ms / size, GREEN)]) for ms, ran in spent])


def _token_panel(canvas: Canvas, place: Place, scales: Scales, bands: Sequence[Band]) -> Panel:
    """Tokens of every scale and those that the blocks computed."""
    most = max(scale["tokens"] for scale in scales)
    panel = Panel(canvas, *place, 1.2 * most)
    panel.bands(bands)
    panel.axes("tokens per row", ticks(most, 3))
    bars = []
    for scale in scales:
        tokens, computed = scale["tokens"], scale["computed"]
        label = f"{tokens}" if computed == tokens else f"{plain(computed, 4)} of {tokens}"
        bars.append(_Bar(label, scale["ran"], tokens, [(computed, BLUE)]))
    _bars(panel, bars)
    return panel


def _unit(most: float) -> tuple[float, str]:
    return next((unit for unit in _UNITS if most >= unit[0]), _UNITS[-1])


def _time(milliseconds: float) -> str:
    """Seconds from one second on, else milliseconds."""
    return f"{plain(milliseconds / 1e3)} s" if milliseconds >= 999.5 else f"{plain(milliseconds)} ms"


def _bytes(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
