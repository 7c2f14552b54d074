"""A transformer and a tokenizer from the page: both ours, and made for each other."""

from dataclasses import dataclass

from ...stagevar_core.checkpoints.errors import CheckpointError
from ...stagevar_core.checkpoints.load import Checkpoint, check_pairing
from ...stagevar_core.checkpoints.restoring import check_restores
from ...stagevar_core.checkpoints.tasks import check_edits
from ...stagevar_core.schedule import AspectTable
from . import official, sockets
from .attached import HostTransformer, Patcher
from .files import ARTWORK, EDITOR, EMBEDDED
from .vae import TokenizerVAE


@dataclass(frozen=True)
class Pair:
    """What generates a picture. ``trained``: the sizes that it can have."""

    model: Patcher
    vae: TokenizerVAE
    trained: AspectTable

    @property
    def network(self) -> HostTransformer:
        """The transformer, without compiled blocks."""
        return self.model.model


def checked_pair(model: object, vae: object, *, restores: bool = False, edits: bool = False) -> Pair:
    """A VAR_MODEL that makes pictures, or ``restores`` or ``edits`` them, with its VAE.

    Raises ``ValueError`` naming the input that does not fit.
    """
    patcher, tokenizer = checked_model(model, restores=restores, edits=edits), sockets.vae("vae", vae)
    checkpoint = patcher.model.checkpoint
    try:
        check_pairing(checkpoint, tokenizer.checkpoint)
    except CheckpointError as error:
        raise ValueError(_wrong_vae(checkpoint, tokenizer.checkpoint) or f"vae: {error}") from error
    return Pair(patcher, tokenizer, trained_of(patcher))


def checked_model(model: object, *, restores: bool = False, edits: bool = False) -> Patcher:
    """A VAR_MODEL that makes pictures, or ``restores`` or ``edits`` them; ``ValueError`` for another."""
    patcher = sockets.model("model", model)
    try:
        check_restores(patcher.model.checkpoint, restores)
        check_edits(patcher.model.checkpoint, edits)
    except CheckpointError as error:
        raise ValueError(f"model: {error}") from error
    return patcher


def trained_of(model: Patcher) -> AspectTable:
    """The sizes that a model was trained on; ``ValueError`` where nothing says them."""
    checkpoint = model.model.checkpoint
    if checkpoint.trained is None:
        raise ValueError(
            f"model: {checkpoint.source} does not say which sizes it was trained on, and its number "
            "of scales is not that of a published model. Convert it with its settings"
        )
    return checkpoint.trained


def _wrong_vae(model: Checkpoint, vae: Checkpoint) -> str:
    """Whose tokenizer it is and which file belongs there; empty where that is not known."""
    published, models = official.tokenizer_of(model), official.models_of(vae)
    if model.source in (EMBEDDED, EDITOR):
        needed = f"its own, of the family {model.family}. Choose {EMBEDDED!r}"
    elif model.source == ARTWORK:
        needed = f"its own, of the family {model.family}. Choose {ARTWORK!r}"
    elif published is not None:
        needed = f"{published.name} from {published.link}. Put that into models/vae and choose it"
    else:
        return ""
    owner = "the built-in model" if vae.source in (EMBEDDED, ARTWORK) else models or "another model"
    owner = f"{owner}, of the family {vae.family}"
    return f"vae: {vae.source} belongs to {owner}; {model.source} needs {needed} there, or use StageVAR Load"
