"""Workflows whose prompts hold at some scales, or in a part of the picture."""

from __future__ import annotations

from typing import Any

from .graph import COLUMN, Graph
from .parts import EMBEDDED, SAMPLER

Asked = tuple[str, str, dict[str, float]]
"""A prompt: its title, its text, and the values of the node that says where or when it holds."""


STRIPED = "a striped red ring to the left of a striped blue cross on a white background"
STAGED = [
    (
        "Layout",
        "a red ring to the left of a blue cross on a white background",
        {"start": 0.0, "end": 0.063},
    ),
    ("Texture", STRIPED, {"start": 0.063, "end": 1.0}),
]
_HALF = {"width": 0.5, "height": 1.0, "y": 0.0, "strength": 1.0}
HALVES = [
    ("Left half", "two red rings on a white background", {**_HALF, "x": 0.0}),
    ("Right half", "two blue crosses on a white background", {**_HALF, "x": 0.5}),
]


def steered(graph: Graph, asked: list[Asked], kind: str, prefix: str, settings: dict[str, Any]) -> None:
    """One picture of two prompts, each with a node that says where or when it holds.

    ``settings``: of the sampler.
    """
    loaded = graph.add("StageVARLoad", (0, 0), (COLUMN, 130), model_name=EMBEDDED, task="auto")
    texts, held = [], []
    height = 90 + 30 * len(asked[0][2])
    for index, (title, says, values) in enumerate(asked):
        top = 320 + index * (height + 70)
        text = graph.add(
            *("CLIPTextEncode", (480, top), (400, 150)), title=title, clip=(loaded, "clip"), text=says
        )
        texts.append(text)
        held.append(graph.add(kind, (960, top), (340, height), conditioning=(text, "CONDITIONING"), **values))
    both = graph.add(
        *("ConditioningCombine", (1380, 320), (240, 60)),
        **{f"conditioning_{number}": (node, "CONDITIONING") for number, node in enumerate(held, 1)},
    )
    sampler = graph.add(
        *("StageVARSampler", (1700, 220), SAMPLER),
        **{"model": (loaded, "var_model"), "vae": (loaded, "vae"), "positive": (both, "CONDITIONING")},
        **settings,
    )
    decoded = graph.add("VAEDecode", (2190, 110), (220, 60), samples=(sampler, "latent"), vae=(loaded, "vae"))
    saved = graph.add("SaveImage", (2470, 110), (420, 460), images=(decoded, "IMAGE"), filename_prefix=prefix)
    graph.app([*((text, "text") for text in texts), (sampler, "seed")], [saved])
    graph.note((0, 320), (COLUMN, 560))
