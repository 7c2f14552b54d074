"""The presets by name."""

from collections.abc import Mapping
from dataclasses import replace

from ..checks import keys, one_of
from .auto import AutoPolicy, AutoSettings
from .changes import NAMES, changed, given
from .faster_hart import FASTER_HART
from .fastvar import FASTVAR
from .policy import AccelerationPolicy, DensePolicy
from .settings import Guidance, StageSettings, Tokens
from .skipvar import SKIPVAR
from .sparsevar import SPARSEVAR
from .staged import StagedPolicy
from .stagevar import PAPER, PAPER_RELEASED

OFF = DensePolicy()
"""No acceleration: bit-identical to the official computation."""

QUALITY = StagedPolicy("quality", StageSettings(guidance=Guidance("reuse")))
"""All tokens of all scales; in the fidelity stage the conditional rows alone, with decaying reused guidance.

1.69 times fewer transformer FLOPs on Infinity-2B at 1024 px.
"""


def _last(share: float) -> tuple[tuple[float, float], ...]:
    """Nothing between a quarter and three quarters of the area, then ``share`` of the last scale's tokens."""
    return ((0.75, 0.0), (0.9, share))


BALANCED = StagedPolicy(
    "balanced",
    StageSettings(
        guidance=Guidance("reuse", end=0.2, reuse=0.5),
        tokens=Tokens("gather", keep=_last(0.67), score="change", evenness=0.3, code_weight=0.0),
    ),
)
"""Structure without the unconditional rows in its last scale, then 67% of the tokens of the last scale alone.

As many FLOPs as a quarter of the tokens at all fidelity scales, 3.75 times fewer than dense on Infinity-2B at
1024 px, spent where the experiments say (docs/experiments.md): on the last scale rather than those before it,
on the tokens that changed most at the last structure scale, and no codes from tokens that did not run.
"""

FAST = StagedPolicy("fast", changed(BALANCED.settings, keep=_last(0.42), evenness=0.6))
"""``balanced`` with 42% of the last scale: 4.61 times fewer FLOPs, the budget of StageVAR's ranks."""

TURBO = StagedPolicy("turbo", changed(BALANCED.settings, keep=_last(0.295), evenness=0.6))
"""``balanced`` with 29.5% of the last scale: 5.16 times fewer FLOPs, the budget of StageVAR's public code."""

AUTO = AutoPolicy("auto", AutoSettings(stages=BALANCED.settings))
"""``balanced`` with boundaries found per prompt while it is sampled; the report says which and why."""

PRESETS: dict[str, AccelerationPolicy] = {
    policy.name: policy
    for policy in (
        *(OFF, QUALITY, BALANCED, FAST, TURBO, AUTO),
        *(PAPER, PAPER_RELEASED, FASTVAR, SKIPVAR, SPARSEVAR, FASTER_HART),
    )
}
DEFAULT = BALANCED.name


def preset(name: str, /, **overrides: object) -> AccelerationPolicy:
    """A preset, with some of its settings replaced by the names of :mod:`.changes`.

    ``ValueError`` for unknown names and for values that cannot be used.
    """
    policy = PRESETS[one_of("preset", name, PRESETS)]
    return adjusted(policy, overrides) if overrides else policy


def adjusted(policy: AccelerationPolicy, changes: Mapping[str, object]) -> AccelerationPolicy:
    """A preset with some of its settings replaced; itself where all of them are to stay its own.

    ``ValueError`` for methods without stages, which have no such settings, unknown names, and values that
    cannot be used. What says the preset's own: see :func:`~.changes.given`.
    """
    kept = given(keys("", changes, NAMES))
    if not kept:
        return policy
    staged = _staged(policy, next(iter(kept)))
    return replace(staged, name=f"{policy.name} (changed)", settings=changed(staged.settings, **kept))


def scheduled(policy: AccelerationPolicy, changes: Mapping[str, object], schedule: str) -> StagedPolicy:
    """A preset with what the file ``schedule`` replaces; ``ValueError`` as of :func:`adjusted`."""
    staged = _staged(policy, "schedule")
    return replace(staged, name=f"{policy.name} ({schedule})", settings=changed(staged.settings, **changes))


def _staged(policy: AccelerationPolicy, what: str) -> StagedPolicy:
    """``policy`` where it has stages; ``what``: that which it would take then."""
    if isinstance(policy, StagedPolicy):
        return policy
    staged = [name for name, known in PRESETS.items() if isinstance(known, StagedPolicy)]
    raise ValueError(
        f"preset {policy.name!r} is a fixed method and takes no {what}; expected one of {staged}, or no "
        f"{what}"
    )
