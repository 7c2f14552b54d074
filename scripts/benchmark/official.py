"""``bench.py --official CHECKOUT``: the official Infinity code at the same size, as the baseline.

It runs in a process of its own before ours, so that neither takes memory from the other.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from .models import FULL_SIZE, full_size

SCRIPTS = Path(__file__).resolve().parents[1]


def job_of(model: str, arguments: Any, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """What to measure: the schedule and the settings that ours gets, the shape, threads and repetitions."""
    family, config, codes = FULL_SIZE[model]
    planned = full_size(family, config, codes, 1, torch.device("meta"), dtype)
    settings = planned.settings(cfg=arguments.cfg)
    return {
        "shape": config.to_dict() | {"dim": codes.dim, "multipliers": list(codes.multipliers)},
        "grids": [list(scale.grid) for scale in planned.schedule(arguments.pixels, arguments.pixels)],
        "cfg": settings.cfg_scale,
        "temperature": settings.temperature,
        "top_k": settings.top_k,
        "top_p": settings.top_p,
        "text_tokens": arguments.text_tokens,
        "batch": arguments.batch[0],
        "dtype": str(dtype).removeprefix("torch."),
        "device": str(device),
        "threads": arguments.threads,
        "repeat": arguments.repeat,
    }


def measure(checkout: Path, job: dict[str, Any]) -> dict[str, Any]:
    """Run the official code; ``ValueError`` with its last words where it fails."""
    command = [sys.executable, "-m", "benchmark.official_infinity", str(checkout.resolve())]
    ended = subprocess.run(command, cwd=SCRIPTS, input=json.dumps(job), capture_output=True, text=True)
    if ended.returncode:
        last = ended.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise ValueError(f"the official code in {checkout} failed: {last[0]}")
    return json.loads(ended.stdout.splitlines()[-1])


def compare(
    official: dict[str, Any], seconds: dict[str, float], flops: float, ceiling: float
) -> dict[str, Any]:
    """The baseline with its rate, and how many times longer it takes than our dense run, ``seconds``."""
    ratios = {name: official["seconds"][name] / seconds[name] for name in ("total", "transformer", "decode")}
    rate = flops / official["seconds"]["transformer"]
    return official | {"flops_per_s": rate, "of_ceiling": rate / ceiling, "ratio": ratios}


def show(found: dict[str, Any]) -> None:
    """One line for people, and what was replaced."""
    seconds, ratio, peak = found["seconds"], found["ratio"], found["bytes"]["peak"]
    print(
        f"\nofficial code: {seconds['total']:.3f} s, transformer {seconds['transformer']:.3f} s "
        f"({found['of_ceiling']:.0%} of the ceiling), decode {seconds['decode']:.3f} s"
        + (f", {found['bytes']['kind']} {peak / 1e9:.2f} GB" if peak else "")
    )
    print(f"off is {ratio['total']:.2f}x faster, transformer {ratio['transformer']:.2f}x")
    for line in found["replaced"]:
        print(f"  replaced: {line}")
