"""What a kind of checkpoint file is: how it is recognised, what it becomes, and what its shapes show."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

import torch
from torch import Tensor, nn

from ..models.companions import TextEncoder
from ..schedule import AspectTable
from .convert import MAX_BLOCKS, KeyMap
from .errors import CheckpointError
from .header import ModelConfig

Shape = tuple[int, ...]
Config = TypeVar("Config", bound=ModelConfig)
# What a transformer that predicts rows of a codebook shares with its tokenizer.
CODEBOOK = (("dim", "channels per latent pixel"), ("vocab", "codes"))
_MAX_BUFFER = 1 << 20  # elements; what counts the tokens of a schedule has some thousand


class Shapes:
    """Tensor shapes under our names; what is missing or has too few dimensions is named in the error.

    ``buffers``: small tensors under the file's names, where their values count. ``settings``: of the training
    run, where the file carries them.
    """

    def __init__(
        self,
        shapes: Mapping[str, Sequence[int]],
        source: str,
        buffers: Mapping[str, Tensor] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self._shapes, self.source, self._buffers = shapes, source, buffers or {}
        self.settings = settings or {}

    def __contains__(self, key: str) -> bool:
        return key in self._shapes

    def size(self, key: str, dim: int = 0) -> int:
        """Size of one dimension, at least 1; ``CheckpointError`` where the tensor does not have it."""
        shape = self._shapes.get(key)
        if shape is None:
            self._fail(f"it lacks the tensor {key}")
        if not -len(shape) <= dim < len(shape) or shape[dim] < 1:
            self._fail(f"{key} has the shape {list(shape)}")
        return int(shape[dim])

    def elements(self, key: str) -> int:
        """Number of elements, for vectors that are stored with extra dimensions of size 1."""
        shape = self._shapes.get(key)
        return max(self.size(key, dim) for dim in range(len(shape))) if shape else self.size(key)

    def count(self, pattern: str) -> int:
        """How many different values the group of ``pattern`` takes."""
        found = {match[1] for key in self._shapes if (match := re.match(pattern, key))}
        if len(found) > MAX_BLOCKS:
            self._fail(f"it has {len(found)} blocks, more than {MAX_BLOCKS}")
        return len(found)

    def ratio(self, what: str, number: int, divisor: int) -> int:
        """``number / divisor``; ``CheckpointError`` naming ``what`` where it is no whole number."""
        if number % divisor:
            self._fail(f"{what} does not come out whole: {number} / {divisor}")
        return number // divisor

    def numbers(self, key: str) -> list[int] | None:
        """The values of a buffer; None where the file lacks them or they are no whole numbers."""
        buffer = self._buffers.get(key)
        if buffer is None or buffer.is_nested or buffer.layout is not torch.strided:
            return None
        if buffer.is_meta or buffer.is_quantized or buffer.is_complex() or buffer.numel() > _MAX_BUFFER:
            return None
        values = buffer.to(torch.float64).flatten().tolist()
        return [int(value) for value in values] if all(map(float.is_integer, values)) else None

    def entry(self, key: str, *place: int) -> float | None:
        """One number of a buffer of any size; None where the file lacks it or it has other dimensions."""
        buffer = self._buffers.get(key)
        if buffer is None or buffer.is_nested or buffer.layout is not torch.strided or buffer.is_meta:
            return None
        known = buffer.dim() == len(place) and all(
            at < size for at, size in zip(place, buffer.shape, strict=True)
        )
        return float(buffer[place]) if known and not buffer.is_quantized and not buffer.is_complex() else None

    def _fail(self, found: str) -> NoReturn:
        raise CheckpointError(
            f"{self.source}: its names are known, but {found}; expected a complete checkpoint. "
            "Get the file again, or convert it from the original"
        )


@dataclass(frozen=True)
class FamilySpec(Generic[Config]):
    """How to recognise one kind of file and what it becomes.

    ``keys_required`` / ``keys_forbidden``: regular expressions over whole keys, all / none of which occur.
    ``within``: what precedes all of these keys in such files, where the same keys alone are another kind.
    ``example``: a key of such files, for people.
    ``unsupported``: keys of options that no release uses, refused by name. ``key_map`` None: our own names.
    ``config_from`` reads shapes under our names; ``unseen`` are the config fields that shapes cannot show.
    ``expected``: names and shapes that a config stands for. ``buffers``: keys of the file whose values
    ``config_from`` reads. ``check``: raises ``ValueError`` for a config whose unseen fields cannot be.
    ``sizes``: the image sizes that a config stands for; None where they say nothing. ``defaults``: sampling
    settings.

    ``merged``: takes (tensors, source) of a file that comes in
    parts and gives plain ones, which all but ``keys_required`` and ``keys_forbidden`` is about.

    ``linears``: official names of the linear layers, on which LoRA files are trained; ``{}`` is the block.

    Transformers: ``tokenizer`` is the family of their tokenizers, their own when empty; ``pairs`` are fields
    of the config that a tokenizer must share, with what they count. Text encoders: ``encoder`` takes (config,
    tensors, vocabulary, dtype=, device=); ``vocabulary`` reads the ``tokenizers`` JSON of a file or raises
    ``ValueError``.
    """

    name: str
    kind: str
    title: str
    keys_required: tuple[str, ...]
    config_type: type[Config]
    config_from: Callable[[Shapes], Config]
    expected: Callable[[Config], dict[str, Shape]]
    keys_forbidden: tuple[str, ...] = ()
    within: str = ""
    example: str = ""
    key_map: KeyMap | None = None
    module: type[nn.Module] | None = None
    merged: Callable[[Mapping[str, Tensor], str], dict[str, Tensor]] | None = None
    unsupported: tuple[tuple[str, str], ...] = ()
    unseen: tuple[str, ...] = ()
    buffers: tuple[str, ...] = ()
    check: Callable[[Config], None] | None = None
    sizes: Callable[[Config], AspectTable | None] | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    linears: tuple[str, ...] = ()
    tokenizer: str = ""
    pairs: tuple[tuple[str, str], ...] = CODEBOOK[:1]
    encoder: Callable[..., TextEncoder] | None = None
    vocabulary: Callable[[Path], str] | None = None

    def trained(self, config: Config) -> AspectTable | None:
        """The image sizes that a model of this configuration has without being told."""
        return self.sizes(config) if self.sizes else None

    def in_our_names(self, *keys_required: str) -> "FamilySpec[Config]":
        """The same model in a file of ours, which needs no key map."""
        return replace(
            self,
            keys_required=keys_required,
            keys_forbidden=(),
            within="",
            key_map=None,
            unsupported=(),
            buffers=(),
        )

    def matches(self, keys: Sequence[str], prefix: str = "") -> bool:
        """Whether these keys, which have ``prefix`` in the file, are such a file's."""
        return (
            (not self.within or prefix == self.within)
            and all(first_match(pattern, keys) for pattern in self.keys_required)
            and not any(first_match(pattern, keys) for pattern in self.keys_forbidden)
        )


def conv_sizes(shapes: Shapes) -> dict[str, Any]:
    """Channels and blocks of an image tokenizer's convolutions, from the levels of its encoder."""
    width = shapes.size("encoder.conv_in.weight")
    levels = shapes.count(r"encoder\.down\.(\d+)\.")
    outs = [shapes.size(f"encoder.down.{level}.block.0.conv1.weight") for level in range(levels)]
    return {
        "width": width,
        "multipliers": tuple(shapes.ratio("a channel multiplier", out, width) for out in outs),
        "blocks": shapes.count(r"encoder\.down\.0\.block\.(\d+)\."),
    }


def module_shapes(module: type[nn.Module]) -> Callable[[Any], dict[str, Shape]]:
    """Names and shapes of a module's state, read off an instance without storage."""

    def shapes(config: Any) -> dict[str, Shape]:
        return {key: tuple(value.shape) for key, value in module(config, device="meta").state_dict().items()}

    return shapes


def first_match(pattern: str, keys: Sequence[str]) -> str | None:
    """The first of ``keys`` that is ``pattern`` as a whole."""
    compiled = re.compile(pattern)
    return next((key for key in keys if compiled.fullmatch(key)), None)
