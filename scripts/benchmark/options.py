"""The command line of ``bench.py``."""

from __future__ import annotations

import argparse
from pathlib import Path

from stagevar_core.devices import DTYPES

from . import comfyui, presets
from .models import EMBEDDED, FULL_SIZE
from .weights import STORED


def parse(description: str | None) -> argparse.Namespace:
    """The command line; what cannot be measured ends the process with the reason."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=(EMBEDDED, *FULL_SIZE), default=EMBEDDED)
    parser.add_argument("--pixels", type=int, help="side of the square image (default: the model's own)")
    parser.add_argument("--dtype", choices=DTYPES, help="default: bfloat16, float32 for embedded on the CPU")
    parser.add_argument("--device", help="default: cuda where there is one")
    parser.add_argument("--cfg", type=float, help="guidance; 1 runs the conditional rows alone")
    parser.add_argument(
        "--weights",
        choices=tuple(STORED),
        help="storage of the transformer's weights: float8_e4m3fn, or int8 that the device computes with",
    )
    parser.add_argument(
        "--batch", default="1", help="images at once; with --presets several numbers with commas"
    )
    parser.add_argument("--repeat", type=int, default=1, help="measured runs; medians are reported")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--text-tokens", type=int, default=64, help="of the full-size models")
    parser.add_argument(
        "--presets", help="'all' or names with commas, compared with off; with '+local' local attention"
    )
    parser.add_argument("--alone", action="store_true", help="the presets without off beside them")
    parser.add_argument(
        "--text-encoder",
        action="store_true",
        help="begin with a Flan-T5-XL of random weights, in fp8 with --weights fp8, that then makes place",
    )
    parser.add_argument(
        "--official", type=Path, metavar="CHECKOUT", help="time this clone of FoundationVision/Infinity, too"
    )
    parser.add_argument(
        "--comfyui",
        type=Path,
        nargs="?",
        const=comfyui.COMFYUI,
        metavar="FOLDER",
        help="the core beside the nodes of a ComfyUI, that of the test bed without a folder",
    )
    parser.add_argument("--drafts", type=int, help="so many drafts in place of pictures, then --pick of them")
    parser.add_argument("--pick", type=int, default=2, help="how many of --drafts are finished")
    parser.add_argument(
        "--counted", action="store_true", help="count --drafts of a full-size model without running it"
    )
    parser.add_argument("--compile", action="store_true", help="compare with blocks through torch.compile")
    parser.add_argument("--note", help="what a reader should know about the run, for the report")
    parser.add_argument("--json", type=Path, help="file to write the JSON object to as well")
    parser.add_argument("--cold", action="store_true", help="also time a cold process (embedded model)")
    arguments = parser.parse_args()
    try:
        check(arguments)
    except ValueError as error:
        parser.error(str(error))
    return arguments


def check(arguments: argparse.Namespace) -> None:
    """Numbers and presets of the command line from its words; ``ValueError`` for what cannot be measured."""
    check_together(arguments)
    check_numbers(arguments)
    if arguments.comfyui is not None:
        comfyui.check(arguments)
    if arguments.json and not arguments.json.parent.is_dir():
        raise ValueError(f"--json is {arguments.json}; expected a file in an existing folder")
    if arguments.presets is None:
        return
    try:
        arguments.presets = presets.chosen(arguments.presets, arguments.batch, alone=arguments.alone)
    except ValueError as error:
        raise ValueError(f"--presets: {error}") from error


def check_together(arguments: argparse.Namespace) -> None:
    """``ValueError`` for options that do not go with the model or with each other."""
    full_size = arguments.model != EMBEDDED
    if arguments.cold and full_size:
        raise ValueError("--cold times the embedded model; leave --model out")
    if arguments.weights == "fp8" and not full_size:
        raise ValueError("--weights fp8 is of the full-size models; name one with --model")
    for name in ("official", "text_encoder"):
        if getattr(arguments, name) and not arguments.model.startswith("infinity-"):
            option = name.replace("_", "-")
            raise ValueError(f"--{option} is for Infinity of full size; the model is {arguments.model}")
    if arguments.drafts is not None and (arguments.presets or arguments.official or arguments.compile):
        raise ValueError("--drafts is measured alone; leave --presets, --official and --compile out")
    if arguments.counted and (arguments.drafts is None or not full_size):
        raise ValueError("--counted counts --drafts of a full-size model; give both, with --model")
    if arguments.alone and (arguments.presets is None or arguments.official):
        raise ValueError("--alone leaves off out of --presets, which --official is compared with")


def check_numbers(arguments: argparse.Namespace) -> None:
    """Batch sizes from their words; ``ValueError`` for numbers that nothing can be measured with."""
    try:
        arguments.batch = [int(number) for number in str(arguments.batch).split(",")]
    except ValueError:
        raise ValueError(f"--batch is {arguments.batch}; expected numbers with commas, as 1,4") from None
    drafts = 1 if arguments.drafts is None else arguments.drafts
    if drafts < arguments.pick and arguments.drafts is not None:
        raise ValueError(f"--pick is {arguments.pick}; expected 1 to {drafts}, as many as there are drafts")
    for name, least in (
        ("drafts", drafts),
        ("pick", arguments.pick),
        ("repeat", arguments.repeat),
        ("batch", min(arguments.batch)),
        ("text_tokens", arguments.text_tokens),
    ):
        if least < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {least}; expected 1 or more")
    if len(arguments.batch) > 1 and arguments.presets is None:
        raise ValueError("--batch has several numbers, which --presets compares; name presets, or give one")
