"""HART's residual diffusion: what no row of the codebook says of the last scale's tokens, drawn in steps.

Arithmetic of hart/modules/diffusion of mit-han-lab/hart, after MAR (arXiv 2406.11838): a small network of
every token alone, which reads the transformer's output for it and denoises a latent pixel. The codes of the
last scale are its row of the codebook and this residual.
"""

import math
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..network.layers import cast, rms_norm, stacked
from ..network.tokens import in_parts
from ..schedule import Scale
from .contract import Drawing, Drawn, Noise
from .draws import TokenHead
from .guidance import mix
from .hart_config import HARTConfig

MODES = ("diffusion",)
TRAINED_STEPS = 1000
FEATURES = 256  # of a time or a level
_RESIDUAL_SCALE = 0.6  # of the latent that the network was trained on
_EARLY = 7  # scales that draw from twice as many tokens as the later ones
_UNGUIDED = 2.0  # the official code takes a strength of exactly 1 for no guidance


class Step(NamedTuple):
    """One denoising step; numbers of the respaced chain, derived in float64.

    ``time``: of the full chain. ``from_state``, ``from_noise``: x0 is their combination of the state and the
    noise that the network found. ``mean_clean``, ``mean_state``: what the mean takes of x0 and of the state.
    ``low``, ``high``: logarithms of the variances between which the network chooses. ``last``: adds no noise.
    """

    time: int
    from_state: float
    from_noise: float
    mean_clean: float
    mean_state: float
    low: float
    high: float
    last: bool


def spaced(count: int) -> list[int]:
    """The steps of the full chain that a chain of ``count`` steps takes, rising."""
    if not 2 <= count <= TRAINED_STEPS:
        raise ValueError(f"the residual diffusion takes {count} steps; expected 2 to {TRAINED_STEPS}")
    stride, place, steps = (TRAINED_STEPS - 1) / (count - 1), 0.0, []
    for _ in range(count):
        steps.append(round(place))
        place += stride
    return steps


def chain(count: int) -> list[Step]:
    """The steps of a chain in the order in which they run, noisiest first."""

    def signal(time: int) -> float:
        return math.cos((time / TRAINED_STEPS + 0.008) / 1.008 * math.pi / 2) ** 2

    whole, product = [], 1.0  # how much of the signal is left after each of the trained steps
    for time in range(TRAINED_STEPS):
        product *= 1.0 - min(1.0 - signal(time + 1) / signal(time), 0.999)
        whole.append(product)
    times = spaced(count)
    left = [whole[time] for time in times]
    before = [1.0, *left[:-1]]
    betas = [1.0 - now / earlier for now, earlier in zip(left, before, strict=True)]
    variances = [
        beta * (1.0 - earlier) / (1.0 - now) for beta, now, earlier in zip(betas, left, before, strict=True)
    ]
    variances[0] = variances[1]  # that of the last step is 0, and has no logarithm
    steps = [
        Step(
            time=time,
            from_state=math.sqrt(1.0 / now),
            from_noise=math.sqrt(1.0 / now - 1.0),
            mean_clean=beta * math.sqrt(earlier) / (1.0 - now),
            mean_state=(1.0 - earlier) * math.sqrt(1.0 - beta) / (1.0 - now),
            low=math.log(variance),
            high=math.log(beta),
            last=time == times[0],
        )
        for time, now, earlier, beta, variance in zip(times, left, before, betas, variances, strict=True)
    ]
    return steps[::-1]


def sinusoids(values: Tensor) -> Tensor:
    """Cosines, then sines of numbers (n,), (n, FEATURES) in float32."""
    half = FEATURES // 2
    rates = torch.exp(
        -math.log(10000.0) * torch.arange(half, dtype=torch.float32, device=values.device) / half
    )
    angles = values.float()[:, None] * rates
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


