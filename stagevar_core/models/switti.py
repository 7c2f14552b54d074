"""Switti (arXiv 2412.01819): next-scale text-to-image over VAR's tokenizer, with or without earlier scales.

Arithmetic of models/{switti,basic_switti,rope,pipeline}.py of yandex-research/switti with the settings of all
released models. In the non-autoregressive ones a scale attends to itself alone: what came before reaches it
through the accumulated latent, so that nothing is cached.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..conditioning.clip import MAX_TOKENS
from ..conditioning.regions import Regions, Sight
from ..conditioning.types import TextConditioning, pad_rows, require
from ..network.attention import AttentionFn
from ..network.context import ScaleContext
from ..network.layers import cast, modulated_norm, row_by_row, stacked, with_factors
from ..schedule import ScaleSchedule
from .contract import Drawing, Drawn
from .draws import TokenHead, refinement
from .family import ClipText
from .guidance import ramped
from .states import TextState
from .switti_blocks import Block, Crop
from .switti_config import SwittiConfig

CROP = (512.0, 512.0, 0.0, 0.0)  # height and width of the picture, top and left of its part: all of it
SMOOTH_FROM = 2  # first scale with mixtures of codes where these are asked for


class SwittiHead(TokenHead):
    """Smooth mixtures are unfiltered, begin at the scale ``smooth_from`` and end with the guidance."""

    def __init__(self, vocab: int, smooth_from: int = SMOOTH_FROM) -> None:
        super().__init__(vocab, smooth_filters=False, smooth_draws=1)
        self.smooth_from = smooth_from

    def draw(self, drawing: Drawing) -> Drawn:
        """Ids on the grid and their codes, or mixtures of codes."""
        smooth = drawing.smooth and drawing.scale.index >= self.smooth_from and not drawing.unguided
        return super().draw(replace(drawing, smooth=smooth))


class Switti(ClipText[SwittiConfig]):
    """The transformer: blocks in ``dtype``, everything around them (text, embeddings, head) in float32.

    ``operations`` supplies Linear (``torch.nn`` or the host's), ``compute_dtype`` the dtype of the blocks'
    matrix products where it differs from the storage dtype.
    """

    family = "switti"
    text_family = "clip pair"
    title = "Switti"
    refinements = ()
    corrects = False

    def __init__(
        self, config: SwittiConfig, *, operations=nn, dtype=None, device=None, compute_dtype=None
    ) -> None:
        super().__init__(config, compute_dtype or dtype)
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

    def drawing_head(self, refine: str = "auto") -> "SwittiHead":
        """Draws tokens."""
        refinement(self.family, self.refinements, refine)
        return SwittiHead(self.config.vocab)

    def condition(
        self, conditioning: TextConditioning, guided: bool, device: torch.device, attention: AttentionFn
    ) -> TextState:
        """Everything that depends on the text alone. Rows: prompts, then (when guided) their counterparts.

        The counterpart of a prompt is the encoded empty prompt, or the negative text.
        """
        require(conditioning, TextConditioning, self.title)
        texts, regions = self._checked(conditioning.features, conditioning.regions, device)
        if guided:
            against = self.counterparts(conditioning)
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
