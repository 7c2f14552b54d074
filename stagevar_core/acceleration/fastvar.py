"""FastVAR (arXiv 2503.23367, ICCV 2025, public code ``csguoh/FastVAR``): cached token pruning.

At the last large scales every residual branch runs on the tokens farthest from the mean token of its input.
The others get what the same branch put out at the last dense scale, resized, on top of their own state.
"""

from dataclasses import dataclass, field, replace

from torch import Tensor

from ..checks import number, one_of, whole
from ..network.tokens import Site, TokenMap
from ..schedule import SIDES_1024, Scale
from .policy import DensePolicyRun, RunInfo, ScalePlan, Selection
from .reduction import Memory, Reduction, best, watch
from .scores import History, token_scores
from .stages import StageBoundaries

PARTS = ("self", "cross", "ffn")
PUBLISHED_DEPTH = 32  # of Infinity-2B, which the numbers of the public code are meant for


@dataclass(frozen=True)
class PruningSetting:
    """Where FastVAR prunes, by position from the end and by the numbers of the blocks.

    ``prune``: share of tokens that do not run, of the scales before the skipped ones, coarse to fine.
    ``skip``: last scales that do not run. ``blocks``: the pruned ones, None is all; a model that has not so
    many prunes the same part of its depth. ``parts``: the residual branches that are pruned.
    """

    prune: tuple[float, ...]
    skip: int
    blocks: range | None = None
    parts: tuple[str, ...] = PARTS

    def __post_init__(self) -> None:
        for index, share in enumerate(self.prune):
            number(f"prune[{index}]", share, 0.0, 1.0)
        whole("skip", self.skip, 0)
        for part in self.parts:
            one_of("parts", part, PARTS)

    def pruned(self, depth: int) -> range:
        """The pruned blocks of a model: by number where it has them all, else by their part of the depth."""
        if self.blocks is None or depth >= self.blocks.stop:
            return self.blocks or range(depth)
        return range(*(round(depth * at / PUBLISHED_DEPTH) for at in (self.blocks.start, self.blocks.stop)))


ON_INFINITY = PruningSetting(prune=(0.4, 0.5), skip=2, blocks=range(3, 28))
ON_HART = PruningSetting(prune=(0.5, 0.75), skip=0, parts=("self", "ffn"))
HART_GRIDS = tuple((side, side) for side in SIDES_1024)
LARGE = 3  # fidelity scales of the schedules that ON_INFINITY is meant for


@dataclass(frozen=True)
class FastVAR:
    """``setting`` on every schedule but HART's own, which has ``on_hart``.

    ``setting`` skips no scale where the fidelity stage has fewer than three: what it skips of the published
    schedules lies beyond half of the area, and fewer scales would leave nothing of the stage.
    """

    setting: PruningSetting = ON_INFINITY
    on_hart: PruningSetting = ON_HART
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
        if info.schedule.grids == HART_GRIDS:
            self.setting = policy.on_hart
            self.notes.append("this is HART's schedule; the method's setting for HART is used")
        elif found < LARGE and self.setting.skip:
            self.setting = replace(self.setting, skip=0)
            self.notes.append(
                f"the fidelity stage has {found} of the {LARGE} scales of the published schedules; none of "
                "them is skipped, the last ones are pruned"
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
        self.layers = self.setting.pruned(info.depth)

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

    def narrow(self, rows: slice) -> None:
        """What the anchor put out of these rows; those of a family may stop with its guidance."""
        super().narrow(rows)
        self.memory.narrow(rows)

    def selected(self, taken: Selection) -> "FastVARRun":
        """The same for other images."""
        chosen = super().selected(taken)
        chosen.memory = self.memory.selected(taken)
        return chosen

    def room(self, scale: Scale) -> int:
        """Blocks that are not pruned keep all tokens of the scales that run."""
        return sum(later.tokens for later in self.info.schedule.scales[scale.index : self.end])


FASTVAR = FastVAR()
"""The settings of the public code, which has one for Infinity and one for HART.

On Infinity at 1024 px: dense to side 24 of 64; 40% of the tokens pruned at 32, 50% at 40, in blocks 3 to 27;
48 and 64 skipped; guidance as without acceleration. Equal to the public code bit for bit, 4.23 times fewer
transformer FLOPs on the 2B and 3.63 times on the 8B, whose other 15 blocks stay dense. On the grids of HART,
which STAR at 1024 px shares: 50% pruned at 48 of 64 and 75% at 64, all blocks, cross-attention dense, no
scale skipped.
Reported by the paper: Infinity-2B 2.61 s -> 0.95 s, GenEval 0.73 -> 0.72; HART 0.95 s -> 0.63 s, GenEval
0.51.
Ours, where the public code has nothing: scales count from the end, so that any aspect ratio, size and batch
runs (the code tests for grid widths 32 and 40). Models with fewer than 28 blocks prune the same part of their
depth. Fewer than three fidelity scales: none is skipped. VAR and the ten scales of STAR at 512 px get
Infinity's setting. In a branch that runs once for both rows of an image (STAR's cross-attention) the
conditional row chooses the tokens of both.
"""
