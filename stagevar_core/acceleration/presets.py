"""The presets by name."""

from dataclasses import fields, replace
from typing import Any

from .auto import AutoPolicy, AutoSettings
from .fastvar import FASTVAR
from .policy import AccelerationPolicy, DensePolicy
from .skipvar import SKIPVAR
from .sparsevar import SPARSEVAR
from .staged import StagedPolicy, StageSettings
from .stagevar import PAPER, PAPER_RELEASED

OFF = DensePolicy()
"""No acceleration: bit-identical to the official computation."""

QUALITY = StagedPolicy("quality", StageSettings(guidance="reuse"))
"""All tokens of all scales; in the fidelity stage the conditional rows alone, with decaying reused guidance.

1.69 times fewer transformer FLOPs on Infinity-2B at 1024 px.
"""


def _last(share: float) -> tuple[tuple[float, float], ...]:
    """Nothing between a quarter and three quarters of the area, then ``share`` of the last scale's tokens."""
    return ((0.75, 0.0), (0.9, share))


BALANCED = StagedPolicy(
    "balanced",
    StageSettings(
        guidance="reuse",
        guidance_end=0.2,
        reuse=0.5,
        tokens="gather",
        keep=_last(0.67),
        score="change",
        evenness=0.3,
        code_weight=0.0,
    ),
)
"""Structure without the unconditional rows in its last scale, then 67% of the tokens of the last scale alone.

As many FLOPs as a quarter of the tokens at all fidelity scales, 3.75 times fewer than dense on Infinity-2B at
1024 px, spent where the experiments say (docs/experiments.md): on the last scale rather than those before it,
on the tokens that changed most at the last structure scale, and no codes from tokens that did not run.
"""

FAST = StagedPolicy("fast", replace(BALANCED.settings, keep=_last(0.42), evenness=0.6))
"""``balanced`` with 42% of the last scale: 4.61 times fewer FLOPs, the budget of StageVAR's ranks."""

TURBO = StagedPolicy("turbo", replace(BALANCED.settings, keep=_last(0.295), evenness=0.6))
"""``balanced`` with 29.5% of the last scale: 5.16 times fewer FLOPs, the budget of StageVAR's public code."""

AUTO = AutoPolicy("auto", AutoSettings(stages=BALANCED.settings))
"""``balanced`` with boundaries found per prompt while it is sampled; the report says which and why."""

PRESETS: dict[str, AccelerationPolicy] = {
    policy.name: policy
    for policy in (
        *(OFF, QUALITY, BALANCED, FAST, TURBO, AUTO),
        *(PAPER, PAPER_RELEASED, FASTVAR, SKIPVAR, SPARSEVAR),
    )
}
DEFAULT = BALANCED.name


def preset(name: str, **overrides: Any) -> AccelerationPolicy:
    """A preset, with some of its :class:`StageSettings` replaced; ``ValueError`` for unknown names."""
    if name not in PRESETS:
        raise ValueError(f"preset is {name!r}; expected one of {list(PRESETS)}")
    policy = PRESETS[name]
    if not overrides:
        return policy
    known = {item.name for item in fields(StageSettings)}
    unknown = sorted(set(overrides) - known)
    if unknown:
        raise ValueError(f"{unknown[0]} is no setting of a preset; expected one of {sorted(known)}")
    if not isinstance(policy, StagedPolicy):
        raise ValueError(f"preset {name!r} is a fixed method and takes no {sorted(overrides)[0]}")
    return StagedPolicy(f"{name} (changed)", replace(policy.settings, **overrides))
