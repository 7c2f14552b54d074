"""FastVAR (arXiv 2503.23367, ICCV 2025, public code ``csguoh/FastVAR``): cached token pruning.

At the last large scales every residual branch runs on the tokens farthest from the mean token of its input.
The others get what the same branch put out at the last dense scale, resized, on top of their own state.
"""

from dataclasses import dataclass, field

from torch import Tensor

from ..checks import number, one_of, whole
from ..network.tokens import Site, TokenMap
from ..schedule import Scale
from .policy import DensePolicyRun, RunInfo, ScalePlan
from .reduction import Memory, Reduction, best, watch
from .scores import History, token_scores
from .stages import StageBoundaries

PARTS = ("self", "cross", "ffn")


@dataclass(frozen=True)
class PruningSetting:
    """Where FastVAR prunes, by position from the end and by depth.

    ``prune``: share of tokens that do not run, of the scales before the skipped ones, coarse to fine.
    ``skip``: last scales that do not run. ``layers``: where the pruned blocks begin and end, as fractions of
    the depth. ``parts``: the residual branches that are pruned.
    """

    prune: tuple[float, ...]
    skip: int
    layers: tuple[float, float] = (0.0, 1.0)
    parts: tuple[str, ...] = PARTS

    def __post_init__(self) -> None:
        for name in ("prune", "layers"):
            for index, share in enumerate(getattr(self, name)):
                number(f"{name}[{index}]", share, 0.0, 1.0)
        whole("skip", self.skip, 0)
        for part in self.parts:
            one_of("parts", part, PARTS)


ON_INFINITY = PruningSetting(prune=(0.4, 0.5), skip=2, layers=(3 / 32, 28 / 32))
ON_HART = PruningSetting(prune=(0.5, 0.75), skip=0, parts=("self", "ffn"))


@dataclass(frozen=True)
class FastVAR:
    """``setting`` where the fidelity stage has at least three scales, ``otherwise`` where it has fewer."""

    setting: PruningSetting = ON_INFINITY
    otherwise: PruningSetting = ON_HART
    boundaries: StageBoundaries = field(default_factory=StageBoundaries)
    name: str = "fastvar"
    per_image = False

    def start(self, info: RunInfo) -> "FastVARRun":
        """Fresh state; every schedule can be run, one of a single scale dense."""
        return FastVARRun(self, info)


class FastVARRun(DensePolicyRun):
    """One generation; the memory holds what the pruned branches put out at the anchor scale."""

    def __init__(self, policy: FastVAR, info: RunInfo) -> None:
        super().__init__(info)
        self.setting, self.stages = policy.setting, policy.boundaries.stages(info.schedule)
        found = self.stages.count("fidelity")
        if found < 3:
            self.setting = policy.otherwise
            self.notes.append(
                f"the fidelity stage has {found} of the 3 scales that the setting for "
                "Infinity needs; the method's setting for HART is used, which skips no scale"
            )
        self.end = len(info.schedule) - self.setting.skip
        first = self.end - len(self.setting.prune)
        # Nothing comes before the first scale that could restore it.
        self.shares = {first + i: share for i, share in enumerate(self.setting.prune) if first + i > 0}
        if not self.shares:
            self.notes = ["no scale that could be pruned follows another one; all run dense"]
            self.end = len(info.schedule)
        self.anchor = min(self.shares, default=0) - 1
        self.memory = Memory()
        self.layers = range(*(round(fraction * info.depth) for fraction in self.setting.layers))

    def plan(self, scale: Scale) -> ScalePlan:
        """Dense up to the anchor, whose branches are remembered, then pruned, then skipped."""
        stage = self.stages[scale.index]
        if scale.index >= self.end:
            return ScalePlan(run=False, stage=stage, note="skipped")
        if scale.index == self.anchor:
            return ScalePlan(stage=stage, reduction=Reduction((), self.memory, watch, where=self.pruned))
        if scale.index not in self.shares:
            return ScalePlan(stage=stage)
        budget = scale.tokens - int(scale.tokens * self.shares[scale.index])

        def choose(x: Tensor, site: Site) -> TokenMap:
            scores = token_scores("distance", x, site, delta=None, history=History(), generators=())
            return TokenMap(best(scores, budget, images=len(x)))  # every guidance row on its own

        reduction = Reduction((), self.memory, choose, remember=False, where=self.pruned)
        return ScalePlan(stage=stage, reduction=reduction, budget=(budget,))

    def pruned(self, site: Site) -> bool:
        """Whether the branch ``site`` is pruned at all."""
        return site.part in self.setting.parts and site.layers.start in self.layers

    def room(self, scale: Scale) -> int:
        """Blocks that are not pruned keep all tokens of the scales that run."""
        return sum(later.tokens for later in self.info.schedule.scales[scale.index : self.end])


FASTVAR = FastVAR()
"""The settings of the public code.

On Infinity at 1024 px: dense to side 24 of 64; 40% of the tokens pruned at 32, 50% at 40, in blocks 3 to 27
of 32; 48 and 64 skipped; guidance as without acceleration. 4.23 times fewer transformer FLOPs on the 2B. On
HART: 50% pruned at 48 of 64 and 75% at 64, all blocks, cross-attention dense, no scale skipped.
Reported by the paper: Infinity-2B 2.61 s -> 0.95 s, GenEval 0.73 -> 0.72; HART 0.95 s -> 0.63 s, GenEval
0.51.
Deviations: scales count from the end and blocks by depth, so that any aspect ratio, size and batch runs. The
code tests for grid widths 32 and 40 and for the numbers of the blocks; on the 40 blocks of the 8B that leaves
15 dense instead of our 9, and 3.63 times fewer FLOPs instead of 3.86. Where fewer than three scales have more
than a quarter of the area, HART's setting is used.
"""
