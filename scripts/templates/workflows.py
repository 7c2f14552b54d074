"""The shipped workflows; the page lists them by file name, so the first ones need no download.

Names stay once they were released: new ones go to the end, and say in their name whether they need one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import artwork
from .drafts import CLASSES, draft_pick_finish
from .files import EDIT_2B, EDIT_8B, EDITS, HART, INFINITY_2B, INFINITY_8B, RESTORER, STAR, SWITTI, VAR, File
from .graph import COLUMN, Graph
from .painting import inpaint_latent, outpaint
from .parts import (
    DRAWN,
    EDITOR,
    EMBEDDED,
    NONE,
    OWN,
    RED,
    SAMPLER,
    SCENE,
    SCENES,
    accelerate,
    edit,
    first_picture,
    further_shards,
    load,
    restore,
    sized,
    transformer,
)
from .steering import HALVES, STAGED, steered
from .varying import image_to_image, strip, vary

FOX = "a red fox sitting in fresh snow at the edge of a pine forest, morning light, detailed fur, photograph"
LIGHTHOUSE = "a lighthouse on a cliff in a storm, huge waves, a beam of light through the rain, oil painting"


def plain(
    graph: Graph,
    files: tuple[File, ...] | None,
    says: str,
    prefix: str,
    *,
    faster: bool = False,
    **settings: Any,
) -> None:
    """One picture from a text or, for models without an encoder, a class; with a report if faster."""
    model, tokenizer, encoder = load(graph, files)
    source, made = (model, "var_model"), None
    at = (460, 250)
    if faster:
        made = accelerate(graph, at, source)
        source, at = (made, "var_model"), (460, 600)
    if encoder is None:
        asked = graph.add("StageVARClassLabel", at, (420, 110), class_name=says, label="")
        output, widget = "conditioning", "class_name"
    else:
        asked = graph.add("CLIPTextEncode", at, (420, 170), clip=(encoder, "clip"), text=says)
        output, widget = "CONDITIONING", "text"
    sampler = graph.add(
        *("StageVARSampler", (940, 150), SAMPLER),
        **{"model": source, "vae": (tokenizer, "vae"), "positive": (asked, output), **settings},
    )
    decoded = graph.add(
        "VAEDecode", (1430, 0), (220, 60), samples=(sampler, "latent"), vae=(tokenizer, "vae")
    )
    saved = graph.add("SaveImage", (1710, 0), (420, 420), images=(decoded, "IMAGE"), filename_prefix=prefix)
    shown = [saved]
    if faster:
        shown += [graph.add("StageVARStageReport", (1430, 570), (700, 700), report=(sampler, "report"))]
    choices = [(asked, widget), *([(made, "preset")] if made else [])]
    graph.app([*choices, (sampler, "seed"), (sampler, "batch_size")], shown)
    narrow = faster and encoder is not None
    graph.note((0, 500 if encoder else 420), (COLUMN, 440) if narrow else (880, 380))
    if faster and encoder is None:
        graph.nodes[-1]["pos"], graph.nodes[-1]["size"] = [0, 330], [COLUMN, 520]
    further_shards(graph, files or (), (0, 920))


def compare(graph: Graph) -> None:
    """The same picture with three presets, one below the other.

    What all three use stands between the models' wires, so that every wire ends where it seems to.
    """
    model = transformer(graph, (0, 0), None)
    encoder = graph.add(
        *("StageVARLoadTextEncoder", (0, 300), (COLUMN, 110)),
        text_encoder_name=EMBEDDED,
        weight_dtype="default",
        second_text_encoder_name=NONE,
    )
    tokenizer = graph.add("StageVARLoadTokenizer", (1120, -150), (COLUMN, 90), vae_name=EMBEDDED)
    text = graph.add("CLIPTextEncode", (1120, 330), (COLUMN, 150), clip=(encoder, "clip"), text=SCENE)
    seed = graph.add(
        "PrimitiveInt", (1120, 560), (COLUMN, 90), title="Seed of all three", value=12, after="increment"
    )
    vae = graph.reroute((2420, -148), tokenizer, "vae")
    presets, pictures, reports = [], [], []
    for index, preset in enumerate(("off", "balanced", "paper")):
        top = 960 * index
        made = accelerate(graph, (620, top), (model, "var_model"), preset)
        sampler = graph.add(
            *("StageVARSampler", (1860, top), SAMPLER),
            **{"model": (made, "var_model"), "vae": (tokenizer, "vae"), "positive": (text, "CONDITIONING")},
            **{
                "seed": (seed, "INT"),
                **SCENES,
                "width": 128,
                "height": 128,
                "batch_size": 1,
                "after": "fixed",
            },
        )
        decoded = graph.add("VAEDecode", (2700, top), (220, 60), samples=(sampler, "latent"), vae=vae)
        saved = graph.add(
            *("SaveImage", (3200, top), (440, 640)),
            title=f"Picture: {preset}",
            images=(decoded, "IMAGE"),
            filename_prefix=f"StageVAR_{preset}",
        )
        reports.append(
            graph.add("StageVARStageReport", (2700, top + 130), (440, 510), report=(sampler, "report"))
        )
        pictures.append(saved)
        presets.append(made)
    graph.app(
        [(text, "text"), *((made, "preset") for made in presets), (seed, "value")], [*pictures, *reports]
    )
    graph.note((0, 480), (COLUMN, 460))


def inpaint_built_in(graph: Graph) -> None:
    """A picture, and the same with its right half drawn anew; everything is made in the graph.

    The second part stands higher, so that the wires from the loader run above the first.
    """
    loaded = graph.add("StageVARLoad", (0, 0), (COLUMN, 130), model_name=EMBEDDED, task="auto")
    model, vae, clip = ((loaded, name) for name in ("var_model", "vae", "clip"))
    size = {"width": 128, "height": 128, "batch_size": 1}
    text, decoded, before = first_picture(graph, model, vae, clip)
    whole = graph.add(
        *("SolidMask", (940, 1060), (270, 110)), title="Keep everything", value=0.0, width=128, height=128
    )
    part = graph.add(
        *("SolidMask", (940, 1230), (270, 110)), title="Size of the new part", value=1.0, width=64, height=128
    )
    mask = graph.add(
        *("MaskComposite", (1290, 1060), (270, 150)),
        title="Where the new part is",
        **{"destination": (whole, "MASK"), "source": (part, "MASK"), "x": 64, "y": 0, "operation": "add"},
    )
    edit = graph.add(
        *("StageVAREdit", (1790, 0), (320, 110)),
        **{"model": model, "vae": vae, "image": (decoded, "IMAGE"), "mask": (mask, "MASK")},
    )
    other = graph.add(
        *("CLIPTextEncode", (1790, -480), (400, 150)),
        title="What it should show",
        clip=clip,
        text="a striped red ring to the left of a green triangle on a white background",
    )
    second = graph.add(
        *("StageVARSampler", (2350, -150), SAMPLER),
        title="Draw a part anew",
        **{"model": model, "vae": vae, "positive": (other, "CONDITIONING"), "edit": (edit, "edit")},
        **{"seed": 3, **SCENES, **size},
    )
    after = graph.add("VAEDecode", (2840, -300), (220, 60), samples=(second, "latent"), vae=vae)
    saved = graph.add(
        *("SaveImage", (3120, -300), (420, 460)),
        title="After",
        images=(after, "IMAGE"),
        filename_prefix="StageVAR_inpaint",
    )
    graph.app([(text, "text"), (other, "text"), (mask, "x"), (second, "seed")], [before, saved])
    graph.note((0, 560), (860, 380))


def inpaint_var(graph: Graph) -> None:
    """A part of a user's picture drawn anew as a class of ImageNet."""
    model, tokenizer, _ = load(graph, VAR)
    image = graph.add("LoadImage", (0, 330), (COLUMN, 480), image="example.png")
    label = graph.add(
        *("StageVARClassLabel", (520, 250), (420, 110)), class_name="207: golden retriever", label=""
    )
    edit = graph.add(
        *("StageVAREdit", (520, 440), (420, 110)),
        **{"model": (model, "var_model"), "vae": (tokenizer, "vae")},
        **{"image": (image, "IMAGE"), "mask": (image, "MASK")},
    )
    sampler = graph.add(
        *("StageVARSampler", (1020, 150), SAMPLER),
        **{"model": (model, "var_model"), "vae": (tokenizer, "vae"), "positive": (label, "conditioning")},
        **{"edit": (edit, "edit"), "seed": 42, **OWN, **DRAWN},
        **{"width": 256, "height": 256, "batch_size": 4},
    )
    decoded = graph.add(
        "VAEDecode", (1510, 0), (220, 60), samples=(sampler, "latent"), vae=(tokenizer, "vae")
    )
    saved = graph.add(
        *("SaveImage", (1790, 0), (420, 460)),
        images=(decoded, "IMAGE"),
        filename_prefix="StageVAR_inpaint",
    )
    graph.app([(image, "image"), (label, "class_name"), (sampler, "seed"), (sampler, "batch_size")], [saved])
    graph.note((0, 890), (940, 400))


