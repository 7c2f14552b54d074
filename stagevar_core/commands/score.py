"""The command ``score``: captions that training never saw, or classes, drawn and read back."""

import argparse
import json
from pathlib import Path

from tqdm import tqdm

from ..checks import whole
from ..conditioning.labels import spread_classes
from ..embedded import ARTWORK, JUDGE
from ..evaluation import edits as editing
from ..evaluation import judged
from ..evaluation import score as evaluation
from ..evaluation.judge import Judge
from .options import Commands, add_model_options, check_request, files_of, models_of
from .output import check_file, output_file, save
from .prompts import MAX_PROMPTS
from .workers import add_worker_options, check_workers, engine_of


def add_parser(commands: Commands) -> None:
    """Register the command."""
    score = commands.add_parser("score", help="draw unseen captions, or classes, and read them back")
    score.add_argument(
        "--prompts", type=int, default=500, help="number of captions, or of pictures of classes"
    )
    score.add_argument("--batch", type=int, default=20, help="images at once; changes nothing but speed")
    score.add_argument("--scales", type=int, metavar="K", help="run the first K scales only")
    score.add_argument("--grid", type=Path, metavar="FILE", help="contact sheet, framed by right and wrong")
    score.add_argument("--json", type=Path, metavar="FILE", help="the whole report")
    kind = score.add_mutually_exclusive_group()
    kind.add_argument("--reconstruct", action="store_true", help="score rendered scenes after the tokenizer")
    kind.add_argument("--rendered", action="store_true", help="score the rendered scenes themselves")
    kind.add_argument("--edits", action="store_true", help="score edits of rendered scenes")
    add_worker_options(score)
    add_model_options(score)
    score.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Score the model, its tokenizer or the renderer on unseen captions."""
    check_request(arguments)
    check_workers(arguments)
    whole("--prompts", arguments.prompts, 1, MAX_PROMPTS, f"1 to {MAX_PROMPTS}")
    if arguments.grid is not None:
        output_file(arguments.grid)
    if arguments.json is not None:
        check_file(arguments.json)
    if files_of(arguments)["transformer"] == ARTWORK["transformer"]:
        run_judged(arguments)
        return
    if arguments.edits:
        run_edits(arguments)
        return
    scenes, captions = zip(*evaluation.held_out(arguments.prompts, arguments.seed), strict=True)
    models = models_of(arguments)
    if arguments.rendered:
        pictures = evaluation.Rendered(scenes)
    elif arguments.reconstruct:
        pictures = evaluation.Reconstructed(scenes)
    else:
        pictures = evaluation.Generated(captions, arguments.seed, arguments.scales, models.settings)
    task = evaluation.Judged(pictures, captions, 0 if arguments.grid is None else evaluation.SHOWN)
    engine = engine_of(arguments, models)
    with tqdm(total=len(captions), unit="image") as bar, engine.open():
        result = evaluation.evaluated(engine, task, arguments.batch, bar.update)
    write(arguments, evaluation.table(result.reports), result)


def run_judged(arguments: argparse.Namespace) -> None:
    """Score a model of classes by its judge."""
    if arguments.edits or arguments.reconstruct or arguments.rendered:
        raise ValueError(
            "--edits is for models of texts; --reconstruct and --rendered need the drawings that the artwork "
            "model learned from, which are not part of this package. Leave them out"
        )
    classes, models = spread_classes(arguments.prompts, len(Judge.load(JUDGE).names)), models_of(arguments)
    pictures = evaluation.Generated(classes, arguments.seed, arguments.scales, models.settings)
    task = judged.Judged(pictures, classes, 0 if arguments.grid is None else evaluation.SHOWN)
    engine = engine_of(arguments, models)
    with tqdm(total=len(classes), unit="image") as bar, engine.open():
        result = judged.evaluated(engine, task, arguments.batch, bar.update)
    write(arguments, judged.table(result.reports), result)


def write(arguments: argparse.Namespace, table: str, result: evaluation.Evaluation) -> None:
    """Print the table, write the files."""
    print(table)
    if arguments.grid is not None and result.images is not None:
        print(save(evaluation.contact_sheet(result.images, result.right), arguments.grid))
    if arguments.json is not None:
        report = {"seed": arguments.seed, "prompts": arguments.prompts, "variants": result.reports}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def run_edits(arguments: argparse.Namespace) -> None:
    """Score the editing model on instructions that training never saw."""
    if arguments.grid is not None or arguments.scales is not None:
        raise ValueError("--grid and --scales do not go with --edits; leave them out")
    edits, models = editing.unseen_edits(arguments.prompts, arguments.seed), models_of(arguments, edits=True)
    task = editing.Judged(editing.Edited(edits, arguments.seed, models.settings), edits)
    engine = engine_of(arguments, models)
    with tqdm(total=len(edits), unit="image") as bar, engine.open():
        report = editing.shares(editing.evaluated(engine, task, arguments.batch, bar.update))
    print(editing.table(report))
    if arguments.json is not None:
        values = {"seed": arguments.seed, "edits": len(edits), "shares": report}
        arguments.json.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