class Embedder(nn.Module):
    """A network over :func:`sinusoids` of a number, in float32."""

    def __init__(self, width: int, *, operations=nn, device=None) -> None:
        super().__init__()
        precise = {"dtype": torch.float32, "device": device}
        self.fc1 = operations.Linear(FEATURES, width, **precise)
        self.fc2 = operations.Linear(width, width, **precise)

    def forward(self, values: Tensor) -> Tensor:
        """(n,) to (n, width)."""
        return self.fc2(F.silu(self.fc1(sinusoids(values))))


class ResidualBlock(nn.Module):
    """A modulated feed-forward of one token."""

    def __init__(self, width: int, *, operations=nn, dtype=None, device=None) -> None:
        super().__init__()
        factory, precise = {"dtype": dtype, "device": device}, {"dtype": torch.float32, "device": device}
        self.norm_weight = nn.Parameter(torch.empty(width, **precise))
        self.norm_bias = nn.Parameter(torch.empty(width, **precise))
        self.fc1 = operations.Linear(width, width, **factory)
        self.fc2 = operations.Linear(width, width, **factory)
        self.modulation = operations.Linear(width, 3 * width, **factory)

    def forward(self, x: Tensor, active: Tensor) -> Tensor:
        """(rows, L, W) in float32; ``active``: silu of what modulates, in the dtype of the products."""
        shift, scale, gate = self.modulation(active).chunk(3, dim=-1)
        affine = cast(self.norm_weight, x), cast(self.norm_bias, x)
        h = F.layer_norm(x, x.shape[-1:], *affine, eps=1e-6) * (1.0 + scale) + shift
        return x + gate * self.fc2(F.silu(self.fc1(h.to(active.dtype))))


