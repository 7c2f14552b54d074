"""Workflows that draft before they finish."""

from __future__ import annotations

from typing import Any, NamedTuple

from .artwork import ARTWORK, DRAFTS, named
from .graph import COLUMN, Graph, Node
from .parts import DRAWN, EMBEDDED, OWN, SAMPLER, SCENES, accelerate, side_by_side

LOOSE = "a red ring to the left of a blue cross"  # says no background, so that drafts differ


class Drawn(NamedTuple):
    """What is drafted: by which model, of what, with which settings."""

    model: str
    settings: dict[str, Any]
    prefix: str
    classes: bool = False

    def asked(self, graph: Graph, at: tuple, loaded: Node) -> tuple[Node, str, str]:
        """The node that says what is drawn, its widget and its output."""
        if self.classes:
            return named(graph, at, DRAFTS), "class_name", "conditioning"
        text = graph.add("CLIPTextEncode", at, (420, 150), clip=(loaded, "clip"), text=LOOSE)
        return text, "text", "CONDITIONING"


DRAFTED = Drawn(
    EMBEDDED, {**SCENES, "temperature": 0.8, "width": 128, "height": 128, "batch_size": 8}, "StageVAR_picked"
)
CLASSES = Drawn(
    *(ARTWORK, {**OWN, **DRAWN, "width": 256, "height": 256, "batch_size": 8}, "StageVAR_artwork_picked"),
    True,
)


def draft_pick_finish(graph: Graph, drawn: Drawn = DRAFTED) -> None:
    """Eight drafts, the number of one of them, and that one finished; drafts are drawn once.

    The model runs through one preset, so that what the drafts leave in memory is used. Wires of what both
    parts need run above the first part and below it.
    """
    loaded = graph.add("StageVARLoad", (0, 0), (COLUMN, 130), model_name=drawn.model, task="auto")
    made = accelerate(graph, (480, 100), (loaded, "var_model"))
    text, widget, output = drawn.asked(graph, (480, 500), loaded)
    model, asked = (made, "var_model"), (text, output)
    above = graph.reroute((990, -150), loaded, "vae")
    sampler = graph.add(
        *("StageVARSampler", (1190, 150), SAMPLER),
        title="Eight drafts",
        **{"model": model, "vae": above, "positive": asked},
        **{"seed": 12, "after": "fixed", **drawn.settings, "stop_after": "structure"},
    )
    small = graph.add("VAEDecode", (1690, -60), (220, 60), samples=(sampler, "latent"), vae=above)
    drafts = side_by_side(
        *(graph, (1970, -60), (small, "IMAGE"), 4, 192), size=(440, 300), title="The drafts: 0 to 3, 4 to 7"
    )
    pick = graph.add(
        *("LatentFromBatch", (1690, 500), (300, 110)),
        title="Pick: 0 is the first draft",
        **{"samples": (sampler, "latent"), "batch_index": 0, "length": 1},
    )
    done = graph.add(
        *("StageVARContinue", (2430, 950), (430, 520)),
        title="Finish what was picked",
        **{"model": graph.reroute((990, 970), *model), "vae": graph.reroute((480, 990), loaded, "vae")},
        **{"latent": (pick, "LATENT"), "positive": graph.reroute((990, 1060), *asked)},
        **{"seed": "auto", **OWN, "stop_after": "finished"},
    )
    bend = graph.reroute((2970, -400), loaded, "vae")
    decoded = graph.add("VAEDecode", (3110, 950), (220, 60), samples=(done, "latent"), vae=bend)
    saved = graph.add(
        *("SaveImage", (3390, 950), (440, 500)),
        title="The picture",
        images=(decoded, "IMAGE"),
        filename_prefix=drawn.prefix,
    )
    graph.app([(text, widget), (sampler, "seed"), (pick, "batch_index"), (done, "seed")], [drafts, saved])
    graph.note((0, 350), (COLUMN, 520))
