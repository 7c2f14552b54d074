"""The command ``generate``: images from a prompt."""

import argparse
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image

from ..acceleration.presets import PRESETS
from ..acceleration.schedule_file import identity
from ..acceleration.stages import STAGES
from ..pipeline import Pictures, Pipeline
from ..plots.timeline import timeline
from .drafts import (
    add_draft_options,
    check_drafts,
    check_resumed,
    model_name,
    resumed_settings,
    save_state,
    until_of,
)
from .options import (
    Commands,
    add_model_options,
    add_size_options,
    check_request,
    check_size,
    files_of,
    load_pipeline,
    policy_of,
    settings_of,
)
from .output import first_line, output_file, rounded, save

_LOG = logging.getLogger(__name__)


def add_parser(commands: Commands) -> None:
    """Register the command."""
    generate = commands.add_parser("generate", help="make images from a prompt")
    generate.add_argument("--prompt", required=True, help="what to draw; may be empty")
    generate.add_argument("--negative", help="what not to draw (default: the model's null text)")
    generate.add_argument(
        "--stage-prompt",
        action="append",
        default=[],
        metavar="STAGE=TEXT",
        help=f"another prompt from a stage on: {', '.join(STAGES[1:])}; may be repeated",
    )
    generate.add_argument(
        "--edit",
        type=Path,
        metavar="PICTURE",
        help="what to change as the prompt says, with editing weights",
    )
    generate.add_argument(
        "--change",
        type=Path,
        metavar="PICTURE",
        help="change the words of --from that differ in the prompt, with any Infinity model (experimental)",
    )
    generate.add_argument("--from", dest="caption", metavar="TEXT", help="what the picture of --change shows")
    add_size_options(generate)
    generate.add_argument("--batch", type=int, default=1, help="number of images")
    generate.add_argument("--out", type=Path, metavar="FILE", help="the image; several get a number each")
    generate.add_argument("--steps-out", type=Path, metavar="DIR", help="one image per scale")
    generate.add_argument("--json", action="store_true", help="the last line of the output is a JSON object")
    generate.add_argument(
        "--preset", default="off", metavar="NAME", help=f"acceleration: {', '.join(PRESETS)} (default: off)"
    )
    generate.add_argument("--schedule", type=Path, metavar="FILE", help="stages and budgets for the preset")
    generate.add_argument("--report-out", type=Path, metavar="FILE", help="what every scale did, as an image")
    generate.add_argument("--dark", action="store_true", help="that image for a dark page")
    add_draft_options(generate)
    add_model_options(generate)
    generate.set_defaults(run=run)


