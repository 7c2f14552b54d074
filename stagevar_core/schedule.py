"""Scales, scale schedules and the aspect-ratio tables of the released models."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

_TABLES = Path(__file__).parent / "data"

# Sides of the square schedules that VAR and STAR were trained on, by pixels.
SIDES_256 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
SIDES_512 = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)
SIDES_1024 = (1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64)


MAX_SIDE = 1024  # tokens; published models have 64


def possible_sides(sides: Sequence[object]) -> bool:
    """Whether these can be the side lengths of a square schedule: whole, from 1, never falling."""
    whole = [side for side in sides if isinstance(side, int) and not isinstance(side, bool)]
    return len(whole) == len(sides) > 0 and whole == sorted(whole) and whole[0] == 1 and whole[-1] <= MAX_SIDE


@dataclass(frozen=True)
class Scale:
    """One resolution step: a token map of ``height`` x ``width``."""

    index: int
    height: int
    width: int

    @property
    def tokens(self) -> int:
        """Tokens of the map."""
        return self.height * self.width

    @property
    def grid(self) -> tuple[int, int]:
        """(height, width) in tokens."""
        return self.height, self.width


@dataclass(frozen=True)
class Prefix(Scale):
    """A token map that precedes the scales, such as the picture of an edit.

    It runs through the blocks once, sees itself alone and is seen by every scale. ``index``: of the scale
    whose level it shares. ``aligned``: blocks in which a scale sees it resized to its own grid. ``opens``:
    its last token stands for the one of the first scale, which has none of its own and is drawn from it.
    """

    aligned: tuple[int, ...] = ()
    opens: bool = False

    def keys(self, scale: Scale, depth: int) -> int:
        """How many of its keys a token of ``scale`` sees in all ``depth`` blocks together."""
        return (depth - len(self.aligned)) * self.tokens + len(self.aligned) * scale.tokens


@dataclass(frozen=True)
class ScaleSchedule:
    """The token maps of one generation, coarse to fine.

    ``grids``: (height, width) in tokens per scale. ``reference``: the grid that rotary coordinates are
    stretched to; for Infinity the last grid of the full 13-scale schedule, whatever part of it is generated.
    """

    grids: tuple[tuple[int, int], ...]
    reference: tuple[int, int]

    def __post_init__(self) -> None:
        if not self.grids:
            raise ValueError("a scale schedule needs at least one scale, got none")
        for grid in (*self.grids, self.reference):
            if len(grid) != 2 or any(int(side) != side or side < 1 for side in grid):
                raise ValueError(f"a scale is a (height, width) pair of positive integers, got {grid!r}")

    @classmethod
    def of(cls, grids: Sequence[Sequence[int]], reference: Sequence[int] | None = None) -> "ScaleSchedule":
        """Build from (h, w) or the official (t, h, w) triples; the reference defaults to the last grid."""
        pairs = tuple((int(grid[-2]), int(grid[-1])) for grid in grids)
        stretched = pairs[-1] if reference is None else (int(reference[-2]), int(reference[-1]))
        return cls(pairs, stretched)

    @cached_property
    def scales(self) -> tuple[Scale, ...]:
        """The scales with their places."""
        return tuple(Scale(index, height, width) for index, (height, width) in enumerate(self.grids))

    def __len__(self) -> int:
        return len(self.grids)

    def __iter__(self) -> Iterator[Scale]:
        return iter(self.scales)

    def __getitem__(self, index: int) -> Scale:
        return self.scales[index]

    @property
    def final(self) -> Scale:
        """The last scale."""
        return self.scales[-1]

    @property
    def tokens(self) -> int:
        """Tokens of all scales together, the length of a full KV cache."""
        return sum(scale.tokens for scale in self.scales)

    def area_fraction(self, scale: Scale) -> float:
        """Tokens of ``scale`` relative to the final grid; stages are defined on it, never on widths."""
        return scale.tokens / self.final.tokens

    def entering(self, scale: Scale, prefix: Prefix | None) -> int:
        """Tokens of a scale that enter the blocks: all, but for a first one that ``prefix`` opens."""
        return 0 if prefix is not None and prefix.opens and scale.index == 0 else scale.tokens

    def prefix(self, count: int) -> "ScaleSchedule":
        """The first ``count`` scales with the same rotary reference."""
        if not 1 <= count <= len(self):
            raise ValueError(f"a prefix of this schedule has 1 to {len(self)} scales, got {count}")
        return ScaleSchedule(self.grids[:count], self.reference)


@dataclass(frozen=True)
class AspectTable:
    """Schedules by aspect ratio (height / width) and pixel budget, as a model was trained on them.

    ``grids``: ratio -> full schedule in the official order (ties in the nearest-ratio search go to the
    first). ``budgets``: name -> number of leading scales. ``pixels_per_token``: image pixels per side of a
    token of the last grid.
    """

    grids: dict[float, tuple[tuple[int, int], ...]]
    budgets: dict[str, int]
    pixels_per_token: int

    def schedule(self, ratio: float, budget: str) -> ScaleSchedule:
        """The schedule of an exact template; raises ``ValueError`` naming the known ones."""
        if ratio not in self.grids:
            raise ValueError(f"unknown aspect template {ratio}; this model has {sorted(self.grids)}")
        if budget not in self.budgets:
            raise ValueError(f"unknown pixel budget {budget!r}; this model has {list(self.budgets)}")
        full = self.grids[ratio]
        return ScaleSchedule(full[: self.budgets[budget]], full[-1])

    def nearest_ratio(self, height: float, width: float) -> float:
        """The template with the smallest absolute difference of height / width, the first one on ties."""
        wanted = height / width
        return min(self.grids, key=lambda ratio: abs(ratio - wanted))

    def image_size(self, schedule: ScaleSchedule) -> tuple[int, int]:
        """(height, width) in pixels of the image that ``schedule`` generates."""
        return schedule.final.height * self.pixels_per_token, schedule.final.width * self.pixels_per_token

    def snap(self, height: int, width: int) -> ScaleSchedule:
        """The trained schedule nearest to a wanted image size: first the ratio, then the pixel budget.

        Raises ``ValueError`` for sizes that no image has.
        """
        for name, value in (("width", width), ("height", height)):
            if not 1 <= value <= 16384:
                raise ValueError(f"{name} is {value}; expected 1 to 16384 pixels, for example 1024")
        ratio = self.nearest_ratio(height, width)
        candidates = [self.schedule(ratio, budget) for budget in self.budgets]
        return min(candidates, key=lambda schedule: abs(math.log(self._pixels(schedule) / (height * width))))

    def restrict(self, ratios: Sequence[float], budgets: Sequence[str]) -> "AspectTable":
        """The same table with only these ratios and budgets, for models trained on a part of it."""
        for ratio in ratios:
            for budget in budgets:
                self.schedule(ratio, budget)
        return AspectTable(
            {ratio: self.grids[ratio] for ratio in ratios},
            {budget: self.budgets[budget] for budget in budgets},
            self.pixels_per_token,
        )

    def _pixels(self, schedule: ScaleSchedule) -> int:
        height, width = self.image_size(schedule)
        return height * width


@dataclass(frozen=True)
class SquareTable(AspectTable):
    """Squares of several sizes, each with a schedule of its own instead of a part of one.

    ``schedules``: size -> full schedule; ``grids`` holds the first of them, ``budgets`` their lengths.
    """

    schedules: dict[str, tuple[tuple[int, int], ...]]

    @classmethod
    def of(cls, *sides: Sequence[int], pixels_per_token: int = 16) -> "SquareTable":
        """From the side lengths of the scales of each size; sizes are named by their pixels."""
        schedules = {str(each[-1] * pixels_per_token): tuple((side, side) for side in each) for each in sides}
        first = next(iter(schedules.values()))
        budgets = {name: len(grids) for name, grids in schedules.items()}
        return cls({1.0: first}, budgets, pixels_per_token, schedules)

    def schedule(self, ratio: float, budget: str) -> ScaleSchedule:
        """The schedule of a size; raises ``ValueError`` naming the known ones."""
        super().schedule(ratio, budget)
        return ScaleSchedule.of(self.schedules[budget])

    def restrict(self, ratios: Sequence[float], budgets: Sequence[str]) -> "SquareTable":
        """The same table with only these sizes."""
        super().restrict(ratios, budgets)
        return SquareTable.of(
            *([side for side, _ in self.schedules[name]] for name in budgets),
            pixels_per_token=self.pixels_per_token,
        )


@lru_cache
def whole_schedule(schedule: ScaleSchedule) -> ScaleSchedule:
    """The full schedule of Infinity of which this one is the beginning; itself where it is of no table."""
    grids = infinity_aspect_table().grids.values()
    full = next((full for full in grids if full[: len(schedule)] == schedule.grids), schedule.grids)
    return ScaleSchedule(full, schedule.reference) if full[-1] == schedule.reference else schedule


def infinity_aspect_table(pixels_per_token: int = 16) -> AspectTable:
    """The 15 aspect templates and 4 pixel budgets of Infinity (infinity/utils/dynamic_resolution.py)."""
    data = json.loads((_TABLES / "infinity_schedules.json").read_text(encoding="utf-8"))
    grids = {float(ratio): tuple((h, w) for h, w in rows) for ratio, rows in data["grids"].items()}
    return AspectTable(grids, data["pixel_budgets"], pixels_per_token)
