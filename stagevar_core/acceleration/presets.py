"""The presets by name.

Those of our own have two settings: for models that were trained to correct themselves (Infinity and what is
made of it), and, ``uncorrected``, for the others (VAR, STAR, HART, Switti). Published methods have one.
"""

from collections.abc import Mapping

from ..checks import keys, one_of
from .auto import AutoPolicy, AutoSettings
from .changes import NAMES, changed, given
from .faster_hart import FASTER_HART
from .fastvar import FASTVAR
from .policy import AccelerationPolicy, DensePolicy
from .settings import Guidance, Keep, StageSettings, Tokens
from .skipvar import SKIPVAR
from .sparsevar import SPARSEVAR
from .staged import StagedPolicy
from .stagevar import PAPER, PAPER_RELEASED

OFF = DensePolicy()
"""No acceleration: bit-identical to the official computation."""


def _last(share: float) -> Keep:
    """Nothing between a quarter and three quarters of the area, then ``share`` of the last scale's tokens."""
    return ((0.75, 0.0), (0.9, share))


def _guided(*shares: tuple[float, float]) -> StageSettings:
    """For models that were not trained to correct themselves: both rows to the end, the tokens by ``keep``.

    To such a model codes on top of scales that were left out are nothing that it knows, so what is left out
    is left out at the end (docs/experiments.md, h).
    """
    return StageSettings(
        tokens=Tokens("gather", keep=shares, score="change", evenness=0.3, code_weight=0.0),
        guidance=Guidance("both"),
    )


QUALITY = StagedPolicy(
    "quality",
    StageSettings(guidance=Guidance("reuse")),
    uncorrected=_guided((0.75, 1.0), (0.9, 0.25)),
)
"""All tokens of all scales; in the fidelity stage the conditional rows alone, with decaying reused guidance.

1.69 times fewer transformer FLOPs on Infinity-2B at 1024 px. Uncorrected: a quarter of the last scale.
"""

BALANCED = StagedPolicy(
    "balanced",
    StageSettings(
        guidance=Guidance("reuse", end=0.2, reuse=0.5),
        tokens=Tokens("gather", keep=_last(0.67), score="change", evenness=0.3, code_weight=0.0),
    ),
    uncorrected=_guided((0.45, 1.0), (0.5, 0.6), (0.75, 0.6), (0.9, 0.0)),
)
"""Structure without the unconditional rows in its last scale, then 67% of the tokens of the last scale alone.

As many FLOPs as a quarter of the tokens at all fidelity scales, 3.75 times fewer than dense on Infinity-2B at
1024 px, spent where the experiments say (docs/experiments.md): on the last scale rather than those before it,
on the tokens that changed most at the last structure scale, and no codes from tokens that did not run.
Uncorrected: 60% of the scale before the last, and not the last.
"""

FAST = StagedPolicy(
    "fast",
    changed(BALANCED.settings, keep=_last(0.42), evenness=0.6),
    uncorrected=_guided((0.45, 1.0), (0.5, 0.2), (0.75, 0.2), (0.9, 0.0)),
)
"""``balanced`` with 42% of the last scale: 4.61 times fewer FLOPs, the budget of StageVAR's ranks.

Uncorrected: with 20% of the scale before the last.
"""

TURBO = StagedPolicy(
    "turbo",
    changed(BALANCED.settings, keep=_last(0.295), evenness=0.6),
    uncorrected=_guided((0.45, 0.5), (0.5, 0.0)),
)
"""``balanced`` with 29.5% of the last scale: 5.16 times fewer FLOPs, the budget of StageVAR's public code.

Uncorrected: half of the last scale but two, and neither of the two.
"""

AUTO = AutoPolicy("auto", AutoSettings(stages=BALANCED.settings))
"""``balanced`` with boundaries found per prompt while it is sampled; the report says which and why.

The same settings for all models.
"""

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
    return staged.changed(f"{policy.name} (changed)", kept)


def scheduled(policy: AccelerationPolicy, changes: Mapping[str, object], schedule: str) -> StagedPolicy:
    """A preset with what the file ``schedule`` replaces; ``ValueError`` as of :func:`adjusted`."""
    staged = _staged(policy, "schedule")
    return staged.changed(f"{policy.name} ({schedule})", changes)


def _staged(policy: AccelerationPolicy, what: str) -> StagedPolicy:
    """``policy`` where it has stages; ``what``: that which it would take then."""
    if isinstance(policy, StagedPolicy):
        return policy
    staged = [name for name, known in PRESETS.items() if isinstance(known, StagedPolicy)]
    raise ValueError(
        f"preset {policy.name!r} is a fixed method and takes no {what}; expected one of {staged}, or no "
        f"{what}"
    )
