"""Prompts of the command line: files, benchmarks, held-out captions."""

import argparse
import json
from pathlib import Path
from typing import Any

from ..checks import whole
from ..evaluation.score import held_out
from ..pipeline import Pipeline

DEFAULT_PROMPTS = 100
MAX_PROMPTS = 100_000  # far more than a benchmark has; a larger number is a slip
MAX_BYTES = 1 << 24  # of a text file: 160 for each of so many prompts


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

    def fit(self, pipeline: Pipeline) -> None:
        """Classes in place of made-up captions where a model takes them; ``ValueError`` for unknown ones."""
        texts = pipeline.measurable([entry["prompt"] for entry in self.entries], made_up=not self.kept)
        self.entries = [{**entry, "prompt": text} for entry, text in zip(self.entries, texts, strict=True)]


def read_prompts(arguments: argparse.Namespace) -> Prompts:
    """The prompts that the options name; pictures are kept unless the captions are generated ones."""
    given = arguments.prompts
    count = None
    if given is not None and given.isdecimal():
        count = whole("--prompts", int(given), 1, MAX_PROMPTS, f"1 to {MAX_PROMPTS}, or a text file")
    elif given is not None and (arguments.geneval or arguments.dpg):
        raise ValueError(f"--prompts is {given!r}; with a benchmark expected how many of its prompts")
    if arguments.geneval is not None:
        found = Prompts(read_geneval(arguments.geneval)[:count], "geneval")
    elif arguments.dpg is not None:
        files = sorted(arguments.dpg.glob("*.txt"))[:count]
        if not files:
            raise ValueError(f"{arguments.dpg}: no .txt file there; expected DPG-Bench's folder of prompts")
        entries = [{"prompt": file.read_text(encoding="utf-8").strip()} for file in files]
        found = Prompts(entries, "dpg", [file.stem for file in files])
    elif given is not None and count is None:
        found = Prompts([{"prompt": line} for line in read_lines(Path(given))])
        if not found.entries:
            raise ValueError(f"{given}: no prompt there; expected one a line")
    else:
        made_up = captions(count or DEFAULT_PROMPTS, arguments.seed)
        return Prompts([{"prompt": caption} for caption in made_up])
    found.kept = True
    return found


def captions(count: int, seed: int) -> list[str]:
    """``count`` different captions that the training of the embedded model never saw."""
    return [caption for _, caption in held_out(count, seed)]


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty; ``ValueError`` for what is no text, or far too long."""
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"{path} has more than {MAX_BYTES} bytes; expected a text file")
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error})") from None
    return [line.strip() for line in lines if line.strip()]


def read_geneval(path: Path) -> list[dict[str, Any]]:
    """The objects of GenEval's list, one a line."""
    entries = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: no JSON ({error})") from None
        if not isinstance(entry, dict) or not isinstance(entry.get("prompt"), str):
            raise ValueError(f'{path}, line {number}: expected an object with a "prompt"')
        entries.append(entry)
    if not entries:
        raise ValueError(f"{path}: empty; expected GenEval's evaluation_metadata.jsonl")
    return entries
