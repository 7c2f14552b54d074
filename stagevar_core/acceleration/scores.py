"""Which tokens matter: scores to gather by, the higher the sooner."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..network.tokens import Site, resize_tokens
from ..schedule import Scale
from .policy import Seen, Selection

# 1/g and 1/g^2 of the plane's golden ratio g, the real root of g^3 = g + 1: the R2 sequence of M. Roberts,
# "The Unreasonable Effectiveness of Quasirandom Sequences" (2018).
R2 = (0.7548776662466927, 0.5698402909980532)
SCORES = ("norm", "distance", "detail", "change", "codes", "entropy", "grid", "random")


@dataclass
class History:
    """What the last scale that ran left to score by, as token maps (B, L, 1) of that scale."""

    scale: Scale | None = None
    entropy: Tensor | None = None
    codes: Tensor | None = None

    def observe(self, seen: Seen) -> None:
        """Remember a scale: the mean entropy of its bits or codes, and where its codes vary most."""
        self.scale = seen.scale
        self.entropy = seen.entropy(seen.guided).unsqueeze(-1)
        codes = F.adaptive_avg_pool2d(seen.change, seen.scale.grid)
        self.codes = detail(codes).square().mean(dim=1).flatten(1).unsqueeze(-1)

    def selected(self, taken: Selection) -> "History":
        """The same for other images."""
        found = (None if seen is None else taken.of_images(seen) for seen in (self.entropy, self.codes))
        return History(self.scale, *found)


def detail(grid: Tensor) -> Tensor:
    """What a map (B, C, h, w) has beyond its mean over 3 x 3 neighbours."""
    if min(grid.shape[-2:]) < 2:
        return grid - grid.mean(dim=(2, 3), keepdim=True)
    return grid - F.avg_pool2d(grid, 3, stride=1, padding=1, count_include_pad=False)


def token_scores(
    name: str,
    x: Tensor,
    site: Site,
    *,
    delta: Tensor | None,
    history: History,
    generators: Sequence[torch.Generator],
) -> Tensor:
    """Scores (rows, L) of the tokens ``x`` (rows, L, C) that enter a region.

    'norm': squared norm (StageVAR). 'distance': from the mean token (FastVAR). 'detail': squared difference
    from the neighbours. 'change': squared norm of ``delta``, what the region did to the token at the last
    scale (SparseVAR, DepthVAR). 'codes': how much the last scale's codes vary there. 'entropy': of the last
    scale's choices. 'grid': evenly spread. 'random': one draw per image. Where the last scale left nothing,
    'change', 'codes' and 'entropy' fall back to 'detail'.
    """
    wide, scale = x.float(), site.scale
    images = len(generators)
    if name == "norm":
        return wide.square().sum(dim=-1)
    if name == "distance":
        return (wide - wide.mean(dim=1, keepdim=True)).square().sum(dim=-1)
    if name == "change" and delta is not None:
        return settled(delta.float().contiguous().square().sum(dim=-1))
    if name in ("codes", "entropy") and history.scale is not None:
        seen = getattr(history, name)
        found = resize_tokens(seen, history.scale, scale, "bilinear").squeeze(-1)
        return found.repeat(len(x) // images, 1)
    if name in ("detail", "change", "codes", "entropy"):
        grid = wide.transpose(1, 2).unflatten(2, scale.grid)
        return detail(grid).square().sum(dim=1).flatten(1)
    if name == "grid":
        return spread_order(scale, x.device).expand(len(x), -1)
    if name == "random":
        draws = [torch.rand(scale.tokens, generator=generator) for generator in generators]
        return torch.stack(draws).to(x.device).repeat(len(x) // images, 1)
    raise ValueError(f"unknown score {name!r}; expected one of {list(SCORES)}")


def settled(scores: Tensor) -> Tensor:
    """Scores with the last 10 of their 23 bits rounded away.

    Tokens that took over the same change score the same, but for rounding, which depends on the batch and
    must not settle their order.
    """
    return (scores.view(torch.int32) + (1 << 9) & -(1 << 10)).view(torch.float32)


def spread_order(scale: Scale, device: torch.device) -> Tensor:
    """Scores (1, L) by which any number of the best tokens covers the grid evenly.

    The :data:`R2` sequence as a threshold mask: neighbours in value are far apart.
    """
    rows, columns = torch.arange(scale.height).double(), torch.arange(scale.width).double()
    mask = (rows[:, None] * R2[0] + columns[None, :] * R2[1]) % 1.0
    return mask.flatten().float().unsqueeze(0).to(device)


def evened(scores: Tensor, scale: Scale, share: float) -> Tensor:
    """Scores (rows, L) by rank, mixed with ``share`` of an even spread over the grid."""
    rank = scores.argsort(dim=-1, stable=True).argsort(dim=-1).float() / scores.shape[-1]
    return (1.0 - share) * rank + share * spread_order(scale, scores.device)
