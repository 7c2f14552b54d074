"""The command ``compare``: presets side by side on any model."""

import argparse
import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..acceleration.policy import AccelerationPolicy
from ..acceleration.presets import DEFAULT, PRESETS, adjusted, preset
from ..checks import inside, whole
from ..devices import hardware
from ..evaluation import report, tables
from ..evaluation.album import Album, grid
from ..evaluation.compare import REFERENCE, About, Compared, Comparison, Job, compare, dense_first
from ..evaluation.lpips import LPIPS
from ..pipeline import Pipeline
from ..rendering.engines import Engine, ask
from ..rendering.models import Models
from ..rendering.said import collected
from ..sampling.settings import SamplingSettings
from .options import (
    Commands,
    add_model_options,
    add_size_options,
    check_request,
    check_size,
    files_of,
    models_of,
)
from .output import check_file, output_file
from .prompts import DEFAULT_PROMPTS, Prompts, read_prompts
from .workers import add_worker_options, check_workers, engine_of

GRID_ROWS = 12  # prompts whose pictures people look at


def add_parser(commands: Commands) -> None:
    """Register the command."""
    text = "draw the same prompts and seeds under several presets and measure quality, work and time"
    command = commands.add_parser("compare", help=text, description=f"{text.capitalize()}.")
    command.add_argument(
        "--presets",
        default=f"{DEFAULT},paper",
        metavar="A,B,...",
        help=f"any of {', '.join(PRESETS)}; {REFERENCE} is always measured (default: %(default)s)",
    )
    command.add_argument(
        "--overrides",
        nargs="+",
        default=[],
        metavar="[PRESET:]KEY=VALUE",
        help="other settings for one preset or all of them, for example balanced:keep=0.3",
    )
    command.add_argument(
        "--prompts",
        metavar="N|FILE",
        help="held-out captions of the embedded model (for VAR: classes), a text file with a prompt or class "
        f"a line, or how many of --geneval or --dpg (default: {DEFAULT_PROMPTS}, or all)",
    )
    command.add_argument(
        "--seeds", type=int, help="pictures per prompt (default: 1; 4 for the two benchmarks)"
    )
    command.add_argument("--batch", type=int, default=20, help="pictures at once (default: %(default)s)")
    add_size_options(command)
    command.add_argument(
        "--lpips", type=Path, nargs="+", metavar="FILE", help="weights of LPIPS, Alex or VGG"
    )
    command.add_argument("--against", metavar="PRESET", help="also compare the others with this one")
    output = command.add_argument_group("output")
    output.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="results so far; run again to go on"
    )
    output.add_argument("--json", type=Path, metavar="FILE", help="everything, with values per picture")
    output.add_argument("--markdown", type=Path, metavar="FILE", help="the tables")
    output.add_argument("--grid", type=Path, metavar="FILE", help=f"pictures of {GRID_ROWS} prompts")
    kind = output.add_mutually_exclusive_group()
    kind.add_argument("--geneval", type=Path, metavar="FILE", help="GenEval's evaluation_metadata.jsonl")
    kind.add_argument("--dpg", type=Path, metavar="DIR", help="DPG-Bench's folder of prompts")
    add_worker_options(command)
    add_model_options(command)
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Compare presets."""
    check_request(arguments)
    check_size(arguments)
    check_workers(arguments)
    policies = chosen_policies(arguments.presets, arguments.overrides)
    if arguments.against is not None and arguments.against not in policies:
        raise ValueError(f"--against is {arguments.against!r}; expected one of {list(policies)}")
    prompts = read_prompts(arguments)
    seeds = seeds_of(arguments.seeds, prompts.benchmark)
    if arguments.grid is not None:
        output_file(arguments.grid)
    for path in (arguments.json, arguments.markdown):
        if path is not None:
            check_file(path)
    lpips = None
    if arguments.lpips:
        lpips = LPIPS.load(*arguments.lpips)
    else:
        print("no LPIPS: its weights were not given (--lpips FILE)", file=sys.stderr)
    models = models_of(arguments)
    engine = engine_of(arguments, models)
    with collected() as said, engine.open():
        fitted = ask(engine, Fit(arguments, models, policies, prompts, seeds, lpips))
        limit = len(prompts.entries) if prompts.kept else GRID_ROWS
        album = Album((arguments.out / "pictures").resolve(), fitted.prompts.entries, seeds, limit)
        found = measure(engine, policies, fitted.job, arguments.out, album, lpips, fitted.about)
    files = files_of(arguments)
    about = {
        "command": shlex.join(["python", "-m", "stagevar_core", *sys.argv[1:]]),
        "models": {name: files[name].name for name in ("transformer", "tokenizer")},
        "dtype": fitted.dtype,
        "hardware": fitted.hardware,
        "warnings": said,
    }
    write(arguments, found, report.report(found, policies, about, arguments.against or REFERENCE))
    if arguments.grid is not None:
        grid(album, found.variants, GRID_ROWS).save(arguments.grid)
        print(arguments.grid)
    export(arguments, album, found, fitted.prompts)


@dataclass(frozen=True)
class Fitted:
    """A comparison as it fits the models: what is drawn, and what they are."""

    prompts: Prompts
    job: Job
    about: About
    dtype: str
    hardware: dict[str, Any]


@dataclass(frozen=True)
class Fit:
    """The question how a comparison fits the models, asked where they are."""

    arguments: argparse.Namespace
    models: Models
    policies: Mapping[str, AccelerationPolicy]
    prompts: Prompts
    seeds: int
    lpips: LPIPS | None

    def __call__(self, pipeline: Pipeline) -> Fitted:
        """``ValueError`` for what the models or the benchmark cannot."""
        prompts = self.prompts.fitted(pipeline)
        job = job_of(self.arguments, pipeline, prompts, self.seeds, self.models.settings(pipeline))
        about = Compared(dense_first(self.policies), job, self.lpips).about(pipeline)
        dtype = str(pipeline.transformer.compute_dtype).removeprefix("torch.")
        return Fitted(prompts, job, about, dtype, hardware(pipeline.device))


def seeds_of(given: int | None, benchmark: str | None) -> int:
    """Pictures per prompt; ``ValueError`` for other numbers than a benchmark has."""
    if given is None:
        return 1 if benchmark is None else 4
    whole("--seeds", given, 1, 1024, "1 to 1024 pictures per prompt")
    if benchmark == "dpg" and given != 4:
        raise ValueError(f"--seeds is {given}; DPG-Bench has 4 pictures per prompt")
    return given


def job_of(
    arguments: argparse.Namespace,
    pipeline: Pipeline,
    prompts: Prompts,
    seeds: int,
    settings: SamplingSettings,
) -> Job:
    """What to draw with this model; ``ValueError`` for what it or the benchmark cannot."""
    schedule = pipeline.schedule(arguments.width, arguments.height)
    height, width = pipeline.trained.image_size(schedule)
    if prompts.benchmark == "dpg" and height != width:
        raise ValueError(f"the pictures are {width} x {height}; DPG-Bench's scorer reads square ones")
    texts = tuple(entry["prompt"] for entry in prompts.entries)
    return Job(texts, seeds, arguments.seed, arguments.batch, settings, schedule)


def chosen_policies(names: str, overrides: list[str]) -> dict[str, AccelerationPolicy]:
    """The presets, the dense run first, with their settings changed."""
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    policies = {name: preset(name) for name in dict.fromkeys([REFERENCE, *wanted])}
    changes: dict[str, dict[str, object]] = {}
    for text in overrides:
        place, sign, value = text.partition("=")
        name, colon, key = place.rpartition(":")
        if not sign or not key:
            raise ValueError(f"--overrides has {text!r}; expected KEY=VALUE or PRESET:KEY=VALUE")
        if colon and name not in policies:
            raise ValueError(f"--overrides has {text!r}; expected a preset of {list(policies)}")
        for target in [name] if colon else [name for name in policies if name != REFERENCE]:
            changes.setdefault(target, {})[key] = parsed(value)
    with inside("--overrides: "):
        for name, values in changes.items():
            policies[name] = adjusted(policies[name], values)
    return policies


def parsed(text: str) -> object:
    """A value as JSON, else the text itself."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def measure(  # noqa: PLR0913 - what compare() takes, with a bar
    by: Engine | Pipeline,
    policies: Mapping[str, AccelerationPolicy],
    job: Job,
    out: Path,
    album: Album | None = None,
    lpips: LPIPS | None = None,
    about: About | None = None,
) -> Comparison:
    """:func:`compare` with a progress bar; an interrupted run says how to go on."""
    try:
        with tqdm(total=job.pictures, unit="picture") as bar:
            return compare(
                by,
                policies,
                job,
                store=out / "results",
                keep=None if album is None else album.keep,
                lpips=lpips,
                advance=bar.update,
                about=about,
            )
    except KeyboardInterrupt:
        print(f"stopped; {out} keeps what was measured, the same command goes on from there", file=sys.stderr)
        raise


