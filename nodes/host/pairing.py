"""A transformer and a tokenizer from the page: both ours, and made for each other."""

from typing import Any

from torch import nn

from ...stagevar_core.checkpoints.errors import CheckpointError
from ...stagevar_core.checkpoints.load import check_pairing
from .vae import TokenizerVAE


def checked_pair(model: Any, vae: Any) -> nn.Module:
    """The transformer of a VAR_MODEL; raises ``ValueError`` naming the input that does not fit."""
    network = getattr(model, "model", None)
    if getattr(network, "checkpoint", None) is None:
        raise ValueError(
            f"model: found {type(network or model).__name__}; expected a VAR_MODEL from Load StageVAR Model"
        )
    try:
        check_pairing(network.checkpoint, checked_vae(vae).checkpoint)
    except CheckpointError as error:
        raise ValueError(f"vae: {error}") from error
    if network.checkpoint.trained is None:
        raise ValueError(
            f"model: {network.checkpoint.source} does not say which sizes it was trained on, and its number "
            "of scales is not that of a published model. Convert it with its settings"
        )
    return network


def checked_vae(vae: Any) -> TokenizerVAE:
    """The same VAE; raises ``ValueError`` for one of another kind of model."""
    if not isinstance(vae, TokenizerVAE):
        raise ValueError(
            f"vae: found a {type(vae).__name__} of another kind of model; expected the one of Load StageVAR "
            "Tokenizer (VAE)"
        )
    return vae
