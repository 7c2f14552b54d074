"""What every policy must do on every family. A family joins with one line in ``FAMILIES``."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from stagevar_core.acceleration.policy import AccelerationPolicy
from stagevar_core.costs import Flops
from stagevar_core.sampling.generate import generate
from stagevar_core.sampling.noise import SeededNoise
from stagevar_core.sampling.result import Generation
from stagevar_core.sampling.settings import SamplingSettings
from stagevar_core.schedule import SIDES_256, ScaleSchedule
from tests.support.tiny import prompts, same_codes, tiny_infinity
from tests.support.tiny_star import encoded, tiny_star
from tests.support.tiny_var import labels, tiny_var, tiny_vq

SQUARE = ((1, 1), (2, 2), (3, 3), (4, 4), (6, 6), (8, 8))
TALL = ((1, 1), (3, 2), (4, 3), (7, 4), (9, 6))
SQUARES = tuple(
    tuple((side, side) for side in sides) for sides in ((1, 2, 3, 4, 6), (1, 2, 4, 6, 9), SIDES_256)
)
FINE = tuple(  # with scales that STAR's sampler draws, from the tenth on
    tuple((side, side) for side in sides)
    for sides in ((*(1, 1, 2, 2, 3, 3), *range(4, 10)), tuple(range(1, 12)), (*range(1, 10), 11, 14))
)
WIDE = ((1, 1), (1, 2), (2, 4), (3, 6), (4, 9), (5, 11))


@dataclass(frozen=True)
class Family:
    """Small models of one family.

    ``build``: a model for a schedule. ``condition``: what so many images are conditioned on; the first of
    them must not depend on the number. ``quantizer``: from the schedule, where the model has none of its
    own. ``grids``: three schedules. ``unguided``: the cfg without guidance.
    """

    name: str
    build: Callable[[ScaleSchedule], Any]
    condition: Callable[[int], Any]
    quantizer: Callable[[ScaleSchedule], Any] = lambda schedule: None
    grids: tuple[tuple[tuple[int, int], ...], ...] = (SQUARE, TALL, WIDE)
    unguided: float = 1.0


def encoded_texts(batch: int) -> Any:
    """Texts of different lengths."""
    return prompts(*(5, 9, 2, 7)[:batch])


def codebook(schedule: ScaleSchedule) -> Any:
    """That of the tokenizer which VAR and STAR share."""
    return tiny_vq().quantizer()


FAMILIES = (
    Family("infinity", lambda schedule: tiny_infinity(), encoded_texts),
    Family("infinity patchified", lambda schedule: tiny_infinity(patch=2), encoded_texts),
    Family(
        "var",
        lambda schedule: tiny_var(tuple(scale.height for scale in schedule)),
        labels,
        codebook,
        grids=SQUARES,
        unguided=0.0,
    ),
    Family("star", lambda schedule: tiny_star(levels=len(schedule)), encoded, codebook, unguided=0.0),
    Family(
        "star with its sampler",
        lambda schedule: tiny_star(levels=len(schedule), sampler=1),
        encoded,
        codebook,
        grids=FINE,
        unguided=0.0,
    ),
)


@dataclass
class Bench:
    """One family on one of its schedules; every generation is made once."""

    family: Family
    schedule: ScaleSchedule

    def __post_init__(self) -> None:
        self.model = self.family.build(self.schedule)
        self.quantizer = self.family.quantizer(self.schedule)

    def run(
        self, policy: AccelerationPolicy | None, batch: int = 2, cfg: float = 3.0, image: int | None = None
    ) -> Generation:
        """A seeded generation; ``image``: that one of the batch on its own."""
        texts, noise = self.family.condition(batch), SeededNoise(11, batch)
        if image is not None:
            texts, noise = texts.image(image), noise.image(image)
        settings = SamplingSettings(cfg_scale=cfg, temperature=1.0)
        options = {"noise": noise, "quantizer": self.quantizer, "policy": policy}
        return generate(self.model, texts, self.schedule, settings, **options)

    @cached_property
    def dense(self) -> Generation:
        """Without any policy."""
        return self.run(None)


def work(flops: Flops) -> tuple[float, float]:
    """What does not depend on how far the texts of a batch are padded."""
    return flops.linear, flops.attention


def untouched(generation: Generation, dense: Generation) -> int:
    """How many of the first scales ran as without acceleration, by the trace."""
    for found, expected in zip(generation.trace.scales, dense.trace.scales, strict=True):
        if found.rows != expected.rows or work(found.flops) != work(expected.flops):
            return found.scale.index
    return len(generation.schedule)


def check_report(bench: Bench, generation: Generation) -> None:
    """The trace says what happened, in values that JSON has."""
    trace, dense = generation.trace, bench.dense.trace
    assert json.loads(json.dumps(trace.to_dict(), allow_nan=False))["policy"] == trace.policy
    assert trace.policy in trace.summary()
    assert [scale.scale for scale in trace.scales] == list(bench.schedule)
    for scale, reference, code in zip(trace.scales, dense.scales, generation.codes, strict=True):
        assert work(scale.dense) == work(reference.flops)
        assert scale.ran or code is None  # of a batch image by image, one may have run
        assert 0 <= scale.computed <= scale.scale.tokens + 1e-9
        assert 0 <= scale.rows <= reference.rows and scale.ran == (scale.rows > 0)
        assert (scale.flops.total > 0) == scale.ran


def check_policy(bench: Bench, policy: AccelerationPolicy) -> None:
    """All capabilities; see the asserts."""
    dense, first = bench.dense, bench.run(policy)
    assert first.f_hat.shape == dense.f_hat.shape and first.f_hat.isfinite().all()
    check_report(bench, first)
    before = untouched(first, dense)
    assert before >= 1, "the first scale has nothing to go by"
    for index in range(before):
        assert (first.codes[index] == dense.codes[index]).all(), f"scale {index} differs"
    again = bench.run(policy)
    assert same_codes(first, again) and (first.f_hat == again.f_hat).all(), "two runs differ"
    for image in range(2):
        alone, place = bench.run(policy, image=image), slice(image, image + 1)
        assert (first.f_hat[place] - alone.f_hat).abs().max() < 1e-4, f"image {image} depends on its batch"
    unguided = bench.run(policy, cfg=bench.family.unguided)
    assert unguided.f_hat.isfinite().all()
    assert {scale.rows for scale in unguided.trace.scales if scale.ran} <= {1, 2}
    after = bench.run(None)
    assert same_codes(dense, after) and (dense.f_hat == after.f_hat).all(), "the dense run has changed"
