"""``calibrate``: measures a model and writes the schedule file that presets and nodes read."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..acceleration.schedule_file import StageSchedule
from ..checks import whole
from ..evaluation.calibrate import About, Calibration, Measuring, Request
from ..files import replaced
from ..pipeline import Pipeline
from ..plots.schedules import curves, mean_of_known
from ..rendering.engines import ask
from ..rendering.models import Models
from ..rendering.said import collected
from ..rendering.sheet import read_lines
from ..schedule import ScaleSchedule
from .options import (
    Commands,
    add_model_options,
    add_size_options,
    check_seed,
    check_size,
    models_of,
)
from .output import check_file, output_file, save
from .prompts import MAX_PROMPTS, captions
from .workers import add_worker_options, check_workers, engine_of

SAVE_EVERY = 5  # prompts; an interrupted call loses fewer
CAPTIONS = 20  # where no prompts are given
RANKS = ("rank", "rank_of_tokens", "rank_of_width")


def add_parser(commands: Commands) -> None:
    """Register the command."""
    parser = commands.add_parser("calibrate", help="measure a model and write its schedule file")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="text, one prompt or class per line")
    parser.add_argument(
        "--limit", type=int, metavar="N", help=f"first N prompts (default: all, or {CAPTIONS} captions)"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json", help="the schedule file")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="the curves as an image")
    parser.add_argument("--alpha", type=float, default=0.96, help="share of the energy that a rank holds")
    parser.add_argument("--chunks", type=int, default=8, help="chunks of blocks that are measured apart")
    add_size_options(parser)
    parser.add_argument("--resume", action="store_true", help="go on where an interrupted call stopped")
    add_worker_options(parser)
    add_model_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Measure, save now and then, write the schedule."""
    check_seed(arguments.seed)
    check_size(arguments)
    check_workers(arguments)
    Request(arguments.alpha, arguments.chunks)  # refuses what no model could use before one is loaded
    out, prompts = schedule_path(arguments.out), read_prompts(arguments)
    if arguments.plot is not None:
        output_file(arguments.plot)
    models = models_of(arguments)
    engine = engine_of(arguments, models)
    with collected() as said, engine.open():
        work = Calibration(engine, *ask(engine, Fit(arguments, models, prompts)))
        state = out.with_name(out.name + ".state")
        if arguments.resume and state.exists():
            resume(work, state)
        measure(work, state)
    schedule = work.schedule()
    schedule.save(out)
    state.unlink(missing_ok=True)
    print("\n".join([table(schedule), *said, str(out)]))
    if arguments.plot is not None:
        print(save(np.asarray(curves(schedule)), arguments.plot))


@dataclass(frozen=True)
class Fit:
    """The question what a model measures, asked where it is: prompts that it knows, and its own numbers."""

    arguments: argparse.Namespace
    models: Models
    prompts: Sequence[str]

    def __call__(self, pipeline: Pipeline) -> tuple[list[str], Request, About]:
        """``ValueError`` for a prompt that is no class of this model."""
        prompts = pipeline.measurable(self.prompts, made_up=self.arguments.prompts is None)
        request = Request(
            self.arguments.alpha,
            self.arguments.chunks,
            self.arguments.seed,
            self.models.settings(pipeline),
            self.arguments.width,
            self.arguments.height,
        )
        return prompts, request, Measuring(prompts, request).about(pipeline)


def measure(work: Calibration, state: Path) -> None:
    """All prompts that are left; the state is on disk after every few, and when the run is interrupted."""
    with tqdm(total=len(work.prompts), initial=work.done, unit="prompt") as bar:
        try:
            for _ in work.run():
                bar.update()
                if work.done % SAVE_EVERY == 0:
                    write_state(work, state)
        finally:
            if work.done:
                write_state(work, state)


def write_state(work: Calibration, path: Path) -> None:
    """Replace the state file in one step."""
    with replaced(path) as partial:
        partial.write_text(json.dumps(work.state()), encoding="utf-8")


def resume(work: Calibration, path: Path) -> None:
    """Take up a saved state; ``ValueError`` names the file when it does not fit."""
    try:
        work.restore(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}. Without --resume the measurement starts over") from None


def schedule_path(path: Path) -> Path:
    """``path`` once its folder exists; raises ``ValueError`` when it cannot be a schedule."""
    if path.suffix != ".json" or path.is_dir():
        raise ValueError(f"--out is {path}; expected a file that ends in .json")
    return check_file(path)


def read_prompts(arguments: argparse.Namespace) -> list[str]:
    """The prompts of the file, or captions that the training of the embedded model never saw."""
    limit, path = arguments.limit, arguments.prompts
    if limit is not None:
        whole("--limit", limit, 1, MAX_PROMPTS, f"1 to {MAX_PROMPTS} prompts")
    if path is None:
        return captions(limit or CAPTIONS, arguments.seed)
    prompts = [row.prompt for row in read_lines(path)][:limit]
    if len(prompts) > MAX_PROMPTS:
        raise ValueError(f"{path} has {len(prompts)} prompts; expected 1 to {MAX_PROMPTS} lines")
    return prompts


def table(schedule: StageSchedule) -> str:
    """The measured means as text, one line per scale."""
    measured, boundaries = schedule.measured, schedule.boundaries
    if measured is None or boundaries is None:
        raise ValueError("this schedule was not measured; expected one that the calibrate command made")
    found = {name: curve["mean"] for name, curve in measured["curves"].items()}
    grids = ScaleSchedule.of(measured["schedule"])
    lines = [
        f"rank: directions with {measured['alpha']:g} of the energy, mean over {measured['chunks']} chunks",
        f"{'grid':>9} {'area':>6} {'stage':<9} {'rank':>6} {'/tokens':>7} {'/width':>7} {'cosine':>6} "
        f"{'bits':>6} {'PSNR':>6} {'guided':>6} {'entropy':>7}",
    ]
    for scale in grids:
        index = scale.index
        rank, of_tokens, of_width = (mean_of_known(found[name][index]) for name in RANKS)
        lines.append(
            f"{scale.height:>4}x{scale.width:<4} {grids.area_fraction(scale):>6.3f} "
            f"{boundaries.stage(grids, scale):<9} {cell(rank, 6, 1)} {cell(of_tokens, 7, 3)} "
            f"{cell(of_width, 7, 3)} {cell(found['latent_cosine'][index], 6, 3)} "
            f"{cell(found['bit_agreement'][index], 6, 3)} {cell(found['image_psnr'][index], 6, 1)} "
            f"{cell(found['disagreement'][index], 6, 3)} {cell(found['entropy'][index], 7, 3)}"
        )
    return "\n".join(lines)


def cell(value: float | None, width: int, digits: int) -> str:
    """A number in a column; a dash where nothing was measured."""
    return f"{'-':>{width}}" if value is None else f"{value:>{width}.{digits}f}"
