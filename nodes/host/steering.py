"""Where and when a prompt holds, as core nodes leave it beside the features: areas, masks, ranges."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...stagevar_core.acceleration.stages import holds
from ...stagevar_core.checks import shown
from ...stagevar_core.sampling.numbers import finite
from ...stagevar_core.schedule import ScaleSchedule

_UNIT = 8  # pixels in which the host counts areas, whatever the model


class Frame(NamedTuple):
    """What areas and ranges are parts of: the picture, (height, width) in pixels, and its scales."""

    schedule: ScaleSchedule
    size: tuple[int, int]


def number_of(extra: Mapping[str, Any], key: str, default: float) -> float:
    """A number that a core node leaves; the default where another pack left something else."""
    value = extra.get(key)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else default


def holding(extras: Sequence[Mapping[str, Any]], schedule: ScaleSchedule) -> list[tuple[int, ...]]:
    """Which of several conditionings hold at every scale, by Set Timestep Range.

    Its percentages are shares of the final grid's area.
    """
    ranges = [
        (number_of(extra, "start_percent", 0.0), number_of(extra, "end_percent", 1.0)) for extra in extras
    ]
    return [
        tuple(index for index, span in enumerate(ranges) if holds(schedule, scale, *span))
        for scale in schedule
    ]


def held(found: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The same where a scale without any takes what holds nearest to it, the earlier of two."""
    filled = [index for index, which in enumerate(found) if which]
    if not filled:
        return [(0,)] * len(found)
    nearest = (min(filled, key=lambda other: (abs(other - index), other)) for index in range(len(found)))
    return [found[index] for index in nearest]


def masks_of(field: str, extra: Mapping[str, Any], size: tuple[int, int], batch: int) -> list[Tensor] | None:
    """Where a conditioning holds, one (height, width) per image, masks in turn; None: everywhere.

    Raises ``ValueError`` for a mask that is none.
    """
    area, mask = extra.get("area"), extra.get("mask")
    if area is None and mask is None:
        return None
    rectangle = None if area is None else _rectangle(field, area, size)
    if mask is None:
        assert rectangle is not None, "there is an area or a mask"
        return [rectangle] * batch
    if (
        not isinstance(mask, Tensor)
        or mask.dim() not in (2, 3)
        or 0 in mask.shape
        or not finite(mask.float())
    ):
        shape = tuple(getattr(mask, "shape", ()))
        raise ValueError(
            f"{field}: the mask of a prompt has the shape {shape} or holds NaN; expected (height, width) or "
            "(batch, height, width), from 0 to 1. Connect another one to Conditioning (Set Mask)"
        )
    masks = mask.float().clamp(0.0, 1.0).reshape(-1, *mask.shape[-2:]).cpu()
    if rectangle is not None:
        masks = torch.nn.functional.interpolate(masks[:, None], size=rectangle.shape, mode="area")[:, 0]
        masks = masks * rectangle
    each = list(masks)
    return [each[index % len(each)] for index in range(batch)]


def _rectangle(field: str, area: object, size: tuple[int, int]) -> Tensor:
    """A mask of an area: (height, width, y, x) in units of the host, or shares behind the word percentage."""
    grid = tuple(max(1, round(side / _UNIT)) for side in size)
    values = list(area) if isinstance(area, list | tuple) else []
    shares = values[:1] == ["percentage"]
    values = values[1:] if shares else values
    if len(values) != 4 or not all(isinstance(value, int | float) for value in values):
        raise ValueError(
            f"{field}: the area of a prompt is {shown(area)}; expected a height, width, y and x, as "
            "Conditioning (Set Area) leaves them"
        )
    if shares:
        values = [round(value * side) for value, side in zip(values, grid * 2, strict=True)]
        values[:2] = [max(1, value) for value in values[:2]]
    height, width, top, left = map(int, values)
    mask = torch.zeros(grid)
    mask[max(0, top) : max(0, top + height), max(0, left) : max(0, left + width)] = 1.0
    return mask
