"""From the head's output for all rows to the logits that are sampled from."""

from torch import Tensor

from ..acceleration.policy import ScalePlan
from ..models.guidance import mix
from ..network.tokens import resize_tokens
from ..schedule import Scale
from .rows import GuidanceRows


class Guide:
    """Guidance of one run.

    ``last``: the last scale with both rows and the head's output (2B, L, V), for plans that reuse it.
    ``weights``: ``w`` of ``w * c + (1 - w) * u`` at every scale, 1 is unguided. ``temperature``: likewise.
    ``layers``: of the settings; 0 mixes the logits, negative numbers hidden states after a block.
    ``until``: scales after which nothing is guided any more, see :func:`~..models.guidance.guided_until`.
    """

    def __init__(
        self, weights: tuple[float, ...], temperature: tuple[float, ...], layers: tuple[int, ...], until: int
    ) -> None:
        self.weights, self.temperature, self.layers = weights, temperature, layers
        self.last: tuple[Scale, Tensor] | None = None
        self.until = until

    @property
    def guided(self) -> bool:
        """Whether any scale has guidance."""
        return any(weight != 1.0 for weight in self.weights)

    def over(self, scale: Scale) -> bool:
        """Whether scales before were guided and from this one on none is."""
        return self.guided and scale.index >= self.until

    def pairs(self, scale: Scale) -> bool:
        """Whether a scale has both rows without acceleration."""
        return self.guided and scale.index < self.until

    def kept(self, plan: ScalePlan, rows: GuidanceRows, scale: Scale) -> str:
        """The rows that run: those of the plan; where guidance is over, the conditional ones."""
        return "conditional" if self.over(scale) and rows.conditional else plan.rows

    def mixing(self, rows: GuidanceRows, scale: Scale) -> bool:
        """Whether both rows run and count at a scale."""
        return rows.both and self.weights[scale.index] != 1.0

    def weight(self, rows: GuidanceRows, scale: Scale) -> float | None:
        """``w`` where the outputs of both rows are mixed at a scale, None where they are not."""
        return self.weights[scale.index] if self.mixing(rows, scale) and 0 in self.layers else None

    def logits(self, raw: Tensor, rows: GuidanceRows, scale: Scale, plan: ScalePlan) -> Tensor:
        """What is sampled from (B, L, V), from the head's output (rows, L, V)."""
        weight = self.weights[scale.index]
        tempered = raw * (1.0 / self.temperature[scale.index])
        if rows.both:
            self.last = (scale, raw)
        if self.mixing(rows, scale) and 0 in self.layers:
            conditional, unconditional = tempered.chunk(2)
            return mix(conditional, unconditional, weight)
        guided = tempered[: rows.batch]
        return guided if rows.both else self._steered(guided, rows, scale, plan, weight)

    def of_pass(self, raw: Tensor, rows: GuidanceRows, scale: Scale, plan: ScalePlan) -> Tensor:
        """The same for a pass of a head's own network, with the strength of the last scale."""
        tempered = raw * (1.0 / self.temperature[scale.index])
        if rows.both:
            conditional, unconditional = tempered.chunk(2)
            return mix(conditional, unconditional, self.weights[-1])
        return self._steered(tempered, rows, scale, plan, self.weights[-1])

    def described(self, rows: GuidanceRows, scale: Scale, plan: ScalePlan) -> str:
        """How a scale was guided, for the trace."""
        if rows.both:
            return f"cfg {self.weights[scale.index]:g}"
        if not rows.conditional:
            return "unconditional"
        reused = plan.reuse and self.last and not self.over(scale)
        return f"conditional + {plan.reuse:g} reused" if reused else "conditional"

    def _steered(
        self, logits: Tensor, rows: GuidanceRows, scale: Scale, plan: ScalePlan, weight: float
    ) -> Tensor:
        """Logits (B, L, V) of one row per image, with the share of the last guidance that the plan reuses."""
        if not plan.reuse or not rows.conditional or self.last is None:
            return logits
        earlier, raw = self.last
        conditional, unconditional = (raw / self.temperature[scale.index]).chunk(2)
        reused = resize_tokens(conditional - unconditional, earlier, scale, "bilinear")
        return logits + plan.reuse * (weight - 1.0) * reused
