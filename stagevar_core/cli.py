"""The command line: images without ComfyUI, and the measurements of models and presets."""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tqdm import tqdm

from .acceleration.policy import AccelerationPolicy
from .acceleration.presets import PRESETS, preset
from .acceleration.schedule_file import StageSchedule
from .pipeline import EMBEDDED, MAX_BATCH, MAX_SEED, Pictures, Pipeline
from .plots import timeline

PROGRAM = "python -m stagevar_core"
_LOG = logging.getLogger(__name__)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage above it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def numbers(text: str) -> float | list[float]:
    """A number, or a comma-separated list with one per scale."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        message = f"got {text!r}, expected a number or one per scale such as 4,3,2"
        raise argparse.ArgumentTypeError(message) from None
    return values[0] if len(values) == 1 else values


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Options that choose models, device and sampling settings."""
    group = parser.add_argument_group("models (default: the embedded ones)")
    for name, path in EMBEDDED.items():
        group.add_argument(f"--{name.replace('_', '-')}", type=Path, default=path, metavar="FILE")
    group.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    group.add_argument("--dtype", choices=DTYPES, help="default: bfloat16 on a GPU, float32 on the CPU")
    group.add_argument("--threads", type=int, help="CPU threads")
    group = parser.add_argument_group("sampling (default: the model's own)")
    group.add_argument("--cfg", type=numbers, help="guidance, one number or one per scale; 1 is off")
    group.add_argument("--temperature", type=numbers, help="one number or one per scale")
    group.add_argument("--top-k", type=int, help="0 is off")
    group.add_argument("--top-p", type=float, help="0 is off")
    group.add_argument("--seed", type=int, default=0, help="image number i has the seed SEED + i")


def parser() -> argparse.ArgumentParser:
    """All commands."""
    from . import calibrate_command, compare_command  # they use this module

    root = Parser(prog=PROGRAM, description="Next-scale image generation.")
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_generate(commands)
    _add_score(commands)
    calibrate_command.add_parser(commands, add_model_options)
    compare_command.add_parser(commands, add_model_options)
    return root


def _add_generate(commands: Any) -> None:
    generate = commands.add_parser("generate", help="make images from a prompt")
    generate.add_argument("--prompt", required=True, help="what to draw; may be empty")
    generate.add_argument("--negative", help="what not to draw (default: the model's null text)")
    generate.add_argument("--width", type=int, help="snapped to the nearest trained size")
    generate.add_argument("--height", type=int)
    generate.add_argument("--batch", type=int, default=1, help="number of images")
    generate.add_argument("--out", type=Path, metavar="FILE", help="the image; several get a number each")
    generate.add_argument("--steps-out", type=Path, metavar="DIR", help="one image per scale")
    generate.add_argument("--json", action="store_true", help="the last line of the output is a JSON object")
    generate.add_argument(
        "--preset", default="off", metavar="NAME", help=f"acceleration: {', '.join(PRESETS)} (default: off)"
    )
    generate.add_argument("--schedule", type=Path, metavar="FILE", help="stages and budgets for the preset")
    generate.add_argument("--report-out", type=Path, metavar="FILE", help="what every scale did, as an image")
    add_model_options(generate)
    generate.set_defaults(run=run_generate)


def _add_score(commands: Any) -> None:
    score = commands.add_parser("score", help="draw captions that training never saw and read them back")
    score.add_argument("--prompts", type=int, default=500, help="number of captions")
    score.add_argument("--batch", type=int, default=20, help="images at once; changes nothing but speed")
    score.add_argument("--scales", type=int, metavar="K", help="run the first K scales only")
    score.add_argument("--grid", type=Path, metavar="FILE", help="contact sheet, framed by right and wrong")
    score.add_argument("--json", type=Path, metavar="FILE", help="the whole report")
    kind = score.add_mutually_exclusive_group()
    kind.add_argument("--reconstruct", action="store_true", help="score rendered scenes after the tokenizer")
    kind.add_argument("--rendered", action="store_true", help="score the rendered scenes themselves")
    add_model_options(score)
    score.set_defaults(run=run_score)


def load_pipeline(arguments: argparse.Namespace) -> Pipeline:
    """The models that the options name."""
    if arguments.threads is not None:
        if not 1 <= arguments.threads <= 1024:
            raise ValueError(f"threads is {arguments.threads}; expected 1 or more")
        torch.set_num_threads(arguments.threads)
    device = None
    if arguments.device is not None:
        try:
            device = torch.device(arguments.device)
            torch.zeros(1, device=device).item()
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise ValueError(
                f"device is {arguments.device!r}, which does not work here ({first_line(error)}); try cpu"
            ) from error
    dtype = DTYPES[arguments.dtype] if arguments.dtype else None
    paths = [getattr(arguments, name) for name in EMBEDDED]
    return Pipeline.load(*paths, dtype=dtype, device=device)


def settings_of(pipeline: Pipeline, arguments: argparse.Namespace):
    """Sampling settings from the options."""
    names = ("cfg", "temperature", "top_k", "top_p")
    return pipeline.settings(**{name: getattr(arguments, name) for name in names})


def check_request(arguments: argparse.Namespace) -> None:
    """Refuse values that no model could use before anything is loaded."""
    if not 1 <= arguments.batch <= MAX_BATCH:
        raise ValueError(f"--batch is {arguments.batch}; expected 1 to {MAX_BATCH}")
    check_seed(arguments.seed)
    for name in ("width", "height"):
        value = getattr(arguments, name, None)
        if value is not None and not 1 <= value <= 16384:
            raise ValueError(f"--{name} is {value}; expected 1 to 16384 pixels, for example 128")


