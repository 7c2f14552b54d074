"""Workflows that draw a part of a picture anew with ComfyUI's own latent nodes."""

from __future__ import annotations

from .graph import COLUMN, Graph, Node
from .parts import EMBEDDED, SAMPLER, SCENES, first_picture, side_by_side

End = tuple[Node, str]
SIZE = {"width": 128, "height": 128, "batch_size": 1}
OTHER = "a striped red ring to the left of a green triangle on a white background"


def begun(graph: Graph) -> tuple[tuple[End, End, End], Node, Node, Node]:
    """The built-in model, and a picture that it draws: its prompt, the decoded picture and its preview."""
    loaded = graph.add("StageVARLoad", (0, 0), (COLUMN, 130), model_name=EMBEDDED, task="auto")
    model, vae, clip = ((loaded, name) for name in ("var_model", "vae", "clip"))
    return (model, vae, clip), *first_picture(graph, model, vae, clip)


def drawn_anew(
    graph: Graph, x: float, loaded: tuple[End, End, End], image: End, mask: End, seed: int
) -> tuple:
    """From a picture and a mask to the saved picture; prompt, sampler, seam and what is saved.

    What belongs to the mask runs on top; loaders' wires run below it.
    """
    model, vae, clip = loaded
    picture, part = graph.reroute((x - 100, -352), *image), graph.reroute((x - 100, -110), *mask)
    shown = graph.add(*("StageVARMaskPreview", (x, -500), (320, 110)), model=model, image=picture, mask=mask)
    side_by_side(
        *(graph, (x + 410, -900), (shown, "tokens"), 2, 192), size=(440, 300), title="Tokens drawn anew"
    )
    encoded = graph.add("VAEEncode", (x, 42), (220, 60), pixels=picture, vae=vae)
    masked = graph.add(
        "SetLatentNoiseMask", (x + 600, 110), (260, 60), samples=(encoded, "LATENT"), mask=part
    )
    asked = graph.add(
        *("CLIPTextEncode", (x + 410, -280), (400, 150)), title="What it should show", clip=clip, text=OTHER
    )
    sampler = graph.add(
        *("StageVARSampler", (x + 970, -40), SAMPLER),
        title="Draw a part anew",
        **{"model": model, "vae": vae, "positive": (asked, "CONDITIONING"), "latent": (masked, "LATENT")},
        **{"seed": seed, **SCENES, **SIZE},
    )
    decoded = graph.add("VAEDecode", (x + 1460, -160), (220, 60), samples=(sampler, "latent"), vae=vae)
    pasted = graph.add(
        *("StageVARPasteBack", (x + 1770, -300), (320, 130)),
        **{"original": picture, "drawn": (decoded, "IMAGE"), "mask": (shown, "mask"), "feather": 8},
    )
    saved = graph.add(
        *("SaveImage", (x + 2150, -300), (420, 460)),
        title="After",
        images=(pasted, "image"),
        filename_prefix=f"StageVAR_{graph.name.split('_')[1]}",
    )
    return asked, sampler, pasted, saved


def inpaint_latent(graph: Graph) -> None:
    """A picture, and the same with the part under a mask drawn anew."""
    loaded, text, decoded, before = begun(graph)
    whole = graph.add(
        *("SolidMask", (480, -480), (270, 110)), title="Keep everything", value=0.0, width=128, height=128
    )
    part = graph.add(
        *("SolidMask", (480, -310), (270, 110)), title="Size of the new part", value=1.0, width=60, height=88
    )
    mask = graph.add(
        *("MaskComposite", (940, -480), (270, 150)),
        title="Where the new part is",
        **{"destination": (whole, "MASK"), "source": (part, "MASK"), "x": 66, "y": 20, "operation": "add"},
    )
    asked, sampler, pasted, saved = drawn_anew(
        graph, 1790, loaded, (decoded, "IMAGE"), (mask, "MASK"), seed=3
    )
    choices = [(text, "text"), (asked, "text"), (mask, "x"), (sampler, "seed"), (pasted, "feather")]
    graph.app(choices, [before, saved])
    graph.note((0, 560), (860, 400))


def outpaint(graph: Graph) -> None:
    """The left part of a picture, continued to the right."""
    loaded, text, decoded, _ = begun(graph)
    cut = graph.add(
        *("ImageCrop", (1720, -760), (270, 150)),
        title="The picture to extend",
        **{"image": (decoded, "IMAGE"), "width": 72, "height": 128, "x": 0, "y": 0},
    )
    padded = graph.add(
        *("ImagePadForOutpaint", (2070, -760), (310, 180)),
        title="How far it is extended",
        **{"image": (cut, "IMAGE"), "left": 0, "top": 0, "right": 56, "bottom": 0, "feathering": 28},
    )
    asked, sampler, pasted, saved = drawn_anew(
        graph, 2580, loaded, (padded, "IMAGE"), (padded, "MASK"), seed=3
    )
    graph.app([(asked, "text"), (sampler, "seed"), (pasted, "feather")], [saved])
    graph.note((0, 560), (860, 400))
