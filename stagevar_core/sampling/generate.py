"""One generation: how its images are divided into runs."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..acceleration.policy import AccelerationPolicy, DensePolicy
from ..conditioning.changing import RunConditioning
from ..models.contract import Noise, Quantizer, Transformer, signed
from ..network.attention import AttentionFn, attend
from ..schedule import ScaleSchedule
from .editing import Given, known_codes
from .kept import KeptPrefix
from .loop import Run
from .result import Generation, Monitor
from .settings import SamplingSettings
from .trace import joined
from .word_edit import WordEdit


@torch.inference_mode()
def generate(  # noqa: PLR0913 - independent collaborators, each with one owner
    model: Transformer,
    conditioning: RunConditioning,
    schedule: ScaleSchedule,
    settings: SamplingSettings,
    *,
    noise: Noise | None,
    quantizer: Quantizer | None = None,
    policy: AccelerationPolicy | None = None,
    attention: AttentionFn = attend,
    monitor: Monitor | None = None,
    known: Sequence[Tensor] = (),
    masks: Sequence[Tensor] = (),
    words: WordEdit | None = None,
    device: torch.device | str | None = None,
    sequential: bool = False,
    offload: torch.device | str | None = None,
    kept: KeptPrefix | None = None,
) -> Generation:
    """Generate one image per prompt or class.

    ``noise`` may be None for greedy sampling. ``quantizer`` defaults to the model's own; it is the
    tokenizer's where that has a codebook. ``known``: codes of the first scales on the latent grid, which
    replace the sampled ones (the sampler still draws for them). ``masks``: where they do, (B or 1, h, w)
    booleans of as many scales. ``words``: pictures whose prompt changes, in place of both. ``device``: where
    to run, as weights may be offloaded. ``sequential``: less memory for the same result: every block runs on
    the conditional rows, then on the unconditional ones. ``offload``: where keys and values of the latter
    wait meanwhile; about half of the cache less there. ``kept``: spares the pass over what precedes the
    scales where an earlier call with it had the same picture, texts and model. Raises ``ValueError`` for
    settings that cannot be used.
    """
    if offload is not None and not sequential:
        raise ValueError(f"offload is {str(offload)!r}, but all rows run together; pass sequential=True, too")
    signed(model).check(schedule)
    settings.validate(len(schedule), model.config.depth)
    settings = settings.on(schedule)
    if noise is None and not settings.greedy:
        raise ValueError("sampling needs a noise source; pass one, or settings with greedy=True")
    policy, monitor = policy or DensePolicy(), monitor or Monitor()
    quantizer = quantizer or model.quantizer()
    batch = conditioning.batch
    given: Given = known_codes(known, masks, schedule, quantizer, batch)
    if words is not None:
        if known:
            raise ValueError("both known codes and words are given; a picture changes in one of the two ways")
        words.check(conditioning, settings, schedule, quantizer)
        given = words
    images = [_Part(conditioning, noise, given)]
    if policy.per_image and batch > 1:
        monitor.restart(batch)
        images = [images[0].image(index) for index in range(batch)]
    parts = []
    for part in images:
        turns = {"sequential": sequential, "offload": offload}
        run = Run(model, part.conditioning, schedule, settings, attention, device, **turns)
        parts.append(run.generate(part.noise, quantizer, policy, monitor, part.given, kept))
    if kept is not None:
        kept.forget()
    return parts[0] if len(parts) == 1 else _joined(parts)


class _Part(NamedTuple):
    """What differs between the runs of a generation."""

    conditioning: RunConditioning
    noise: Noise | None
    given: Given

    def image(self, index: int) -> "_Part":
        """The run of one image."""
        return _Part(
            self.conditioning.image(index),
            self.noise and self.noise.image(index),
            self.given.image(index),
        )


def _joined(parts: Sequence[Generation]) -> Generation:
    """Generations of one image each as one batch; codes only of scales that all of them ran."""
    scales = zip(*(part.codes for part in parts), strict=True)
    return Generation(
        torch.cat([part.f_hat for part in parts]),
        [None if any(c is None for c in codes) else torch.cat(codes) for codes in scales],
        parts[0].schedule,
        joined([part.trace for part in parts]),
    )
