"""Workflows that draft before they finish."""

from __future__ import annotations

from .graph import COLUMN, Graph
from .parts import EMBEDDED, OWN, SAMPLER, SCENES, accelerate

LOOSE = "a striped red ring to the left of a blue cross"  # says no background, so that drafts differ


def draft_pick_finish(graph: Graph) -> None:
    """Eight drafts, the number of one of them, and that one finished; drafts are drawn once.

    The model runs through one preset, so that what the drafts leave in memory is used.
    """
    loaded = graph.add("StageVARLoad", (0, 0), (COLUMN, 130), model_name=EMBEDDED, task="auto")
    vae, clip = ((loaded, name) for name in ("vae", "clip"))
    made = accelerate(graph, (480, 0), (loaded, "var_model"))
    model = (made, "var_model")
    text = graph.add("CLIPTextEncode", (480, 350), (420, 150), clip=clip, text=LOOSE)
    asked = (text, "CONDITIONING")
    sampler = graph.add(
        *("StageVARSampler", (980, 150), SAMPLER),
        title="Eight drafts",
        **{"model": model, "vae": vae, "positive": asked, "seed": 12, "after": "fixed"},
        **{**SCENES, "temperature": 1.0, "stop_after": "structure"},
        **{"width": 128, "height": 128, "batch_size": 8},
    )
    small = graph.add("VAEDecode", (1470, 20), (220, 60), samples=(sampler, "latent"), vae=vae)
    drafts = graph.add(
        "PreviewImage", (1470, 330), (480, 480), title="The drafts: 0 to 7", images=(small, "IMAGE")
    )
    pick = graph.add(
        *("LatentFromBatch", (1470, 150), (300, 110)),
        title="Pick: 0 is the first draft",
        **{"samples": (sampler, "latent"), "batch_index": 0, "length": 1},
    )
    done = graph.add(
        *("StageVARContinue", (2030, 150), (430, 520)),
        title="Finish what was picked",
        **{"model": model, "vae": vae, "latent": (pick, "LATENT"), "positive": asked},
        **{"seed": "auto", **OWN, "stop_after": "finished"},
    )
    decoded = graph.add("VAEDecode", (2540, 20), (220, 60), samples=(done, "latent"), vae=vae)
    saved = graph.add(
        *("SaveImage", (2540, 150), (440, 500)),
        title="The picture",
        images=(decoded, "IMAGE"),
        filename_prefix="StageVAR_picked",
    )
    graph.app([(text, "text"), (sampler, "seed"), (pick, "batch_index"), (done, "seed")], [drafts, saved])
    graph.note((0, 350), (COLUMN, 520))
