"""What a model family signs: the members that the loop, the presets, the reports and the files use.

A new family is a file of its own that has these members; nothing else asks what it is. Shapes: B images, rows
(the conditional ones of all images, then, under guidance, as many unconditional ones), L tokens of a scale,
C channels, V logits of a token, (h, w) the grid of a scale in latent pixels, (H, W) that of the last scale.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

from ..conditioning.types import Conditioning
from ..network.attention import AttentionFn
from ..network.cache import KVCache
from ..network.context import ScaleContext
from ..schedule import Prefix, Scale, ScaleSchedule
from .config import Config

State = TypeVar("State", bound="Conditioned")


class Conditioned(Protocol):
    """What a family's blocks need of the conditioning, computed once per run; the fields are its own."""

    def seen(self, scale: Scale) -> Tensor | None:
        """What is added to scores of the text at a scale, (text rows, 1, L, T); None: all see it all."""
        ...

    def narrow(self: State, rows: slice) -> State:
        """Only these rows."""
        ...

    def pick(self: State, images: Sequence[int], rows: Tensor) -> State:
        """That of other images: their places, and those of their rows (n,), in the order wanted."""
        ...


class Noise(Protocol):
    """The draws of a run, one stream per image, so that batch size never changes an image."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """One per image, for other draws that belong to the run."""
        ...

    def exponential(self, scale: Scale, shape: Sequence[int], device: torch.device) -> Tensor:
        """Unit-rate exponential draws of ``shape`` (B, ...) in float32, for the race ``argmax(p / e)``."""
        ...

    def uniform(self, scale: Scale, shape: Sequence[int], device: torch.device) -> Tensor:
        """Draws of ``shape`` (B, ...) from 0 to 1 out of a second stream, for heads that ask for them."""
        ...

    def normal(self, scale: Scale, shape: Sequence[int], device: torch.device) -> Tensor:
        """Normal draws of ``shape`` (B, ...) in float32 out of the second stream."""
        ...

    def image(self, index: int) -> "Noise":
        """The draws of one image alone."""
        ...


class Quantizer(Protocol):
    """From what a head draws to codes, and from codes to the accumulated latent ``f_hat`` (B, C, H, W).

    ``dim``: C. ``signs``: a code is a row of signs, so that signs of latents can be compared.
    """

    @property
    def dim(self) -> int: ...
    @property
    def signs(self) -> bool: ...

    def latent_grid(self, scale: Scale) -> tuple[int, int]:
        """The grid (h, w) of ``scale`` in latent pixels."""
        ...

    def empty(self, batch: int, schedule: ScaleSchedule, device: torch.device) -> Tensor:
        """``f_hat`` before the first scale, zeros in float32."""
        ...

    def to_latent(self, tokens: Tensor, scale: Scale) -> Tensor:
        """What was drawn per token, (B, L) or (B, L, n), on the latent grid (B, h, w) or (B, C, h, w)."""
        ...

    def codes(self, drawn: Tensor) -> Tensor:
        """What was drawn, on the latent grid, to codes (B, C, h, w)."""
        ...

    def mixture(self, weights: Tensor, scale: Scale) -> Tensor:
        """Shares of all rows of a codebook (B, L, V) to mean codes (B, C, h, w); ``ValueError`` without."""
        ...

    def spread(self, weights: Tensor, scale: Scale) -> Tensor:
        """One factor per token (B, L) to factors of the latent grid (B, 1, h, w)."""
        ...

    def add(
        self,
        f_hat: Tensor,
        codes: Tensor,
        schedule: ScaleSchedule,
        scale: Scale,
        weights: Tensor | None = None,
    ) -> Tensor:
        """``f_hat`` plus the codes (B, C, h, w) of one scale, times ``weights`` (B, 1, h, w)."""
        ...

    def next_input(self, f_hat: Tensor, scale: Scale) -> Tensor:
        """What the transformer sees at ``scale``, (B, L, channels)."""
        ...

    def encode(self, features: Tensor, schedule: ScaleSchedule) -> tuple[list[Tensor], Tensor]:
        """Features (B, C, H, W) to what would be drawn at every scale, and the accumulated latent.

        ``ValueError`` where the features do not have the last grid of the schedule.
        """
        ...

    def requantized(self, residual: Tensor, scale: Scale) -> Tensor:
        """What would be drawn at one scale for what ``f_hat`` still lacks of features, (B, C, H, W)."""
        ...

    def accumulate(self, drawn: Sequence[Tensor], schedule: ScaleSchedule) -> Tensor:
        """``f_hat`` of what was drawn at the first scales, at least one."""
        ...

    def teacher_inputs(self, drawn: Sequence[Tensor], schedule: ScaleSchedule) -> Tensor:
        """Inputs of the scales after the first for known draws, (B, all their tokens, channels)."""
        ...


class Drawn(NamedTuple):
    """``kept``: what was drawn, on the latent grid. ``codes``: what is added for it, (B, C, h, w).

    ``exact``: the codes are those of ``kept``; False: they have to be kept as well to be added again.
    """

    kept: Tensor
    codes: Tensor
    exact: bool = True


@dataclass(frozen=True)
class Drawing:
    """What a head may use to draw the codes of one scale.

    ``hidden``: the blocks' output (rows, L, C). ``guided``: logits to sample from (B, L, V). ``guide``: those
    of all rows (rows, L, V) to guided ones, with the strength of the last scale, for heads with passes of
    their own. ``watched``: gives back what one of these gave; the run ends where that is not finite.
    ``weight``: ``w`` of ``w * c + (1 - w) * u`` where both rows of every image run and count, else None.
    ``noise`` None: greedy. ``top_k``, ``top_p``: 0 switches off. ``smooth``: mixtures of codes in place
    of drawn ones. ``progress``: place of the scale in the schedule, 0..1. ``unguided``: scales before it were
    guided, from this one on none is.
    """

    scale: Scale
    progress: float
    hidden: Tensor
    guided: Tensor
    guide: Callable[[Tensor], Tensor]
    watched: Callable[[Tensor], Tensor]
    weight: float | None
    quantizer: Quantizer
    noise: Noise | None
    top_k: int
    top_p: float
    smooth: bool
    unguided: bool
    positions: Tensor | None
    conditioned: Any  # the family's own Conditioned, which its head knows
    dtype: torch.dtype
    attention: AttentionFn

    def exponential(self, *shape: int) -> Tensor | None:
        """Draws per token, (B, L, *shape); None where greedy."""
        if self.noise is None:
            return None
        return self.noise.exponential(self.scale, (*self.guided.shape[:2], *shape), self.guided.device)

    def uniform(self, *shape: int) -> Tensor | None:
        """Draws per image out of the second stream, (B, *shape); None where greedy."""
        if self.noise is None:
            return None
        return self.noise.uniform(self.scale, (len(self.guided), *shape), self.guided.device)

    def normal(self, *shape: int) -> Tensor | None:
        """Normal draws per token out of the second stream, (B, L, *shape); None where greedy."""
        if self.noise is None:
            return None
        return self.noise.normal(self.scale, (*self.guided.shape[:2], *shape), self.guided.device)


class Head(Protocol):
    """From logits to codes: the rule of drawing, its noise, its work, and how undecided it is."""

    def check(self, *, smooth: bool) -> None:
        """``ValueError`` for ways of drawing that it does not have."""
        ...

    def draw(self, drawing: Drawing) -> Drawn:
        """The codes of one scale."""
        ...

    def pass_over(
        self, scale: Scale, batch: int, noise: Noise, device: torch.device, *, smooth: bool
    ) -> None:
        """Make the draws of a scale that does not run, so that later ones see those of the dense run."""
        ...

    def choices(self, logits: Tensor) -> Tensor:
        """The most likely codes of logits (rows, L, V): (rows, L), or (rows, L, n) for n choices a token."""
        ...

    def entropy(self, logits: Tensor) -> Tensor:
        """Mean entropy in bits of the choices of every token, (rows, L, V) to (rows, L)."""
        ...

    def flops(self, scale: Scale) -> float:
        """FLOPs per row of passes of its own at a scale; 0 where the codes are drawn at once."""
        ...


class Transformer(Protocol):
    """A family's transformer, an ``nn.Module``.

    ``family``: its name in files. ``text_family``: of the text encoder, None for class labels. ``classes``:
    how many it knows, None for texts. ``longest_text``: tokens, None without a limit of its own.
    ``learned_null``: it has an unconditional text or class; else the encoded empty prompt stands for it.
    ``refinements``: ways in which a network of its own can draw the fine scales, the usual one first.
    ``edits``: it was trained to change a picture, whose tokens precede the scales.
    ``corrects``: it was trained on codes with errors in them, which the next scales are to make up for
    (Infinity's bitwise self-correction); the others know only codes as the tokenizer gives them.
    ``compute_dtype``: of the blocks' matrix products.
    """

    @property
    def family(self) -> str: ...
    @property
    def text_family(self) -> str | None: ...
    @property
    def learned_null(self) -> bool: ...
    @property
    def compute_dtype(self) -> torch.dtype: ...
    @property
    def config(self) -> Config: ...
    @property
    def classes(self) -> int | None: ...
    @property
    def longest_text(self) -> int | None: ...
    @property
    def refinements(self) -> tuple[str, ...]: ...
    @property
    def edits(self) -> bool: ...
    @property
    def corrects(self) -> bool: ...

    def check(self, schedule: ScaleSchedule) -> None:
        """``ValueError`` for a schedule that the model cannot run, before its first scale."""
        ...

    def guidance_weights(
        self, cfg_scale: float | Sequence[float], schedule: ScaleSchedule
    ) -> tuple[float, ...]:
        """The weight ``w`` of ``w * c + (1 - w) * u`` at every scale; 1 is unguided."""
        ...

    def quantizer(self) -> Quantizer:
        """The quantizer whose codes it predicts; ``ValueError`` where the codebook is the tokenizer's."""
        ...

    def drawing_head(self, refine: str = "auto") -> Head:
        """What draws its codes; ``ValueError`` for a way of refinement that it does not have."""
        ...

    def new_cache(self, rows: int, device: torch.device) -> KVCache:
        """An empty KV cache for ``rows`` rows."""
        ...

    def condition(
        self, conditioning: Conditioning, guided: bool, device: torch.device, attention: AttentionFn
    ) -> Conditioned:
        """Everything that depends on the conditioning alone: rows of the prompts, then their counterparts.

        ``ValueError`` for the wrong kind, other widths and texts that are too long.
        """
        ...

    def prefix(self, conditioning: Conditioning, schedule: ScaleSchedule) -> Prefix | None:
        """What precedes the scales of a run; None where nothing does.

        One that opens the first scale consists of what :meth:`first_tokens` gives.
        ``ValueError`` for a picture that the model has no use for, one that it lacks, and a schedule that
        cannot follow one.
        """
        ...

    def prefix_tokens(self, conditioning: Conditioning, prefix: Prefix, device: torch.device) -> Tensor:
        """What enters the blocks for a prefix, (B, L, C); called only where one does not open a scale."""
        ...

    def positions(
        self, schedule: ScaleSchedule, scale: Scale, device: torch.device, prefix: Prefix | None = None
    ) -> Tensor | None:
        """Rotary angles of one scale, (2, L, head_dim / 2) in float32; None without rotary positions.

        None, too, where they differ by row; then :meth:`__call__` puts (2, rows, L, ...) into its context.
        Behind ``prefix`` where there is one, which may be the ``scale`` itself.
        """
        ...

    def first_tokens(self, state: Any) -> Tensor:
        """What enters the blocks at the first scale, (rows, L, C), from its :class:`Conditioned`.

        That of the prefix, where one opens the scale.
        """
        ...

    def embed(self, inputs: Tensor) -> Tensor:
        """What the quantizer gives as input of a scale (B, L, channels) to hidden states (B, L, C)."""
        ...

    def __call__(self, x: Tensor, ctx: ScaleContext) -> Tensor:
        """All blocks over the tokens of one scale, (rows, L, C)."""
        ...

    def logits(self, x: Tensor, state: Any) -> Tensor:
        """The head's output (rows, L, V) in float32 of the blocks' output."""
        ...

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """As every module has them."""
        ...


def signed(model: object) -> Transformer:
    """The same model; ``ValueError`` naming what it lacks of :class:`Transformer`."""
    members = [name for name in dir(Transformer) if not name.startswith("_")]
    missing = [name for name in members if not hasattr(model, name)]
    if missing or not callable(model):
        raise ValueError(
            f"{type(model).__name__} lacks {', '.join(missing) or 'a forward pass'}; expected a transformer "
            "with all members of stagevar_core/models/contract.py. Add them to its class"
        )
    return cast(Transformer, model)
