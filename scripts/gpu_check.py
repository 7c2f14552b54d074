"""Measures what needs an NVIDIA GPU, in at most eight minutes: one command for whoever has one.

    python scripts/gpu_check.py                          into docs/measurements
    python scripts/gpu_check.py --out FOLDER --seconds 240
    python scripts/gpu_check.py --dry-run --out FOLDER   some of it on the CPU, with the embedded model

Needs no file: the full-size models have random weights, made on the GPU. Its parts are

- precision: what bfloat16 changes of float32 on the embedded models, in codes, logits and pictures;
- ``bench.py`` of Infinity-2B and 8B at 1024 px, ``off`` and ``balanced``, with weights in bfloat16, int8 and
  fp8, and of 2B through ``torch.compile``: time per scale, FLOPs, ceilings, peak memory;
- launches: how often 2B hands work to the GPU, by scale.

Every part has a limit. What no time is left for is 'not run: time', what the bench refuses 'refused: why',
and what fails 'failed: why'; the others go on. ``gpu_check.json`` says so of every part and names the files
of the bench, from which ``performance_report.py`` makes the tables of the documentation.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import torch
from benchmark import ROOT, launches
from benchmark.compiling import changed
from benchmark.machine import code_version, give_back
from benchmark.models import EMBEDDED, load

from stagevar_core.acceleration.presets import preset
from stagevar_core.devices import hardware
from stagevar_core.embedded import MODELS
from stagevar_core.pipeline import Pipeline
from stagevar_core.sampling.result import Monitor
from stagevar_core.schedule import Scale

SECONDS = 480.0
LATE = "not run: time"
PROMPTS = {"scenes": "a red circle left of a blue square", "artwork": "0"}


@dataclass(frozen=True)
class Part:
    """``needs``: seconds that must be left for it to begin; ``limit``: after so many it is stopped."""

    name: str
    needs: float
    limit: float
    run: Callable[[float], dict[str, Any]]


class Refused(Exception):
    """What the bench does not measure, in its words."""


class _First(Monitor):
    logits_of_first: torch.Tensor | None = None

    def logits(self, scale: Scale, raw: torch.Tensor, guided: torch.Tensor) -> None:
        if self.logits_of_first is None:
            self.logits_of_first = raw.double().cpu()


def precision(images: int, device: torch.device, limit: float) -> dict[str, Any]:
    """What bfloat16 changes of float32 on the embedded models, over some images of each.

    ``logits``: the root mean square of the difference at the first scale, over that of the logits.
    ``codes_equal``: by scale, with the same noise; a code that differs changes what later scales see.
    ``levels``: mean and largest difference, of 255, of the same codes decoded in both.
    """
    found = {}
    for model in MODELS:
        runs, seen, pipelines = [], [], []
        for dtype in (torch.float32, torch.bfloat16):
            pipeline, first = Pipeline.embedded(dtype=dtype, device=device, model=model), _First()
            runs.append(pipeline(PROMPTS[model], seed=0, batch=images, monitor=first).generation)
            seen.append(first.logits_of_first)
            pipelines.append(pipeline)
        exact, narrow = (pipeline.decode(runs[0].f_hat).float() for pipeline in pipelines)
        levels = (exact - narrow).abs()
        spread = (seen[1] - seen[0]).square().mean().sqrt() / seen[0].square().mean().sqrt()
        found[model] = {
            "logits": spread.item(),
            "codes_equal": [1 - changed(a, b) for a, b in zip(*(run.codes for run in runs), strict=True)],
            "levels": {"mean": levels.mean().item(), "max": levels.max().item()},
        }
    return found


def bench(options: list[str], file: Path, device: torch.device, limit: float) -> dict[str, Any]:
    """What ``bench.py`` says with these options, kept in ``file``; its errors are raised in its words."""
    command = [sys.executable, str(ROOT / "scripts" / "bench.py"), *options, "--device", str(device)]
    done = subprocess.run(
        [*command, "--json", str(file)], capture_output=True, text=True, timeout=limit, check=False
    )
    if done.returncode:
        last = ([line for line in done.stderr.splitlines() if line.strip()] or ["no reason given"])[-1]
        why = last.split("error: ", 1)[-1][:300]
        raise Refused(why) if done.returncode == 2 else RuntimeError(why)
    found = json.loads(file.read_text(encoding="utf-8"))
    rows = {row["preset"]: row["seconds"] for row in found.get("presets", ())}
    return {
        "file": file.name,
        "transformer": rows or found.get("compile", {}).get("seconds", found.get("seconds")),
    }


def counted(model: str, pixels: int | None, device: torch.device, limit: float) -> dict[str, Any]:
    """Launches of ``off`` and ``balanced``."""
    pipeline = load(model, 64, device, torch.bfloat16)
    request = {"width": pixels, "height": pixels, "batch": 1, "settings": pipeline.settings()}
    pipeline(launches.PROMPT, **request)  # what is only done once
    return {name: launches.measure(pipeline, request, preset(name)) for name in ("off", "balanced")}


def parts(folder: Path, device: torch.device) -> list[Part]:
    """What is measured, the most wanted first."""

    def benched(name: str, needs: float, *options: str) -> Part:
        file = folder / f"bench_{name}_gpu.json"
        shape = ["--pixels", "1024", "--dtype", "bfloat16", *options]
        return Part(name, needs, 3 * needs, partial(bench, shape, file, device))

    def model(size: str, *options: str) -> tuple[str, ...]:
        return ("--model", f"infinity-{size}", "--presets", "balanced", *options)

    return [
        Part("precision", 10, 60, partial(precision, 4, device)),
        benched("infinity_2b", 30, *model("2b")),
        Part("launches", 30, 90, partial(counted, "infinity-2b", 1024, device)),
        benched("infinity_2b_int8", 30, *model("2b", "--weights", "int8")),
        benched("infinity_2b_fp8", 30, *model("2b", "--weights", "fp8")),
        benched("infinity_8b", 45, *model("8b")),
        benched("infinity_8b_int8", 45, *model("8b", "--weights", "int8")),
        benched("infinity_8b_fp8", 45, *model("8b", "--weights", "fp8")),
        benched("infinity_2b_compile", 45, "--model", "infinity-2b", "--compile", "--repeat", "2"),
    ]


def small_parts(folder: Path, device: torch.device) -> list[Part]:
    """One part of every kind, with the embedded model; the last two are refused and not begun."""
    file, refused = folder / "bench_embedded_gpu.json", ["--weights", "fp8"]
    return [
        Part("precision", 0, 60, partial(precision, 1, device)),
        Part("launches", 0, 60, partial(counted, EMBEDDED, None, device)),
        Part("embedded", 0, 180, partial(bench, ["--presets", "balanced"], file, device)),
        Part("embedded_fp8", 0, 180, partial(bench, refused, file, device)),
        Part("endless", float("inf"), 0, partial(precision, 1, device)),
    ]


def measured(part: Part, left: float) -> dict[str, Any]:
    """What a part found, or why it found nothing, with its seconds."""
    if left < part.needs:
        return {"status": LATE}
    started, found = time.perf_counter(), {}
    try:
        found, status = part.run(min(part.limit, left)), "measured"
    except subprocess.TimeoutExpired as error:
        status = f"{LATE}; stopped after {error.timeout:.0f} s"
    except Refused as error:
        status = f"refused: {error}"
    except Exception as error:  # of any library on a machine we do not know; the other parts go on
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        status = f"failed: {reason[:300]}"
    give_back()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return {"status": status, "seconds": round(time.perf_counter() - started, 1)} | found


def check(wanted: list[Part], seconds: float) -> dict[str, Any]:
    """Every part in turn, as far as ``seconds`` go."""
    started, found = time.perf_counter(), {}
    for part in wanted:
        found[part.name] = measured(part, seconds - (time.perf_counter() - started))
        print(f"{part.name}: {found[part.name]['status']}", flush=True)
    return {"seconds": round(time.perf_counter() - started, 1), "parts": found}


def main() -> int:
    """Measure and write; the last line of the output is what ``gpu_check.json`` holds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    folder = ROOT / "docs" / "measurements"
    parser.add_argument("--out", type=Path, default=folder, help="folder of the JSON files")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="in all (default: 480)")
    parser.add_argument("--dry-run", action="store_true", help="a few parts on the CPU; needs --out")
    arguments = parser.parse_args()
    if not 0 < arguments.seconds <= SECONDS:
        parser.error(f"--seconds is {arguments.seconds:g}; expected a number up to {SECONDS:g}")
    if not arguments.out.is_dir():
        parser.error(f"--out is {arguments.out}; expected an existing folder")
    if arguments.dry_run and arguments.out.resolve() == folder:
        parser.error("--dry-run measures nothing worth keeping; name another folder with --out")
    if not arguments.dry_run and not torch.cuda.is_available():
        print("error: PyTorch sees no CUDA device here; --dry-run tries this out on the CPU", file=sys.stderr)
        return 2
    device = torch.device("cpu" if arguments.dry_run else "cuda")
    wanted = (small_parts if arguments.dry_run else parts)(arguments.out, device)
    found = {
        "command": " ".join(["python", "scripts/gpu_check.py", *sys.argv[1:]]),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "commit": code_version(ROOT),
        "hardware": hardware(device),
    }
    found |= check(wanted, arguments.seconds)
    line = json.dumps(found)
    (arguments.out / "gpu_check.json").write_text(line + "\n", encoding="utf-8")
    print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
