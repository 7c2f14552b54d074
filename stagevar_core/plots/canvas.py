"""Charts with Pillow alone: a canvas with smooth lines, and panels with axes, bands, bars and curves."""

import math
from collections.abc import Sequence
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
Point = tuple[float, float]
Band = tuple[str, float, float]  # of the x axis: name, from, to
Place = tuple[Point, Point]  # upper left corner and size of a panel

INK, MUTED, GRID, PAPER = (31, 41, 55), (107, 114, 128), (225, 228, 233), (255, 255, 255)
BLUE, ORANGE, GREEN, VIOLET = (37, 99, 175), (214, 107, 25), (21, 128, 98), (124, 74, 170)
GREY, PALE = (148, 156, 168), (205, 211, 220)
STAGES = {"semantic": (234, 241, 251), "structure": (232, 245, 238), "fidelity": (253, 243, 230)}
# The same roles on a dark page, as light on dark as they are dark on light.
_DARK: dict[Colour, Colour] = {
    INK: (229, 231, 235),
    MUTED: (163, 170, 181),
    GRID: (56, 60, 68),
    PAPER: (30, 31, 34),
    BLUE: (92, 150, 226),
    ORANGE: (233, 140, 64),
    GREEN: (55, 176, 138),
    VIOLET: (170, 128, 216),
    GREY: (118, 126, 138),
    PALE: (76, 82, 92),
    STAGES["semantic"]: (36, 42, 54),
    STAGES["structure"]: (33, 45, 41),
    STAGES["fidelity"]: (51, 44, 35),
}
LEFT, RIGHT = 92, 28  # margins of a panel that spans the canvas
_LEAST = 1e-300  # smaller numbers have no tenth that is not 0
_OVERSAMPLE = 3  # Pillow draws lines without smoothing


@lru_cache(maxsize=32)
def font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Pillow's own font; a Pillow without FreeType has only a small one."""
    try:
        return ImageFont.load_default(size=size)
    except (TypeError, ImportError, OSError):
        return ImageFont.load_default()


def mixed(a: Colour, b: Colour, share: float) -> Colour:
    """The colour ``share`` of the way from ``a`` to ``b``."""
    red, green, blue = (round(x + (y - x) * share) for x, y in zip(a, b, strict=True))
    return red, green, blue


def plain(value: float, digits: int = 3) -> str:
    """A number for people: ``digits`` of it that count, whole where it is large, no exponent above 1e-4."""
    if value == 0 or not math.isfinite(value) or abs(value) < 1e-4:
        return f"{value:.{digits}g}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{value:.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def ramp(count: int) -> list[Colour]:
    """``count`` colours in an order that one can see, light to dark."""
    ends = (120, 190, 214), (24, 52, 110)
    return [mixed(*ends, i / max(1, count - 1)) for i in range(count)]


def ticks(high: float, wanted: int = 4) -> list[float]:
    """Round numbers from 0 to at least ``high``."""
    if not high > _LEAST or not math.isfinite(high):
        return [0.0, 1.0]
    rough = high / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * nice for nice in (1, 2, 2.5, 5, 10) if power * nice >= rough * 0.999)
    return [step * i for i in range(math.ceil(high / step - 1e-9) + 1)]


def wrapped(text: str, limit: int, lines: int) -> list[str]:
    """Words of ``text`` in at most ``lines`` lines of ``limit`` characters; the last may end in dots."""
    found: list[str] = []
    for word in text.split():
        if found and len(found[-1]) + 1 + len(word) <= limit:
            found[-1] += " " + word
        else:
            found.append(word[:limit])
    if len(found) > lines:
        found = [*found[: lines - 1], found[lines - 1][: limit - 3] + "..."]
    return found


def bands_of(stages: Sequence[str]) -> list[Band]:
    """Runs of equal stages as (name, from, to) of the x axis; nothing where a policy has no stages."""
    found: list[Band] = []
    for index, name in enumerate(stages):
        start, stop = index / len(stages), (index + 1) / len(stages)
        if found and found[-1][0] == name:
            found[-1] = (name, found[-1][1], stop)
        else:
            found.append((name, start, stop))
    return found if any(name for name, _, _ in found) else []


def centre(index: int, count: int) -> float:
    """Where scale ``index`` of ``count`` is on the x axis, 0 to 1."""
    return (index + 0.5) / count


