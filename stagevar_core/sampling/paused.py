"""Runs that stopped after some scales, so that another one goes on without running these again.

What is left of a run holds for the same pictures, prompts, settings, policy and model. For anything else the
scales run again on their codes, which costs their work and keeps the same.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..acceleration.policy import PolicyRun, Selection
from ..conditioning.changing import RunConditioning
from ..models.contract import Transformer
from ..network.cache import KVCache
from ..schedule import Scale
from .kept import model_key
from .result import ScaleCodes
from .rows import GuidanceRows

Key = tuple[Any, ...]
GONE_ON = "they are those of the run that this one goes on from"


class Left(NamedTuple):
    """The state of a run after its first ``scales`` scales: rows, their keys and values, policy, guidance."""

    scales: int
    running: GuidanceRows
    cache: KVCache
    policy: PolicyRun
    last: tuple[Scale, Tensor] | None

    def of(self, images: Sequence[int], seeds: Sequence[int], device: torch.device, more: int = 0) -> "Left":
        """A copy for these images on a device, with room for ``more`` keys."""
        rows = self.running.rows_of(images)
        last = self.last
        if last is not None:
            both = GuidanceRows(self.running.batch).rows_of(images)
            last = last[0], last[1][both.to(last[1].device)].to(device)
        return Left(
            self.scales,
            self.running.with_batch(len(images)),
            self.cache.selected(rows, device, more),
            self.policy.selected(Selection(tuple(images), rows, tuple(seeds), device)),
            last,
        )


class PausedRun:
    """What calls of ``generate`` that stop early leave for those that go on, any number of times.

    ``device``: where it waits, such as the host's memory; None leaves it where it was made. ``room``: bytes
    that it may hold; what does not fit is not kept. ``before``: what earlier calls left, which is found, too,
    and stays theirs. It tells models apart, not the weights that one of them has at different times.
    """

    def __init__(
        self,
        device: torch.device | str | None = None,
        room: float = math.inf,
        before: "PausedRun | None" = None,
    ) -> None:
        self._device = None if device is None else torch.device(device)
        self._room, self.before = room, before
        self._runs: list[tuple[Key, list[str], Left]] = []

    @property
    def bytes(self) -> int:
        """Memory that the keys and values hold."""
        return sum(left.cache.bytes for _, _, left in self._runs)

    def leave(self, key: Key, images: Sequence[str], left: Left, seeds: Sequence[int]) -> None:
        """Copy what a run has; ``key``: what holds for all its images, ``images``: what tells them apart."""
        if self.bytes + left.cache.bytes > self._room:
            return
        device = self._device or left.cache.device
        self._runs.append((key, list(images), left.of(range(len(images)), seeds, device)))

    def find(self, key: Key, images: Sequence[str], count: int) -> tuple[Left, list[int]] | None:
        """What is left after ``count`` scales of a run that had all these images, and their places in it."""
        for other, names, left in self._runs:
            if other == key and left.scales == count and set(images) <= set(names):
                return left, [names.index(name) for name in images]
        return None if self.before is None else self.before.find(key, images, count)


def image_key(conditioning: RunConditioning, index: int, scales: Sequence[ScaleCodes]) -> str:
    """What the state of one image depends on beside the run's own key: its texts, picture and ``scales``."""
    digest = hashlib.sha256()
    for value in _values((conditioning.image(index), list(scales))):
        if isinstance(value, Tensor):
            digest.update(repr((tuple(value.shape), value.dtype)).encode())
            digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            digest.update(repr(value).encode())
    return digest.hexdigest()


def run_key(model: Transformer, *parts: object) -> Key:
    """What the state of a run depends on beside its images: the model as long as it lives, and ``parts``."""
    return *model_key(model), *parts


def _values(value: Any) -> Iterator[Any]:
    """All that is in dataclasses and sequences, in order."""
    if is_dataclass(value):
        for field in fields(value):
            yield from _values(getattr(value, field.name))
    elif isinstance(value, (tuple, list)):
        yield len(value)
        for each in value:
            yield from _values(each)
    else:
        yield value
