"""Switti (arXiv 2412.01819): next-scale text-to-image over VAR's tokenizer, with or without earlier scales.

Arithmetic of models/{switti,basic_switti,rope,pipeline}.py of yandex-research/switti with the settings of all
released models. In the non-autoregressive ones a scale attends to itself alone: what came before reaches it
through the accumulated latent, so that nothing is cached.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..autoencoders.vq import VectorQuantizer
from ..conditioning.clip import MAX_TOKENS
from ..conditioning.regions import Regions, Sight
from ..conditioning.types import TextConditioning, pad_rows, require
from ..network.attention import AttentionFn
from ..network.cache import KVCache
from ..network.context import ScaleContext
from ..network.layers import cast, modulated_norm, row_by_row, stacked, with_factors
from ..network.rotary import normalised_angles
from ..schedule import Prefix, Scale, ScaleSchedule
from .contract import Drawing, Drawn
from .draws import TokenHead, refinement
from .guidance import ramped
from .prefix import NoPrefix
from .switti_blocks import Block, Crop
from .switti_config import SwittiConfig

CROP = (512.0, 512.0, 0.0, 0.0)  # height and width of the picture, top and left of its part: all of it
SMOOTH_FROM = 2  # first scale with mixtures of codes where these are asked for


@dataclass
class TextState:
    """What the blocks need of the text, computed once per run; rows are conditional, then unconditional."""

    start: Tensor  # (rows, C), the text as one vector: start token and source of all modulation
    block_ada: list[Tensor]  # per block (rows, 1, 6, C), scales as 1 + scale, see with_factors
    head_ada: Tensor  # (rows, 1, 2, C), the same
    keys_values: list[tuple[Tensor, Tensor]]  # per block (rows, heads, T, head_dim)
    mask: Tensor | None  # (rows, 1, 1, T), True = a token of the row's text; None when all texts are as long
    regions: Sight | None = None  # where the prompts hold that the texts are made of

    def seen(self, scale: Scale) -> Tensor | None:
        """What is added to the scores of the text at a scale, (rows, 1, L, T); None: all see it all."""
        return None if self.regions is None else self.regions.at(scale, self.keys_values[0][0])

    def narrow(self, rows: slice) -> "TextState":
        """Only these rows."""
        return self._of(rows)

    def pick(self, images: Sequence[int], rows: Tensor) -> "TextState":
        """That of other images."""
        return self._of(rows)

    def _of(self, rows: slice | Tensor) -> "TextState":
        return replace(
            self,
            start=self.start[rows],
            block_ada=[ada[rows] for ada in self.block_ada],
            head_ada=self.head_ada[rows],
            keys_values=[(k[rows], v[rows]) for k, v in self.keys_values],
            mask=None if self.mask is None else self.mask[rows],
            regions=None if self.regions is None else self.regions.narrow(rows),
        )


class SwittiHead(TokenHead):
    """Smooth mixtures are unfiltered, begin at the scale ``smooth_from`` and end with the guidance."""

    def __init__(self, vocab: int, smooth_from: int = SMOOTH_FROM) -> None:
        super().__init__(vocab, smooth_filters=False, smooth_draws=1)
        self.smooth_from = smooth_from

    def draw(self, drawing: Drawing) -> Drawn:
        """Ids on the grid and their codes, or mixtures of codes."""
        smooth = drawing.smooth and drawing.scale.index >= self.smooth_from and not drawing.unguided
        return super().draw(replace(drawing, smooth=smooth))


class Switti(NoPrefix, nn.Module):
    """The transformer: blocks in ``dtype``, everything around them (text, embeddings, head) in float32.

    ``operations`` supplies Linear (``torch.nn`` or the host's), ``compute_dtype`` the dtype of the blocks'
    matrix products where it differs from the storage dtype.
    """

    family = "switti"
    text_family = "clip pair"
    learned_null = False
    classes = None
    longest_text = None
    refinements = ()
    corrects = False

    def __init__(
        self, config: SwittiConfig, *, operations=nn, dtype=None, device=None, compute_dtype=None
    ) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype = compute_dtype or dtype or torch.float32
        width, precise = config.width, {"dtype": torch.float32, "device": device}
        self.start = nn.Parameter(torch.empty(width, **precise))
        self.level_embed = nn.Parameter(torch.empty(config.levels, width, **precise))
        self.text_proj = operations.Linear(config.pooled_width, width, **precise)
        self.word_embed = operations.Linear(config.dim, width, **precise)
        self.crop = Crop(width, operations=operations, device=device) if config.crop else None
        self.blocks = stacked(
            Block(config, operations=operations, dtype=dtype, device=device) for _ in range(config.depth)
        )
        self.head_ada = operations.Linear(width, 2 * width, **precise)
        self.head = operations.Linear(width, config.vocab, **precise)

    def guidance_weights(
        self, cfg_scale: float | Sequence[float], schedule: ScaleSchedule
    ) -> tuple[float, ...]:
        """The weight ``w`` of ``w * c + (1 - w) * u`` at every scale; 1 is unguided.

        A plain strength is for the first scales that the config names, a list for all.
        """
        weights = ramped(cfg_scale, schedule)
        if not isinstance(cfg_scale, int | float):
            return weights
        return tuple(weight if place < self.config.guided else 1.0 for place, weight in enumerate(weights))

    def check(self, schedule: ScaleSchedule) -> None:
        """Raise ``ValueError`` for more scales than the model has levels of."""
        if len(schedule) > self.config.levels:
            raise ValueError(
                f"the schedule has {len(schedule)} scales; this model was trained on {self.config.levels}. "
                "Choose the size that it was trained on"
            )

    def drawing_head(self, refine: str = "auto") -> "SwittiHead":
        """Draws tokens."""
        refinement(self.family, self.refinements, refine)
        return SwittiHead(self.config.vocab)

    def quantizer(self) -> VectorQuantizer:
        """Raises: the codebook is part of the tokenizer."""
        raise ValueError("Switti needs the codebook of its tokenizer; pass quantizer=tokenizer.quantizer()")

    def new_cache(self, rows: int, device: torch.device) -> KVCache:
        """An empty cache for ``rows`` rows."""
        config = self.config
        return KVCache(
            config.depth, rows, config.heads, config.head_dim, dtype=self.compute_dtype, device=device
        )

    def condition(
        self, conditioning: TextConditioning, guided: bool, device: torch.device, attention: AttentionFn
    ) -> TextState:
        """Everything that depends on the text alone. Rows: prompts, then (when guided) their counterparts.

        The counterpart of a prompt is the encoded empty prompt, or the negative text.
        """
        require(conditioning, TextConditioning, "Switti")
        texts, regions = self._checked(conditioning.features, conditioning.regions, device)
        if guided:
            against = self._counterparts(conditioning)
            others, theirs = self._checked(against, conditioning.negative_regions, device)
            texts, regions = texts + others, regions + theirs
        sight = Sight.of(texts, regions)
        start = row_by_row(self.text_proj, self.pooled(texts, sight))
        padded, mask = pad_rows(texts)
        return TextState(
            start=start,
            block_ada=self._modulations(start),
            head_ada=with_factors(row_by_row(self.head_ada, F.silu(start)).unflatten(-1, (1, 2, -1))),
            keys_values=[block.cross_attn.keys_values(padded, self.compute_dtype) for block in self.blocks],
            mask=mask,
            regions=sight,
        )

    def pooled(self, texts: Sequence[Tensor], sight: Sight | None = None) -> Tensor:
        """Texts as one vector each, (rows, pooled_width): the second encoder's features of the end token.

        It comes last. Those of regions as the mean of their prompts.
        """
        prompts = texts if sight is None else sight.prompts(texts)
        ends = torch.stack([prompt[-1, -self.config.pooled_width :] for prompt in prompts])
        return ends if sight is None else sight.pooled(ends)

    def crop_numbers(self, rows: int, device: torch.device) -> Tensor:
        """What the model is told of the part that it draws, (rows, 4): the whole picture."""
        return torch.tensor([CROP], device=device).expand(rows, -1)

    def positions(
        self, schedule: ScaleSchedule, scale: Scale, device: torch.device, prefix: Prefix | None = None
    ) -> Tensor:
        """Rotary angles of one scale."""
        config = self.config
        return normalised_angles(scale, config.head_dim, config.rope_norm, config.rope_base, device)

    def first_tokens(self, state: TextState) -> Tensor:
        """The start token of every row, (rows, 1, C), without level embedding."""
        return (state.start + cast(self.start, state.start)).unsqueeze(1)

    def embed(self, inputs: Tensor) -> Tensor:
        """Accumulated latent at a scale (B, L, dim) to hidden states (B, L, C), without level embedding."""
        return self.word_embed(inputs)

    def forward(self, x: Tensor, ctx: ScaleContext) -> Tensor:
        """All blocks over the tokens of one scale, (rows, L, C)."""
        return ctx.run(self.blocks, x + ctx.levels(cast(self.level_embed, x)))

    def logits(self, x: Tensor, state: TextState) -> Tensor:
        """Logits of the codebook's rows, (rows, L, vocab), in float32."""
        factor, shift = state.head_ada.unbind(dim=2)
        return self.head(modulated_norm(x, factor, shift))

    def _modulations(self, start: Tensor) -> list[Tensor]:
        """Gates, scales and shifts of every block, (rows, 1, 6, C), of the text and its crop."""
        found, crop = [], None
        if self.crop is not None:
            crop = self.crop(self.crop_numbers(len(start), start.device))
        for block in self.blocks:
            told = start
            if crop is not None and block.crop_scale is not None:
                told = torch.addcmul(start, cast(block.crop_scale, start), crop)
            active = F.silu(told).to(self.compute_dtype)
            found.append(with_factors(block.modulation(active).float().unflatten(-1, (1, 6, -1))))
        return found

    def _counterparts(self, conditioning: TextConditioning) -> Sequence[Tensor]:
        if conditioning.negative is not None:
            return conditioning.negative
        if conditioning.null is None:
            raise ValueError(
                "Switti has no null text of its own and got none; encode the empty prompt and pass it as "
                "`null`"
            )
        return [conditioning.null] * conditioning.batch

    def _checked(
        self, texts: Sequence[Tensor], regions: Sequence[Regions | None], device: torch.device
    ) -> tuple[list[Tensor], list[Regions | None]]:
        """The texts where they compute, and the regions of each."""
        width, places = self.config.text_width, list(regions or (None,) * len(texts))
        for text, found in zip(texts, places, strict=True):
            if text.dim() != 2 or not len(text) or text.shape[1] != width:
                raise ValueError(
                    f"the text features have shape {tuple(text.shape)}; this transformer was trained on "
                    f"(tokens, {width}), CLIP-L's channels and CLIP-bigG's side by side. Load both"
                )
            length = max(region.tokens for region in found) if found else len(text)
            if length > MAX_TOKENS:
                raise ValueError(
                    f"the text has {length} tokens; this transformer was trained on at most "
                    f"{MAX_TOKENS}. Shorten it"
                )
        return [text.to(device=device, dtype=torch.float32) for text in texts], places
