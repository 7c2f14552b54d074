"""StageVAR, also FasterVAR (arXiv 2512.16483): random projection and representative token restoration.

In the fidelity stage the null prompt runs alone, every chunk of blocks works on a Gaussian mixture of its
tokens, and the results are written over tokens drawn by their norm in the chunk's output at the scale before.
"""

from .changes import changed
from .settings import Guidance, StageSettings, Tokens
from .staged import StagedPolicy

# Ratios of the ranks of the 8 chunks to the tokens at an energy share of 0.96, by area fraction of scales 40,
# 48 and 64 of 64, with the digits of the public code's table. It was measured on Infinity-2B and is used for
# all models: 27 219 337 401 410 317 252 306 of 1600 tokens, 31 271 437 512 541 422 309 376 of 2304, 34 223
# 341 273 233 122 157 228 of 4096.
RANKS = (
    (
        0.390625,
        (0.016776672694393688, 0.13648282097649195, 0.21039203774864412, 0.2502819846292948)
        + (0.2558836742766729, 0.1978790404611215, 0.1570015822784809, 0.19090034471066883),
    ),
    (
        0.5625,
        (0.01340312164472197, 0.11730736289274413, 0.18940610695919982, 0.22199534852509042)
        + (0.23464176667749773, 0.1827823024977396, 0.1339092565057075, 0.16311154356916818),
    ),
    (
        1.0,
        (0.008212925943716094, 0.054404177674333185, 0.08323539747683092, 0.06649410530628391)
        + (0.05667185998954566, 0.02967688231097423, 0.038260875515653256, 0.05566317953209765),
    ),
)

_SETTINGS = StageSettings(
    guidance=Guidance("unconditional"),
    tokens=Tokens("projection", keep=RANKS, spans=8, restoration="state", code_weight=1.0, resize="area"),
)

PAPER = StagedPolicy("paper", _SETTINGS)
"""What the paper's figure shows: the whole fidelity stage runs, none of its scales is skipped.

Reported for Infinity-2B: 3.4x, GenEval 0.73 -> 0.72 (the published code skips two scales, see below).
Equal to the public code bit for bit where its mixtures and positions are put in place of ours. Deviations:
draws come from the image's seed instead of a global generator, ranks are interpolated by area fraction
between the published ones, any grid and batch runs, and the null text is used even when the user gives a
negative prompt.
"""

PAPER_RELEASED = StagedPolicy("paper-released", changed(_SETTINGS, skip=2))
"""What the public code runs: the first fidelity scale as above, the last two scales not at all.

The code tests for grid widths 48 and 64; here it is the last two scales, except that one fidelity scale
always runs. Deviations otherwise as for ``PAPER``.
"""
