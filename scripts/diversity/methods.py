"""Methods from papers that change what a transformer says, each around the embedded one.

They did not measure better than the temperature of the first scales (docs/experiments.md), so they are here
and not in the package.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stagevar_core.conditioning.types import TextConditioning
from stagevar_core.models.contract import Transformer
from stagevar_core.network.context import ScaleContext
from stagevar_core.schedule import Scale

NOISE = 700021  # seed of the first text's noise


class Changed(nn.Module):
    """A transformer that is another one but for what a subclass changes."""

    def __init__(self, inner: Transformer) -> None:
        super().__init__()
        object.__setattr__(self, "inner", inner)  # not a submodule: nothing is to be moved or saved

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "inner"), name)

    def forward(self, x: Tensor, ctx: ScaleContext) -> Tensor:
        """All blocks over the tokens of one scale, (rows, L, C)."""
        self.scale = ctx.scale
        return self.inner(x, ctx)


class SpatialGuidance(Changed):
    """Scaled spatial guidance (SSG, arXiv 2602.05534): ``l + strength (l - prior)`` after the first scale.

    The prior is the logits of the scale before on this grid: resized, with their own cosine spectrum in place
    of the low frequencies. Guidance and temperature are linear in logits, so that it does not matter that
    this comes before both.
    """

    def __init__(self, inner: Transformer, strength: float) -> None:
        super().__init__(inner)
        self.strength = strength
        self.before: tuple[Scale, Tensor] | None = None

    def logits(self, x: Tensor, state: Any) -> Tensor:
        """(rows, L, V)."""
        raw, before = self.inner.logits(x, state), self.before
        self.before = (self.scale, raw)
        if self.scale.index == 0 or before is None:
            return raw
        return raw + self.strength * (raw - enhanced(before[1], before[0].grid, self.scale.grid))


def enhanced(x: Tensor, before: tuple[int, int], after: tuple[int, int]) -> Tensor:
    """Tokens (rows, L, V) of one grid on a larger one, with their own spectrum at low frequencies."""
    grid = x.mT.unflatten(2, before)
    resized = F.interpolate(grid, size=after, mode="bilinear")
    rows, columns = (cosines(n) for n in after)
    spectrum = rows @ resized @ columns.T
    low = cosines(before[0]) @ grid @ cosines(before[1]).T
    spectrum[..., : before[0], : before[1]] = low * math.sqrt(math.prod(after) / math.prod(before))
    return (rows.T @ spectrum @ columns).flatten(2).mT


def cosines(n: int) -> Tensor:
    """The orthonormal cosine transform of n values, (n, n)."""
    at, frequency = torch.arange(n, dtype=torch.float64), torch.arange(n, dtype=torch.float64)[:, None]
    matrix = torch.cos(math.pi * (at + 0.5) * frequency / n) * math.sqrt(2 / n)
    matrix[0] /= math.sqrt(2)
    return matrix.float()


class Damped(Changed):
    """DiverseVAR by singular values (arXiv 2511.17074), at ``scales``, of the tokens (L, C) of every row.

    ``damp``: at the input every singular value s becomes ``s exp(-damp s / largest)``, which takes most from
    the pivotal ones. ``boost``: at the output of every block ``s exp(boost s / largest)``; every input of a
    block is damped then, and keeps its norm.
    """

    def __init__(self, inner: Transformer, scales: set[int], damp: float, boost: float = 0.0) -> None:
        super().__init__(inner)
        self.scales, self.damp, self.boost = scales, damp, boost

    def forward(self, x: Tensor, ctx: ScaleContext) -> Tensor:
        """All blocks over the tokens of one scale, (rows, L, C)."""
        if ctx.scale.index not in self.scales:
            return super().forward(x, ctx)
        if not self.boost:
            return super().forward(weighted(x, -self.damp, keep=False), ctx)

        def after_block(layer: int, h: Tensor) -> Tensor:
            h = weighted(ctx.after_block(layer, h), self.boost, keep=False)
            return weighted(h, -self.damp, keep=True) if layer < self.inner.config.depth - 1 else h

        return super().forward(weighted(x, -self.damp, keep=True), replace(ctx, after_block=after_block))


def weighted(x: Tensor, exponent: float, *, keep: bool) -> Tensor:
    """Tokens (rows, L, C) with singular values ``s exp(exponent s / largest)``; ``keep``: a row's norm."""
    u, s, v = torch.linalg.svd(x, full_matrices=False)
    new = s * torch.exp(exponent * s / s[:, :1])
    if keep:
        new = new * s.norm(dim=1, keepdim=True) / new.norm(dim=1, keepdim=True)
    return (u * new[:, None]) @ v


class NoisyState:
    """What the blocks need of the text with noise, and without."""

    def __init__(self, noisy: Any, clean: Any) -> None:
        self.noisy, self.clean = noisy, clean

    def narrow(self, rows: slice) -> "NoisyState":
        """Only these rows."""
        return NoisyState(self.noisy.narrow(rows), self.clean.narrow(rows))

    def seen(self, scale: Scale) -> Tensor | None:
        """What the text hides at a scale, with noise as without."""
        return self.clean.seen(scale)


class NoisyText(Changed):
    """DiverseVAR by the text (arXiv 2511.21415): noise on its features at the first ``scales``.

    ``share``: of the variance that is noise; mean and deviation of a text stay. Each image has its own.
    """

    def __init__(self, inner: Transformer, share: float, scales: int) -> None:
        super().__init__(inner)
        self.share, self.scales, self.texts = share, scales, 0

    def condition(self, conditioning: TextConditioning, guided: bool, *where: Any) -> NoisyState:
        """Both states."""
        noisy = replace(conditioning, features=tuple(self._noisy(text) for text in conditioning.features))
        return NoisyState(*(self.inner.condition(each, guided, *where) for each in (noisy, conditioning)))

    def first_tokens(self, state: NoisyState) -> Tensor:
        """The start token of every row, (rows, 1, C)."""
        return self.inner.first_tokens(state.noisy if self.scales else state.clean)

    def forward(self, x: Tensor, ctx: ScaleContext) -> Tensor:
        """All blocks over the tokens of one scale, (rows, L, C)."""
        return super().forward(x, replace(ctx, conditioned=self._at(ctx.scale, ctx.conditioned)))

    def logits(self, x: Tensor, state: NoisyState) -> Tensor:
        """(rows, L, V)."""
        return self.inner.logits(x, self._at(self.scale, state))

    def _at(self, scale: Scale, state: NoisyState) -> Any:
        return state.noisy if scale.index < self.scales else state.clean

    def _noisy(self, text: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(NOISE + self.texts)
        self.texts += 1
        noise = torch.randn(text.shape, generator=generator) * text.std()
        mixed = math.sqrt(1 - self.share) * text + math.sqrt(self.share) * noise
        return (mixed - mixed.mean()) / mixed.std() * text.std() + text.mean()


Making = Callable[[Transformer], Changed]