CHANGED = "make the blue cross green"
SNOW = "make it snow"


def edit_built_in(graph: Graph) -> None:
    """A picture, and the same changed by an instruction; everything is made in the graph.

    The editing part stands higher, so that the wires from the loaders run above the first.
    """
    loaded = graph.add("StageVARLoad", (0, 0), (COLUMN, 130), model_name=EMBEDDED, task="auto")
    vae, clip = ((loaded, name) for name in ("vae", "clip"))
    editor = transformer(graph, (0, -240), None, title="Load the editor", model_name=EDITOR)
    text, decoded, before = first_picture(graph, (loaded, "var_model"), vae, clip)
    asked = graph.add(
        *("CLIPTextEncode", (1790, -520), (400, 150)), title="What to change", clip=clip, text=CHANGED
    )
    changed = edit(graph, (2350, -150), editor, vae, (decoded, "IMAGE"), asked, seed=3)
    saved = graph.add(
        *("SaveImage", (2860, -150), (420, 460)),
        title="After",
        images=(changed, "image"),
        filename_prefix="StageVAR_edit",
    )
    graph.app([(text, "text"), (asked, "text"), (changed, "seed")], [before, saved])
    graph.note((0, 560), (860, 380))


def edit_by_text(graph: Graph, files: tuple[File, ...], side: int) -> None:
    """A user's picture, changed as an instruction says."""
    model, tokenizer, encoder = load(graph, files, EDITS[side])
    asked = graph.add("CLIPTextEncode", (480, 320), (400, 150), clip=(encoder, "clip"), text=SNOW)
    image = graph.add("LoadImage", (480, 540), (400, 480), image="example.png")
    changed = edit(graph, (960, 150), model, (tokenizer, "vae"), (image, "IMAGE"), asked, seed=42)
    saved = graph.add(
        *("SaveImage", (1470, 150), (520, 560)),
        images=(changed, "image"),
        filename_prefix="StageVAR_edit",
    )
    graph.app([(image, "image"), (asked, "text"), (changed, "seed"), (changed, "tries")], [saved])
    graph.note((0, 510), (COLUMN, 510))
    further_shards(graph, files, (0, 1060))


