"""What every policy must do on every family. A family joins with one line in ``FAMILIES``."""

import contextlib
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from stagevar_core.acceleration.policy import AccelerationPolicy
from stagevar_core.acceleration.presets import preset
from stagevar_core.acceleration.reduction import RESTORATIONS
from stagevar_core.acceleration.scores import SCORES
from stagevar_core.costs import Flops
from stagevar_core.network.local import LocalWindow
from stagevar_core.sampling.generate import generate
from stagevar_core.sampling.noise import SeededNoise
from stagevar_core.sampling.result import Generation
from stagevar_core.sampling.settings import SamplingSettings
from stagevar_core.schedule import SIDES_256, ScaleSchedule
from tests.support.tiny import FAR, Logits, edits, prompts, same_codes, tiny_infinity
from tests.support.tiny_hart import MODULATED, padded, tiny_hart, tiny_hybrid
from tests.support.tiny_star import encoded, tiny_star
from tests.support.tiny_switti import tiny_switti
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
    """Small models of one family, whose rows and tokens differ enough for a wrong one to be seen.

    ``build``: a model for a schedule. ``condition``: what so many images are conditioned on, with or without
    what they are guided away from; the first of them must not depend on the number. ``quantizer``: from the
    schedule, where the model has none of its own. ``grids``: three schedules. ``unguided``: the cfg without
    guidance.
    """

    name: str
    build: Callable[[ScaleSchedule], Any]
    condition: Callable[..., Any]
    quantizer: Callable[[ScaleSchedule], Any] = lambda schedule: None
    grids: tuple[tuple[tuple[int, int], ...], ...] = (SQUARE, TALL, WIDE)
    unguided: float = 1.0


def encoded_texts(batch: int, *, negative: bool = False) -> Any:
    """Texts of different lengths."""
    return prompts(*(5, 9, 2, 7)[:batch], negative=(4, 3, 8, 6)[:batch] if negative else None)


def encoded_edits(batch: int, *, negative: bool = False) -> Any:
    """The same with a picture each."""
    return edits(*(5, 9, 2, 7)[:batch], negative=(4, 3, 8, 6)[:batch] if negative else None)


def codebook(schedule: ScaleSchedule) -> Any:
    """That of the tokenizer which VAR, STAR and Switti share."""
    return tiny_vq().quantizer()


def hybrid(schedule: ScaleSchedule) -> Any:
    """That of HART's tokenizer."""
    return tiny_hybrid().quantizer()


def hart(**options: Any) -> Callable[[ScaleSchedule], Any]:
    """A HART model for a schedule."""
    return lambda schedule: tiny_hart(tuple(scale.height for scale in schedule), spread=FAR, **options)


FAMILIES = (
    Family("infinity", lambda schedule: tiny_infinity(spread=FAR), encoded_texts),
    Family("infinity patchified", lambda schedule: tiny_infinity(patch=2, spread=FAR), encoded_texts),
    Family(
        "infinity that edits",
        lambda schedule: tiny_infinity(spread=FAR, edits=True),
        encoded_edits,
        grids=SQUARES,
    ),
    Family(
        "var",
        lambda schedule: tiny_var(tuple(scale.height for scale in schedule), spread=FAR),
        labels,
        codebook,
        grids=SQUARES,
        unguided=0.0,
    ),
    Family(
        "star",
        lambda schedule: tiny_star(levels=len(schedule), spread=FAR),
        encoded,
        codebook,
        unguided=0.0,
    ),
    Family(
        "switti", lambda schedule: tiny_switti(len(schedule), spread=FAR), encoded, codebook, unguided=0.0
    ),
    Family(
        "switti whose scales see themselves alone",
        lambda schedule: tiny_switti(len(schedule), ar=False, spread=FAR),
        encoded,
        codebook,
        unguided=0.0,
    ),
    Family(
        "star with its sampler",
        lambda schedule: tiny_star(levels=len(schedule), sampler=1, spread=FAR),
        encoded,
        codebook,
        grids=FINE,
        unguided=0.0,
    ),
    Family("hart", hart(level_table=True), padded, hybrid, grids=SQUARES, unguided=0.0),
    Family("hart modulated", hart(**MODULATED), padded, hybrid, grids=SQUARES, unguided=0.0),
)


@dataclass(frozen=True)
class Way:
    """How a generation is asked for: images, guidance, what it leads away from, rows in turn or together."""

    batch: int = 2
    cfg: float | tuple[float, ...] = 3.0
    negative: bool = False
    sequential: bool = False