def check_seed(seed: int) -> None:
    """Raise ``ValueError`` for a number that is no seed."""
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"--seed is {seed}; expected 0 to {MAX_SEED}")


def policy_of(arguments: argparse.Namespace) -> tuple[AccelerationPolicy, StageSchedule | None]:
    """The preset, with the stages and budgets of a schedule file where one is given."""
    policy = preset(arguments.preset)
    if arguments.schedule is None:
        return policy, None
    schedule = StageSchedule.load(arguments.schedule)
    return schedule.apply(policy), schedule


def output_file(path: Path) -> Path:
    """``path`` once its folder exists; raises ``ValueError`` when it cannot be an image."""
    known = Image.registered_extensions()
    if path.suffix.lower() not in known or path.is_dir():
        raise ValueError(f"{path}: expected an image file such as x.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def save(image: np.ndarray, path: Path, **texts: Any) -> str:
    """Write an image; a PNG also carries how it was made."""
    extra = {}
    if path.suffix.lower() == ".png":
        extra["pnginfo"] = PngInfo()
        for name, value in texts.items():
            extra["pnginfo"].add_itxt(name, str(value))
    Image.fromarray(image).save(path, **extra)
    return str(path)


def save_pictures(found: Pictures, arguments: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Write the images and, where asked for, one per scale."""
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


def run_generate(arguments: argparse.Namespace) -> None:
    """Make and save images."""
    check_request(arguments)
    if arguments.out is None and arguments.steps_out is None:
        raise ValueError("nowhere to write to; pass --out x.png, or --steps-out DIR")
    if arguments.out is not None:
        output_file(arguments.out)
    if arguments.steps_out is not None:
        arguments.steps_out.mkdir(parents=True, exist_ok=True)
    if arguments.report_out is not None:
        output_file(arguments.report_out)
    policy, stages = policy_of(arguments)
    pipeline = load_pipeline(arguments)
    if stages is not None:
        stages.check(pipeline.transformer)
    found = pipeline(
        arguments.prompt,
        arguments.negative,
        seed=arguments.seed,
        width=arguments.width,
        height=arguments.height,
        settings=settings_of(pipeline, arguments),
        batch=arguments.batch,
        steps=arguments.steps_out is not None,
        policy=policy,
    )
    files, steps = save_pictures(found, arguments)
    width, height = found.size
    wanted = (arguments.width or width, arguments.height or height)
    if wanted != found.size:
        _LOG.warning("%d x %d was snapped to the nearest trained size %d x %d", *wanted, width, height)
    seconds = {name: rounded(value) for name, value in found.seconds.items()}
    for path in files or [str(arguments.steps_out)]:
        print(f"{path}  {width} x {height}, {seconds['total']} s")
    trace = found.generation.trace
    print(trace.summary())
    if arguments.report_out is not None:
        print(save(np.asarray(timeline(trace.to_dict())), arguments.report_out))
    if arguments.json:
        settings = found.settings
        report = {
            "prompt": arguments.prompt,
            "negative": arguments.negative,
            "seed": arguments.seed,
            "seeds": list(found.seeds),
            "width": width,
            "height": height,
            "schedule": [list(grid) for grid in found.schedule.grids],
            "settings": {item.name: getattr(settings, item.name) for item in fields(settings)},
            "seconds": seconds,
            "files": files,
            "steps": steps,
            "report": trace.to_dict(),
        }
        print(json.dumps(report))


def run_score(arguments: argparse.Namespace) -> None:
    """Score the model, its tokenizer or the renderer on unseen captions."""
    from . import evaluate  # the other command does not need the scenes

    check_request(arguments)
    if not 1 <= arguments.prompts <= 100_000:
        raise ValueError(f"--prompts is {arguments.prompts}; expected 1 to 100000")
    if arguments.grid is not None:
        output_file(arguments.grid)
    if arguments.json is not None:
        if arguments.json.is_dir():
            raise ValueError(f"{arguments.json} is a folder; expected a file such as report.json")
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
    scenes, captions = zip(*evaluate.held_out(arguments.prompts, arguments.seed), strict=True)
    if arguments.rendered:
        pictures = evaluate.rendered(scenes, batch=arguments.batch)
    else:
        pipeline = load_pipeline(arguments)
        if arguments.reconstruct:
            pictures = evaluate.reconstructed(pipeline, scenes, batch=arguments.batch)
        else:
            pictures = evaluate.generated(
                pipeline,
                captions,
                seed=arguments.seed,
                batch=arguments.batch,
                settings=settings_of(pipeline, arguments),
                scales=arguments.scales,
            )
    with tqdm(total=len(captions), unit="image") as bar:
        result = evaluate.collect(captions, pictures, bar.update)
    print(evaluate.table(result.reports))
    if arguments.grid is not None:
        print(save(evaluate.contact_sheet(result.images, result.right), arguments.grid))
    if arguments.json is not None:
        report = {"seed": arguments.seed, "prompts": arguments.prompts, "variants": result.reports}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def rounded(value: float | Sequence[float]) -> Any:
    """Seconds to a tenth of a millisecond."""
    return round(value, 4) if isinstance(value, float) else [round(item, 4) for item in value]


def first_line(error: BaseException) -> str:
    """What an error says, on one line."""
    return " ".join((str(error).strip().splitlines() or [type(error).__name__])[:1])


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that memory is short; the CPU allocator raises a plain ``RuntimeError``."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(error)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; bad input is one line on stderr and exit code 2."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
    arguments = parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except (ValueError, OSError, ImportError) as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return 2
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise  # a fault of ours: the traceback is what to report
        advice = "lower --batch or the size, or pass --dtype bfloat16"
        print(f"error: out of memory ({first_line(error)}); {advice}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0
