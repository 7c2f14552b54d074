"""Which scales a run goes over: where it begins, where it stops, and what its images share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..acceleration.policy import RunInfo
from ..conditioning.changing import RunConditioning
from ..models.contract import Transformer
from ..schedule import Prefix, ScaleSchedule
from .editing import Given
from .guidance import Guide
from .paused import Key, Left, PausedRun, image_key
from .result import ScaleCodes


class Fan(NamedTuple):
    """Images with the same first scales run those once.

    ``scales``: how many are shared. ``first``: one image of every kind, which run them. ``images``: from
    which of these each image goes on.
    """

    scales: int
    first: tuple[int, ...]
    images: tuple[int, ...]


@dataclass(frozen=True)
class Passage:
    """Where a run begins and stops.

    ``conditioning``, ``seeds``: of all images. ``until``: scales after which it stops. ``fan``: scales that
    images share. ``found``: the state that it goes on from. ``paused``: where it leaves its own, under
    ``key`` and the keys of its images.
    """

    conditioning: RunConditioning
    seeds: tuple[int, ...]
    until: int
    key: Key
    paused: PausedRun | None
    fan: Fan | None
    found: tuple[Left, list[int]] | None

    @classmethod
    def of(  # noqa: PLR0913 - all that is asked of a run
        cls,
        given: Given,
        conditioning: RunConditioning,
        seeds: tuple[int, ...],
        until: int,
        key: Key,
        paused: PausedRun | None,
        *,
        apart: bool,
    ) -> "Passage":
        """The way of a run; ``apart``: its rows run in turn, which share nothing and leave nothing."""
        images = range(conditioning.batch)
        leads = [given.lead(index)[:until] for index in images]
        count, fan, found = min(map(len, leads)), None, None
        if apart or not 0 < count < until:
            return cls(conditioning, seeds, until, key, None if apart else paused, None, None)
        keys = [image_key(conditioning, index, leads[index][:count]) for index in images]
        if paused is not None:
            found = paused.find(key, keys, count)
        kinds = list(dict.fromkeys(keys))
        if found is None and len(kinds) < len(keys):
            fan = Fan(count, tuple(map(keys.index, kinds)), tuple(map(kinds.index, keys)))
        return cls(conditioning, seeds, until, key, paused, fan, found)

    @property
    def begins(self) -> RunConditioning:
        """That of the images that the run begins with."""
        return self.conditioning if self.fan is None else self.conditioning.images(self.fan.first)

    def info(
        self, schedule: ScaleSchedule, model: Transformer, prefix: Prefix | None, guide: Guide
    ) -> RunInfo:
        """What a policy may know of the images that the run begins with."""
        negative, batch = self.begins.negative is not None, self.begins.batch
        seeds = self.seeds
        if self.fan is not None:
            seeds = tuple(seeds[index] for index in self.fan.first)
        about = (model.config.depth, batch, guide.guided, negative, seeds, prefix, guide.until)
        return RunInfo(schedule, *about, corrects=model.corrects)

    def leave(self, left: Left, scales: Sequence[ScaleCodes]) -> None:
        """Keep the state of a run that stopped, where the caller wants it."""
        if self.paused is not None:
            keys = [
                image_key(self.conditioning, index, [scale.images([index]) for scale in scales])
                for index in range(self.conditioning.batch)
            ]
            self.paused.leave(self.key, keys, left, self.seeds)
