"""Training-free editing: a word of the prompt changes, and what the two prompts agree on stays as it was.

Guidance runs two rows anyway; here they are the new prompt and the picture's own. At every scale the codes of
the source are what the tokenizer would draw for what the sum of codes still lacks of the picture. Where its
own prompt finds them likelier than the new one does, tokens are drawn; everywhere else they stay. As these
codes make up for what was drawn before them, the rest of the picture returns even under coarse tokens that
change.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..conditioning.changing import RunConditioning
from ..conditioning.types import Conditioning, TextConditioning
from ..models.contract import Quantizer
from ..models.guidance import per_scale
from ..schedule import Scale, ScaleSchedule
from .editing import Known
from .result import ScaleCodes
from .settings import SamplingSettings

STRENGTH = 0.5
_BITS = 0.25  # mean disagreement of a token's bits at which it is drawn with strength 0


@dataclass(frozen=True)
class WordEdit:
    """Pictures whose prompt changes.

    ``features``: of the tokenizer before quantization, (B, C, H, W). ``strength``: 0 to 1, how little the
    prompts have to disagree for a token to be drawn; 0 needs a quarter of its bits, 1 draws all. ``first``:
    scales that stay as they are, the tone and layout of the picture.
    """

    features: Tensor
    strength: float = STRENGTH
    first: int = 0

    @property
    def uniform(self) -> bool:
        """All pictures may be made in one run."""
        return True

    def lead(self, index: int) -> tuple[()]:
        """No scale is settled before the run."""
        return ()

    def image(self, index: int) -> "WordEdit":
        """That of one picture."""
        return replace(self, features=self.features[index : index + 1])

    def start(self, quantizer: Quantizer, device: torch.device) -> "WordRun":
        """The same for one run."""
        return WordRun(self, quantizer, device)

    def check(
        self,
        conditioning: RunConditioning,
        settings: SamplingSettings,
        schedule: ScaleSchedule,
        quantizer: Quantizer,
    ) -> None:
        """``ValueError`` where a run cannot compare the two prompts."""
        if not quantizer.signs or not isinstance(conditioning.at(0), TextConditioning):
            raise ValueError(
                "changing words needs an Infinity model, whose codes are bits; VAR has no text, STAR, HART "
                "and Switti draw ids of a codebook. Use in-painting with these"
            )
        if conditioning.negative is None:
            raise ValueError("changing words needs the picture's own prompt in place of a negative one")
        if 0 not in settings.cfg_layers:
            raise ValueError(
                f"cfg_layers is {settings.cfg_layers}; changing words compares the logits of both rows, "
                "pass (0,)"
            )
        if all(weight == 1.0 for weight in per_scale("cfg", settings.cfg_scale, len(schedule))):
            raise ValueError(
                "cfg is 1, which runs one prompt; changing words compares two, use the model's own"
            )
        final = (conditioning.batch, quantizer.dim, *quantizer.latent_grid(schedule.final))
        if tuple(self.features.shape) != final:
            raise ValueError(
                f"the picture's features have the shape {list(self.features.shape)}; this run needs "
                f"{list(final)}. Encode one picture per prompt, for this schedule"
            )
        if not 0.0 <= self.strength <= 1.0 or not 0 <= self.first <= len(schedule):
            raise ValueError(
                f"strength is {self.strength} and first is {self.first}; expected 0 to 1, and 0 to "
                f"{len(schedule)} scales"
            )


def reworded(target: Conditioning, source: Conditioning) -> TextConditioning:
    """The conditioning of a run that changes words: the source's prompts take the place of negative ones."""
    if not isinstance(target, TextConditioning) or not isinstance(source, TextConditioning):
        raise ValueError("this model takes class labels, which have no words to change; use in-painting")
    return replace(target, negative=source.features)


class WordRun:
    """A word edit in one run; remembers where the prompts disagreed last, for scales that run one row."""

    def __init__(self, edit: WordEdit, quantizer: Quantizer, device: torch.device) -> None:
        self.edit, self.quantizer = edit, quantizer
        self.features = edit.features.to(device=device, dtype=torch.float32)
        self.limit = _BITS * (1.0 - edit.strength)
        self.seen: Tensor | None = None  # (B, 1, h, w), mean disagreement of the bits of a token

    replayed = False

    def settled(self, scale: Scale) -> None:
        """No scale is: its codes make up for what was drawn before it."""

    def at(self, scale: Scale, f_hat: Tensor, raw: Tensor | None) -> Known | ScaleCodes:
        """The source's codes at a scale, and where they stay.

        ``raw``: logits (2B, L, V) of the new prompts and of the sources', None where not both ran.
        """
        bits = self.quantizer.requantized(self.features - f_hat, scale)
        if raw is not None:
            self.seen = self.disagreement(scale, bits, raw)
        elif self.seen is not None:
            self.seen = F.interpolate(self.seen, size=scale.grid, mode="bilinear", align_corners=False)
        if self.seen is None or scale.index < self.edit.first:
            return ScaleCodes(bits)
        drawn = (self.seen >= self.limit).flatten(1).to(f_hat.dtype)
        return Known(bits, self.quantizer.spread(drawn, scale)[:, 0] == 0.0)

    def disagreement(self, scale: Scale, bits: Tensor, raw: Tensor) -> Tensor:
        """By how much the source's prompt finds a token's bits likelier than the new one, (B, 1, h, w)."""
        ones = raw.float().unflatten(-1, (-1, 2)).softmax(dim=-1)[..., 1]  # (2B, L, bits)
        new, source = self.quantizer.to_latent(ones, scale).chunk(2)  # chances of a 1, (B, C, h, w)
        lost = torch.where(bits == 1, source - new, new - source).clamp(min=0.0)
        return F.interpolate(lost.mean(dim=1, keepdim=True), size=scale.grid, mode="area")  # of patches
