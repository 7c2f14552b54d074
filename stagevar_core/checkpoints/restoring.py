"""Weights that restore pictures, and those that make them; a merged file of the former does not tell."""

from dataclasses import replace

from .errors import CheckpointError
from .load import Checkpoint, spec_of


def as_restoring(checkpoint: Checkpoint) -> Checkpoint:
    """The same weights, said to restore pictures; ``CheckpointError`` where their family has none that do."""
    if not hasattr(checkpoint.config, "restores"):
        raise CheckpointError(
            f"{checkpoint.source}: weights of a {checkpoint.family} {checkpoint.kind} restore no pictures; "
            "expected a transformer of VARestorer"
        )
    config = replace(checkpoint.config, restores=True)
    return replace(
        checkpoint, config=config, trained=spec_of(checkpoint.kind, checkpoint.family).trained(config)
    )


def check_restores(transformer: Checkpoint, wanted: bool) -> None:
    """Raise where weights that restore pictures are to make them, or others to restore one."""
    if getattr(transformer.config, "restores", False) == wanted:
        return
    if wanted:
        raise CheckpointError(
            f"{transformer.source}: it is not known to restore pictures; expected VARestorer's file as "
            "published, or converted; of a merged one say so by its task, in the loader or with "
            "scripts/convert_checkpoint.py --task restore"
        )
    raise CheckpointError(
        f"{transformer.source}: it restores pictures, which StageVAR Restore and the command restore do; "
        "expected weights that make them"
    )
