"""The command line: images without ComfyUI, and the measurements of models and presets."""

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import NoReturn

from ..devices import is_out_of_memory
from . import calibrate, compare, generate, render, restore, score
from .output import first_line

PROGRAM = "python -m stagevar_core"


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage above it."""

    def error(self, message: str) -> NoReturn:
        """Ends the process with exit code 2."""
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def parser() -> argparse.ArgumentParser:
    """All commands."""
    root = Parser(prog=PROGRAM, description="Next-scale image generation.")
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (generate, render, restore, score, calibrate, compare):
        command.add_parser(commands)
    return root


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; bad input is one line on stderr and exit code 2."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
    arguments = parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except (ValueError, OSError, ImportError) as error:
        print("error: " + " ".join(_said(error).split()), file=sys.stderr)
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


def _said(error: Exception) -> str:
    """An error in words; those of the system by the file that was named."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror.lower()}; check the name and its permissions"
    return str(error)
