"""``bench.py --comfyui``: the same pictures by the nodes of a running ComfyUI and by the core, in turn.

The node path is timed from queueing the workflow to the end that the server's history tells, by when the
pictures and the plot of the report are saved. The core does the same work in this process, as the command
line does it: pictures, PNG files, plot. Both load the same files; where a model has none, random weights are
written to a temporary folder first.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from testbed.comfy_server import ComfyServer, Json, default_flags
from testbed.environment import TESTBED

from stagevar_core.acceleration.presets import preset
from stagevar_core.checkpoints.detect import spec_of
from stagevar_core.checkpoints.load import Checkpoint
from stagevar_core.checkpoints.save import save as save_weights
from stagevar_core.commands.output import save
from stagevar_core.devices import hardware
from stagevar_core.embedded import EMBEDDED as SCENES
from stagevar_core.pipeline import Pipeline
from stagevar_core.plots.timeline import timeline

from .models import EMBEDDED, FULL_SIZE, PROMPT
from .presets import BASE
from .weights import fill

COMFYUI = TESTBED / "ComfyUI"
FOLDERS = {"transformer": "diffusion_models", "tokenizer": "vae", "text_encoder": "text_encoders"}
BUILT_IN, FILE = "embedded/StageVAR-scenes (built in)", "bench.safetensors"
LABEL = "207"


class Asked(NamedTuple):
    """What is measured, at every preset; ``size``: (height, width)."""

    presets: Sequence[str]
    size: tuple[int, int]
    batch: int
    repeat: int


def check(arguments: argparse.Namespace) -> None:
    """``ValueError`` for what the workflow of this bench cannot run, and without a ComfyUI."""
    name, folder = arguments.model, arguments.comfyui
    if name != EMBEDDED and FULL_SIZE[name][1].text_width:
        known = ", ".join(each for each, shape in FULL_SIZE.items() if not shape[1].text_width)
        raise ValueError(f"--comfyui is for {EMBEDDED} and models without a text encoder: {known}")
    if not (folder / "main.py").is_file():
        raise ValueError(
            f"--comfyui is {folder}, which holds no ComfyUI; run python scripts/test.py, or name one"
        )
    if len(arguments.batch) > 1 or arguments.weights or arguments.official or arguments.drafts is not None:
        raise ValueError("--comfyui takes one --batch, and no --weights, --official and --drafts")


def write_models(name: str, folder: Path, dtype: torch.dtype) -> dict[str, Path]:
    """The files to load: those that come with the package, or random weights of this shape in ``folder``."""
    if name == EMBEDDED:
        return dict(SCENES)
    family, *shapes = FULL_SIZE[name]
    files = {}
    for kind, config in zip(("transformer", "tokenizer"), shapes, strict=True):
        spec = spec_of(kind, family)
        module = fill(spec.module(config, device="meta", dtype=dtype), torch.device("cpu"))
        trained = spec.sizes(config) if kind == "transformer" else None
        told = Checkpoint(kind, family, config, {}, name, trained, dict(spec.defaults)).header()
        files[kind] = folder / FOLDERS[kind] / FILE
        files[kind].parent.mkdir(parents=True, exist_ok=True)
        save_weights(files[kind], module.state_dict(), told)
    return files


def workflow(name: str, asked: Asked, chosen: str, dtype: str, seed: int) -> Json:
    """The graph of a shipped workflow, in API format."""
    file = BUILT_IN if name == EMBEDDED else FILE
    size = {"width": asked.size[1], "height": asked.size[0]}
    own = {"cfg": "auto", "temperature": "auto", "top_k": "auto", "top_p": "auto"}
    model = ["accelerate", 0] if chosen != BASE else ["model", 0]
    graph: dict[str, tuple[str, Json]] = {
        "model": ("StageVARLoadModel", {"model_name": file, "weight_dtype": dtype}),
        "vae": ("StageVARLoadTokenizer", {"vae_name": file}),
        "asked": ("StageVARClassLabel", {"class_name": "207: golden retriever", "label": ""}),
        "sample": (
            "StageVARSampler",
            {"model": model, "vae": ["vae", 0], "positive": ["asked", 0], "seed": seed}
            | {"batch_size": asked.batch, **own, **size},
        ),
        "decode": ("VAEDecode", {"samples": ["sample", 0], "vae": ["vae", 0]}),
        "save": ("SaveImage", {"images": ["decode", 0], "filename_prefix": "bench"}),
        "report": ("StageVARStageReport", {"report": ["sample", 1]}),
    }
    if name == EMBEDDED:
        graph["clip"] = ("StageVARLoadTextEncoder", {"text_encoder_name": file, "weight_dtype": "default"})
        graph["asked"] = ("CLIPTextEncode", {"text": PROMPT, "clip": ["clip", 0]})
    if chosen != BASE:
        graph["accelerate"] = ("StageVARAccelerate", {"model": ["model", 0], "preset": chosen})
    return {node: {"class_type": kind, "inputs": inputs} for node, (kind, inputs) in graph.items()}


def by_nodes(server: ComfyServer, prompt: Json) -> float:
    """Seconds from queueing to the end; both clocks are this machine's."""
    start = time.time()
    entry = server.wait(server.queue(prompt))
    ends = [data["timestamp"] for event, data in entry["status"]["messages"] if event == "execution_success"]
    if not server.images(entry) or not ends:
        raise ValueError("the server saved no picture")
    return ends[0] / 1e3 - start


