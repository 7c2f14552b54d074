"""The one-pass forward over known codes, as training runs it: all scales at once, block-causal."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..conditioning.types import Conditioning
from ..network.attention import AttentionFn, sdpa
from ..network.context import ScaleContext
from ..network.tokens import resize_keys
from ..schedule import Prefix, Scale, ScaleSchedule
from .contract import Transformer


def parts_of(schedule: ScaleSchedule, prefix: Prefix | None) -> list[Scale]:
    """A prefix and the scales that have tokens of their own."""
    scales = [scale for scale in schedule if schedule.entering(scale, prefix)]
    return [*(() if prefix is None else (prefix,)), *scales]


@dataclass
class TeacherContext(ScaleContext):
    """The context of a pass in which every scale is present, behind a prefix or not; nothing is cached."""

    prefix: Prefix | None = None
    history: bool = True

    @property
    def parts(self) -> list[Scale]:
        """What is present, in order."""
        return parts_of(self.schedule, self.prefix)

    def attend(self, layer: int, q: Tensor, kv: Tensor) -> Tensor:
        """Scale by scale, each attending to itself and, with ``history``, to the coarser ones.

        This is what the mask of training lets through, exactly.
        """
        outputs, start = [], 0
        for scale in self.parts:
            stop = start + scale.tokens
            keys, values = (self._seen(x, layer, scale, start, stop) for x in kv)
            outputs.append(self.attention(q[:, :, start:stop], keys, values, scale=1.0))
            start = stop
        return torch.cat(outputs, dim=2)

    def _seen(self, x: Tensor, layer: int, scale: Scale, start: int, stop: int) -> Tensor:
        """Keys or values that a scale sees, those of the prefix on the grid that it sees them on."""
        prefix = self.prefix
        if not self.history:
            return x[:, :, start:stop]
        if prefix is None or layer not in prefix.aligned or scale.grid == prefix.grid:
            return x[:, :, :stop]
        lead = resize_keys(x[:, :, : prefix.tokens], prefix.grid, scale.grid)
        return torch.cat((lead, x[:, :, prefix.tokens : stop]), dim=2)

    def levels(self, table: Tensor) -> Tensor:
        """The level embedding of every token, (L, C)."""
        return torch.cat([table[scale.index].expand(scale.tokens, -1) for scale in self.parts])

    def learned(self, table: Tensor) -> Tensor:
        """The rows of all tokens, (L, C)."""
        return table[: self.schedule.tokens]


def teacher_forced(
    model: Transformer,
    conditioning: Conditioning,
    inputs: Tensor,
    schedule: ScaleSchedule,
    *,
    attention: AttentionFn = sdpa,
    monitor: Callable[[int, Tensor], object] | None = None,
) -> Tensor:
    """Logits (B, L, V) of all scales for known inputs.

    ``inputs``: (B, L - L0, bits), the accumulated latent at scales 1.. as the quantizer's
    ``teacher_inputs`` gives it. ``monitor``: called with (layer, hidden) after every block, of a
    prefix as well. Differentiable.
    """
    expected = schedule.tokens - schedule[0].tokens
    if inputs.shape[1] != expected:
        raise ValueError(
            f"the inputs have {inputs.shape[1]} tokens; this schedule has {expected} after scale 0"
        )
    device = inputs.device
    state = model.condition(conditioning, False, device, attention)

    def after_block(layer: int, x: Tensor) -> Tensor:
        if monitor is not None:
            monitor(layer, x)
        return x

    model.check(schedule)
    prefix = model.prefix(conditioning, schedule)
    parts = parts_of(schedule, prefix)
    positions = [model.positions(schedule, part, device, prefix) for part in parts]
    angles = [each for each in positions if each is not None]
    ctx = TeacherContext(
        scale=schedule.final,
        positions=torch.cat(angles, dim=1) if angles else None,
        conditioned=state,
        dtype=model.compute_dtype,
        attention=attention,
        cache=None,
        after_block=after_block,
        schedule=schedule,
        prefix=prefix,
        history=model.config.unit_costs.history,
    )
    apart = prefix is not None and not prefix.opens
    before = [model.prefix_tokens(conditioning, prefix, device)] if prefix is not None and apart else []
    x = torch.cat((*before, model.first_tokens(state), model.embed(inputs)), dim=1)
    return model.logits(model(x, ctx)[:, -schedule.tokens :], state)