class Bench:
    """One family on one of its schedules; every dense generation is made once."""

    def __init__(self, family: Family, schedule: ScaleSchedule) -> None:
        self.family, self.schedule = family, schedule
        self.model, self.quantizer = family.build(schedule), family.quantizer(schedule)
        self._dense: dict[Way, Generation] = {}

    def run(
        self,
        policy: AccelerationPolicy | None,
        way: Way = Way(),
        *,
        image: int | None = None,
        known: Sequence[Tensor] = (),
        monitor: Logits | None = None,
    ) -> Generation:
        """A seeded generation; ``image``: that one of the batch on its own; ``known``: the codes it draws."""
        texts, noise = self.family.condition(way.batch, negative=way.negative), SeededNoise(11, way.batch)
        if image is not None:
            texts, noise = texts.image(image), noise.image(image)
            known = [codes[image : image + 1] for codes in known]
        settings = SamplingSettings(cfg_scale=way.cfg, temperature=1.0)
        return generate(
            *(self.model, texts, self.schedule, settings),
            noise=noise,
            quantizer=self.quantizer,
            policy=policy,
            monitor=monitor,
            known=known,
            sequential=way.sequential,
        )

    def dense(self, way: Way = Way()) -> Generation:
        """Without any policy."""
        if way not in self._dense:
            self._dense[way] = self.run(None, way)
        return self._dense[way]


def work(flops: Flops) -> tuple[float, float]:
    """What does not depend on how far the texts of a batch are padded."""
    return flops.linear, flops.attention


def untouched(generation: Generation, dense: Generation) -> int:
    """How many of the first scales ran as without acceleration, by the trace."""
    for found, expected in zip(generation.trace.scales, dense.trace.scales, strict=True):
        if found.rows != expected.rows or work(found.flops) != work(expected.flops):
            return found.scale.index
    return len(generation.schedule)


def check_report(generation: Generation, dense: Generation) -> None:
    """The trace says what happened, in values that JSON has."""
    trace = generation.trace
    assert json.loads(json.dumps(trace.to_dict(), allow_nan=False))["policy"] == trace.policy
    assert trace.policy in trace.summary()
    assert [scale.scale for scale in trace.scales] == list(generation.schedule)
    before, expected = trace.prefix, dense.trace.prefix
    assert (before is None) == (expected is None)
    if before is not None and expected is not None:  # no policy has a say in it
        assert (
            work(before.dense) == work(before.flops) == work(expected.flops) and before.rows == expected.rows
        )
    for scale, reference, code in zip(trace.scales, dense.trace.scales, generation.codes, strict=True):
        assert work(scale.dense) == work(reference.flops)
        assert scale.ran or code is None  # of a batch image by image, one may have run
        assert 0 <= scale.computed <= scale.scale.tokens + 1e-9
        assert 0 <= scale.rows <= reference.rows and scale.ran == (scale.rows > 0)
        assert (scale.flops.total > 0) == scale.ran


def far(found: Tensor, expected: Tensor) -> float:
    """The largest difference; where all values that are expected are below 1, by the largest of them."""
    return float((found - expected).abs().max() / expected.abs().max().clamp(1e-6, 1.0))


def check_rows(bench: Bench, policy: AccelerationPolicy, way: Way = Way()) -> int:
    """Rows that are left are those of the dense run, while tokens and keys are all there.

    Both runs are given the same codes, so that every scale starts from the same latent. Returns how many
    scales had lost rows.
    """
    image = 0 if policy.per_image else None  # which a monitor would see one after the other
    images = 1 if policy.per_image else way.batch
    expected, seen, known = Logits(), Logits(), bench.dense(way).codes
    dense = bench.run(None, way, image=image, known=known, monitor=expected)
    found = bench.run(policy, way, image=image, known=known, monitor=seen)
    lost = 0
    for scale, whole, raw, reference in zip(
        found.trace.scales, dense.trace.scales, seen.raw, expected.raw, strict=False
    ):
        if not scale.ran or (scale.computed, scale.visible) != (whole.computed, whole.visible):
            break
        if scale.guidance == "unconditional":
            if way.negative or bench.model.config.unit_costs.per_image or whole.rows == images:
                break  # they follow the null text, or read the prompt for themselves; or guidance is over
            reference = reference[images:]
        elif scale.rows < whole.rows:
            reference = reference[:images]
        assert raw.shape == reference.shape, f"scale {scale.scale.index} has other rows than it says"
        assert far(raw, reference) < 1e-4, f"scale {scale.scale.index} runs with rows of something else"
        lost += scale.rows < whole.rows
    return lost


