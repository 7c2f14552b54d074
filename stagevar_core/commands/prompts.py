"""Prompts of the command line: files, benchmarks, held-out captions."""

import argparse
from pathlib import Path
from typing import Any

from ..checks import whole
from ..evaluation.score import held_out
from ..pipeline import Pipeline
from ..rendering.sheet import read_folder, read_lines, read_objects

DEFAULT_PROMPTS = 100
MAX_PROMPTS = 100_000  # far more than a benchmark has; a larger number is a slip


class Prompts:
    """What to draw: ``entries`` with a "prompt" each, and where they come from.

    ``benchmark``: 'geneval' or 'dpg', whose files are called ``names``; None for prompts of no benchmark.
    ``kept``: whether all pictures stay on disk; not those of captions that were made up.
    """

    def __init__(
        self, entries: list[dict[str, Any]], benchmark: str | None = None, names: list[str] | None = None
    ) -> None:
        self.entries, self.benchmark, self.names = entries, benchmark, names or []
        self.kept = False

    def fitted(self, pipeline: Pipeline) -> "Prompts":
        """With classes for made-up captions where a model takes them; ``ValueError`` for unknown ones."""
        texts = pipeline.measurable([entry["prompt"] for entry in self.entries], made_up=not self.kept)
        entries = [{**entry, "prompt": text} for entry, text in zip(self.entries, texts, strict=True)]
        found = Prompts(entries, self.benchmark, self.names)
        found.kept = self.kept
        return found


def read_prompts(arguments: argparse.Namespace) -> Prompts:
    """The prompts that the options name; pictures are kept unless the captions are generated ones."""
    given = arguments.prompts
    count = None
    if given is not None and given.isdecimal():
        count = whole("--prompts", int(given), 1, MAX_PROMPTS, f"1 to {MAX_PROMPTS}, or a text file")
    elif given is not None and (arguments.geneval or arguments.dpg):
        raise ValueError(f"--prompts is {given!r}; with a benchmark expected how many of its prompts")
    if arguments.geneval is not None:
        rows = read_objects(arguments.geneval)[:count]
        found = Prompts([dict(row.metadata) for row in rows], "geneval")
    elif arguments.dpg is not None:
        rows = read_folder(arguments.dpg)[:count]
        found = Prompts([{"prompt": row.prompt} for row in rows], "dpg", [row.name for row in rows])
    elif given is not None and count is None:
        found = Prompts([{"prompt": row.prompt} for row in read_lines(Path(given))])
    else:
        made_up = captions(count or DEFAULT_PROMPTS, arguments.seed)
        return Prompts([{"prompt": caption} for caption in made_up])
    found.kept = True
    return found


def captions(count: int, seed: int) -> list[str]:
    """``count`` different captions that the training of the embedded model never saw."""
    return [caption for _, caption in held_out(count, seed)]
