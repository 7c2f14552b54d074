"""What the shipped files can do: every preset, and the first scales alone, read by the judge.

    python -m scripts.train_artwork.measure --out DIR --count 168

is ``compare`` with rows that are no presets. DIR keeps what was measured, the same command goes on there.
Afterwards ``python scripts/side_by_side.py`` writes the tables of README.md and docs/artwork-model.md.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

from stagevar_core.acceleration.policy import AccelerationPolicy, FirstScales
from stagevar_core.acceleration.presets import PRESETS
from stagevar_core.commands import compare as command
from stagevar_core.devices import hardware
from stagevar_core.embedded import ARTWORK, ASSETS, JUDGE
from stagevar_core.evaluation.compare import REFERENCE, Job
from stagevar_core.evaluation.judge import Judge
from stagevar_core.evaluation.report import report as reported
from stagevar_core.evaluation.tables import overview
from stagevar_core.pipeline import Pipeline

BATCH = 7
ROOT = Path(__file__).resolve().parents[2]
JSON = ROOT / "docs" / "measurements" / "compare_artwork.json"
FILE = "compare_artwork.json"  # in the working folder


def shipped(assets: Path = ASSETS) -> tuple[Pipeline, Judge]:
    """The files that ship, as a user gets them, or those that an export wrote elsewhere."""
    files = [assets / path.name for path in ARTWORK.values()]
    return Pipeline.load(*files, dtype=torch.float32), Judge.load(assets / JUDGE.name)


def without_last(scales: int) -> dict[str, AccelerationPolicy]:
    """The first scales alone."""
    names = ("without the last 1", "without the last 2", "without the last 3")
    return {name: FirstScales(scales - count) for count, name in enumerate(names, 1)}


def variants(scales: int) -> dict[str, AccelerationPolicy]:
    """Every preset, and the first scales alone."""
    return {name: policy for name, policy in PRESETS.items() if name != REFERENCE} | without_last(scales)


def spread(count: int, classes: int) -> list[int]:
    """``count`` classes, all equally often, or evenly spread where there are fewer."""
    if count >= classes:
        return [index % classes for index in range(count)]
    return [index * classes // count for index in range(count)]


def measure(out: Path, count: int, seed: int = 0, assets: Path = ASSETS) -> Path:
    """Draw ``count`` pictures under every variant and store everything that is measured as JSON."""
    pipeline, judge = shipped(assets)
    labels = spread(count, judge.config.classes)
    policies = variants(len(pipeline.schedule()))
    job = Job(tuple(pipeline.class_names[label] for label in labels), seed=seed, batch=BATCH)
    found = command.measure(pipeline, policies, job, out / "measured")
    about = {
        "command": shlex.join(["python", "-m", "scripts.train_artwork.measure", *sys.argv[1:]]),
        "models": {name: path.name for name, path in ARTWORK.items()},
        "dtype": str(pipeline.transformer.compute_dtype).removeprefix("torch."),
        "hardware": hardware(pipeline.device),
    }
    path = out / FILE
    path.write_text(json.dumps(reported(found, policies, about), indent=1) + "\n", encoding="utf-8")
    return path


def report(out: Path) -> list[str]:
    """The table of what :func:`measure` found, line by line."""
    values: dict[str, Any] = json.loads((out / FILE).read_text(encoding="utf-8"))
    return overview(values).splitlines()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="working folder: results so far")
    parser.add_argument("--count", type=int, default=168, help="pictures of each variant")
    parser.add_argument("--seed", type=int, default=0, help="of the first picture")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--assets", type=Path, default=ASSETS, help="where the model's files are")
    parser.add_argument("--json", type=Path, default=JSON, help="where everything goes")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = measure(arguments.out, arguments.count, arguments.seed, arguments.assets)
    arguments.json.write_bytes(path.read_bytes())
    print("\n".join(report(arguments.out)))


if __name__ == "__main__":
    main()
