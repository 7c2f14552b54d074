"""What weights are for, where tensors do not tell: to make, edit (at one of two sizes) or restore pictures.

The editing files of VAREdit, and merged ones of VARestorer, have the names and shapes of Infinity's. What the
user says, or the metadata that the converter writes, decides; without either, weights make pictures.
"""

import logging
from dataclasses import replace

from ..schedule import AspectTable
from .errors import CheckpointError
from .load import Checkpoint
from .restoring import as_restoring

_LOG = logging.getLogger(__name__)

AUTO = "auto"
GENERATE = "generate"
# Pixel budgets of Infinity's square schedules that editing weights were trained on.
EDITS = {"edit 512": "0.25M", "edit 1024": "1M"}
RESTORE = "restore"
TASKS = (AUTO, GENERATE, *EDITS, RESTORE)
# The settings that VAREdit's README and its page use.
EDIT_DEFAULTS = {"cfg": 3.0, "temperature": 0.1}


ASSUMED = (
    "taken for weights that make pictures, as the file does not say; if they edit pictures (VAREdit) or "
    "restore them (VARestorer), choose their task"
)


def is_assumed(checkpoint: Checkpoint) -> bool:
    """Whether nothing but habit says that weights make pictures."""
    return not checkpoint.told and hasattr(checkpoint.config, "edits") and task_of(checkpoint) == GENERATE


def check_edits(transformer: Checkpoint, wanted: bool) -> None:
    """Raise where weights that edit pictures are to make them, or others to edit one."""
    if getattr(transformer.config, "edits", False) == wanted:
        return
    if not wanted:
        raise CheckpointError(
            f"{transformer.source}: it edits pictures, which StageVAR Edit by Text and generate --edit do; "
            "expected weights that make them"
        )
    known = hasattr(transformer.config, "edits")
    found = "it is not known to edit pictures" if known else f"a {transformer.family} model edits no pictures"
    advice = "; if it does, choose its task in the loader" if known else ""
    raise CheckpointError(
        f"{transformer.source}: {found}; expected a file of VAREdit, or the built-in editor{advice}"
    )


def task_of(checkpoint: Checkpoint) -> str:
    """'generate', 'restore', 'edit 512' and so on; 'edit' and the side in pixels for other sizes."""
    if getattr(checkpoint.config, "restores", False):
        return RESTORE
    if not getattr(checkpoint.config, "edits", False) or checkpoint.trained is None:
        return GENERATE
    return f"edit {side_of(checkpoint.trained)}"


def side_of(trained: AspectTable) -> int:
    """Pixels per side of the largest square that a model was trained on."""
    return max(trained.image_size(trained.schedule(1.0, budget))[0] for budget in trained.budgets)


def with_task(checkpoint: Checkpoint, task: str = AUTO) -> Checkpoint:
    """The same weights for what the user says that they are for; 'auto' believes the metadata.

    Raises :class:`CheckpointError` for a task that is not known, that the family does not have, or that the
    metadata contradicts.
    """
    if task not in TASKS:
        raise CheckpointError(f"{checkpoint.source}: task is {task!r}; expected one of {list(TASKS)}")
    known, able = task_of(checkpoint), hasattr(checkpoint.config, "edits")
    if task in (AUTO, known):
        if task == AUTO and is_assumed(checkpoint):
            _LOG.info("%s: %s", checkpoint.source, ASSUMED)
        return checkpoint
    if task != GENERATE and not able:
        raise CheckpointError(
            f"{checkpoint.source}: task is {task!r}, but weights of the family {checkpoint.family} do not "
            "edit pictures; choose 'auto', or an editing file of Infinity (VAREdit)"
        )
    if known != GENERATE:
        raise CheckpointError(
            f"{checkpoint.source}: task is {task!r}, but its metadata says {known!r}; choose 'auto', or "
            "another file"
        )
    return as_restoring(checkpoint) if task == RESTORE else _editing(checkpoint, EDITS[task])


def _editing(checkpoint: Checkpoint, budget: str) -> Checkpoint:
    if checkpoint.trained is None:
        raise CheckpointError(f"{checkpoint.source}: without sizes that it was trained on it cannot edit")
    return replace(
        checkpoint,
        config=replace(checkpoint.config, edits=True),
        trained=checkpoint.trained.restrict([1.0], [budget]),
        defaults={**checkpoint.defaults, **EDIT_DEFAULTS},
    )