def restore_picture(graph: Graph) -> None:
    """A user's picture, four times as large and clean."""
    model, tokenizer, _ = load(graph, RESTORER)
    image = graph.add("LoadImage", (480, 320), (400, 480), image="example.png")
    restored = restore(graph, (960, 150), model, (tokenizer, "vae"), (image, "IMAGE"))
    saved = graph.add(
        *("SaveImage", (1470, 150), (520, 560)),
        images=(restored, "image"),
        filename_prefix="StageVAR_restored",
    )
    graph.app([(image, "image"), (restored, "seed"), (restored, "scale")], [saved])
    graph.note((0, 360), (COLUMN, 440))


def everything(graph: Graph) -> None:
    """Generated, changed and enlarged, with one tokenizer and one text encoder; every model at its node."""
    vae_file, text_file = INFINITY_2B[1:]
    tokenizer = graph.add(
        *("StageVARLoadTokenizer", (0, -600), (COLUMN, 90)),
        vae_name=vae_file.value,
        models=vae_file.hints(),
    )
    encoder = graph.add(
        *("StageVARLoadTextEncoder", (0, -430), (COLUMN, 110)),
        text_encoder_name=text_file.value,
        weight_dtype="default",
        second_text_encoder_name=NONE,
        models=text_file.hints(),
    )
    vae, clip = (tokenizer, "vae"), (encoder, "clip")
    generator = transformer(graph, (0, 100), INFINITY_2B[0], title="Load Infinity")
    text = graph.add("CLIPTextEncode", (480, 300), (400, 170), title="The picture", clip=clip, text=FOX)
    drawn = graph.add(
        *("StageVARSampler", (960, 100), SAMPLER),
        **{"model": (generator, "var_model"), "vae": vae, "positive": (text, "CONDITIONING")},
        **sized(42, 512),
    )
    decoded = graph.add("VAEDecode", (1450, 0), (220, 60), samples=(drawn, "latent"), vae=vae)
    before = graph.add("PreviewImage", (1800, 160), (400, 440), title="Generated", images=(decoded, "IMAGE"))
    editor = transformer(graph, (1800, -450), EDIT_2B[0], task=EDITS[512], title="Load VAREdit")
    asked = graph.add(
        *("CLIPTextEncode", (1800, -250), (400, 120)), title="What to change", clip=clip, text=SNOW
    )
    bend = graph.reroute((2230, -560), tokenizer, "vae")
    changed = edit(graph, (2360, -150), editor, bend, (decoded, "IMAGE"), asked, seed=7)
    between = graph.add("PreviewImage", (2870, 160), (400, 440), title="Edited", images=(changed, "image"))
    restorer = transformer(graph, (2870, -450), RESTORER[0], task="restore pictures", title="Load VARestorer")
    again = graph.reroute((3300, -700), tokenizer, "vae")
    enlarged = restore(graph, (3430, -150), restorer, again, (changed, "image"))
    saved = graph.add(
        *("SaveImage", (3940, -150), (520, 560)),
        title="Enlarged",
        images=(enlarged, "image"),
        filename_prefix="StageVAR_2048",
    )
    graph.app([(text, "text"), (asked, "text"), (drawn, "seed"), (changed, "seed")], [before, between, saved])
    graph.note((0, 320), (COLUMN, 560))
    further_shards(graph, INFINITY_2B[1:], (0, 920))


