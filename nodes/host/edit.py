"""A picture of which a part is drawn anew, from the node that prepares it to the sampler."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...stagevar_core.sampling.word_edit import WordEdit
from ...stagevar_core.schedule import AspectTable, ScaleSchedule
from .conditioning import HostConditioning


@dataclass(frozen=True)
class Edit:
    """The codes of pictures at every scale, and where they stay, or words of their prompts that change.

    ``codes``: per scale, on the latent grid, one row per picture. ``masks``: (pictures or 1, h, w) booleans.
    ``size``: (height, width) in pixels. ``tokenizer``: name of the file whose codes they are. ``notes``: what
    the user should know of it, for the node that uses it. ``words``, ``prompt``: in place of codes and masks,
    what changes, and the conditioning of the pictures as they are.
    """

    schedule: ScaleSchedule
    codes: tuple[Tensor, ...]
    masks: tuple[Tensor, ...]
    size: tuple[int, int]
    tokenizer: str
    notes: tuple[str, ...] = ()
    words: WordEdit | None = None
    prompt: HostConditioning | None = None

    def check(self, tokenizer: str, trained: AspectTable) -> None:
        """Raise ``ValueError`` when a sampler uses another tokenizer, or a model of other sizes."""
        if self.tokenizer != tokenizer or trained.snap(*self.size) != self.schedule:
            raise ValueError(
                f"edit: it was made with {self.tokenizer} for {self.size[1]}x{self.size[0]} and "
                f"{len(self.schedule)} scales, which are not those of this sampler's model and vae. Connect "
                f"the same ones to StageVAR {'Inpaint' if self.words is None else 'Change Words'}"
            )

    def known(self, images: Sequence[int]) -> tuple[list[Tensor], list[Tensor]]:
        """Codes and masks of these images of a batch, which use the pictures in turn."""

        def rows(part: Tensor) -> Tensor:
            return part[[index % len(part) for index in images]]

        return [rows(code) for code in self.codes], [rows(mask) for mask in self.masks]

    def changed(self, images: Sequence[int]) -> WordEdit | None:
        """What changes of these images of a batch, which use the pictures in turn."""
        if self.words is None:
            return None
        count = len(self.words.features)
        features = torch.cat([self.words.features[index % count, None] for index in images])
        return replace(self.words, features=features)