def check_weights(bench: Bench, kept: str = "conditional") -> None:
    """Rows that are left draw what both draw where theirs is the only weight in the guidance."""
    alone, left = bench.run(preset("quality", guidance=kept, keep=1.0)), float(kept == "conditional")
    weights = [
        weight if scale.guidance.startswith("cfg") else left
        for scale, weight in zip(
            alone.trace.scales, bench.model.guidance_weights(3.0, bench.schedule), strict=True
        )
    ]
    cfg = tuple(weight - 1.0 + bench.family.unguided for weight in weights)
    assert left in weights and same_codes(alone, bench.run(None, Way(cfg=cfg))), (
        f"{kept} rows draw other codes"
    )


def check_policy(bench: Bench, policy: AccelerationPolicy, way: Way = Way()) -> None:
    """All capabilities; see the asserts."""
    dense, first = bench.dense(way), bench.run(policy, way)
    assert first.f_hat.shape == dense.f_hat.shape and first.f_hat.isfinite().all()
    check_report(first, dense)
    before = untouched(first, dense)
    assert before >= 1, "the first scale has nothing to go by"
    for index in range(before):
        assert (first.codes[index] == dense.codes[index]).all(), f"scale {index} differs"
    again = bench.run(policy, way)
    assert same_codes(first, again) and (first.f_hat == again.f_hat).all(), "two runs differ"
    for image in range(way.batch if way.batch > 1 else 0):
        alone, place = bench.run(policy, way, image=image), slice(image, image + 1)
        assert far(first.f_hat[place], alone.f_hat) < 1e-4, f"image {image} depends on its batch"
    other = bench.run(policy, replace(way, sequential=not way.sequential))
    assert same_codes(first, other), "rows in turn draw other codes than together"
    check_rows(bench, policy, way)
    unguided = bench.run(policy, replace(way, cfg=bench.family.unguided))
    assert unguided.f_hat.isfinite().all()
    assert {scale.rows for scale in unguided.trace.scales if scale.ran} <= {1, way.batch}
    after = bench.run(None, way)
    assert same_codes(dense, after) and (dense.f_hat == after.f_hat).all(), "the dense run has changed"


# -------------------------------------------------------------------------------------------- random settings

CHOICES: dict[str, tuple[Any, ...]] = {
    "guidance": ("both", "conditional", "unconditional", "reuse"),
    "guidance_end": (0.0, 0.1, 0.3, 1.0),
    "reuse": (0.0, 0.5, 1.0),
    "tokens": ("dense", "gather", "projection"),
    "keep": (
        *(0.0, 0.02, 0.3, 0.7, 1.0),
        ((0.5, 0.0), (1.0, 0.6)),
        ((0.4, 1.0), (1.0, 0.25)),
        ((0.4, (0.1, 0.9)), (1.0, (0.8, 0.0, 0.5))),
    ),
    "score": SCORES,
    "evenness": (0.0, 0.4, 1.0),
    "spans": (1, 2, 3),
    "restoration": RESTORATIONS,
    "code_weight": (0.0, 0.3, 1.0),
    "resize": ("area", "bilinear", "nearest"),
    "attention": ("dense", "local"),
    "window": (LocalWindow(), LocalWindow(sinks=0.0, tile=0.5, reach=0.0), LocalWindow(1.0, 1 / 8, 1 / 4)),
    "kv": ("append", "none", 0.2, 0.8),
    "skip": (0, 0, 1, 2),
}
STRENGTHS = (0.0, 1.0, 2.0, 3.5)  # of guidance, the ones among them that switch it off


@dataclass(frozen=True)
class Draw:
    """Settings of the stages, and a way to run them; the same for the same number and family."""

    number: int
    settings: dict[str, Any]
    way: Way

    @classmethod
    def of(cls, family: Family, number: int) -> "Draw":
        """Every value is as likely as the others of its setting."""
        dice = random.Random(f"{family.name} {number}")
        settings = {name: dice.choice(values) for name, values in CHOICES.items()}
        scales = max(map(len, family.grids))
        cfg = (3.0, tuple(dice.choice(STRENGTHS) for _ in range(scales - 1)) + (2.5,))
        way = Way(dice.randint(1, 3), dice.choice(cfg), dice.random() < 0.5, dice.random() < 0.5)
        return cls(number, settings, way)

    @property
    def policy(self) -> AccelerationPolicy:
        """The policy with these settings."""
        return preset("quality", **self.settings)


@contextlib.contextmanager
def told(draw: Draw) -> Iterator[None]:
    """Whatever fails says what was drawn."""
    try:
        yield
    except Exception as error:
        said = f"draw {draw.number}, {draw.way}: preset('quality', **{draw.settings})"
        raise AssertionError(f"{said}\n{type(error).__name__}: {error}") from error
