"""What a transformer was trained for, which some files do not tell."""

from dataclasses import replace

from ..checks import one_of
from .detect import SPECS
from .errors import CheckpointError
from .header import RESTORE, TASKS
from .load import Checkpoint


def with_task(checkpoint: Checkpoint, task: str) -> Checkpoint:
    """The same checkpoint, said to be trained for ``task``, which the tensors of merged files do not tell.

    ``ValueError`` for a task that no file of its family was trained for.
    """
    specs = [spec for spec in SPECS if (spec.kind, spec.name) == (checkpoint.kind, checkpoint.family)]
    known = {spec.task: spec for spec in reversed(specs)}
    spec = known[one_of("task", task, known)]
    if task == checkpoint.task:
        return checkpoint
    return replace(checkpoint, task=task, trained=spec.trained(checkpoint.config))


def check_task(transformer: Checkpoint, task: str) -> None:
    """Raise when a transformer was trained for another task than the one it is used for."""
    if transformer.task == task:
        return
    merged = "; a merged VARestorer file becomes one by scripts/convert_checkpoint.py --task restore"
    raise CheckpointError(
        f"{transformer.source}: this transformer was trained to {transformer.task} pictures, expected one to "
        f"{task} them. {TASKS[transformer.task]} takes it{merged if task == RESTORE else ''}"
    )
