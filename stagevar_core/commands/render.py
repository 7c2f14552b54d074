"""The command ``render``: a sheet of prompts to pictures, in this process or by many workers."""

import argparse
import json
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from ..acceleration.presets import PRESETS, preset
from ..checks import MAX_BATCH, number, whole
from ..embedded import EMBEDDED
from ..files import replaced
from ..rendering import engines
from ..rendering.manifest import Manifest
from ..rendering.plan import Picture, Shared, accompany, batches, for_layout, pictures, quartet
from ..rendering.sheet import COLUMNS, LAYOUTS, MAX_IMAGES, read_sheet
from ..rendering.worker import Drawn, Models
from .options import (
    Commands,
    add_model_options,
    add_size_options,
    check_seed,
    check_size,
    device_of,
    files_of,
)
from .output import collected, rounded

MAX_WORKERS = 4096


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
    group = render.add_argument_group("many workers")
    group.add_argument(
        "--ray", metavar="ADDRESS", help="a Ray cluster, or 'local' for workers on this machine"
    )
    group.add_argument("--workers", type=int, default=2, help="each loads the models")
    group.add_argument("--cpus", type=float, default=1.0, help="of each worker")
    group.add_argument("--gpus", type=float, default=0.0, help="of each worker, also a share such as 0.5")
    add_model_options(render)
    render.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Draw what is left of a sheet, and say in one line of JSON how it went."""
    checked(arguments)
    rows = read_sheet(arguments.prompts, arguments.layout)[: arguments.limit]
    shared = Shared(arguments.seed, arguments.width, arguments.height, arguments.preset, arguments.negative)
    shared = for_layout(shared, arguments.layout, arguments.images)
    wanted = pictures(rows, shared, arguments.layout)
    models = models_of(arguments)
    manifest = Manifest(arguments.out, identity(arguments, models))
    left = manifest.left(wanted)
    accompany(arguments.out, rows, arguments.layout)
    todo = list(batches(left, arguments.batch))
    folder, started = str(arguments.out.resolve()), time.perf_counter()
    drawn: list[Drawn] = []
    with collected() as said, tqdm(total=len(wanted), initial=len(wanted) - len(left), unit="image") as bar:
        for batch in drawing(arguments, models, folder, todo):
            for picture in batch.pictures:
                manifest.add(picture, size=batch.size, machine=batch.machine, process=batch.process)
            drawn.append(batch)
            bar.update(len(batch.pictures))
    if arguments.layout == "dpg":
        quartets(arguments.out, wanted)
    for message in said:
        print(f"note: {message}")
    print(json.dumps(summary(wanted, drawn, time.perf_counter() - started)))


def checked(arguments: argparse.Namespace) -> None:
    """Refuse what no run could use before anything is loaded."""
    whole("--batch", arguments.batch, 1, MAX_BATCH, f"1 to {MAX_BATCH}")
    whole("--workers", arguments.workers, 1, MAX_WORKERS, f"1 to {MAX_WORKERS}")
    for name, value in (("--images", arguments.images), ("--limit", arguments.limit)):
        if value is not None:
            most = MAX_IMAGES if name == "--images" else 1 << 30
            whole(name, value, 1, most, f"1 to {most}")
    number("--cpus", arguments.cpus, 0.01, 1024.0)
    number("--gpus", arguments.gpus, 0.0, 64.0)
    check_seed(arguments.seed)
    check_size(arguments)
    preset(arguments.preset)


def models_of(arguments: argparse.Namespace) -> Models:
    """What the workers load; a device that does not work here is an error here only without Ray."""
    if arguments.ray is None:
        device_of(arguments)
    paths = {name: str(path.resolve()) for name, path in files_of(arguments).items()}
    return Models(
        **paths,
        text_encoder_2=None if arguments.text_encoder_2 is None else str(arguments.text_encoder_2.resolve()),
        dtype=arguments.dtype,
        weights=arguments.weights,
        device=arguments.device,
        task=arguments.task,
        loras=tuple((str(file), strength) for file, strength in arguments.lora),
        threads=arguments.threads or (None if arguments.ray is None else max(1, int(arguments.cpus))),
        **{name: getattr(arguments, name) for name in ("cfg", "temperature", "top_k", "top_p")},
    )


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


def drawing(arguments: argparse.Namespace, models: Models, folder: str, todo: list[list[Picture]]) -> Any:
    """Batches as they are drawn, by whom the options say."""
    if not todo:
        return iter(())
    if arguments.ray is None:
        return engines.alone(models, folder, todo)
    cluster = engines.Cluster(arguments.ray, arguments.workers, arguments.cpus, arguments.gpus)
    return engines.on_ray(cluster, models, folder, todo)


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


def summary(wanted: list[Picture], drawn: list[Drawn], seconds: float) -> dict[str, Any]:
    """Pictures, seconds and rates, of all and of every machine."""
    count = sum(len(batch.pictures) for batch in drawn)
    images = Counter[str]()
    workers: dict[str, set[int]] = {}
    for batch in drawn:
        images[batch.machine] += len(batch.pictures)
        workers.setdefault(batch.machine, set()).add(batch.process)
    rate = rounded(count / seconds) if count else None
    machines = {
        name: {
            "images": images[name],
            "workers": len(workers[name]),
            "images_per_second": rounded(images[name] / seconds),
        }
        for name in sorted(images)
    }
    return {
        "images": len(wanted),
        "drawn": count,
        "there_before": len(wanted) - count,
        "seconds": rounded(seconds),
        "images_per_second": rate,
        "machines": machines,
    }
