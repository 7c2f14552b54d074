"""One place for what differs between ComfyUI releases in how nodes are described."""

import inspect
from typing import TYPE_CHECKING, Any, TypeVar

from comfy_api.latest import io

CATEGORY = "StageVAR"
VarModel = io.Custom("VAR_MODEL")
StageScheduleType = io.Custom("STAGE_SCHEDULE")
StageReportType = io.Custom("STAGE_REPORT")
StageEditType = io.Custom("STAGE_EDIT")

Folders = list[str] | str | None  # where the host looks for a text encoder's embeddings

T = TypeVar("T")

if TYPE_CHECKING:

    class Node(io.ComfyNode):
        """A node; its methods name the inputs that they take, which the host passes by keyword.

        For the type checker alone: the host asks which of these methods a node has.
        """

        @classmethod
        def execute(cls, *args: Any, **kwargs: Any) -> io.NodeOutput: ...

        @classmethod
        # The host takes a message, too; its annotation leaves that out.
        def validate_inputs(  # pyright: ignore[reportIncompatibleMethodOverride]
            cls, *args: Any, **kwargs: Any
        ) -> bool | str: ...

        @classmethod
        def fingerprint_inputs(cls, *args: Any, **kwargs: Any) -> Any: ...

else:
    Node = io.ComfyNode


def Schema(**options: Any) -> io.Schema:  # noqa: N802 (tools that read sources look for this call)
    """What the page shows of a node, without the options that this ComfyUI does not know."""
    return describe(io.Schema, **options)


def describe(kind: type[T], *names: str, **options: Any) -> T:
    """An input, output or schema of ``kind``, without the options that this ComfyUI does not know.

    A single unknown keyword would make every node of the pack disappear. Inputs keep such options in
    ``extra_dict``, from where they reach the page, which may know them.
    """
    known = inspect.signature(kind.__init__).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in known.values()):
        return kind(*names, **options)
    made = kind(*names, **{name: value for name, value in options.items() if name in known})
    extra = getattr(made, "extra_dict", None)
    if isinstance(extra, dict):
        extra.update({name: value for name, value in options.items() if name not in known})
    return made
