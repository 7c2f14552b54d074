"""Options that the commands share: models, device, sampling settings, preset."""

import argparse
from pathlib import Path

import torch

from ..acceleration.policy import AccelerationPolicy
from ..acceleration.presets import preset
from ..acceleration.schedule_file import StageSchedule
from ..devices import DTYPES
from ..pipeline import EMBEDDED, MAX_BATCH, MAX_SEED, Pipeline
from .output import first_line


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
