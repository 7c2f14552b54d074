"""Options that the commands share: models, device, size, sampling settings, preset."""

import argparse
from pathlib import Path

import torch

from ..acceleration.policy import AccelerationPolicy
from ..acceleration.presets import preset
from ..acceleration.schedule_file import StageSchedule
from ..checkpoints.tasks import AUTO, TASKS
from ..checks import MAX_BATCH, MAX_SEED, number, whole
from ..devices import DTYPES
from ..embedded import EDITOR, EMBEDDED, MODELS
from ..pipeline import Pipeline
from ..rendering.models import Models, working_device
from ..sampling.settings import SamplingSettings

MAX_STRENGTH = 100.0  # of a LoRA, to either side, as of ComfyUI's loader
Commands = argparse._SubParsersAction  # what a parser's ``add_subparsers`` returns; it has no public name
MAX_SIDE = 16384  # pixels, as of the aspect tables
MAX_THREADS = 1024


def numbers(text: str) -> float | list[float]:
    """A number, or a comma-separated list with one per stage or per scale."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        message = f"got {text!r}, expected a number, or one per stage such as 4,3,2"
        raise argparse.ArgumentTypeError(message) from None
    return values[0] if len(values) == 1 else values


def lora(text: str) -> tuple[Path, float]:
    """A LoRA's file and its strength, ``FILE`` or ``FILE:STRENGTH``; 1 where it says none."""
    file, colon, strength = text.rpartition(":")
    if not colon or Path(text).exists():
        return Path(text), 1.0
    try:
        return Path(file), number("the strength", float(strength), -MAX_STRENGTH, MAX_STRENGTH)
    except ValueError:
        message = f"got {text!r}, expected FILE or FILE:STRENGTH with a number from -100 to 100"
        raise argparse.ArgumentTypeError(message) from None


def add_lora_option(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """LoRA files for the transformer."""
    parser.add_argument(
        "--lora",
        type=lora,
        action="append",
        default=[],
        metavar="FILE[:STRENGTH]",
        help="a LoRA for the transformer, merged into it as it is loaded; may be given several times",
    )


def add_size_options(parser: argparse.ArgumentParser) -> None:
    """Width and height of the pictures in pixels."""
    parser.add_argument("--width", type=int, help="snapped to the nearest trained size")
    parser.add_argument("--height", type=int)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Options that choose models, device and sampling settings."""
    group = parser.add_argument_group("models (default: the embedded ones)")
    group.add_argument(
        "--model",
        choices=MODELS,
        default=next(iter(MODELS)),
        help="which of the embedded ones: scenes from captions, or emoji artwork from class names",
    )
    for name, path in EMBEDDED.items():
        group.add_argument(f"--{name.replace('_', '-')}", type=Path, default=path, metavar="FILE")
    group.add_argument(
        "--text-encoder-2", type=Path, metavar="FILE", help="the other CLIP of a transformer that reads two"
    )
    group.add_argument(
        "--task", choices=TASKS, default=AUTO, help="of the transformer, where its file does not say"
    )
    add_lora_option(group)
    add_device_options(group)
    group = parser.add_argument_group("sampling (default: the model's own)")
    group.add_argument(
        "--cfg", type=numbers, help="guidance: one number, three by stage, or one per scale; 1 is off"
    )
    group.add_argument("--temperature", type=numbers, help="one number, three by stage, or one per scale")
    group.add_argument("--top-k", type=int, help="0 is off")
    group.add_argument("--top-p", type=float, help="0 is off")
    group.add_argument("--seed", type=int, default=0, help="image number i has the seed SEED + i")


def add_device_options(group: argparse._ArgumentGroup) -> None:
    """Where and how models run."""
    group.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    group.add_argument("--dtype", choices=DTYPES, help="default: bfloat16 on a GPU, float32 on the CPU")
    group.add_argument("--threads", type=int, help="CPU threads")


def device_of(arguments: argparse.Namespace) -> torch.device | None:
    """The device that the options name, with their number of threads set; ``ValueError`` if it fails."""
    if arguments.threads is not None:
        torch.set_num_threads(whole("--threads", arguments.threads, 1, MAX_THREADS, f"1 to {MAX_THREADS}"))
    return working_device(arguments.device)


def files_of(arguments: argparse.Namespace) -> dict[str, Path]:
    """Transformer, tokenizer and text encoder: those that were given, else those of the embedded model."""
    own = {**EMBEDDED, **MODELS[arguments.model]}
    given = {name: getattr(arguments, name) for name in EMBEDDED}
    return {name: own[name] if path == EMBEDDED[name] else path for name, path in given.items()}


def models_of(arguments: argparse.Namespace, *, edits: bool = False) -> Models:
    """What the workers load; a device that does not work here is an error here only without Ray.

    ``edits``: a picture is to be edited, so that of the embedded transformers the one that does is meant.
    """
    alone = getattr(arguments, "ray", None) is None
    if alone:
        device_of(arguments)
    chosen = files_of(arguments)
    if edits and chosen["transformer"] == EMBEDDED["transformer"]:
        chosen["transformer"] = EDITOR
    paths = {name: str(path if alone else path.resolve()) for name, path in chosen.items()}
    second = arguments.text_encoder_2
    return Models(
        **paths,
        text_encoder_2=None if second is None else str(second if alone else second.resolve()),
        dtype=arguments.dtype,
        device=arguments.device,
        task=arguments.task,
        loras=tuple((str(file if alone else file.resolve()), strength) for file, strength in arguments.lora),
        threads=arguments.threads or (None if alone else max(1, int(arguments.cpus))),
        **{name: getattr(arguments, name) for name in ("cfg", "temperature", "top_k", "top_p")},
    )


def load_pipeline(arguments: argparse.Namespace, *, edits: bool = False) -> Pipeline:
    """The models that the options name, in this process."""
    return models_of(arguments, edits=edits).load()


def settings_of(pipeline: Pipeline, arguments: argparse.Namespace) -> SamplingSettings:
    """Sampling settings from the options, the model's own where they say nothing."""
    return pipeline.settings(arguments.cfg, arguments.temperature, arguments.top_k, arguments.top_p)


def check_request(arguments: argparse.Namespace) -> None:
    """Refuse values that no model could use before anything is loaded."""
    whole("--batch", arguments.batch, 1, MAX_BATCH, f"1 to {MAX_BATCH}")
    check_seed(arguments.seed)


def check_size(arguments: argparse.Namespace) -> None:
    """Refuse sides that no picture has before anything is loaded."""
    for name, value in (("--width", arguments.width), ("--height", arguments.height)):
        if value is not None:
            whole(name, value, 1, MAX_SIDE, f"1 to {MAX_SIDE} pixels, for example 128")


def check_seed(seed: int) -> None:
    """Raise ``ValueError`` for a number that is no seed."""
    whole("--seed", seed, 0, MAX_SEED, f"0 to {MAX_SEED}")


def policy_of(arguments: argparse.Namespace) -> tuple[AccelerationPolicy, StageSchedule | None]:
    """The preset, with the stages and budgets of a schedule file where one is given, and that schedule.

    Raises ``ValueError`` for a preset that is not known or takes no schedule.
    """
    policy = preset(arguments.preset)
    if arguments.schedule is None:
        return policy, None
    schedule = StageSchedule.load(arguments.schedule)
    return schedule.apply(policy), schedule
