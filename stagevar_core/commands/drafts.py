"""Runs of the command ``generate`` that stop early, and those that go on from a file."""

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..acceleration.policy import AccelerationPolicy
from ..acceleration.stages import STAGES, boundaries_of
from ..checks import whole
from ..pipeline import Pictures, Pipeline
from ..sampling.settings import SamplingSettings
from ..sampling.state import RunState
from ..schedule import ScaleSchedule
from .output import check_file

_SETTINGS = {"cfg": "cfg_scale", "temperature": "temperature", "top_k": "top_k", "top_p": "top_p"}
_SET = {"batch": 1, "seed": 0, "width": None, "height": None}  # options that a file of runs decides about


def add_draft_options(parser: argparse.ArgumentParser) -> None:
    """Options to stop, to keep what was drawn, and to go on."""
    group = parser.add_argument_group("drafts")
    group.add_argument(
        "--until",
        metavar="STAGE_OR_SCALE",
        help=f"stop after a stage ({', '.join(STAGES[:-1])}) or a number of scales; the image is then small",
    )
    group.add_argument("--save-state", type=Path, metavar="FILE", help="keep the runs, for --resume")
    group.add_argument(
        "--resume",
        type=Path,
        metavar="FILE",
        help="go on with runs that stopped: their size, number, seeds and settings, and the prompt again",
    )


def check_drafts(arguments: argparse.Namespace) -> RunState | None:
    """The runs to go on from, before models load; ``ValueError`` for options that do not go together."""
    if arguments.edit is not None or arguments.change is not None:
        for name in ("until", "save_state", "resume"):
            if getattr(arguments, name) is not None:
                raise ValueError(
                    f"--{name.replace('_', '-')} does not go with --edit and --change; leave it out"
                )
    if arguments.save_state is not None:
        check_file(arguments.save_state)
    if arguments.resume is None:
        return None
    for name, own in _SET.items():
        if getattr(arguments, name) != own:
            raise ValueError(f"--{name} does not go with --resume, whose runs have their own; leave it out")
    return RunState.load(arguments.resume)


def until_of(wanted: str | None, schedule: ScaleSchedule, policy: AccelerationPolicy) -> int | None:
    """After how many scales a run stops; ``ValueError`` for what is neither a stage nor a scale."""
    if wanted is None:
        return None
    if wanted in STAGES[:-1]:
        return boundaries_of(policy).end(schedule, wanted)
    what = f"{' or '.join(STAGES[:-1])}, or 1 to {len(schedule)}: this model has {len(schedule)} scales"
    return whole("--until", int(wanted) if wanted.isdecimal() else wanted, 1, len(schedule), what)


def model_name(pipeline: Pipeline, path: Path) -> str:
    """A transformer's file, and in brackets what a run must have in common with it."""
    network = pipeline.transformer
    return f"{path.name} ({network.family}, {network.config.depth} blocks of {network.config.width})"


def check_resumed(state: RunState, until: int | None, model: str) -> None:
    """Raise ``ValueError`` for runs of another kind of model, and where nothing is left to do."""
    if state.model.rpartition(" (")[2] != model.rpartition(" (")[2]:
        raise ValueError(f"--resume: its runs were begun with {state.model}, the model here is {model}")
    if state.scales >= (until or len(state.schedule)):
        raise ValueError(
            f"--resume: its runs went over {state.scales} of {len(state.schedule)} scales; nothing is left"
        )


def resumed_settings(begun: SamplingSettings, arguments: argparse.Namespace) -> SamplingSettings:
    """Those of the runs, but for what is asked for."""
    given: Mapping[str, Any] = {own: getattr(arguments, name) for name, own in _SETTINGS.items()}
    return replace(begun, **{own: value for own, value in given.items() if value is not None})


def save_state(found: Pictures, path: Path, model: str, tokenizer: str) -> str:
    """Keep the runs of a call in a file; its path."""
    RunState.of(found.generation, found.seeds, found.settings, model=model, tokenizer=tokenizer).save(path)
    return str(path)
