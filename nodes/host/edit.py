"""A picture of which a part is drawn anew, from the node that prepares it to the sampler."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ...stagevar_core.schedule import AspectTable, ScaleSchedule


@dataclass(frozen=True)
class Edit:
    """The codes of pictures at every scale, and where they stay.

    ``codes``: per scale, on the latent grid, one row per picture. ``masks``: (pictures or 1, h, w) booleans.
    ``size``: (height, width) in pixels. ``tokenizer``: name of the file whose codes they are. ``notes``: what
    the user should know of it, for the node that uses it.
    """

    schedule: ScaleSchedule
    codes: tuple[Tensor, ...]
    masks: tuple[Tensor, ...]
    size: tuple[int, int]
    tokenizer: str
    notes: tuple[str, ...] = ()

    def check(self, tokenizer: str, trained: AspectTable) -> None:
        """Raise ``ValueError`` when a sampler uses another tokenizer, or a model of other sizes."""
        if self.tokenizer != tokenizer or trained.snap(*self.size) != self.schedule:
            raise ValueError(
                f"edit: it was made with {self.tokenizer} for {self.size[1]}x{self.size[0]} and "
                f"{len(self.schedule)} scales, which are not those of this sampler's model and vae. Connect "
                "the same ones to StageVAR Edit"
            )

    def known(self, images: Sequence[int]) -> tuple[list[Tensor], list[Tensor]]:
        """Codes and masks of these images of a batch, which use the pictures in turn."""

        def rows(part: Tensor) -> Tensor:
            return part[[index % len(part) for index in images]]

        return [rows(code) for code in self.codes], [rows(mask) for mask in self.masks]
