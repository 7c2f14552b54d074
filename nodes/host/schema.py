"""One place for what differs between ComfyUI releases in how nodes are described."""

import inspect
from typing import Any

from comfy_api.latest import io

CATEGORY = "StageVAR"
VarModel = io.Custom("VAR_MODEL")
StageScheduleType = io.Custom("STAGE_SCHEDULE")
StageReportType = io.Custom("STAGE_REPORT")
StageEditType = io.Custom("STAGE_EDIT")


def describe(kind: type, *names: str, **options: Any) -> Any:
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
