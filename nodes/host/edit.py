"""A picture of which something is drawn anew, from the node that prepares it to the sampler."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ...stagevar_core.sampling.state import RunState
from ...stagevar_core.sampling.word_edit import WordEdit
from ...stagevar_core.schedule import AspectTable, ScaleSchedule
from .conditioning import HostConditioning
from .schema import StageEditType, describe


@dataclass(frozen=True)
class Edit:
    """The codes of pictures at every scale, and where they stay; or their first scales; or changed words.

    ``codes``: per scale, on the latent grid, one row per picture. ``masks``: (pictures or 1, h, w) booleans.
    ``size``: (height, width) in pixels. ``tokenizer``: name of the file whose codes they are. ``notes``: what
    the user should know of it, for the node that uses it. In place of codes and masks: ``words``, ``prompt``:
    what changes, and the conditioning of the pictures as they are; ``first``: the scales that stay whole.
    """

    schedule: ScaleSchedule
    codes: tuple[Tensor, ...]
    masks: tuple[Tensor, ...]
    size: tuple[int, int]
    tokenizer: str
    notes: tuple[str, ...] = ()
    words: WordEdit | None = None
    prompt: HostConditioning | None = None
    first: RunState | None = None

    def check(self, tokenizer: str, trained: AspectTable) -> None:
        """Raise ``ValueError`` when a sampler uses another tokenizer, or a model of other sizes."""
        if self.tokenizer != tokenizer or trained.snap(*self.size) != self.schedule:
            raise ValueError(
                f"edit: it was made with {self.tokenizer} for {self.size[1]}x{self.size[0]} and "
                f"{len(self.schedule)} scales, which are not those of this sampler's model and vae. Connect "
                f"the same ones to StageVAR {self._maker}"
            )

    @property
    def scales(self) -> int:
        """The last scale of which it says something."""
        return len(self.schedule) if self.first is None else self.first.scales

    def given(self, images: Sequence[int]) -> dict[str, Any]:
        """What ``generate`` is given of these images of a batch, which use the pictures in turn."""
        if self.words is not None:
            places = [index % len(self.words.features) for index in images]
            return {"words": replace(self.words, features=self.words.features[places])}
        if self.first is not None:
            return {"resumed": self.first.pick([index % len(self.first.images) for index in images])}

        def rows(part: Tensor) -> Tensor:
            return part[[index % len(part) for index in images]]

        return {"known": [rows(code) for code in self.codes], "masks": [rows(mask) for mask in self.masks]}

    def said(self, seed: int, batch: int) -> tuple[str, ...]:
        """What the user should know of a run of ``batch`` images from ``seed`` on."""
        if self.first is None:
            return self.notes
        pictures, notes = len(self.first.images), list(self.notes)
        if pictures > batch:
            notes.append(f"edit holds {pictures} pictures for {batch} images; the rest is ignored")
        own = self.first.seeds
        same = [index for index in range(batch) if own[index % pictures] == (seed + index) % 2**64]
        if same and self.first.model and not self.first.finished:
            named = ", ".join(map(str, same))
            notes.append(
                f"image {named} (0 is the first) has the seed of the run that it varies; with the same "
                "prompt and settings it comes out the same, choose another seed"
            )
        return tuple(notes)

    @property
    def _maker(self) -> str:
        """The node that makes it."""
        return "Inpaint" if self.codes else "Vary" if self.words is None else "Change Words"


def edit_output() -> io.Output:
    """The edit of pictures that say which size is made."""
    return describe(
        StageEditType.Output,
        display_name="edit",
        tooltip="For the edit input of StageVAR Sampler, which then makes this size.",
    )