class Canvas:
    """An image that is drawn larger and made smaller in the end.

    ``dark``: for dark pages; colours are given as on light ones.
    """

    def __init__(self, width: int, height: int, *, dark: bool = False) -> None:
        self.size, self.dark = (width, height), dark
        big = (width * _OVERSAMPLE, height * _OVERSAMPLE)
        self.image = Image.new("RGB", big, self.shade(PAPER))
        self._draw = ImageDraw.Draw(self.image)

    def finish(self) -> Image.Image:
        """The image in its own size."""
        return self.image.resize(self.size, Image.Resampling.BOX)

    def shade(self, colour: Colour) -> Colour:
        """What a colour is here; on a dark page those without a counterpart become lighter."""
        return _DARK.get(colour) or mixed(colour, (255, 255, 255), 0.35) if self.dark else colour

    def text(self, at: Point, text: str, size: int = 13, colour: Colour = INK, anchor: str = "la") -> None:
        """A line of text; ``anchor`` as in Pillow."""
        big = font(size * _OVERSAMPLE)
        known = anchor if isinstance(big, ImageFont.FreeTypeFont) else None  # the bitmap font knows none
        self._draw.text(self._at(at), text, fill=self.shade(colour), font=big, anchor=known)

    def length(self, text: str, size: int = 13) -> float:
        """Width of a line of text."""
        return self._draw.textlength(text, font=font(size * _OVERSAMPLE)) / _OVERSAMPLE

    def upright(self, at: Point, text: str, size: int = 12, colour: Colour = MUTED) -> None:
        """Text that reads upwards, its middle at ``at``."""
        big = font(size * _OVERSAMPLE)
        left, top, right, bottom = self._draw.textbbox((0, 0), text, font=big)
        label = Image.new("L", (round(right - left) + 4, round(bottom - top) + 4), 0)
        ImageDraw.Draw(label).text((2 - left, 2 - top), text, fill=255, font=big)
        turned = label.rotate(90, expand=True)
        x, y = self._at(at)
        corner = round(x - turned.width / 2), round(y - turned.height / 2)
        self.image.paste(
            self.shade(colour), (*corner, corner[0] + turned.width, corner[1] + turned.height), turned
        )

    def box(self, a: Point, b: Point, fill: Colour) -> None:
        """A rectangle between two corners in any order; nothing when it is empty."""
        (x0, y0), (x1, y1) = (
            self._at((min(a[0], b[0]), min(a[1], b[1]))),
            self._at((max(a[0], b[0]), max(a[1], b[1]))),
        )
        if x1 - x0 >= 1 and y1 - y0 >= 1:
            self._draw.rectangle((x0, y0, x1 - 1, y1 - 1), fill=self.shade(fill))

    def hatch(self, a: Point, b: Point, colour: Colour = GREY) -> None:
        """Diagonal lines in a rectangle: something that did not happen."""
        (x0, y0), (x1, y1) = (tuple(round(v) for v in self._at(p)) for p in (a, b))
        x0, x1, y0, y1 = min(x0, x1), max(x0, x1), min(y0, y1), max(y0, y1)
        if x1 - x0 < 2 or y1 - y0 < 2:
            return
        tile = Image.new("L", (x1 - x0, y1 - y0), 0)
        lines = ImageDraw.Draw(tile)
        for start in range(-tile.height, tile.width, 7 * _OVERSAMPLE):
            lines.line((start, tile.height, start + tile.height, 0), fill=255, width=_OVERSAMPLE)
        self.image.paste(self.shade(colour), (x0, y0), tile)
        self._draw.rectangle((x0, y0, x1 - 1, y1 - 1), outline=self.shade(colour), width=_OVERSAMPLE)

    def line(self, points: Sequence[Point], colour: Colour, width: float = 2.0, dash: float = 0.0) -> None:
        """A line through points; ``dash``: length of its strokes, 0 is solid."""
        placed = [self._at(point) for point in points]
        stroke = max(1, round(width * _OVERSAMPLE))
        if not dash:
            self._draw.line(placed, fill=self.shade(colour), width=stroke, joint="curve")
            return
        for (x0, y0), (x1, y1) in zip(placed[:-1], placed[1:], strict=True):
            length = math.hypot(x1 - x0, y1 - y0)
            for i in range(0, math.ceil(length / (dash * _OVERSAMPLE)), 2):
                a = i * dash * _OVERSAMPLE / length
                b = min(1.0, a + dash * _OVERSAMPLE / length)
                ends = [(x0 + (x1 - x0) * t, y0 + (y1 - y0) * t) for t in (a, b)]
                self._draw.line(ends, fill=self.shade(colour), width=stroke)

    def dot(self, at: Point, colour: Colour, radius: float = 3.0) -> None:
        """A filled circle."""
        (x, y), r = self._at(at), radius * _OVERSAMPLE
        self._draw.ellipse((x - r, y - r, x + r, y + r), fill=self.shade(colour))

    def veil(self, points: Sequence[Point], colour: Colour, strength: float = 0.16) -> None:
        """A transparent polygon."""
        mask = Image.new("L", self.image.size, 0)
        ImageDraw.Draw(mask).polygon([self._at(point) for point in points], fill=round(255 * strength))
        self.image.paste(self.shade(colour), (0, 0), mask)

    def legend(self, at: Point, entries: Sequence[tuple[str, Colour, str]], size: int = 12) -> None:
        """A row of names; the kind of a mark is 'box', 'line', 'dash' or 'hatch'."""
        x, y = at
        for name, colour, kind in entries:
            if kind == "box":
                self.box((x, y - 5), (x + 14, y + 6), fill=colour)
            elif kind == "hatch":
                self.hatch((x, y - 5), (x + 14, y + 6), colour)
            else:
                self.line([(x, y), (x + 18, y)], colour, 2.5, dash=5.0 if kind == "dash" else 0.0)
            x += 24
            self.text((x, y), name, size, INK, "lm")
            x += self.length(name, size) + 22

    @staticmethod
    def _at(point: Point) -> Point:
        return point[0] * _OVERSAMPLE, point[1] * _OVERSAMPLE