COLOURFUL = "a striped green ring to the left of a blue cross on a white background"


def lora_built_in(graph: Graph) -> None:
    """One prompt and seed with a LoRA and without; what both use runs between the two samplers."""
    loaded = graph.add("StageVARLoad", (0, 150), (COLUMN, 130), model_name=EMBEDDED, task="auto")
    model, vae, clip = ((loaded, name) for name in ("var_model", "vae", "clip"))
    lora = graph.add("StageVARLoadLora", (480, -220), (COLUMN, 130), model=model, lora_name=RED, strength=1.0)
    text = graph.add("CLIPTextEncode", (480, 1060), (400, 170), clip=clip, text=COLOURFUL)
    decoding = graph.reroute((1060, 870), loaded, "vae")
    shown = []
    for of, top, name in (((lora, "var_model"), 0, "With the LoRA"), (model, 1010, "Without")):
        sampler = graph.add(
            *("StageVARSampler", (960, top), SAMPLER),
            title=f"StageVAR Sampler: {name[0].lower()}{name[1:]}",
            **{"model": of, "vae": vae, "positive": (text, "CONDITIONING"), "seed": 12},
            **{**SCENES, "width": 128, "height": 128, "batch_size": 1, "after": "fixed"},
        )
        decoded = graph.add(
            *("VAEDecode", (1560, 910 if top else 790), (220, 60)),
            samples=(sampler, "latent"),
            vae=decoding,
        )
        shown.append(
            graph.add(
                *("SaveImage", (1860, top), (420, 460)),
                title=name,
                images=(decoded, "IMAGE"),
                filename_prefix="StageVAR_lora",
            )
        )
    graph.app([(text, "text"), (lora, "lora_name"), (lora, "strength")], shown)
    graph.note((0, 420), (COLUMN, 620))