def by_core(pipeline: Pipeline, asked: Asked, chosen: str, seed: int, folder: Path) -> float:
    """Seconds of the same work as the command line does it: pictures, files, plot."""
    text = PROMPT if pipeline.text_encoder is not None else LABEL
    start = time.perf_counter()
    size = {"width": asked.size[1], "height": asked.size[0]}
    found = pipeline(text, seed=seed, batch=asked.batch, policy=preset(chosen), **size)
    for index, (image, own) in enumerate(zip(found.images.numpy(), found.seeds, strict=True)):
        save(image, folder / f"core_{index}.png", prompt=text, seed=own)
    save(np.asarray(timeline(found.generation.trace.to_dict())), folder / "report.png")
    return time.perf_counter() - start


def measure(arguments: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Both paths, ``--repeat`` times in turn after one run of each that does not count."""
    chosen = [BASE] if arguments.presets is None else [variant.preset for variant in arguments.presets]
    name = str(dtype).removeprefix("torch.")
    with tempfile.TemporaryDirectory(prefix="stagevar-bench-") as place:
        base = Path(place)
        pipeline = Pipeline.load(
            **write_models(arguments.model, base / "models", dtype), dtype=dtype, device=device
        )
        size = pipeline.trained.image_size(pipeline.schedule(arguments.pixels, arguments.pixels))
        asked = Asked(chosen, size, arguments.batch[0], arguments.repeat)
        flags = ["--cpu"] if device.type == "cpu" else default_flags(Path(sys.executable))
        with ComfyServer(Path(sys.executable), arguments.comfyui, base, flags=flags) as server:
            rows = [_row(server, pipeline, arguments.model, asked, each, name) for each in chosen]
    return {
        "model": arguments.model,
        "dtype": name,
        "size": list(asked.size[::-1]),
        "batch": asked.batch,
        "repeat": asked.repeat,
        "hardware": hardware(device),
        "comfyui": rows,
    }


def _row(
    server: ComfyServer, pipeline: Pipeline, model: str, asked: Asked, chosen: str, dtype: str
) -> dict[str, Any]:
    """Times of one preset: medians, all of them, and nodes over core."""
    nodes, core = [], []
    for index in range(asked.repeat + 1):
        nodes.append(by_nodes(server, workflow(model, asked, chosen, dtype, index)))
        core.append(by_core(pipeline, asked, chosen, index, server.base))
    seconds = {"nodes": statistics.median(nodes[1:]), "core": statistics.median(core[1:])}
    best = {"nodes": min(nodes[1:]), "core": min(core[1:])}
    return {
        "preset": chosen,
        "seconds": seconds,
        "best": best,
        "ratio": seconds["nodes"] / seconds["core"],
        "ratio_best": best["nodes"] / best["core"],
        "runs": {"nodes": nodes[1:], "core": core[1:]},
    }


def show(found: dict[str, Any]) -> None:
    """The table for people."""
    machine = found["hardware"]
    print(f"{found['model']}, {found['dtype']}, batch {found['batch']}, queue to saved pictures and plot")
    print(
        f"{machine.get('gpu', machine['processor'])}, {machine['threads']} threads, torch {machine['torch']}"
    )
    print(f"\n{'preset':<16}{'nodes s':>10}{'core s':>10}{'ratio':>8}{'of best':>9}")
    for row in found["comfyui"]:
        seconds = row["seconds"]
        print(
            f"{row['preset']:<16}{seconds['nodes']:>10.3f}{seconds['core']:>10.3f}{row['ratio']:>8.3f}"
            f"{row['ratio_best']:>9.3f}"
        )
