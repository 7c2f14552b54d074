"""What a model is for: the loaders' choice, where no tensor tells, and what they say of it."""

from comfy_api.latest import io

from ...stagevar_core.checkpoints.errors import CheckpointError
from ...stagevar_core.checkpoints.load import Checkpoint
from ...stagevar_core.checkpoints.tasks import (
    ASSUMED,
    AUTO,
    GENERATE,
    RESTORE,
    is_assumed,
    side_of,
    task_of,
    with_task,
)
from ...stagevar_core.checks import one_of
from .schema import describe

# What the page offers, and what the core calls it.
LABELS = {
    AUTO: AUTO,
    "generate pictures": GENERATE,
    "edit pictures, 512 px": "edit 512",
    "edit pictures, 1024 px": "edit 1024",
    "restore pictures": RESTORE,
}


def task_input() -> io.Combo.Input:
    """The choice of a task; the last of a loader's inputs."""
    return describe(
        io.Combo.Input,
        "task",
        options=list(LABELS),
        default=AUTO,
        optional=True,
        advanced=True,
        tooltip="What the model is for. VAREdit's files look like Infinity's, and those for 512 px like "
        "those for 1024: choose what the file was published for. auto believes what "
        "scripts/convert_checkpoint.py wrote into the file, and the form of VARestorer's; others make "
        "pictures. The node says what it took.",
    )


def tasked(checkpoint: Checkpoint, label: object) -> tuple[Checkpoint, list[str]]:
    """A transformer for what was chosen, and what the node says where nothing was.

    Raises ``ValueError`` for a choice that its family or its metadata contradicts.
    """
    one_of("task", label, LABELS)
    task = LABELS[str(label)]
    try:
        chosen = with_task(checkpoint, task)
    except CheckpointError as error:
        raise ValueError(f"task: {error}") from error
    return chosen, _said(chosen) if task == AUTO else []


def _said(checkpoint: Checkpoint) -> list[str]:
    """What was assumed; nothing of models that make pictures and say so, or can do nothing else."""
    if is_assumed(checkpoint):
        return [ASSUMED]
    task = task_of(checkpoint)
    if task == GENERATE:
        return []
    if task == RESTORE:
        return ["restores pictures: for StageVAR Restore"]
    assert checkpoint.trained is not None, "editing weights have a size"
    return [f"edits pictures at {side_of(checkpoint.trained)} px: for StageVAR Edit by Text"]
