"""The command ``render``: a sheet of prompts to pictures, in this process or by many workers."""

import argparse
import json
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from ..acceleration.presets import PRESETS, preset
from ..checks import MAX_BATCH, whole
from ..embedded import EMBEDDED
from ..files import replaced
from ..rendering.drawing import Drawing
from ..rendering.manifest import Manifest
from ..rendering.models import Models
from ..rendering.plan import Picture, Shared, accompany, batches, for_layout, pictures, quartet
from ..rendering.said import collected
from ..rendering.sheet import COLUMNS, LAYOUTS, MAX_IMAGES, read_sheet
from ..rendering.work import Done
from .options import Commands, add_model_options, add_size_options, check_seed, check_size, models_of
from .output import rounded
from .workers import add_worker_options, check_workers, engine_of


def add_parser(commands: Commands) -> None:
    """Register the command."""
    render = commands.add_parser("render", help="draw a sheet of prompts, also on many machines")
    render.add_argument(
        "--prompts",
        type=Path,
        required=True,
        metavar="FILE",
        help=f".txt, .csv or .jsonl with {', '.join(COLUMNS)}; a folder of .txt; COCO's captions as .json",
    )
    render.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="a run goes on where it stopped"
    )
    render.add_argument("--layout", choices=LAYOUTS, default="plain", help="of folders and files, as scorers")
    render.add_argument(
        "--images", type=int, metavar="N", help="of every prompt (benchmarks: their own number)"
    )
    render.add_argument("--limit", type=int, metavar="N", help="only the first N prompts")
    render.add_argument("--batch", type=int, default=8, help="pictures at once; changes nothing but speed")
    render.add_argument("--negative", help="what not to draw, where a row says nothing")
    render.add_argument(
        "--preset", default="off", metavar="NAME", help=f"where a row says nothing: {', '.join(PRESETS)}"
    )
    add_size_options(render)
    add_worker_options(render)
    add_model_options(render)
    render.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Draw what is left of a sheet, and say in one line of JSON how it went."""
    started = time.perf_counter()
    checked(arguments)
    rows = read_sheet(arguments.prompts, arguments.layout)[: arguments.limit]
    shared = Shared(arguments.seed, arguments.width, arguments.height, arguments.preset, arguments.negative)
    shared = for_layout(shared, arguments.layout, arguments.images)
    wanted = pictures(rows, shared, arguments.layout)
    models = models_of(arguments)
    manifest = Manifest(arguments.out, identity(arguments, models))
    left = manifest.left(wanted)
    accompany(arguments.out, rows, arguments.layout)
    todo, drawn = list(batches(left, arguments.batch)), []
    bar = tqdm(total=len(wanted), initial=len(wanted) - len(left), unit="image")
    with collected() as said, bar:
        if todo:
            drawn = drawing(arguments, models, todo, manifest, bar)
    if arguments.layout == "dpg":
        quartets(arguments.out, wanted)
    for message in said:
        print(f"note: {message}")
    print(json.dumps(summary(len(wanted), todo, drawn, time.perf_counter() - started)))


def drawing(
    arguments: argparse.Namespace, models: Models, todo: list[list[Picture]], manifest: Manifest, bar: tqdm
) -> list[Done[tuple[int, int]]]:
    """Draw all batches, each noted as it is done."""
    engine, drawn = engine_of(arguments, models), []
    with engine.open():
        for done in engine.run(Drawing(str(arguments.out.resolve()), models.settings), todo):
            batch = todo[done.number]
            for picture in batch:
                manifest.add(picture, size=done.result, machine=done.machine, process=done.process)
            drawn.append(done)
            bar.update(len(batch))
    return drawn


def checked(arguments: argparse.Namespace) -> None:
    """Refuse what no run could use before anything is loaded."""
    whole("--batch", arguments.batch, 1, MAX_BATCH, f"1 to {MAX_BATCH}")
    for name, value in (("--images", arguments.images), ("--limit", arguments.limit)):
        if value is not None:
            most = MAX_IMAGES if name == "--images" else 1 << 30
            whole(name, value, 1, most, f"1 to {most}")
    check_workers(arguments)
    check_seed(arguments.seed)
    check_size(arguments)
    preset(arguments.preset)


def identity(arguments: argparse.Namespace, models: Models) -> dict[str, Any]:
    """What pictures of one folder share: the models by name and size, and how they are sampled."""
    found: dict[str, Any] = {"layout": arguments.layout}
    for name, value in asdict(models).items():
        if name in EMBEDDED:
            file = Path(value)
            found[name.replace("_", " ")] = [file.name, file.stat().st_size if file.is_file() else None]
        elif name not in ("device", "threads"):
            found[name] = value
    return found


def quartets(folder: Path, wanted: list[Picture]) -> None:
    """Four pictures of each prompt as one of 2 x 2, which DPG-Bench's scorer cuts up again."""
    rows: dict[int, list[Picture]] = {}
    for picture in wanted:
        rows.setdefault(picture.row, []).append(picture)
    for parts in rows.values():
        sheet = quartet([Image.open(folder / part.file).convert("RGB") for part in parts])
        name = Path(parts[0].file).stem.rpartition("_")[0]
        with replaced(folder / f"{name}.png") as partial:
            sheet.save(partial, format="PNG")


def summary(
    wanted: int, todo: list[list[Picture]], drawn: list[Done[tuple[int, int]]], seconds: float
) -> dict[str, Any]:
    """Pictures, seconds and rates, of all and of every machine.

    ``images_per_second`` is over all that the command does, with the start of workers and models;
    ``warm_images_per_second`` what the workers draw together while they draw: the pictures of each by the
    seconds of its batches, summed.
    """
    images, machines = Counter[tuple[str, int]](), dict[str, Any]()
    busy: dict[tuple[str, int], float] = {}
    for done in drawn:
        worker = done.machine, done.process
        images[worker] += len(todo[done.number])
        busy[worker] = busy.get(worker, 0.0) + done.seconds
    for name in sorted({machine for machine, _ in images}):
        workers = [worker for worker in images if worker[0] == name]
        machines[name] = {
            "images": sum(images[worker] for worker in workers),
            "workers": len(workers),
            **rates(workers, images, busy, seconds),
        }
    count = images.total()
    return {
        "images": wanted,
        "drawn": count,
        "there_before": wanted - count,
        "seconds": rounded(seconds),
        **rates(list(images), images, busy, seconds),
        "machines": machines,
    }


def rates(
    workers: list[tuple[str, int]],
    images: Mapping[tuple[str, int], int],
    busy: Mapping[tuple[str, int], float],
    seconds: float,
) -> dict[str, Any]:
    """Pictures a second of some workers: of the whole wall, and while they draw; None of no picture."""
    if not workers:
        return {"images_per_second": None, "warm_images_per_second": None}
    return {
        "images_per_second": rounded(sum(images[worker] for worker in workers) / seconds),
        "warm_images_per_second": rounded(sum(images[worker] / busy[worker] for worker in workers)),
    }