class Panel:
    """Axes in a rectangle of a canvas; x runs from 0 to 1, y from 0 to ``high``."""

    def __init__(self, canvas: Canvas, corner: Point, size: Point, high: float) -> None:
        self.canvas, self.high = canvas, high if high > _LEAST else 1.0
        self.left, self.top = corner
        self.right, self.bottom = corner[0] + size[0], corner[1] + size[1]

    def at(self, x: float, y: float) -> Point:
        """A point of the axes on the canvas."""
        y = min(max(y / self.high, 0.0), 1.0)
        return self.left + x * (self.right - self.left), self.bottom - y * (self.bottom - self.top)

    def bands(self, stages: Sequence[Band], *, named: bool = False) -> None:
        """Stages behind the axes as (name, from, to), with their names above the panel."""
        for name, start, stop in stages:
            a, b = self.at(start, self.high), self.at(stop, 0.0)
            self.canvas.box(a, b, fill=STAGES.get(name, PAPER))
            if named and b[0] - a[0] > self.canvas.length(name, 12):
                self.canvas.text(((a[0] + b[0]) / 2, self.top - 8), name, 12, MUTED, "mm")
        for _, start, _ in stages[1:]:
            self.canvas.line([self.at(start, 0.0), self.at(start, self.high)], GREY, 1.0, dash=4.0)

    def axes(self, title: str, marks: Sequence[float], label: str | None = None) -> None:
        """Grid, numbers at ``marks`` of the y axis, in the format ``label`` where given, and its title."""
        for mark in marks:
            if mark > self.high * 1.0001:
                continue
            left, right = self.at(0.0, mark), self.at(1.0, mark)
            self.canvas.line([left, right], GRID, 1.0)
            self.canvas.text(
                (self.left - 7, left[1]), label.format(mark) if label else plain(mark, 6), 12, MUTED, "rm"
            )
        self.canvas.line([self.at(0.0, 0.0), self.at(1.0, 0.0)], MUTED, 1.2)
        self.canvas.upright((self.left - 58, (self.top + self.bottom) / 2), title)

    def curve(
        self,
        points: Sequence[tuple[float, float | None]],
        colour: Colour,
        *,
        spread: Sequence[float | None] = (),
        width: float = 2.2,
        dash: float = 0.0,
        dots: bool = True,
    ) -> None:
        """A line through (x, y) that breaks where y is None; ``spread``: plus and minus, as a veil."""
        for part in _unbroken(points):
            placed = [self.at(x, y) for x, y in part]
            if spread:
                offsets = {x: s or 0.0 for (x, _), s in zip(points, spread, strict=True)}
                upper = [self.at(x, y + offsets[x]) for x, y in part]
                lower = [self.at(x, y - offsets[x]) for x, y in part]
                if len(part) > 1:
                    self.canvas.veil([*upper, *reversed(lower)], colour)
            if len(placed) > 1:
                self.canvas.line(placed, colour, width, dash)
            for point in placed if dots else ():
                self.canvas.dot(point, colour, width + 0.8)


def _unbroken(points: Sequence[tuple[float, float | None]]) -> list[list[Point]]:
    """The parts of a curve between its gaps."""
    parts: list[list[Point]] = [[]]
    for x, y in points:
        if y is None:
            parts.append([])
        else:
            parts[-1].append((x, y))
    return [part for part in parts if part]
