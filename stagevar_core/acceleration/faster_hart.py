"""FasterVAR on HART (arXiv 2512.16483), as its public code for that model runs it.

The null prompt runs alone at the last two scales. At the last one every block works on a Gaussian mixture of
its tokens, and the results are written over tokens drawn by their norm in its output at the scale before.
"""

from .settings import Guidance, StageSettings, Tokens
from .staged import StagedPolicy
from .stages import StageBoundaries

# Ranks of the 24 blocks relative to the smaller of tokens and width at an energy share of 0.96, with the
# digits of the public code's table; its rows for other shares hardly differ.
RANKS = (
    (0.018744562601806715, 0.023373292425588648, 0.04417770342810599, 0.09879463294091506)
    + (0.1585374671442322, 0.2074957426329037, 0.2318480559566116, 0.2366069362690658)
    + (0.25318724085591604, 0.26998995816674004, 0.29325045350214707, 0.32766253193025374)
    + (0.35949184621649616, 0.39399502998667213, 0.40009417110913664, 0.4096064364911891)
    + (0.4172558145453881, 0.4268221646860662, 0.42552817960536066, 0.3918371348844954)
    + (0.3481849502073154, 0.2754036400488672, 0.2678144204427658, 0.3102232341181697)
)
WIDTH, TOKENS = 1536, 4096  # of HART-0.7B, and of its last scale
_BEFORE = 0.35  # area fraction that the last two scales lie beyond: sides 48 and 64 of 64, not 36

FASTER_HART = StagedPolicy(
    "faster-hart",
    StageSettings(
        boundaries=StageBoundaries(structure_end=_BEFORE),
        guidance=Guidance("unconditional"),
        tokens=Tokens(
            "projection",
            keep=((0.99, 1.0), (1.0, tuple(rank * WIDTH / TOKENS for rank in RANKS))),
            spans=len(RANKS),
            restoration="state",
            code_weight=1.0,
            resize="area",
        ),
    ),
    raster_positions=False,
)
"""The setting of the public code for HART; models of another depth take its table by their part of the depth.

Deviations: draws come from the image's seed instead of a global generator, any grid and batch runs, and the
null text is used even when the user gives a negative prompt. The residual diffusion runs on one row, too.
"""
