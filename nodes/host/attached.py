"""A VAR_MODEL, and what nodes leave on it for the sampler: a policy, a compiler."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import nn

from ...stagevar_core.acceleration.policy import AccelerationPolicy
from ...stagevar_core.acceleration.presets import OFF
from ...stagevar_core.checkpoints.load import Checkpoint
from ...stagevar_core.models.compiling import CompiledTransformer, Compiler
from ...stagevar_core.models.contract import Transformer
from ...stagevar_core.sampling.kept import KeptPrefix
from .packed import pack, unpack

_OPTIONS = "transformer_options"  # of the host's model_options; its clones copy them
_POLICY, _COMPILER = "stagevar", "stagevar_compile"
_LEFT = "stagevar_left"  # of a network


class HostTransformer(Transformer, Protocol):
    """A transformer as its loader leaves it.

    ``checkpoint``: its name, sizes and settings; the tensors are in the transformer.
    """

    checkpoint: Checkpoint


@dataclass(frozen=True)
class Left:
    """What a run left on a network for the next one; ``weights``: the state of the host's patches then."""

    weights: object
    prefix: KeptPrefix


class Patcher(Protocol):
    """What we use of the host's ``ModelPatcher`` around a transformer of ours."""

    model: HostTransformer
    model_options: dict[str, Any]
    load_device: torch.device

    def clone(self) -> "Patcher":
        """Another patcher of the same transformer, with options of its own."""
        ...

    def add_patches(self, patches: Mapping[str, Any], strength_patch: float = 1.0) -> Sequence[str]:
        """Changes of weights by their names, applied when the host loads the model; the names it took."""
        ...

    def model_size(self) -> int:
        """Bytes of the weights."""
        ...


@dataclass(frozen=True)
class Attached:
    """A policy on a model. Clones of the model share it: it is immutable, and some copy deeply."""

    policy: AccelerationPolicy

    def __copy__(self) -> "Attached":
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "Attached":
        return self


def attach(model: Patcher, policy: AccelerationPolicy) -> Patcher:
    """A clone of ``model`` with this policy in place of any other; ``off`` leaves nothing on it."""
    return _with_option(model, _POLICY, None if policy is OFF else Attached(policy))


def policy_of(model_options: Mapping[str, Any]) -> AccelerationPolicy:
    """The policy on a model, ``off`` without one."""
    attached = options_of(model_options).get(_POLICY)
    return attached.policy if isinstance(attached, Attached) else OFF


def attach_compiler(model: Patcher, compiler: Compiler) -> Patcher:
    """A clone of ``model`` whose blocks run through ``compiler``."""
    return _with_option(model, _COMPILER, compiler)


def kept_of(model: Patcher) -> KeptPrefix:
    """What earlier runs with these weights left of a picture to edit, in the host's memory.

    It lives and goes with the network, and is forgotten where a node has patched the weights since.
    """
    weights, left = weights_of(model), getattr(model.model, _LEFT, None)
    if left is None or left.weights != weights:
        left = Left(weights, KeptPrefix("cpu"))
        setattr(model.model, _LEFT, left)
    return left.prefix


def weights_of(model: Patcher) -> object:
    """What tells apart the weights that one network has under several patchers; None where nothing does."""
    return getattr(model, "patches_uuid", None)


def network_of(model: Patcher) -> Transformer:
    """The network of a model, which the host has loaded, as it is to run.

    With compiled blocks where that was asked for, else on a CPU with packed weights.
    """
    network, compiler = cast(nn.Module, model.model), options_of(model.model_options).get(_COMPILER)
    if not isinstance(compiler, Compiler):
        pack(network, model.load_device)
        return model.model
    unpack(network)
    compiled = CompiledTransformer(model.model, compiler)
    return cast(Transformer, compiled)  # what it lacks itself it has of the network


def options_of(model_options: Mapping[str, Any]) -> dict[str, Any]:
    """What nodes of any pack leave for the forward pass."""
    return model_options.get(_OPTIONS, {})


def _with_option(model: Patcher, key: str, value: object | None) -> Patcher:
    """A clone of ``model`` with an option for the forward pass; None takes it away."""
    clone = model.clone()
    options = {**options_of(clone.model_options), key: value}
    if value is None:
        del options[key]
    clone.model_options = {**clone.model_options, _OPTIONS: options}
    return clone