def save_pictures(found: Pictures, arguments: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Write the images and, where asked for, one per scale; the paths of both."""
    files, steps = [], []
    several = len(found.images) > 1
    for index, (image, seed) in enumerate(zip(found.images.numpy(), found.seeds, strict=True)):
        if arguments.out is not None:
            out = arguments.out
            path = out.with_name(f"{out.stem}_{index:02d}{out.suffix}") if several else out
            files.append(save(image, path, prompt=arguments.prompt, seed=seed))
        for number, step in found.steps.items():
            scale = found.schedule[number]
            name = f"scale_{scale.index:02d}_{scale.width}x{scale.height}.png"
            path = arguments.steps_out / (f"image_{index:02d}_{name}" if several else name)
            steps.append(save(step[index].numpy(), path))
    return files, steps


def run(arguments: argparse.Namespace) -> None:
    """Make and save images."""
    check_request(arguments)
    check_size(arguments)
    resumed = check_drafts(arguments)
    picture = picture_to_edit(arguments)
    if arguments.out is None and arguments.steps_out is None and arguments.save_state is None:
        raise ValueError("nowhere to write to; pass --out x.png, or --steps-out DIR")
    if arguments.out is not None:
        output_file(arguments.out)
    if arguments.steps_out is not None:
        arguments.steps_out.mkdir(parents=True, exist_ok=True)
    if arguments.report_out is not None:
        output_file(arguments.report_out)
    later = stage_prompts(arguments)
    policy, stages = policy_of(arguments)
    chosen, pipeline = files_of(arguments), load_pipeline(arguments, edits=arguments.edit is not None)
    if stages is not None:
        network = pipeline.transformer
        stages.check(identity(network.family, network.config.to_dict()))
    schedule = resumed.schedule if resumed else pipeline.schedule(arguments.width, arguments.height)
    until = until_of(arguments.until, schedule, policy)
    settings, model = settings_of(pipeline, arguments), model_name(pipeline, chosen["transformer"])
    if resumed is not None:
        check_resumed(resumed, until, model)
        settings = resumed_settings(resumed.settings, arguments)
    found = pipeline(
        arguments.prompt,
        arguments.negative,
        seed=arguments.seed,
        width=arguments.width,
        height=arguments.height,
        settings=settings,
        batch=arguments.batch if resumed is None else len(resumed.images),
        steps=arguments.steps_out is not None,
        policy=policy,
        picture=picture,
        caption=arguments.caption,
        later=later,
        until=until,
        resumed=resumed,
    )
    files, steps = save_pictures(found, arguments)
    kept = []
    if arguments.save_state is not None:
        kept = [save_state(found, arguments.save_state, model, chosen["tokenizer"].name)]
    told(found, arguments, pipeline, files or kept or [str(arguments.steps_out)])
    if arguments.json:
        asked = {name: getattr(arguments, name) for name in ("prompt", "negative", "seed")}
        seconds = {name: rounded(value) for name, value in found.seconds.items()}
        made = {"seconds": seconds, "files": files, "steps": steps}
        report = {"report": found.generation.trace.to_dict()}
        print(json.dumps({**asked, **described(found), **made, **report}))


def told(found: Pictures, arguments: argparse.Namespace, pipeline: Pipeline, files: Sequence[str]) -> None:
    """Say what was written, how large it is, and what ran."""
    width, height = found.size
    trained = pipeline.trained.image_size(found.schedule)[::-1]
    wanted = (arguments.width or trained[0], arguments.height or trained[1])
    if wanted != trained:
        _LOG.warning("%d x %d was snapped to the nearest trained size %d x %d", *wanted, *trained)
    for path in files:
        print(f"{path}  {width} x {height}, {rounded(found.seconds['total'])} s")
    trace = found.generation.trace
    print(trace.summary())
    if arguments.report_out is not None:
        plot = timeline(trace.to_dict(), dark=arguments.dark)
        print(save(np.asarray(plot), arguments.report_out))


def stage_prompts(arguments: argparse.Namespace) -> dict[str, str]:
    """The prompts by the stage that they begin at; ``ValueError`` for other stages and beside a picture."""
    found: dict[str, str] = {}
    for given in arguments.stage_prompt:
        stage, equals, text = given.partition("=")
        if stage not in STAGES[1:] or not equals or stage in found:
            raise ValueError(
                f"--stage-prompt is {given!r}; expected each of {' and '.join(STAGES[1:])} once at most, as "
                "structure=TEXT. The first stage has --prompt"
            )
        found[stage] = text
    if found and (arguments.edit is not None or arguments.change is not None):
        raise ValueError("--stage-prompt does not go with --edit and --change; leave it out")
    return found


def picture_to_edit(arguments: argparse.Namespace) -> np.ndarray | None:
    """The picture in bytes (H, W, 3); ``ValueError`` for a file that is none, and for options beside it."""
    name, path = ("--edit", arguments.edit) if arguments.change is None else ("--change", arguments.change)
    if (arguments.change is None) != (arguments.caption is None):
        raise ValueError("--change and --from belong together: pass a picture and a text that describes it")
    if arguments.change is not None and (arguments.edit is not None or arguments.negative is not None):
        raise ValueError("--edit and --negative do not go with --change; leave them out")
    if path is None:
        return None
    if arguments.width is not None or arguments.height is not None:
        raise ValueError(f"--width and --height do not go with {name}; its picture decides about the size")
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{name} is {path}, which cannot be read as a picture ({first_line(error)}); pass a "
            "PNG or JPEG file"
        ) from error


def described(found: Pictures) -> dict[str, object]:
    """What the pictures are, as plain values."""
    width, height = found.size
    return {
        "seeds": list(found.seeds),
        "width": width,
        "height": height,
        "schedule": [list(grid) for grid in found.schedule.grids],
        "settings": asdict(found.settings),
    }
