"""Groups of nodes that several workflows have."""

from __future__ import annotations

from typing import Any

from .files import File
from .graph import COLUMN, Graph, Node

EMBEDDED = "embedded/StageVAR-scenes (built in)"
EDITOR = "embedded/StageVAR-scenes editor (built in)"
NONE = "none"  # in place of a second text encoder
RED = "embedded/StageVAR-scenes all in red (built in)"
OWN = {"cfg": "auto", "temperature": "auto", "top_k": "auto", "top_p": "auto"}
DRAWN = {"refine": "auto", "smooth": False, "stop_after": "finished"}
SCENES = {"cfg": 2.0, "temperature": 0.7, "top_k": 900, "top_p": 0.97, **DRAWN}
SAMPLER = (430, 660)  # with its result line and preview
SCENE = "a striped red ring to the left of a blue cross on a white background"
EDITOR_SIZE = (430, 560)  # with its result line and preview


def transformer(graph: Graph, at: tuple, file: File | None, *, task: str = "auto", **more: Any) -> Node:
    """Load Model with a file; without one with the built-in model."""
    name, models = (EMBEDDED, None) if file is None else (file.value, file.hints())
    given = {"model_name": name, "weight_dtype": "default", "task": task, "models": models, **more}
    return graph.add("StageVARLoadModel", at, (COLUMN, 135), **given)


def load(graph: Graph, files: tuple[File, ...] | None, task: str = "auto") -> tuple[Node, Node, Node | None]:
    """Loaders of model, tokenizer and, where there is one, text encoder; without files the built-in ones.

    The tokenizer stands on top, so that its wires run above everything to what decodes.
    """

    def given(index: int) -> dict[str, Any]:
        if files is None:
            return {"value": EMBEDDED, "models": None}
        return {"value": files[index].value, "models": files[index].hints()}

    loaded = transformer(graph, (0, 150), None if files is None else files[0], task=task)
    vae = given(1)
    tokenizer = graph.add(
        "StageVARLoadTokenizer", (0, 0), (COLUMN, 90), vae_name=vae["value"], models=vae["models"]
    )
    if files is not None and len(files) < 3:
        return loaded, tokenizer, None
    text = given(2)
    encoder = graph.add(
        "StageVARLoadTextEncoder",
        (0, 320),
        (COLUMN, 110),
        text_encoder_name=text["value"],
        weight_dtype="default",
        **_second(text, None if files is None or len(files) < 4 else files[3]),
    )
    return loaded, tokenizer, encoder


def _second(first: dict[str, Any], file: File | None) -> dict[str, Any]:
    """The other text encoder of a model that reads two, and the files of both."""
    if file is None:
        return {"second_text_encoder_name": NONE, "models": first["models"]}
    return {"second_text_encoder_name": file.value, "models": [*first["models"], *file.hints()]}


def further_shards(graph: Graph, files: tuple[File, ...], at: tuple[float, float]) -> None:
    """Names every shard after the first in a loader of ComfyUI's own that never runs, as nothing uses it.

    Newer pages list a file as missing only where a widget names it; a model's own loader names the first.
    """
    core = {
        "diffusion_models": ("UNETLoader", "unet_name", {"weight_dtype": "default"}),
        "text_encoders": ("CLIPLoader", "clip_name", {"type": "stable_diffusion", "device": "default"}),
    }
    shards = [hint for file in files for hint in file.hints()[1:]]
    if not shards:
        return
    for index, hint in enumerate(shards):
        type_of_node, widget, rest = core[hint["directory"]]
        number, count = (int(part) for part in hint["name"].rpartition("model-")[2][:-12].split("-of-"))
        graph.add(
            *(type_of_node, (at[0] + 15 + index % 2 * 435, at[1] + 75 + index // 2 * 70), (COLUMN, 110)),
            title=f"{'Text' if widget == 'clip_name' else 'Model'} {number}/{count}",
            collapsed=True,
            models=[hint],
            **{widget: hint["name"], **rest},
        )
    rows = (len(shards) + 1) // 2
    graph.group("Further files of the same models: listed here if missing", at, (880, 60 + 70 * rows))


def accelerate(graph: Graph, at: tuple, model: tuple, preset: str = "balanced", **more: Any) -> Node:
    """StageVAR Accelerate with everything as in its preset."""
    same = dict.fromkeys(("guidance", "tokens", "restoration"), "as in the preset")
    same |= dict.fromkeys(("keep", "code_weight", "structure_end", "skip_scales"), "auto")
    return graph.add("StageVARAccelerate", at, (420, 290), model=model, preset=preset, **same, **more)


def first_picture(graph: Graph, model: tuple, vae: tuple, clip: tuple) -> tuple[Node, Node, Node]:
    """The picture that a workflow changes: its prompt, the decoded picture and its preview."""
    text = graph.add(*("CLIPTextEncode", (480, 320), (380, 150)), title="The picture", clip=clip, text=SCENE)
    sampler = graph.add(
        *("StageVARSampler", (940, 220), SAMPLER),
        title="Draw the picture",
        **{"model": model, "vae": vae, "positive": (text, "CONDITIONING"), "seed": 12},
        **{**SCENES, "width": 128, "height": 128, "batch_size": 1, "after": "fixed"},
    )
    decoded = graph.add("VAEDecode", (1430, 110), (220, 60), samples=(sampler, "latent"), vae=vae)
    before = graph.add("PreviewImage", (1790, 220), (320, 360), title="Before", images=(decoded, "IMAGE"))
    return text, decoded, before


def side_by_side(
    graph: Graph, at: tuple, images: tuple, columns: int, cell: int, *, size: tuple, title: str
) -> Node:
    """A batch as one picture of square cells; by itself it would show as a grid on classic pages alone."""
    each = graph.add("RebatchImages", at, (220, 60), images=images, batch_size=1)
    shape = {"columns": columns, "cell_width": cell, "cell_height": cell, "padding": 4}
    grid = graph.add("ImageGrid", (at[0] + 260, at[1]), (260, 150), images=(each, "IMAGE"), **shape)
    return graph.add("PreviewImage", (at[0] + 560, at[1]), size, title=title, images=(grid, "images"))


def edit(graph: Graph, at: tuple, model: Node, vae: tuple, image: tuple, asked: Node, seed: int) -> Node:
    """StageVAR Edit by Text with the model's own settings."""
    return graph.add(
        *("StageVAREditByText", at, EDITOR_SIZE),
        **{"model": (model, "var_model"), "vae": vae, "image": image, "positive": (asked, "CONDITIONING")},
        **{"seed": seed, **OWN, "tries": 1},
    )


def restore(graph: Graph, at: tuple, model: Node, vae: tuple, image: tuple) -> Node:
    """StageVAR Restore, four times as large."""
    return graph.add(
        *("StageVARRestore", at, (430, 330)),
        **{"model": (model, "var_model"), "vae": vae, "image": image},
        **{"seed": 42, "scale": 4.0, "overlap": 128},
    )


def sized(seed: int, side: int, batch: int = 1, **own: Any) -> dict[str, Any]:
    """Settings of a sampler for square pictures."""
    return {"seed": seed, **OWN, **DRAWN, **own, "width": side, "height": side, "batch_size": batch}
