"""A transformer and a tokenizer from the page: both ours, and made for each other."""

from dataclasses import dataclass
from typing import cast

from ...stagevar_core.checkpoints.errors import CheckpointError
from ...stagevar_core.checkpoints.header import GENERATE
from ...stagevar_core.checkpoints.load import check_pairing
from ...stagevar_core.checkpoints.tasks import check_task
from ...stagevar_core.schedule import AspectTable
from .attached import HostTransformer, Patcher
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


def checked_pair(model: object, vae: object, task: str = GENERATE) -> Pair:
    """A VAR_MODEL that was trained for ``task`` with its VAE.

    Raises ``ValueError`` naming the input that does not fit.
    """
    network = getattr(model, "model", None)
    if getattr(network, "checkpoint", None) is None:
        raise ValueError(
            f"model: found {type(network or model).__name__}; expected a VAR_MODEL from Load StageVAR Model"
        )
    patcher, tokenizer = cast(Patcher, model), checked_vae(vae)
    checkpoint = patcher.model.checkpoint
    try:
        check_task(checkpoint, task)
    except CheckpointError as error:
        raise ValueError(f"model: {error}") from error
    try:
        check_pairing(checkpoint, tokenizer.checkpoint)
    except CheckpointError as error:
        raise ValueError(f"vae: {error}") from error
    if checkpoint.trained is None:
        raise ValueError(
            f"model: {checkpoint.source} does not say which sizes it was trained on, and its number "
            "of scales is not that of a published model. Convert it with its settings"
        )
    return Pair(patcher, tokenizer, checkpoint.trained)


def checked_vae(vae: object) -> TokenizerVAE:
    """The same VAE; raises ``ValueError`` for one of another kind of model."""
    if not isinstance(vae, TokenizerVAE):
        raise ValueError(
            f"vae: found a {type(vae).__name__} of another kind of model; expected the one of Load StageVAR "
            "Tokenizer (VAE)"
        )
    return vae
