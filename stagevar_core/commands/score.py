"""The command ``score``: captions that training never saw, or classes, drawn and read back."""

import argparse
import json
from pathlib import Path

from tqdm import tqdm

from ..checks import whole
from ..embedded import ARTWORK
from ..evaluation import edits as editing
from ..evaluation import judged
from ..evaluation import score as evaluation
from ..evaluation.reading import JudgeReader, judge_of
from ..pipeline import Pipeline
from .options import Commands, add_model_options, check_request, files_of, load_pipeline, settings_of
from .output import check_file, output_file, save
from .prompts import MAX_PROMPTS


def add_parser(commands: Commands) -> None:
    """Register the command."""
    score = commands.add_parser(
        "score", help="draw captions that training never saw, or classes, and read them back"
    )
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
    add_model_options(score)
    score.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Score the model, its tokenizer or the renderer on unseen captions."""
    check_request(arguments)
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
    if arguments.rendered:
        pictures = evaluation.rendered(scenes, batch=arguments.batch)
    else:
        pipeline = load_pipeline(arguments)
        if arguments.reconstruct:
            pictures = evaluation.reconstructed(pipeline, scenes, batch=arguments.batch)
        else:
            pictures = evaluation.generated(
                pipeline,
                captions,
                seed=arguments.seed,
                batch=arguments.batch,
                settings=settings_of(pipeline, arguments),
                scales=arguments.scales,
            )
    with tqdm(total=len(captions), unit="image") as bar:
        result = evaluation.collect(captions, pictures, bar.update)
    print(evaluation.table(result.reports))
    if arguments.grid is not None and result.images is not None:
        print(save(evaluation.contact_sheet(result.images, result.right), arguments.grid))
    if arguments.json is not None:
        report = {"seed": arguments.seed, "prompts": arguments.prompts, "variants": result.reports}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def run_judged(arguments: argparse.Namespace) -> None:
    """Score a model of classes by its judge."""
    if arguments.edits or arguments.reconstruct or arguments.rendered:
        raise ValueError(
            "--edits is for models of texts; --reconstruct and --rendered need the drawings that the artwork "
            "model learned from, which are not part of this package. Leave them out"
        )
    pipeline = load_pipeline(arguments)
    reader = reader_for(pipeline)
    classes = pipeline.measurable([""] * arguments.prompts, made_up=True)
    pictures = evaluation.generated(
        pipeline,
        classes,
        seed=arguments.seed,
        batch=arguments.batch,
        settings=settings_of(pipeline, arguments),
        scales=arguments.scales,
    )
    with tqdm(total=len(classes), unit="image") as bar:
        result = judged.collect(reader, classes, pictures, bar.update)
    print(judged.table(result.reports))
    if arguments.grid is not None and result.images is not None:
        print(save(evaluation.contact_sheet(result.images, result.right), arguments.grid))
    if arguments.json is not None:
        report = {"seed": arguments.seed, "prompts": arguments.prompts, "variants": result.reports}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def reader_for(pipeline: Pipeline) -> JudgeReader:
    """The judge of a model's classes; ``ValueError`` where it knows others."""
    judge = judge_of(pipeline)
    if judge is None:
        raise ValueError(
            "the judge that comes along knows other classes than this model; get both files again"
        )
    return JudgeReader(judge)


def run_edits(arguments: argparse.Namespace) -> None:
    """Score the editing model on instructions that training never saw."""
    if arguments.grid is not None or arguments.scales is not None:
        raise ValueError("--grid and --scales do not go with --edits; leave them out")
    pipeline = load_pipeline(arguments, edits=True)
    edits = editing.unseen_edits(arguments.prompts, arguments.seed)
    settings = settings_of(pipeline, arguments)
    pictures = editing.edited(pipeline, edits, seed=arguments.seed, batch=arguments.batch, settings=settings)
    with tqdm(total=len(edits), unit="image") as bar:
        report = editing.shares(editing.collect(edits, pictures, bar.update))
    print(editing.table(report))
    if arguments.json is not None:
        values = {"seed": arguments.seed, "edits": len(edits), "shares": report}
        arguments.json.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
