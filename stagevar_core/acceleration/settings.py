"""What a staged run leaves out, as small settings that say their trade-off and check themselves.

Refusals use the flat, public names of :mod:`.changes`, by which schedule files, nodes and the command line
set these values; ``ValueError`` names the value and what is allowed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..checks import number, one_of, refuse, whole
from ..network.local import LocalWindow
from .reduction import RESTORATIONS
from .scores import SCORES
from .stages import StageBoundaries

GUIDANCE = ("both", "conditional", "unconditional", "reuse")
TOKENS = ("dense", "gather", "projection")
RESIZES = ("area", "bilinear", "nearest")
ATTENTION = ("dense", "local")
STORES = ("append", "none")
MOST_SCALES, MOST_CHUNKS = 64, 256  # more scales and more blocks than any model has

Share = float | tuple[float, ...]
"""A share of the tokens, or one for every part of the depth."""

Keep = float | tuple[tuple[float, Share], ...]
"""One share for all scales, or points (area fraction, share) by rising area, interpolated in between."""


@dataclass(frozen=True)
class Guidance:
    """Which rows of guidance run: one kind alone is half of the work and of the keys and values.

    ``mode``: 'both' rows, as without acceleration. 'conditional': close to it, with less contrast where
    guidance is strong. 'reuse': these and, at the n-th scale, ``reuse ** n`` of the last guidance, which
    restores contrast and costs nothing. 'unconditional': the paper's choice, loses the most texture.
    ``end``: area fraction up to which both rows run in the other modes. The earlier it is, the more is saved
    and the less the prompt decides. The first scale always has both rows then, the fidelity stage never.
    """

    mode: str = "conditional"
    end: float = 1.0
    reuse: float = 0.5

    def __post_init__(self) -> None:
        one_of("guidance", self.mode, GUIDANCE)
        number("guidance_end", self.end, 0.0, 1.0)
        number("reuse", self.reuse, 0.0, 1.0)


@dataclass(frozen=True)
class Tokens:
    """Which tokens run and what the others get. Work falls in step with ``keep``, and texture goes first.

    ``mode``: 'dense' runs all, 'gather' the best by ``score``, 'projection' as many random mixtures of all,
    which keep no token's identity. ``keep``: the share that runs, see :data:`Keep`; equal work is worth most
    at the last scale. ``evenness``: 0 takes the best tokens, 1 takes them evenly spread, in between by both.
    ``spans``: chunks of blocks that reduce and restore on their own, each with a share of its own; 1 is the
    whole scale. ``restoration`` of the others: see :class:`~.reduction.Reduction`. ``code_weight``: how much
    the codes of tokens that did not run count: 1, the paper's choice, keeps texture and invents things, 0
    leaves these places as coarse as they were, and a scale without any tokens then does not run.
    ``resize``: how what is remembered comes to the next grid.
    """

    mode: str = "dense"
    keep: Keep = 1.0
    score: str = "change"
    evenness: float = 0.0
    spans: int = 1
    restoration: str = "delta"
    code_weight: float = 1.0
    resize: str = "area"

    def __post_init__(self) -> None:
        one_of("tokens", self.mode, TOKENS)
        one_of("score", self.score, SCORES)
        one_of("restoration", self.restoration, RESTORATIONS)
        one_of("resize", self.resize, RESIZES)
        number("evenness", self.evenness, 0.0, 1.0)
        number("code_weight", self.code_weight, 0.0, 1.0)
        whole("spans", self.spans, 1, MOST_CHUNKS)
        object.__setattr__(self, "keep", checked_keep(self.keep))  # lists as tuples: hashable, equal


@dataclass(frozen=True)
class Cache:
    """Which keys and values the fidelity stage sees and leaves: fewer save memory and time, and cost detail.

    ``attention``: 'dense', or 'local' to ``window`` and the coarsest scales, which carry what is far away;
    it needs dense tokens. ``kv``: 'append' keeps those of every scale; 'none' those of the stages before, so
    that fidelity scales do not see each other; a share keeps as many of all tokens so far, the most attended.
    """

    attention: str = "dense"
    window: LocalWindow = field(default_factory=LocalWindow)
    kv: str | float = "append"

    def __post_init__(self) -> None:
        one_of("attention", self.attention, ATTENTION)
        if not isinstance(self.window, LocalWindow):
            refuse("window", self.window, "a LocalWindow")
        if self.kv not in STORES:
            number("kv", self.kv, 0.0, 1.0, "'append', 'none' or a share from 0 to 1")


@dataclass(frozen=True)
class StageSettings:
    """What happens in the fidelity stage; all tokens of the scales before it run.

    ``boundaries``: the earlier the stage begins, the more is saved; early it changes more than detail.
    ``skip``: last scales that do not run, which saves the most and loses the finest detail; one fidelity
    scale always does.
    """

    boundaries: StageBoundaries = field(default_factory=StageBoundaries)
    guidance: Guidance = field(default_factory=Guidance)
    tokens: Tokens = field(default_factory=Tokens)
    cache: Cache = field(default_factory=Cache)
    skip: int = 0

    def __post_init__(self) -> None:
        parts = {"boundaries": StageBoundaries, "guidance": Guidance, "tokens": Tokens, "cache": Cache}
        for name, kind in parts.items():
            if not isinstance(getattr(self, name), kind):
                refuse(name, getattr(self, name), f"a {kind.__name__}; plain values go through changed()")
        whole("skip", self.skip, 0, MOST_SCALES)


def checked_keep(value: object) -> Keep:
    """``value`` as a :data:`Keep`, lists as tuples; ``ValueError`` names the first part that is wrong."""
    if not isinstance(value, list | tuple):
        return number("keep", value, 0.0, 1.0, "a share, or a list of [area fraction, share], from 0 to 1")
    if not 1 <= len(value) <= MOST_SCALES:
        refuse("keep", value, f"1 to {MOST_SCALES} points [area fraction, share]")
    points: list[tuple[float, Share]] = []
    before = -1.0
    for index, point in enumerate(value):
        name = f"keep[{index}]"
        if not isinstance(point, list | tuple) or len(point) != 2:
            refuse(name, point, "[area fraction, share]")
        area = number(f"{name}[0]", point[0], 0.0, 1.0, "an area fraction from 0 to 1")
        if area <= before:
            refuse(f"{name}[0]", area, f"more than {before}, the area fraction before it, and 1 at most")
        points.append((area, _checked_share(f"{name}[1]", point[1])))
        before = area
    return tuple(points)


def _checked_share(name: str, value: object) -> Share:
    """``value`` as a :data:`Share`."""
    if not isinstance(value, list | tuple):
        return number(name, value, 0.0, 1.0, "a share, or a list of shares over the depth, from 0 to 1")
    if not 1 <= len(value) <= MOST_CHUNKS:
        refuse(name, value, f"1 to {MOST_CHUNKS} shares over the depth")
    return tuple(
        number(f"{name}[{i}]", share, 0.0, 1.0, "a share from 0 to 1") for i, share in enumerate(value)
    )


def averaged(keep: Keep) -> Keep:
    """``keep`` with one share for all blocks, the mean of those over the depth."""
    if not isinstance(keep, tuple):
        return keep
    return tuple((area, sum(s) / len(s) if isinstance(s, tuple) else s) for area, s in keep)


def interpolate(points: Sequence[tuple[float, float]], at: float) -> float:
    """Piecewise linear through (position, value) points, flat beyond the ends."""
    if at <= points[0][0]:
        return points[0][1]
    for (x0, y0), (x1, y1) in zip(points[:-1], points[1:], strict=True):
        if at <= x1:
            return y0 + (y1 - y0) * (at - x0) / (x1 - x0)
    return points[-1][1]


def share_at(keep: Keep, area: float, depth: float) -> float:
    """The share of tokens at an area fraction and at a relative depth of the blocks, both 0..1."""
    if not isinstance(keep, tuple):
        return float(keep)

    def value(share: Share) -> float:
        if not isinstance(share, tuple):
            return float(share)
        centres = [((i + 0.5) / len(share), number) for i, number in enumerate(share)]
        return interpolate(centres, depth)

    return interpolate([(fraction, value(share)) for fraction, share in keep], area)
