"""One generation: how its images are divided into runs."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..acceleration.policy import AccelerationPolicy, DensePolicy
from ..checks import whole
from ..conditioning.changing import RunConditioning
from ..models.contract import Noise, Quantizer, Transformer, signed
from ..network.attention import AttentionFn, attend
from ..schedule import ScaleSchedule
from .editing import Given, KnownCodes, known_codes
from .kept import KeptPrefix
from .loop import Run
from .passage import Passage
from .paused import PausedRun, run_key
from .result import Generation, Monitor
from .settings import SamplingSettings
from .sharing import Sharing
from .state import RunState
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
    until: int | None = None,
    resumed: RunState | None = None,
    paused: PausedRun | None = None,
) -> Generation:
    """Generate one image per prompt or class; ``ValueError`` for settings that cannot be used.

    ``noise``: None for greedy sampling. ``quantizer``: the model's own, or the tokenizer's where that has a
    codebook. ``known``: codes of the first scales on the latent grid; their draws are passed over. ``masks``:
    where they count, (B or 1, h, w) booleans of as many scales. ``words``: pictures whose prompt changes, in
    place of both. ``device``: where to run. ``sequential``: less memory for the same result: every block runs
    on the conditional rows, then on the others. ``offload``: where keys and values of the latter wait
    meanwhile. ``kept``: spares the pass over what precedes the scales where an earlier call had the same.

    ``until``: scales after which the run stops; None runs all. ``resumed``: what runs that stopped have
    added, from which this one goes on; with the same settings and seeds it ends where they would have ended.
    ``paused``: their state, where that is the same in every respect; a run that stops leaves its own there.
    Scales that several images have in common run once for all of them.
    """
    signed(model).check(schedule)
    settings.validate(len(schedule), model.config.depth)
    settings, batch = settings.on(schedule), conditioning.batch
    if noise is None and not settings.greedy:
        raise ValueError("sampling needs a noise source; pass one, or settings with greedy=True")
    policy, monitor = policy or DensePolicy(), monitor or Monitor()
    quantizer = quantizer or model.quantizer()
    until = len(schedule) if until is None else whole("until", until, 1, len(schedule))
    ways: list[Given] = [known_codes(known, masks, schedule, quantizer, batch)] if known or masks else []
    ways += [way for way in (words, resumed) if way is not None]
    given = _checked(ways, conditioning, settings, schedule, quantizer)
    images = [_Part(conditioning, noise, given)]
    if batch > 1 and (policy.per_image or not given.uniform):
        monitor.restart(batch)
        images = [images[0].image(index) for index in range(batch)]
    parts, key, turns = [], run_key(model, policy, settings, schedule), _turns(sequential, offload)
    with Sharing(monitor, torch.device(device or conditioning.device)) as shared:
        for part in images:
            passage = Passage.of(*part.begins, until, key, paused, apart=sequential)
            run = Run(model, passage.begins, schedule, settings, attention, device, **turns)
            parts.append(run.generate(part.noise, quantizer, policy, shared, part.given, passage, kept))
    if kept is not None:
        kept.forget()
    return parts[0] if len(parts) == 1 else Generation.of(parts)


def _turns(sequential: bool, offload: torch.device | str | None) -> dict[str, Any]:
    """Whether rows run in turn, and where keys and values wait then."""
    if offload is not None and not sequential:
        raise ValueError(f"offload is {str(offload)!r}, but all rows run together; pass sequential=True, too")
    return {"sequential": sequential, "offload": offload}


def _checked(
    ways: Sequence[Given],
    conditioning: RunConditioning,
    settings: SamplingSettings,
    schedule: ScaleSchedule,
    quantizer: Quantizer,
) -> Given:
    """The one way in which something is given of the pictures."""
    if len(ways) > 1:
        raise ValueError(
            "known codes, changed words, a run to go on from: more than one is given; choose one of them"
        )
    for way in ways:
        if isinstance(way, WordEdit):
            way.check(conditioning, settings, schedule, quantizer)
        elif isinstance(way, RunState):
            way.check(schedule, quantizer, conditioning.batch)
    return ways[0] if ways else KnownCodes()


class _Part(NamedTuple):
    """What differs between the runs of a generation."""

    conditioning: RunConditioning
    noise: Noise | None
    given: Given

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of the images; what a policy draws needs some without noise, too."""
        return tuple(range(self.conditioning.batch)) if self.noise is None else tuple(self.noise.seeds)

    @property
    def begins(self) -> tuple[Given, RunConditioning, tuple[int, ...]]:
        """What a passage begins with."""
        return self.given, self.conditioning, self.seeds

    def image(self, index: int) -> "_Part":
        """The run of one image."""
        return _Part(
            self.conditioning.image(index),
            self.noise and self.noise.image(index),
            self.given.image(index),
        )