class ResidualDiffusion(nn.Module):
    """The network and its sampler."""

    def __init__(self, config: HARTConfig, *, operations=nn, dtype=None, device=None) -> None:
        super().__init__()
        width, dim = config.diff_width, config.dim
        factory = {"operations": operations, "dtype": dtype, "device": device}
        linear = {"dtype": dtype, "device": device}
        self.steps = chain(config.diff_steps)
        self.time = Embedder(width, operations=operations, device=device)
        self.text = operations.Linear(config.width, width, **linear)
        self.entry = operations.Linear(dim, width, **linear)
        self.blocks = stacked(ResidualBlock(width, **factory) for _ in range(config.diff_depth))
        self.out_modulation = operations.Linear(width, 2 * width, **linear)
        self.out = operations.Linear(width, 2 * dim, **linear)

    def forward(self, x: Tensor, time: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Noise and place of the variance, both (rows, L, dim), of the state ``x`` (B, L, dim) of all rows.

        ``time``: (1, W). ``text``: (rows, L, W), what :attr:`text` makes of the transformer's output.
        """
        active = F.silu(time + text).to(text.dtype)
        h = self.entry(x.to(text.dtype)).float().repeat(len(text) // len(x), 1, 1)
        for block in self.blocks:
            h = block(h, active)
        shift, scale = self.out_modulation(active).chunk(2, dim=-1)
        h = F.layer_norm(h, h.shape[-1:], eps=1e-6) * (1.0 + scale) + shift
        noise, place = self.out(h.to(text.dtype)).float().chunk(2, dim=-1)
        return noise, place

    def sample(self, seen: Tensor, draws: Tensor | None, weight: float | None, dtype: torch.dtype) -> Tensor:
        """The residual (B, L, dim) in float32.

        ``seen``: the transformer's output (rows, L, C), of two rows per image where there is a ``weight`` of
        guidance. ``draws``: (steps, B, L, dim), the state at first and the noise of all steps but the last,
        which adds none; None starts from zeros and adds nothing.
        """

        def compute(part: Tensor, noise: Tensor | None) -> Tensor:
            text = self.text(part.to(dtype))
            images = len(part) if weight is None else len(part) // 2
            size = (images, part.shape[1], self.entry.in_features)
            state = torch.zeros(size, device=part.device) if noise is None else noise[0]
            for place, step in enumerate(self.steps):
                time = self.time(torch.tensor([step.time], device=part.device))
                state = self._step(state, self(state, time, text), step, weight)
                if noise is not None and not step.last:
                    state = state[0] + state[1] * noise[place + 1]
                else:
                    state = state[0]
            return state

        # The noise is sliced by token, as angles are.
        return in_parts(compute, seen, draws) * _RESIDUAL_SCALE

    def _step(
        self, state: Tensor, found: tuple[Tensor, Tensor], step: Step, weight: float | None
    ) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the next state (B, L, dim); the variance is that of the first rows."""
        noise, place = found[0], found[1][: len(state)]
        if weight is not None:
            conditional, unconditional = noise.chunk(2)
            noise = mix(conditional, unconditional, weight)
        clean = (step.from_state * state - step.from_noise * noise).clamp(-1.0, 1.0)
        share = (place + 1.0) / 2.0
        deviation = torch.exp(0.5 * (share * step.high + (1.0 - share) * step.low))
        return step.mean_clean * clean + step.mean_state * state, deviation


class ResidualHead:
    """Draws tokens by ``plain``, and at the last scale what their codes lack by the network.

    ``network``: None leaves that out. Top-k counts for the first scales and is half as large for the others.
    """

    def __init__(
        self, plain: TokenHead, config: HARTConfig, network: ResidualDiffusion | None, entry: nn.Module, norm
    ) -> None:
        self.plain, self.config, self.network = plain, config, network
        self.entry, self.norm = entry, norm  # the transformer's embedding of codes and the norm of its output

    @property
    def last(self) -> int:
        """The number of the last scale."""
        return len(self.config.sides) - 1

    def check(self, *, smooth: bool) -> None:
        """Both ways are known."""

    def draw(self, drawing: Drawing) -> Drawn:
        """Ids on the grid and their codes, those of the last scale with the residual."""
        scale, top_k = drawing.scale, drawing.top_k
        if scale.index >= _EARLY and top_k:
            top_k = max(1, top_k // 2)
        # The official code leaves what belongs to the place in the schedule as it was before the last scale.
        progress = min(scale.index, self.last - 1) / self.last
        drawn = self.plain.draw(replace(drawing, top_k=top_k, progress=progress))
        if scale.index < self.last or self.network is None:
            return drawn
        residual = (
            drawing.watched(self._residual(drawing, drawn.kept)).transpose(1, 2).unflatten(2, scale.grid)
        )
        return Drawn(drawn.kept, drawn.codes + residual, exact=False)

    def _residual(self, drawing: Drawing, ids: Tensor) -> Tensor:
        """What the codes of ``ids`` (B, h, w) lack, (B, L, dim)."""
        assert self.network is not None, "without a network nothing is lacking"
        weight = None if drawing.weight == _UNGUIDED else drawing.weight
        codes = drawing.quantizer.codes(ids).flatten(2).transpose(1, 2).float()
        hidden = drawing.hidden if weight is not None else drawing.hidden[: len(codes)]
        entered = self.entry(codes).repeat(len(hidden) // len(codes), 1, 1)
        seen = rms_norm(hidden + entered, self.norm)
        drawn = [drawing.normal(self.config.dim) for _ in self.network.steps]
        draws = [each for each in drawn if each is not None]
        noise = torch.stack(draws) if draws else None
        return self.network.sample(seen, noise, weight, drawing.dtype)

    def pass_over(
        self, scale: Scale, batch: int, noise: Noise, device: torch.device, *, smooth: bool
    ) -> None:
        """The draws of a scale that does not run."""
        self.plain.pass_over(scale, batch, noise, device, smooth=smooth)
        if scale.index == self.last and self.network is not None:
            for _ in self.network.steps:
                noise.normal(scale, (batch, scale.tokens, self.config.dim), device)

    def choices(self, logits: Tensor) -> Tensor:
        """The most likely ids, (rows, L)."""
        return self.plain.choices(logits)

    def entropy(self, logits: Tensor) -> Tensor:
        """Entropy of the choice of a token, (rows, L)."""
        return self.plain.entropy(logits)

    def flops(self, scale: Scale) -> float:
        """FLOPs per row of the steps at the last scale, 0 for the others."""
        if scale.index < self.last or self.network is None:
            return 0.0
        return scale.tokens * self.config.residual_flops
