"""Workflows of the built-in model that draws classes: those of VAR, and nothing to download."""

from __future__ import annotations

from typing import Any

from .graph import COLUMN, Graph, Node
from .parts import DRAWN, OWN, SAMPLER, accelerate

ARTWORK = "embedded/StageVAR-artwork (built in)"
DRAWS, DRAFTS = "artwork: strawberry", "artwork: cat"
LABEL = (400, 110)
SIZE = {"width": 256, "height": 256}
End = tuple[Node, str]


def begun(graph: Graph) -> tuple[End, End]:
    """The model and its tokenizer."""
    loaded = graph.add("StageVARLoad", (0, 0), (COLUMN, 130), model_name=ARTWORK, task="auto")
    return (loaded, "var_model"), (loaded, "vae")


def named(graph: Graph, at: tuple, name: str, **more: Any) -> Node:
    """A class by its name."""
    return graph.add("StageVARClassLabel", at, LABEL, class_name=name, label="", **more)


def sampled(graph: Graph, at: tuple, ends: tuple[End, End, Node], batch: int = 1, **more: Any) -> Node:
    """The sampler with the model's own settings; ``ends``: model, tokenizer and class."""
    model, vae, asked = ends
    given = {**OWN, **DRAWN, **SIZE, "batch_size": batch, **more}
    return graph.add(
        *("StageVARSampler", at, SAMPLER), model=model, vae=vae, positive=(asked, "conditioning"), **given
    )


def draw(graph: Graph, *, faster: bool = False) -> None:
    """Pictures of a class; with a report if faster."""
    model, vae = begun(graph)
    made = accelerate(graph, (480, 120), model) if faster else None
    asked = named(graph, (480, 500 if made else 200), DRAWS)
    if made:
        vae = graph.reroute((880, -60), *vae)
    ends = ((made, "var_model") if made else model, vae, asked)
    sampler = sampled(graph, (980, 150), ends, batch=4, seed=7)
    decoded = graph.add("VAEDecode", (1470, -60), (220, 60), samples=(sampler, "latent"), vae=vae)
    saved = graph.add(
        *("SaveImage", (1760, -60), (520, 560)),
        images=(decoded, "IMAGE"),
        filename_prefix="StageVAR_artwork",
    )
    shown = [saved]
    if faster:
        shown += [graph.add("StageVARStageReport", (1470, 600), (700, 560), report=(sampler, "report"))]
    choices = [(asked, "class_name"), *([(made, "preset")] if made else [])]
    graph.app([*choices, (sampler, "seed"), (sampler, "batch_size")], shown)
    graph.note((0, 660 if made else 420), (900, 380))


def inpaint(graph: Graph) -> None:
    """A picture of a class, and the same with a part drawn anew as another one."""
    model, vae = begun(graph)
    asked = named(graph, (480, 320), DRAWS, title="The picture")
    sampler = sampled(
        *(graph, (940, 220), (model, vae, asked)), title="Draw the picture", seed=7, after="fixed"
    )
    decoded = graph.add("VAEDecode", (1430, 110), (220, 60), samples=(sampler, "latent"), vae=vae)
    before = graph.add("PreviewImage", (1790, 220), (320, 360), title="Before", images=(decoded, "IMAGE"))
    whole = graph.add(*("SolidMask", (940, 1100), (270, 110)), title="Keep everything", value=0.0, **SIZE)
    part = graph.add(
        *("SolidMask", (940, 1270), (270, 110)),
        title="Size of the new part",
        value=1.0,
        width=128,
        height=256,
    )
    mask = graph.add(
        *("MaskComposite", (1290, 1100), (270, 150)),
        title="Where the new part is",
        **{"destination": (whole, "MASK"), "source": (part, "MASK"), "x": 128, "y": 0, "operation": "add"},
    )
    kept = graph.add(
        *("StageVAREdit", (1790, 0), (320, 110)),
        **{"model": model, "vae": vae, "image": (decoded, "IMAGE"), "mask": (mask, "MASK")},
    )
    other = named(graph, (1790, -440), DRAWS, title="What it should show")
    second = sampled(
        *(graph, (2350, -150), (model, vae, other)), title="Draw a part anew", edit=(kept, "edit"), seed=3
    )
    after = graph.add("VAEDecode", (2840, -300), (220, 60), samples=(second, "latent"), vae=vae)
    saved = graph.add(
        *("SaveImage", (3120, -300), (420, 460)),
        title="After",
        images=(after, "IMAGE"),
        filename_prefix="StageVAR_artwork_inpaint",
    )
    choices = [(asked, "class_name"), (other, "class_name"), (mask, "x"), (second, "seed")]
    graph.app(choices, [before, saved])
    graph.note((0, 560), (860, 380))