RETRIEVER = "207: golden retriever"
BUILT_IN = {"seed": 7, **SCENES, "width": 128, "height": 128, "batch_size": 1}
DRAW: dict[str, Callable[[Graph], None]] = {
    "01_text_to_image_no_download": lambda g: plain(g, None, SCENE, "StageVAR", **BUILT_IN),
    "02_faster_no_download": lambda g: plain(
        g, None, SCENE, "StageVAR", faster=True, **{**BUILT_IN, "seed": 12}
    ),
    "03_inpaint_no_download": inpaint_built_in,
    "04_compare_presets_no_download": compare,
    "05_edit_by_text_no_download": edit_built_in,
    "06_draft_pick_finish_no_download": draft_pick_finish,
    "07_vary_no_download": vary,
    "08_image_to_image_no_download": image_to_image,
    "09_scales_strip_no_download": strip,
    "10_inpaint_latent_no_download": inpaint_latent,
    "11_outpaint_no_download": outpaint,
    "12_prompt_per_stage_no_download": lambda g: steered(
        g, STAGED, "ConditioningSetTimestepRange", "StageVAR_stages", BUILT_IN
    ),
    "13_regional_prompts_no_download": lambda g: steered(
        g, HALVES, "ConditioningSetAreaPercentage", "StageVAR_regions", BUILT_IN
    ),
    "14_lora_no_download": lora_built_in,
    "15_text_to_image_Infinity_2B": lambda g: plain(
        g, INFINITY_2B, FOX, "StageVAR_2B", **sized(42, 1024, cfg=3.0, temperature=0.5, top_k=900, top_p=0.97)
    ),
    "16_text_to_image_Infinity_8B": lambda g: plain(
        *(g, INFINITY_8B, LIGHTHOUSE, "StageVAR_8B"),
        **sized(42, 1024, cfg=3.0, temperature=1.0, top_k=900, top_p=0.97),
    ),
    "17_text_to_image_STAR": lambda g: plain(g, STAR, FOX, "StageVAR_STAR", **sized(42, 1024)),
    "18_faster_STAR": lambda g: plain(g, STAR, FOX, "StageVAR_STAR", faster=True, **sized(42, 1024)),
    "19_class_to_image_VAR": lambda g: plain(g, VAR, RETRIEVER, "StageVAR_class", **sized(42, 256, 4)),
    "20_faster_VAR": lambda g: plain(g, VAR, RETRIEVER, "StageVAR_class", faster=True, **sized(42, 256, 4)),
    "21_inpaint_VAR": inpaint_var,
    "22_edit_by_text_VAREdit_2B": lambda g: edit_by_text(g, EDIT_2B, 512),
    "23_edit_by_text_VAREdit_8B": lambda g: edit_by_text(g, EDIT_8B, 1024),
    "24_restore_VARestorer": restore_picture,
    "25_generate_edit_restore_2B": everything,
    "26_text_to_image_HART": lambda g: plain(g, HART, LIGHTHOUSE, "StageVAR_HART", **sized(42, 1024)),
    "27_faster_HART": lambda g: plain(g, HART, LIGHTHOUSE, "StageVAR_HART", faster=True, **sized(42, 1024)),
    "28_text_to_image_Switti": lambda g: plain(g, SWITTI, FOX, "StageVAR_Switti", **sized(42, 1024)),
    "29_faster_Switti": lambda g: plain(g, SWITTI, FOX, "StageVAR_Switti", faster=True, **sized(42, 1024)),
    "30_artwork_no_download": artwork.draw,
    "31_artwork_faster_no_download": lambda g: artwork.draw(g, faster=True),
    "32_artwork_inpaint_no_download": artwork.inpaint,
    "33_artwork_draft_pick_finish_no_download": lambda g: draft_pick_finish(g, CLASSES),
}


def every() -> list[Graph]:
    """All of them."""
    made = []
    for name, draw in DRAW.items():
        graph = Graph(name)
        draw(graph)
        made.append(graph)
    return made
