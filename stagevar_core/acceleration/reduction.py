"""Running regions on fewer tokens: which ones run, and what the others get."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..network.tokens import Site, TokenMap, gather_tokens, resize_tokens
from ..schedule import Scale
from .policy import Selection

RESTORATIONS = ("delta", "state", "anchor")


class Memory:
    """What every region put out at the last scale it ran at, (rows, L, C); belongs to one run."""

    def __init__(self, mode: str = "area") -> None:
        self.mode = mode
        self._found: dict[tuple[int, str, int | None], tuple[Scale, Tensor]] = {}

    def put(self, site: Site, value: Tensor) -> None:
        """Remember the output of a region."""
        self._found[(site.layers.start, site.part, site.half)] = (site.scale, value)

    def get(self, site: Site) -> Tensor | None:
        """The last output of a region on the grid of ``site``; None when it has not run."""
        found = self._found.get((site.layers.start, site.part, site.half))
        return None if found is None else resize_tokens(found[1], found[0], site.scale, self.mode)

    def narrow(self, rows: slice) -> None:
        """Only these rows from now on; of halves that ran in turn the one that they are."""
        left, kept = {}, 1 if rows.start else 0
        for (start, part, half), (scale, value) in self._found.items():
            if half is None:
                left[(start, part, None)] = scale, value[rows].clone()
            elif half == kept:
                left[(start, part, None)] = scale, value
        self._found = left

    def selected(self, taken: Selection) -> "Memory":
        """The same for other images, of rows that ran together."""
        chosen = Memory(self.mode)
        chosen._found = {site: (scale, taken.of_rows(value)) for site, (scale, value) in self._found.items()}
        return chosen


class Reduction:
    """A :class:`~stagevar_core.network.tokens.TokenReduction` for one scale.

    ``choose``: tokens of a region, called with its input and site; None everywhere only watches.
    ``restoration`` of the tokens that did not run: 'delta' adds what the region added to them at the last
    scale, 'state' puts the region's last output there, 'anchor' adds what the nearest token got that did run.
    ``remember``: keep the outputs for the next scale. ``code_weight``: of the codes of a token that ran in no
    region; in between by the share of regions. ``where``: the regions this is about; the others run all
    tokens and nothing of them is remembered.
    """

    def __init__(
        self,
        spans: tuple[range, ...],
        memory: Memory,
        choose: Callable[[Tensor, Site], TokenMap | None],
        *,
        restoration: str = "delta",
        remember: bool = True,
        code_weight: float = 1.0,
        images: int = 1,
        where: Callable[[Site], bool] | None = None,
    ) -> None:
        self.spans = spans
        self._memory, self._choose, self._images = memory, choose, images
        self._where = where or (lambda site: True)
        self._restoration, self._remember, self._code_weight = restoration, remember, code_weight
        self._regions = 0
        self._runs: Tensor | None = None  # (rows, L), regions in which a token ran

    def reduce(self, x: Tensor, site: Site) -> TokenMap | None:
        """The tokens of a region with the input ``x`` (rows, L, C); None runs all."""
        tokens = self._choose(x, site) if self._where(site) else None
        if self._code_weight != 1.0 and not site.half:  # the conditional rows come first, and alone count
            self._count(x, tokens)
        return tokens

    def restore(self, x: Tensor, y: Tensor, tokens: TokenMap | None, site: Site) -> Tensor:
        """``y`` (rows, r, C) at the tokens that ran and what the others get, (rows, L, C); remembers it."""
        past = None if tokens is None else self._memory.get(site)
        full = y if tokens is None else placed(self._untouched(x, y, tokens, site, past), tokens, y)
        if self.remembers(site):
            self._memory.put(site, full if self._restoration == "state" else self._change(x, y, tokens, past))
        return full

    def concerns(self, site: Site) -> bool:
        """Whether this is about a region at all; the others run all tokens."""
        return self._where(site)

    def remembers(self, site: Site) -> bool:
        """Whether the output of a region is kept for a later scale."""
        return self._remember and self._restoration != "anchor" and self._where(site)

    def code_weights(self) -> Tensor | None:
        """(B, L): 1 for tokens that ran in every region, ``code_weight`` for those that ran in none."""
        if self._runs is None:
            return None
        share = self._runs[: self._images] / self._regions
        return 1.0 - (1.0 - self._code_weight) * (1.0 - share)  # exactly 1 where every region ran

    def _change(self, x: Tensor, y: Tensor, tokens: TokenMap | None, past: Tensor | None) -> Tensor:
        """What the region added to every token; where it did not run, what was remembered, bit for bit.

        ``(x + past) - x`` would round, and rounding would settle which of two equal tokens runs next.
        """
        if tokens is None:
            return y - x
        past = torch.zeros_like(x) if past is None else past.to(x.dtype)
        return placed(past, tokens, y.to(x.dtype) - gather_tokens(x, tokens.keep))

    def _untouched(self, x: Tensor, y: Tensor, tokens: TokenMap, site: Site, past: Tensor | None) -> Tensor:
        """What tokens get that did not run, (rows, L, C); at those that did it is not used."""
        if self._restoration == "anchor" and tokens.count:
            added = y.to(x.dtype) - gather_tokens(x, tokens.keep)
            return x + gather_tokens(added, nearest(tokens.keep, site.scale))
        if past is None:
            return x
        return past.to(x.dtype) if self._restoration == "state" else x + past.to(x.dtype)

    def _count(self, x: Tensor, tokens: TokenMap | None) -> None:
        """One more region, and the tokens that run in it."""
        if self._runs is None:
            self._runs = torch.zeros(x.shape[:2], device=x.device)
        self._regions += 1
        if tokens is None:
            self._runs += 1.0
        else:
            ones = torch.ones_like(tokens.keep, dtype=self._runs.dtype)
            self._runs.scatter_add_(1, tokens.keep, ones)


def placed(x: Tensor, tokens: TokenMap, y: Tensor) -> Tensor:
    """``x`` (rows, L, C) with ``y`` (rows, r, C) at the tokens that ran."""
    return x.scatter(1, tokens.keep.unsqueeze(-1).expand(-1, -1, x.shape[-1]), y.to(x.dtype))


def nearest(keep: Tensor, scale: Scale) -> Tensor:
    """Position in ``keep`` (rows, r) of the kept token nearest to every token of the grid, (rows, L)."""
    index = torch.arange(scale.tokens, device=keep.device)

    def points(tokens: Tensor) -> Tensor:
        return torch.stack((tokens // scale.width, tokens % scale.width), dim=-1).float()

    return torch.cdist(points(index).expand(len(keep), -1, -1), points(keep)).argmin(dim=-1)


def watch(x: Tensor, site: Site) -> None:
    """Runs every token; for scales whose outputs a later one needs."""
    return None


def best(scores: Tensor, budget: int, images: int) -> Tensor:
    """The ``budget`` best tokens in raster order, (rows, budget), the same in both rows of an image."""
    shared = scores.unflatten(0, (-1, images)).mean(dim=0)
    # Stable, because resized maps hold equal scores and topk settles ties as each device likes.
    order = shared.argsort(dim=-1, descending=True, stable=True)
    return order[:, :budget].sort(dim=-1).values.repeat(len(scores) // images, 1)


def random_projection(
    x: Tensor, budget: int, generators: Sequence[torch.Generator], *, raster_positions: bool
) -> TokenMap:
    """StageVAR's mixtures: a Gaussian (L, r) over sqrt(r), and tokens drawn by their squared norm.

    Both rows of an image get the same. The draw without replacement is a race of exponential clocks, which
    needs no host synchronisation.
    ``raster_positions``: rotary positions of the first r tokens, as released for Infinity; else of the drawn.
    """
    length, images = x.shape[1], len(generators)
    matrices, clocks = [], []
    for generator in generators:
        matrices.append(torch.randn(length, budget, generator=generator) * budget**-0.5)
        clocks.append(torch.empty(length).exponential_(generator=generator))
    repeats = len(x) // images
    matrix = torch.stack(matrices).to(x.device).repeat(repeats, 1, 1)
    norms = x.float().square().sum(dim=-1).unflatten(0, (-1, images)).mean(dim=0)
    keep = (norms / torch.stack(clocks).to(x.device)).topk(budget, dim=-1).indices.repeat(repeats, 1)
    first = torch.arange(budget, device=x.device).expand(len(x), -1)
    return TokenMap(keep, matrix, first if raster_positions else keep)
