"""Classifier-free guidance: which rows run and how they are mixed."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from .schedule import ScaleSchedule


def mix(conditional: Tensor, unconditional: Tensor, cfg_scale: float) -> Tensor:
    """``w * c + (1 - w) * u``, Infinity's rule; 1 is unguided, 0 the unconditional branch alone."""
    return cfg_scale * conditional + (1.0 - cfg_scale) * unconditional


@dataclass(frozen=True)
class GuidanceRows:
    """Rows of a run: ``batch`` conditional ones, then as many unconditional ones where they are present.

    Rows only narrow: what stopped running has no keys and values for later scales.
    """

    batch: int
    conditional: bool = True
    unconditional: bool = True

    @property
    def count(self) -> int:
        return self.batch * (self.conditional + self.unconditional)

    def narrow(self, kept: str) -> tuple["GuidanceRows", slice | None]:
        """The rows after ``kept`` ('both', 'conditional', 'unconditional'), and the slice that leaves them.

        The slice is None when nothing changes. Raises ``ValueError`` when rows that were dropped are wanted.
        """
        wanted = {
            "both": (True, True),
            "conditional": (True, False),
            "unconditional": (False, True),
        }
        if kept not in wanted:
            raise ValueError(f"guidance rows are one of {sorted(wanted)}, got {kept!r}")
        conditional, unconditional = wanted[kept]
        if (conditional and not self.conditional) or (unconditional and not self.unconditional):
            raise ValueError(f"the plan wants {kept} rows, which are not part of this run any more")
        narrowed = GuidanceRows(self.batch, conditional, unconditional)
        if narrowed == self:
            return self, None
        return narrowed, slice(0, self.batch) if conditional else slice(self.batch, 2 * self.batch)


def ramped(cfg_scale: float | Sequence[float], schedule: ScaleSchedule) -> tuple[float, ...]:
    """The weights ``w = 1 + t`` of VAR's rule ``(1 + t) c - t u``, as :func:`mix` takes them.

    A number is the strength t of the last scale, the first has none and those between a share by their
    place; a list is t of every scale.
    """
    if isinstance(cfg_scale, int | float):
        last = max(len(schedule) - 1, 1)
        return tuple(1.0 + cfg_scale * (scale.index / last) for scale in schedule)
    return tuple(1.0 + strength for strength in per_scale("cfg", cfg_scale, len(schedule)))


def per_scale(name: str, value: float | Sequence[float], count: int) -> tuple[float, ...]:
    """One number per scale from a scalar or a list; raises ``ValueError`` for a list of another length."""
    if isinstance(value, int | float):
        return (float(value),) * count
    if len(value) < count:
        raise ValueError(f"{name} lists {len(value)} values; this schedule has {count} scales")
    return tuple(float(item) for item in value[:count])
