"""SparseVAR (arXiv 2507.20454, ICCV 2025): exclusion of low-frequency tokens.

In the fidelity stage only those tokens run that a middle chunk of blocks still changed at the scale before,
and a coarse lattice of anchors. A dropped token takes the final state of the anchor that it resembled most,
or gets no code at all.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import number, whole
from ..network.tokens import Site, TokenMap, gather_tokens, resize_tokens
from ..schedule import Scale
from .policy import DensePolicyRun, RunInfo, ScalePlan, Seen
from .staged import chunks
from .stages import StageBoundaries

NEAREST_ANCHORS = 4  # of which a dropped token may copy one: the corners of its cell of the lattice


@dataclass(frozen=True)
class SparseVAR:
    """``threshold``: of the largest change of a token, above which a token runs. ``window``: distance of the
    anchors in tokens. ``similarity``: cosine of two tokens' logits above which one may stand for the other.
    ``chunk``: whose change counts, one of ``chunks``; with fewer blocks the one at the same relative depth.
    """

    threshold: float = 0.6
    window: int = 4
    similarity: float = 0.8
    chunk: int = 3
    chunks: int = 8
    boundaries: StageBoundaries = field(default_factory=StageBoundaries)
    name: str = "sparsevar"
    per_image = True  # how many tokens run depends on the image

    def __post_init__(self) -> None:
        number("threshold", self.threshold)
        number("similarity", self.similarity)
        whole("window", self.window, 1, what="a distance of at least 1 token")
        whole("chunks", self.chunks, 1)
        whole("chunk", self.chunk, 0, self.chunks - 1, f"0 to {self.chunks - 1}")

    def start(self, info: RunInfo) -> "SparseVARRun":
        """Fresh state; every schedule can be run, too short ones dense."""
        return SparseVARRun(self, info)


class Choice(NamedTuple):
    """What happens to the L tokens of a scale.

    ``keep``: (r,), the tokens that run. ``source``: (L,), whose final state a token takes, its own where it
    ran or nothing resembles it. ``weights``: (L,), of the codes, 0 where neither holds.
    """

    keep: Tensor
    source: Tensor
    weights: Tensor


def anchors(scale: Scale, window: int) -> Tensor:
    """Tokens of a lattice with a point every ``window`` rows and columns, the last ones included; (A,)."""
    rows, columns = (
        torch.tensor(sorted({*range(0, side, window), side - 1})) for side in (scale.height, scale.width)
    )
    return (rows[:, None] * scale.width + columns[None, :]).flatten()


def choose(change: Tensor, logits: Tensor, before: Scale, after: Scale, settings: SparseVAR) -> Choice:
    """Which tokens of ``after`` run, from what ``before`` left: its tokens' change (L,) and logits (L, V).

    Waits for the device once, for the number of tokens that run.
    """
    at = anchors(after, settings.window).to(change.device)
    resized = resize_tokens(change[None, :, None], before, after, "nearest").flatten()
    runs = resized > settings.threshold * change.max()
    runs[at] = True
    seen = resize_tokens(logits[None].float(), before, after, "nearest")[0]
    index = torch.arange(after.tokens, device=change.device)
    points = torch.stack((index // after.width, index % after.width), dim=-1).float()
    near = torch.cdist(points, points[at]).topk(min(NEAREST_ANCHORS, len(at)), largest=False).indices
    alike, which = F.cosine_similarity(seen[:, None], seen[at[near]], dim=-1).max(dim=1)
    copies = ~runs & (alike > settings.similarity)
    source = torch.where(copies, at[near.gather(1, which[:, None]).squeeze(1)], index)
    return Choice(runs.nonzero().flatten(), source, (runs | copies).float())


class _Sparse:
    """One scale: the same tokens in all spans, the middle one watched; no ``choice`` runs all tokens."""

    def __init__(self, spans: tuple[range, ...], middle: range, choice: Choice | None) -> None:
        self.spans, self._middle, self._choice = spans, middle, choice
        self.change: Tensor | None = None  # (L,), mean over guidance rows

    def reduce(self, x: Tensor, site: Site) -> TokenMap | None:
        """The chosen tokens, the same for every guidance row of ``x`` (rows, L, C)."""
        return None if self._choice is None else TokenMap(self._choice.keep.expand(len(x), -1))

    def restore(self, x: Tensor, y: Tensor, tokens: TokenMap | None, site: Site) -> Tensor:
        """Others keep their state ``x``, at the end that of the token that they copy; notes the change."""
        full = y
        if tokens is not None:
            index = tokens.keep.unsqueeze(-1).expand(-1, -1, x.shape[-1])
            full = x.scatter(1, index, y.to(x.dtype))
        if site.layers == self._middle:
            self.change = (full - x).float().square_().mean(dim=(0, 2))
        if self._choice is not None and site.layers == self.spans[-1]:
            full = gather_tokens(full, self._choice.source.expand(len(x), -1))
        return full

    def code_weights(self) -> Tensor | None:
        """(1, L): 0 for tokens that neither ran nor copy one."""
        return None if self._choice is None else self._choice.weights.unsqueeze(0)


class SparseVARRun(DensePolicyRun):
    """One generation of one image."""

    def __init__(self, policy: SparseVAR, info: RunInfo) -> None:
        super().__init__(info)
        self.settings = policy
        found = chunks(info.depth, policy.chunks)
        self.middle = found[len(found) * policy.chunk // policy.chunks]
        spans = (range(self.middle.start), self.middle, range(self.middle.stop, info.depth))
        self.spans = tuple(span for span in spans if len(span))
        self.stages = policy.boundaries.stages(info.schedule)
        # A schedule that begins in the fidelity stage has nothing to judge its first scale by.
        fidelity = [index for index, stage in enumerate(self.stages) if stage == "fidelity"]
        self.first = max(1, min(fidelity, default=len(info.schedule)))
        self.last = len(info.schedule) - 1
        if self.first > self.last:
            area = policy.boundaries.structure_end
            self.notes.append(f"no scale with more than {area:g} of the area follows another; all run dense")
        self._reduction: _Sparse | None = None
        self._choice: Choice | None = None

    def plan(self, scale: Scale) -> ScalePlan:
        """From the last scale before the fidelity stage on, which runs in full, what was chosen after it."""
        stage, budget = self.stages[scale.index], ()
        if scale.index < self.first - 1 or self.first > self.last:
            return ScalePlan(stage=stage)
        if self._choice is not None:
            budget = (len(self._choice.keep),)
        self._reduction = _Sparse(self.spans, self.middle, self._choice)
        return ScalePlan(stage=stage, reduction=self._reduction, budget=budget)

    def observe(self, seen: Seen) -> None:
        """Choose the tokens of the next scale by what the middle blocks changed at this one."""
        change = None if self._reduction is None else self._reduction.change
        if change is None or not self.first - 1 <= seen.scale.index < self.last:
            return
        following = self.info.schedule[seen.scale.index + 1]
        self._choice = choose(change, seen.guided[0], seen.scale, following, self.settings)


SPARSEVAR = SparseVAR()
"""The settings of the public re-implementation (``Weepingchestnut/Lvar``); the authors published no code.

Reported by the paper: up to 2 times faster on Infinity-2B. Reported by DepthVAR (arXiv 2604.17286) when it
ran the method again: 2.71 s -> 1.28 s, GenEval 0.724 -> 0.721.
Deviations: the tokens above the threshold are counted at the scale where they run, not as a share taken from
the scale before; anchors always run, as the paper has it (without a batch the re-implementation leaves them
out and copies states that were never computed); any grid runs, a batch image by image.
"""
