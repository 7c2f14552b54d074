"""StageVAR, also FasterVAR (arXiv 2512.16483): random projection and representative token restoration.

In the fidelity stage the null prompt runs alone, every chunk of blocks works on a Gaussian mixture of its
tokens, and the results are written over tokens drawn by their norm in the chunk's output at the scale before.
"""

from .changes import changed
from .settings import Guidance, StageSettings, Tokens
from .staged import StagedPolicy

# Ratios r / tokens of the 8 chunks at an energy share of 0.96, by area fraction of scales 40, 48 and 64 of 64
# (the published table; it was measured on Infinity-2B and is used for all models).
RANKS = (
    (0.390625, (0.017, 0.136, 0.210, 0.250, 0.256, 0.198, 0.157, 0.191)),
    (0.5625, (0.013, 0.117, 0.189, 0.222, 0.235, 0.183, 0.134, 0.163)),
    (1.0, (0.008, 0.054, 0.083, 0.066, 0.057, 0.030, 0.038, 0.056)),
)

_SETTINGS = StageSettings(
    guidance=Guidance("unconditional"),
    tokens=Tokens("projection", keep=RANKS, spans=8, restoration="state", code_weight=1.0, resize="area"),
)

PAPER = StagedPolicy("paper", _SETTINGS)
"""What the paper's figure shows: the whole fidelity stage runs, none of its scales is skipped.

Reported for Infinity-2B: 3.4x, GenEval 0.73 -> 0.72 (the published code skips two scales, see below).
Deviations: draws come from the image's seed instead of a global generator, ranks are interpolated by area
fraction between the published ones, any grid and batch runs, and the null text is used even when the user
gives a negative prompt.
"""

PAPER_RELEASED = StagedPolicy("paper-released", changed(_SETTINGS, skip=2))
"""What the public code runs: the first fidelity scale as above, the last two scales not at all.

The code tests for grid widths 48 and 64; here it is the last two scales, except that one fidelity scale
always runs. Deviations otherwise as for ``PAPER``.
"""
