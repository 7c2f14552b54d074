"""Workflows that keep a part of a picture's scales, and the one that shows them."""

from __future__ import annotations

from .graph import COLUMN, Graph, Node
from .parts import EMBEDDED, SAMPLER, SCENE, SCENES, side_by_side

RING = "a ring to the left of a cross"
DRAWING = "a striped red circle to the left of a blue diamond on a white background"
FREE = {**SCENES, "cfg": 1.0, "temperature": 1.0}  # what the prompt leaves open differs from seed to seed
VARY = (330, 210)  # with its line


def loaded(graph: Graph, top: int) -> tuple[tuple[Node, str], tuple[Node, str], tuple[Node, str]]:
    """Model, tokenizer and text encoder of the built-in model."""
    load = graph.add("StageVARLoad", (0, top), (COLUMN, 130), model_name=EMBEDDED, task="auto")
    return (load, "var_model"), (load, "vae"), (load, "clip")


def vary(graph: Graph) -> None:
    """A picture, and four others of the same composition."""
    model, vae, clip = loaded(graph, -420)
    text = graph.add(*("CLIPTextEncode", (480, -700), (380, 150)), title="The picture", clip=clip, text=RING)
    first = graph.add(
        *("StageVARSampler", (940, 220), SAMPLER),
        title="Draw the picture",
        **{"model": model, "vae": vae, "positive": (text, "CONDITIONING"), "seed": 7},
        **{**FREE, "width": 128, "height": 128, "batch_size": 1, "after": "fixed"},
    )
    decoded = graph.add("VAEDecode", (1430, 110), (220, 60), samples=(first, "latent"), vae=vae)
    before = graph.add(
        *("PreviewImage", (1790, 220), (320, 360)), title="The picture", images=(decoded, "IMAGE")
    )
    varied = graph.add(
        *("StageVARVary", (1430, -220), VARY),
        **{"model": model, "vae": vae, "latent": (first, "latent"), "variation": 0.9},
    )
    second = graph.add(
        *("StageVARSampler", (2190, -320), SAMPLER),
        title="Draw variations",
        **{"model": model, "vae": vae, "positive": (text, "CONDITIONING"), "edit": (varied, "edit")},
        **{"seed": 1, **FREE, "width": 128, "height": 128, "batch_size": 4},
    )
    after = graph.add("VAEDecode", (2690, -420), (220, 60), samples=(second, "latent"), vae=vae)
    side_by_side(
        graph, (2980, -900), (after, "IMAGE"), 2, 192, size=(440, 480), title="Variations side by side"
    )
    saved = graph.add(
        *("SaveImage", (2980, -320), (460, 500)),
        title="Variations",
        images=(after, "IMAGE"),
        filename_prefix="StageVAR_vary",
    )
    graph.app(
        [(text, "text"), (varied, "variation"), (second, "seed"), (second, "batch_size")], [before, saved]
    )
    graph.note((0, 320), (860, 380))


def image_to_image(graph: Graph) -> None:
    """A drawing of two patches, and what a prompt makes of it."""
    model, vae, clip = loaded(graph, -420)
    size = {"width": 128, "height": 128, "batch_size": 1}
    sheet = graph.add("EmptyImage", (0, 0), (270, 130), title="Paper", **size, color=0xF0F0F0)
    patch = {"width": 42, "height": 48, "batch_size": 1}
    red = graph.add("EmptyImage", (0, 210), (270, 130), title="Red patch", **patch, color=0xDC1E28)
    blue = graph.add("EmptyImage", (0, 420), (270, 130), title="Blue patch", **patch, color=0x2850DC)
    half = graph.add(
        *("ImageCompositeMasked", (480, 160), (290, 150)),
        **{"destination": (sheet, "IMAGE"), "source": (red, "IMAGE"), "x": 14, "y": 40},
        **{"resize_source": False},
    )
    drawing = graph.add(
        *("ImageCompositeMasked", (840, 300), (290, 150)),
        **{"destination": (half, "IMAGE"), "source": (blue, "IMAGE"), "x": 72, "y": 40},
        **{"resize_source": False},
    )
    before = graph.add(
        *("PreviewImage", (1200, 330), (320, 360)), title="The drawing", images=(drawing, "IMAGE")
    )
    varied = graph.add(
        *("StageVARVary", (1200, 60), VARY),
        **{"model": model, "vae": vae, "image": (drawing, "IMAGE"), "variation": 0.75},
    )
    text = graph.add(
        *("CLIPTextEncode", (1200, -700), (380, 150)), title="What it becomes", clip=clip, text=DRAWING
    )
    sampler = graph.add(
        *("StageVARSampler", (1660, -130), SAMPLER),
        **{"model": model, "vae": vae, "positive": (text, "CONDITIONING"), "edit": (varied, "edit")},
        **{"seed": 1, **SCENES, **size},
    )
    after = graph.add("VAEDecode", (2150, -230), (220, 60), samples=(sampler, "latent"), vae=vae)
    saved = graph.add(
        *("SaveImage", (2440, -130), (420, 460)),
        title="The picture",
        images=(after, "IMAGE"),
        filename_prefix="StageVAR_image_to_image",
    )
    graph.app([(text, "text"), (varied, "variation"), (sampler, "seed"), (red, "color")], [before, saved])
    graph.note((0, 640), (860, 400))


def strip(graph: Graph) -> None:
    """The picture after every scale, side by side and as an animation."""
    model, vae, clip = loaded(graph, 0)
    text = graph.add("CLIPTextEncode", (480, 320), (400, 150), clip=clip, text=SCENE)
    sampler = graph.add(
        *("StageVARSampler", (960, 150), SAMPLER),
        **{"model": model, "vae": vae, "positive": (text, "CONDITIONING")},
        **{"seed": 12, **SCENES, "width": 128, "height": 128, "batch_size": 1},
    )
    scales = graph.add(
        *("StageVARScales", (1450, 0), (320, 150)),
        **{"latent": (sampler, "latent"), "vae": vae, "decoding": "full"},
    )
    shown = side_by_side(graph, (1840, 0), (scales, "images"), 7, 128, size=(760, 260), title="All scales")
    saved = graph.add(
        *("SaveAnimatedWEBP", (1840, 340), (420, 480)),
        **{"images": (scales, "images"), "filename_prefix": "StageVAR_scales", "fps": 2.0},
        **{"lossless": True, "quality": 80, "method": "default"},
    )
    graph.app([(text, "text"), (sampler, "seed"), (scales, "decoding"), (saved, "fps")], [shown, saved])
    graph.note((0, 540), (880, 330))
