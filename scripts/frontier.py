"""Draws what every preset and everything that was tried keeps for what it costs: docs/frontier.png.

    python scripts/frontier.py

reads what docs/measurements has of both embedded models; nothing is measured here.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from stagevar_core.plots.canvas import (  # noqa: E402
    BLUE,
    GREEN,
    GREY,
    GRID,
    INK,
    MUTED,
    ORANGE,
    Canvas,
    Colour,
    Panel,
)

MEASUREMENTS, PICTURE = ROOT / "docs" / "measurements", ROOT / "docs" / "frontier.png"
OURS = ("quality", "balanced", "fast", "turbo", "auto")
SHORTER = "without the last"
KINDS: dict[str, Colour] = {"ours": BLUE, "published": ORANGE, "scales left out": GREEN, "tried": GREY}
HIGHEST = 15.0  # FLOP ratio at the right end
WIDTH, HEIGHT, SIDE, TALL = 1080, 820, 430, 290


class Row(NamedTuple):
    """A variant of a model: its name, what it saves, what is read of it, and what kind it is of."""

    name: str
    ratio: float
    values: dict[str, float]
    kind: str


class Axis(NamedTuple):
    """What a panel shows: a measure, its title, and the lowest and highest value."""

    measure: str
    title: str
    low: float
    high: float
    step: float


MODELS = {
    "scenes model (Infinity)": (
        ("compare.json", "experiments/h_late.json", "experiments/i_cheaper.json"),
        (Axis("psnr", "PSNR, dB", 22.0, 38.0, 4.0), Axis("texture", "texture", 0.0, 1.0, 0.2)),
    ),
    "artwork model (VAR)": (
        ("compare_artwork.json", "experiments/h_late_artwork.json"),
        (Axis("psnr", "PSNR, dB", 20.0, 32.0, 2.0), Axis("edges", "edges", 2.8, 4.2, 0.2)),
    ),
}


def read(files: tuple[str, ...], folder: Path = MEASUREMENTS) -> Iterator[Row]:
    """The variants of a model; the first file has its presets, the others what was tried."""
    seen = set()
    for number, name in enumerate(files):
        path = folder / name
        if not path.is_file():
            continue
        for variant, row in json.loads(path.read_text(encoding="utf-8"))["variants"].items():
            if variant == "off" or variant in seen:
                continue
            seen.add(variant)
            yield Row(variant, row["flop_ratio"], dict(means(row)), kind(variant, number == 0))


def means(row: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """What was read of all its pictures."""
    for measure in ("psnr", "texture", "edges"):
        found = row.get(measure)
        found = found.get("all", found) if isinstance(found, dict) else None
        if found:
            yield measure, found["mean"]


def kind(name: str, preset: bool) -> str:
    """One of :data:`KINDS`."""
    if name.startswith(SHORTER):
        return "scales left out"
    if not preset:
        return "tried"
    return "ours" if name in OURS else "published"


def place(ratio: float) -> float:
    """Where a FLOP ratio is on the x axis, 0 to 1: by its logarithm."""
    return min(1.0, math.log(ratio) / math.log(HIGHEST))


def draw(canvas: Canvas, corner: tuple[float, float], axis: Axis, rows: list[Row]) -> None:
    """A panel with a dot for every variant, and the names of those that are no trials."""
    panel = Panel(canvas, corner, (SIDE, TALL), axis.high - axis.low)
    for count in range(round((axis.high - axis.low) / axis.step) + 1):
        value = axis.low + count * axis.step
        ends = [panel.at(x, value - axis.low) for x in (0.0, 1.0)]
        canvas.line(ends, GRID, 1.0)
        canvas.text((panel.left - 7, ends[0][1]), f"{value:.3g}", 12, MUTED, "rm")
    for ratio in (1, 2, 3, 4, 6, 8, 12):
        foot = panel.at(place(ratio), 0.0)
        canvas.line([foot, panel.at(place(ratio), panel.high)], GRID, 1.0)
        canvas.text((foot[0], foot[1] + 12), f"{ratio}x", 12, MUTED, "mm")
    canvas.upright((panel.left - 46, (panel.top + panel.bottom) / 2), axis.title)
    dots = [
        (panel.at(place(r.ratio), r.values[axis.measure] - axis.low), r)
        for r in rows
        if axis.measure in r.values
    ]
    for name, colour in reversed(KINDS.items()):
        for at, row in dots:
            if row.kind == name:
                canvas.dot(at, colour, 2.6 if name == "tried" else 4.2)
    taken = [(at[0] - 5, at[0] + 5, at[1]) for at, row in dots if row.kind != "tried"]
    taken.append((panel.left, panel.left + SIDE, panel.bottom + 12))  # of the ratios
    for at, row in sorted(dots, key=lambda dot: list(KINDS).index(dot[1].kind)):
        if row.kind != "tried":
            label(
                canvas, at, row.name.replace(SHORTER, "last") + " out" * row.name.startswith(SHORTER), taken
            )


def label(
    canvas: Canvas, at: tuple[float, float], text: str, taken: list[tuple[float, float, float]]
) -> None:
    """A name beside a dot, where none is yet."""
    width = canvas.length(text, 11)
    sides = [
        (8, 0),
        (8, -12),
        (8, 12),
        (-8 - width, 0),
        (-8 - width, -12),
        (-8 - width, 12),
        (8, -24),
        (8, 24),
    ]
    for dx, dy in sides:
        x, y = at[0] + dx, at[1] + dy
        if all(abs(y - other) >= 11 or x > end or x + width < start for start, end, other in taken):
            break
    else:
        x, y = at[0] + 8, at[1]
    taken.append((x, x + width, y))
    canvas.text((x, y), text, 11, INK, "lm")


def picture(folder: Path = MEASUREMENTS) -> Canvas:
    """Both models side by side."""
    canvas = Canvas(WIDTH, HEIGHT)
    canvas.text((70, 26), "What is kept for what is saved: FLOPs, times fewer than `off`", 17, INK, "lm")
    canvas.legend((70, 54), [(name, colour, "box") for name, colour in KINDS.items()])
    for column, (model, (files, axes)) in enumerate(MODELS.items()):
        rows, left = list(read(files, folder)), 70 + column * (SIDE + 90)
        canvas.text((left, 86), model, 14, INK, "lm")
        for line, axis in enumerate(axes):
            draw(canvas, (left, 106 + line * (TALL + 60)), axis, rows)
    return canvas


def main() -> int:
    """The command."""
    palette = picture().finish().quantize(32)
    palette.save(PICTURE, optimize=True)
    print(f"{PICTURE}: {PICTURE.stat().st_size / 1024:.0f} KB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
