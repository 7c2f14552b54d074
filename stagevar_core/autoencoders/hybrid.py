"""HART's tokenizer: VAR's, but for the last scale, whose codes are not all there is.

Arithmetic of hart_hybrid_quantize.py of mit-han-lab/hart: the codes of the last scale are added as they are,
without phi, since a transformer adds to them what no row of the codebook says.
"""

from torch import Tensor

from ..schedule import Scale, ScaleSchedule
from .vq import VectorQuantizer, VQTokenizer


class HybridQuantizer(VectorQuantizer):
    """A :class:`VectorQuantizer` without phi at the last scale.

    What it encodes is the discrete part of a picture: at the last scale the nearest row of the codebook, and
    not the rest.
    """

    def _contribution(
        self, codes: Tensor, schedule: ScaleSchedule, scale: Scale, weights: Tensor | None = None
    ) -> Tensor:
        if scale != schedule.final:
            return super()._contribution(codes, schedule, scale, weights)
        return codes if weights is None else codes * weights.to(codes.dtype)


class HybridTokenizer(VQTokenizer):
    """Encoder and decoder of VAR's tokenizer around a :class:`HybridQuantizer`."""

    family = "hart"
    quantizer_type = HybridQuantizer
