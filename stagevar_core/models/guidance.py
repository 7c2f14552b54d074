"""Classifier-free guidance: how rows are mixed, and its strength by scale."""

from collections.abc import Sequence

from torch import Tensor

from ..costs import UnitCosts
from ..schedule import ScaleSchedule


def mix(conditional: Tensor, unconditional: Tensor, cfg_scale: float) -> Tensor:
    """``w * c + (1 - w) * u``, Infinity's rule; 1 is unguided, 0 the unconditional branch alone."""
    return cfg_scale * conditional + (1.0 - cfg_scale) * unconditional


def ramped(cfg_scale: float | Sequence[float], schedule: ScaleSchedule) -> tuple[float, ...]:
    """The weights ``w = 1 + t`` of VAR's rule ``(1 + t) c - t u``, as :func:`mix` takes them.

    A number is the strength t of the last scale, the first has none and those between a share by their
    place; a list is t of every scale.
    """
    if isinstance(cfg_scale, int | float):
        last = max(len(schedule) - 1, 1)
        return tuple(1.0 + cfg_scale * (scale.index / last) for scale in schedule)
    return tuple(1.0 + strength for strength in per_scale("cfg", cfg_scale, len(schedule)))


def guided_until(weights: Sequence[float], units: UnitCosts) -> int:
    """How many scales it takes until nothing is guided any more and the conditional rows run alone.

    All of them where nothing ever is, and for families whose other rows run to the end.
    """
    if not units.narrows:
        return len(weights)
    return max((place + 1 for place, weight in enumerate(weights) if weight != 1.0), default=len(weights))


def per_scale(name: str, value: float | Sequence[float], count: int) -> tuple[float, ...]:
    """One number per scale from a scalar or a list; raises ``ValueError`` for a list of another length."""
    if isinstance(value, int | float):
        return (float(value),) * count
    if len(value) < count:
        raise ValueError(f"{name} lists {len(value)} values; this schedule has {count} scales")
    return tuple(float(item) for item in value[:count])
