"""Values of widgets: hosts let NaN, lists and unknown choices through, and check nothing that is linked."""

from collections.abc import Mapping
from typing import Any, TypeGuard

from comfy_api.latest import io

from ...stagevar_core.acceleration.stages import STAGES
from ...stagevar_core.checks import number, one_of, refuse, whole
from .schema import Node, describe

AUTO = "auto"
"""What stands for the model's or the preset's own number."""

_OWN = -1  # said it before: files of that time hold it, as whole number and as float


class OwnNumber(io.MultiType.Input):
    """A number from 0 to ``high``, or ``auto``; numbers and texts can be linked to it.

    The page shows a text field, in which people type either. ``stages``: or three numbers with commas, one
    per stage.
    """

    def __init__(
        self,
        name: str,
        *,
        high: float,
        tooltip: str,
        whole: bool = False,
        advanced: bool = False,
        stages: bool = False,
    ):
        text = describe(
            io.String.Input, name, default=AUTO, optional=True, tooltip=tooltip, advanced=advanced or None
        )
        super().__init__(text, [io.Int] if whole else [io.Float, io.Int])
        self.default, self.high, self.whole, self.stages = AUTO, high, whole, stages

    def read(self, value: object) -> float | int | tuple[float, ...] | None:
        """The number or numbers, None for the own one; raises ``ValueError`` for anything else."""
        kind = "a whole number" if self.whole else "a number"
        expected = f"{AUTO!r}, or {kind} from 0 to {self.high if self.whole else format(self.high, 'g')}"
        if self.stages:
            expected += f", or three with commas, one per stage ({', '.join(STAGES)})"
            if isinstance(value, str) and "," in value:
                return self._of_stages(value, expected)
        given = _typed(value)
        if isinstance(given, int | float) and given == _OWN:
            return None
        if self.whole and _is_integral(given):
            given = int(given)
        try:
            return (whole if self.whole else number)(self.id, given, 0, self.high)
        except ValueError:
            refuse(self.id, value, expected)

    def _of_stages(self, value: str, expected: str) -> tuple[float, ...]:
        """One number per stage from a text."""
        try:
            numbers = tuple(number(self.id, float(part), 0, self.high) for part in value.split(","))
        except ValueError:
            refuse(self.id, value, expected)
        return numbers if len(numbers) == len(STAGES) else refuse(self.id, value, expected)


def checked(inputs: list[io.Input], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of all widgets among ``inputs``: as given, else the default; those of ``OwnNumber`` read.

    Raises ``ValueError`` naming the input, what was found and what was expected.
    """
    return {each.id: _checked(each, values.get(each.id, each.default)) for each in _widgets(inputs)}


class CheckedNode(Node):
    """A node whose widgets are refused as ``checked`` does before anything is loaded.

    None is taken for what is linked and not known yet.
    """

    @classmethod
    def validate_inputs(cls, **values: Any) -> bool:
        """True; raises ``ValueError``: the host repeats a message that is returned, and an error once."""
        given = {name: value for name, value in values.items() if value is not None}
        checked(cls.define_schema().inputs, given)
        return True


def _widgets(inputs: list[io.Input]) -> list[Any]:
    return [each for each in inputs if hasattr(each, "default")]


def _checked(declared: Any, value: object) -> Any:
    name = declared.id
    if isinstance(declared, OwnNumber):
        return declared.read(value)
    if isinstance(declared, io.Combo.Input):
        return (
            one_of(name, value, declared.options)
            if isinstance(value, str)
            else refuse(name, value, f"one of {declared.options}")
        )
    if isinstance(declared, io.Boolean.Input):
        return value if isinstance(value, bool) else refuse(name, value, "true or false")
    if isinstance(declared, io.Int.Input):
        value = int(value) if _is_integral(value) else value
        return whole(name, value, declared.min, declared.max)
    return number(name, value, declared.min, declared.max)


def _is_integral(value: object) -> TypeGuard[float]:
    return isinstance(value, float) and value.is_integer()  # False for NaN and infinities


def _typed(value: object) -> object:
    """What stands in a text field as a number: ``auto`` and an empty field are the old one for it."""
    if not isinstance(value, str):
        return value
    if value.strip().lower() in ("", AUTO):
        return _OWN
    for kind in (int, float):  # seeds have more digits than a float
        try:
            return kind(value)
        except ValueError:
            continue
    return value
