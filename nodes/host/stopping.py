"""Runs that stop after a scale: how it is asked for, what of them is kept, and what goes on from them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...stagevar_core.acceleration.policy import AccelerationPolicy
from ...stagevar_core.acceleration.stages import STAGES, boundaries_of
from ...stagevar_core.checkpoints.load import Checkpoint
from ...stagevar_core.sampling.paused import PausedRun
from ...stagevar_core.sampling.state import RunState
from ...stagevar_core.schedule import ScaleSchedule
from . import sockets
from .attached import Patcher, weights_of
from .carried import carried, visible
from .pairing import Pair

FINISHED = "finished"
_SCALE = "scale "
_MOST = 16  # scales; published models have up to 14
STOPS = [FINISHED, *reversed(STAGES[:-1]), *(f"{_SCALE}{number}" for number in range(1, _MOST + 1))]
_PAUSED = "stagevar_paused"  # of a latent: keys and values, for as long as it stays in memory
_NONE = (
    "no run to go on from; connect the latent of StageVAR Sampler. Latent From Batch, Repeat Latent Batch, "
    "Latent Batch, Rebatch Latents, Save Latent and Load Latent keep what it holds; VAE Encode makes none, "
    "and nodes that scale, cut, blend or composite latents lose it"
)


@dataclass(frozen=True)
class Paused:
    """Keys and values of a run that stopped; ``weights``: the state of the host's patches then."""

    run: PausedRun
    weights: object

    def __deepcopy__(self, memo: dict[int, Any]) -> "Paused":
        return self


def scales_until(
    wanted: str, schedule: ScaleSchedule, policy: AccelerationPolicy
) -> tuple[int, tuple[str, ...]]:
    """After how many scales a run stops, of ``stop_after``'s choices, and what is to be said of that."""
    if wanted == FINISHED:
        return len(schedule), ()
    if wanted.startswith(_SCALE):
        until = int(wanted.removeprefix(_SCALE))
    else:
        until = boundaries_of(policy).end(schedule, wanted)
    if until < len(schedule):
        return until, ()
    has = f"this model has {len(schedule)} scales"
    return len(schedule), (f"stop_after {wanted!r}: {has}, so it is finished",)


def name_of(checkpoint: Checkpoint) -> str:
    """A model's file, and behind it in brackets what a run must have in common with it."""
    config = checkpoint.config
    return f"{checkpoint.source} ({checkpoint.family}, {config.depth} blocks of {config.width})"


def keep(latent: dict[str, Any], paused: PausedRun, model: Patcher) -> str:
    """Leave keys and values beside a latent; says on the node whether there are some."""
    paused.before = None  # those belong to the latent that was gone on from
    if not paused.bytes:
        return "its keys and values are not kept: StageVAR Continue runs these scales again on their codes"
    latent[_PAUSED] = Paused(paused, weights_of(model))
    return (
        f"its keys and values wait in memory ({paused.bytes / 1e6:.0f} MB): StageVAR Continue goes on at once"
    )


def paused_in(latent: Mapping[str, Any], model: Patcher) -> PausedRun | None:
    """What is kept beside a latent, where it is of these weights."""
    found = latent.get(_PAUSED)
    return found.run if isinstance(found, Paused) and found.weights == weights_of(model) else None


def state_in(name: str, value: object, pair: Pair) -> RunState:
    """The runs that a latent holds; ``ValueError`` where it holds none, or those of another model."""
    samples = sockets.latent(name, value)["samples"]
    try:
        state = carried(samples, pair.vae.latent_channels) or _of_another(samples)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    if state is None:
        raise ValueError(f"{name}: found samples of shape {tuple(samples.shape)} with {_NONE}")
    own = name_of(pair.network.checkpoint)
    if _kind(state.model) != _kind(own):
        raise ValueError(
            f"{name}: its run was begun with {state.model}, the model here is {own}; connect the model that "
            "it was begun with"
        )
    if pair.trained.snap(*pair.trained.image_size(state.schedule)) != state.schedule:
        last = state.schedule.final
        raise ValueError(
            f"{name}: its run has {len(state.schedule)} scales up to {last.width}x{last.height} tokens, "
            f"which is no size of {own}; connect the model that it was begun with, {state.model}"
        )
    return state


def begun_elsewhere(state: RunState, pair: Pair) -> tuple[str, ...]:
    """That a run was begun with other files of the same kind, for the node."""
    files = (("model", state.model, name_of(pair.network.checkpoint)),)
    files += (("tokenizer", state.tokenizer, pair.vae.checkpoint.source),)
    return tuple(
        f"begun with the {what} {then}, goes on with {now}" for what, then, now in files if then != now
    )


def _of_another(samples: Tensor) -> RunState | None:
    """What is behind another tokenizer's channels."""
    if samples.dim() != 4:
        return None
    for channels in range(1, samples.shape[1]):
        if visible(samples, channels) is not samples:
            state = carried(samples, channels)
            if state is not None:
                return state
    return None


def _kind(name: str) -> str:
    """What a run must have in common with a model."""
    return name.rpartition(" (")[2]
