"""One pass over all scales at once, as restoring models run it: a poor picture in, a better one out.

Arithmetic of ``BInfinity`` in infinity/models/infinity.py of EternalEvan/VARestorer: the codes of the poor
picture enter at every scale, their complete sum once more behind the last one, and every token sees every
other. There is no guidance and no KV cache.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..network.attention import AttentionFn
from ..schedule import AspectTable, ScaleSchedule
from .contract import Conditioned, Quantizer, Transformer
from .teacher import TeacherContext


@dataclass(frozen=True)
class RestoringLayout:
    """The tokens of a pass.

    ``full``: all scales of the aspect ratio. ``count``: how many of them are drawn. The complete sum is a
    group of as many tokens as the last of these, with the level embedding and the first positions of the
    scale that would follow.
    """

    full: ScaleSchedule
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.count < len(self.full) or self.full[self.count].tokens < self.schedule.final.tokens:
            raise ValueError(
                f"restoring draws {self.count} scales and takes positions of the one behind; this size has "
                f"{len(self.full)}. Use a file that was trained to restore"
            )

    @classmethod
    def of(cls, table: AspectTable) -> "RestoringLayout":
        """The largest square of the sizes that a model was trained on."""
        ratio = table.nearest_ratio(1, 1)
        budget = max(table.budgets, key=lambda name: table.budgets[name])
        full = table.grids[ratio]
        return cls(ScaleSchedule(full, full[-1]), table.budgets[budget])

    @property
    def schedule(self) -> ScaleSchedule:
        """The scales that are drawn."""
        return self.full.prefix(self.count)

    @property
    def tokens(self) -> int:
        """Tokens of a pass, the complete sum among them."""
        return self.schedule.tokens + self.schedule.final.tokens


@dataclass
class RestoringContext(TeacherContext):
    """The context of a pass in which every token sees every other; the last group is the complete sum."""

    def attend(self, layer: int, q: Tensor, kv: Tensor) -> Tensor:
        """Over all tokens, without a mask."""
        return self.attention(q, *kv, scale=1.0)

    def levels(self, table: Tensor) -> Tensor:
        """The level embedding of every token, (L, C); behind the scales that of the next one."""
        last = table[len(self.schedule)].expand(self.schedule.final.tokens, -1)
        return torch.cat((super().levels(table), last))


def restoring_inputs(quantizer: Quantizer, features: Tensor, schedule: ScaleSchedule) -> Tensor:
    """What enters behind the start token for a picture's features (B, C, H, W): (B, tokens, channels)."""
    drawn, whole = quantizer.encode(features, schedule)
    coarse = quantizer.teacher_inputs(drawn, schedule)
    return torch.cat((coarse, quantizer.next_input(whole, schedule.final)), dim=1)


def restoring_logits(
    model: Transformer,
    conditioned: Conditioned,
    inputs: Tensor,
    layout: RestoringLayout,
    attention: AttentionFn,
    after_block: Callable[[int], object] = lambda layer: None,
) -> Tensor:
    """Logits (B, L, V) of all scales in one pass, from what :func:`restoring_inputs` gives.

    ``conditioned``: the model's state of B texts without guidance. ``after_block``: called with the number of
    every block that is done; what it raises ends the pass.
    """
    schedule, device = layout.schedule, inputs.device
    model.check(layout.full.prefix(layout.count + 1))
    scales = [*schedule, layout.full[layout.count]]
    positions = [model.positions(layout.full, scale, device) for scale in scales]
    angles = [each for each in positions if each is not None]

    def done(layer: int, x: Tensor) -> Tensor:
        after_block(layer)
        return x

    ctx = RestoringContext(
        scale=schedule.final,
        schedule=schedule,
        positions=torch.cat(angles, dim=1)[:, : layout.tokens] if angles else None,
        conditioned=conditioned,
        dtype=model.compute_dtype,
        attention=attention,
        cache=None,
        after_block=done,
    )
    x = torch.cat((model.first_tokens(conditioned), model.embed(inputs)), dim=1)
    return model.logits(model(x, ctx)[:, : schedule.tokens], conditioned)