def write(arguments: argparse.Namespace, found: Comparison, values: dict[str, Any]) -> None:
    """Print the tables, write the files."""
    text = tables.markdown(values, arguments.against or REFERENCE)
    print(text)
    for name in found.variants:
        for note in values["variants"][name]["notes"]:
            print(f"{name}: {note}")
    for text in values.get("warnings", ()):
        print(text)
    if arguments.markdown is not None:
        arguments.markdown.write_text(f"{text}\n{footer(values)}\n", encoding="utf-8")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def footer(values: Mapping[str, Any]) -> str:
    """What the tables belong to, in a paragraph."""
    machine = values["hardware"]
    device = machine.get("gpu") or f"{machine['processor']}, {machine['threads']} threads"
    seeds = f" with {values['seeds']} seeds each" if values["seeds"] > 1 else ""
    return (
        f"{len(values['captions'])} prompts{seeds}, batches of {values['batch']}, {values['dtype']}, "
        f"{device}, PyTorch {machine['torch']}. PSNR, SSIM and LPIPS are against `off`; intervals are 95%, "
        f"differences are paired by prompt. Made by `{values['command']}`."
    )


def export(arguments: argparse.Namespace, album: Album, found: Comparison, prompts: Prompts) -> None:
    """What the official scorers read, and how to call them."""
    for name in found.variants if prompts.benchmark else ():
        if prompts.benchmark == "geneval":
            print(
                f"{name}: python evaluation/evaluate_images.py {album.folder(name)} --outfile results.jsonl"
            )
            continue
        folder = arguments.out / "dpg" / album.folder(name).name
        album.quartets(name, prompts.names, folder)
        side = album.open(name, 0, 0).width
        print(
            f"{name}: python dpg_bench/compute_dpg_bench.py --image-root-path {folder} "
            f"--resolution {side} --pic-num 4"
        )
