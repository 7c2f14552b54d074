"""What comes through a socket: anything at all, as the host checks no value that stands in place of a link.

Each function returns the value, or raises ``ValueError``: the name of the input, what was found, what belongs
there, and which node gives it.
"""

from collections.abc import Mapping
from typing import Any, NoReturn, cast

import comfy.sd
from torch import Tensor

from ...stagevar_core.acceleration.schedule_file import StageSchedule
from ...stagevar_core.checks import shown
from ...stagevar_core.sampling.numbers import finite
from .attached import Patcher
from .conditioning import HostConditioning
from .edit import Edit
from .vae import TokenizerVAE


class Report(dict[str, Any]):
    """What a run did, as ``Trace.to_dict()`` has it; an object in a workflow's file is none."""


def found(value: object) -> str:
    """A value in words: plain ones as they are, what holds more by its kind and size."""
    if value is None or isinstance(value, bool | int | float | str):
        return shown(value)
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if isinstance(value, Mapping):
        return f"an object with the keys {shown(list(value))}"
    name = type(value).__name__
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"


def refuse(name: str, value: object, expected: str, connect: str) -> NoReturn:
    """Raise the ``ValueError`` of a value that does not belong into the input ``name``."""
    raise ValueError(f"{name}: found {found(value)}; expected {expected}; connect {connect}")


def image(name: str, value: object) -> Tensor:
    """Pictures (B, H, W, C) in 0..1, at least one, of three or more channels, of which three are used."""
    if isinstance(value, Tensor) and value.dim() == 4 and value.is_floating_point():
        if value.shape[3] >= 3 and 0 not in value.shape:
            return _finite(name, value)
    expected = "an image, (batch, height, width, channels) with at least one picture and 3 channels"
    refuse(name, value, expected, "Load Image")


def mask(name: str, value: object) -> Tensor:
    """A mask (H, W) or (B, H, W) in 0..1, at least one."""
    if isinstance(value, Tensor) and value.dim() in (2, 3) and 0 not in value.shape:
        if not value.is_complex():
            return _finite(name, value)
    refuse(name, value, "a mask, (height, width) or (batch, height, width)", "the MASK of Load Image")


def conditioning(name: str, value: object) -> HostConditioning:
    """One or more pairs of features and a dictionary."""
    if isinstance(value, list | tuple) and value and all(map(_is_pair, value)):
        return value
    refuse(name, value, "a conditioning", "CLIP Text Encode, or Class Label for VAR models")


def texts(positive: object, negative: object) -> None:
    """Refuse a ``positive`` that is no conditioning, and a ``negative`` that is connected and none."""
    conditioning("positive", positive)
    if negative is not None:
        conditioning("negative", negative)


def latent(name: str, value: object) -> Mapping[str, Any]:
    """A latent: a dictionary with ``samples`` (B, C, h, w)."""
    if isinstance(value, Mapping) and isinstance(value.get("samples"), Tensor):
        return value
    refuse(name, value, "a latent", "StageVAR Sampler or VAE Encode")


def vae(name: str, value: object) -> TokenizerVAE:
    """The VAE of an image tokenizer of ours."""
    if isinstance(value, TokenizerVAE):
        return value
    if isinstance(value, comfy.sd.VAE):
        raise ValueError(
            f"{name}: found a {type(value).__name__} of another kind of model; expected an image tokenizer; "
            "connect Load StageVAR Tokenizer (VAE)"
        )
    refuse(name, value, "the VAE of an image tokenizer", "Load StageVAR Tokenizer (VAE)")


def model(name: str, value: object) -> Patcher:
    """A VAR_MODEL."""
    network = getattr(value, "model", None)
    if getattr(network, "checkpoint", None) is not None:
        return cast(Patcher, value)
    refuse(name, value if network is None else network, "a VAR_MODEL", "Load StageVAR Model")


def schedule(name: str, value: object) -> StageSchedule:
    """A STAGE_SCHEDULE."""
    if isinstance(value, StageSchedule):
        return value
    refuse(name, value, "a STAGE_SCHEDULE", "Stage Schedule")


def report(name: str, value: object) -> Report:
    """A STAGE_REPORT of the sampler."""
    if isinstance(value, Report):
        return value
    refuse(name, value, "a STAGE_REPORT", "the report of StageVAR Sampler")


def edit(name: str, value: object) -> Edit:
    """A STAGE_EDIT."""
    if isinstance(value, Edit):
        return value
    refuse(name, value, "a STAGE_EDIT", "StageVAR Inpaint")


def clip(name: str, value: object) -> comfy.sd.CLIP:
    """A text encoder of the host."""
    if isinstance(value, comfy.sd.CLIP):
        return value
    refuse(name, value, "a CLIP", "Load StageVAR Text Encoder")


def _finite(name: str, value: Tensor) -> Tensor:
    """The same pictures or masks."""
    if not finite(value.float()):
        raise ValueError(
            f"{name}: found NaN or infinity; expected values from 0 to 1; connect another {name}"
        )
    return value


def _is_pair(part: object) -> bool:
    """Whether it is what the host's text nodes give; some packs leave more behind the dictionary."""
    return isinstance(part, list | tuple) and len(part) >= 2 and isinstance(part[1], dict)
