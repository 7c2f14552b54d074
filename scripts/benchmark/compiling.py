"""``bench.py --compile``: blocks and decoder as they are and through ``torch.compile``, in turn."""

from __future__ import annotations

import statistics
import time
from typing import Any

from torch import Tensor

from stagevar_core.models.compiling import CompiledTokenizer, CompiledTransformer, Compiler
from stagevar_core.pipeline import Pipeline

from .models import Run, measured

EAGER, COMPILED = "eager", "compiled"


def measure(pipeline: Pipeline, request: dict[str, Any], repeat: int) -> dict[str, Any]:
    """``repeat`` runs of both in turn, after one compiled run that does not count: it compiles.

    ``first_seconds``: of that run, its steps included. ``graphs``: compiled by then and in all, which is the
    same where no scale compiles again. ``failed``: whether all ran as it is after all.
    """
    from torch._dynamo.utils import counters

    plain, compiler = (pipeline.transformer, pipeline.tokenizer), Compiler()
    ways = {
        EAGER: plain,
        COMPILED: (CompiledTransformer(plain[0], compiler), CompiledTokenizer(plain[1], compiler)),
    }
    runs: dict[str, list[Run]] = {name: [] for name in ways}
    counters.clear()
    try:
        pipeline.transformer, pipeline.tokenizer = ways[COMPILED]
        started = time.perf_counter()
        measured(pipeline, request, 0)
        first, graphs = time.perf_counter() - started, [counters["stats"]["unique_graphs"]]
        for seed in range(repeat):
            for name, (pipeline.transformer, pipeline.tokenizer) in ways.items():
                runs[name].append(measured(pipeline, request, seed))
    finally:
        pipeline.transformer, pipeline.tokenizer = plain
    graphs.append(counters["stats"]["unique_graphs"])
    found = {"first_seconds": first, "graphs": graphs, "failed": compiler.failed}
    return found | compare(runs[EAGER], runs[COMPILED])


def compare(eager: list[Run], compiled: list[Run]) -> dict[str, Any]:
    """Seconds of every scale, of all and of decoding, the best of the runs; by how much the results differ.

    ``codes_changed``: the share of the codes of a scale that are drawn differently, over all runs; a
    different code changes what later scales see. Rounding differs where a compiler fuses operations.
    """
    ways = {EAGER: eager, COMPILED: compiled}
    scales = []
    for scale in eager[0].pictures.schedule:
        codes = [[run.pictures.generation.codes[scale.index] for run in runs] for runs in ways.values()]
        scales.append(
            {
                "grid": list(scale.grid),
                "seconds": {
                    name: min(run.pictures.seconds["scales"][scale.index] for run in runs)
                    for name, runs in ways.items()
                },
                "codes_changed": statistics.mean(changed(a, b) for a, b in zip(*codes, strict=True)),
            }
        )
    whole = {name: min(sum(run.pictures.seconds["scales"]) for run in runs) for name, runs in ways.items()}
    decoding = {name: min(run.pictures.seconds["decode"] for run in runs) for name, runs in ways.items()}
    return {"scales": scales, "seconds": whole, "decode": {"seconds": decoding}}


def changed(a: Tensor, b: Tensor) -> float:
    """The share of codes that differ."""
    return (a != b).float().mean().item()


def show(found: dict[str, Any]) -> None:
    """The table for people."""
    state = "not compiled: it failed" if found["failed"] else f"{found['graphs'][-1]} graphs"
    print(f"\ntorch.compile: {state}; first run {found['first_seconds']:.1f} s; the best of each in ms")
    print(f"{'grid':<12}{EAGER:>10}{COMPILED:>10}{'ratio':>8}{'codes changed':>15}")
    rows = [("x".join(map(str, row["grid"])), row) for row in found["scales"]]
    for name, row in [*rows, ("transformer", found), ("decode", found["decode"])]:
        before, after = row["seconds"].values()
        line = f"{name:<12}{before * 1e3:>10.1f}{after * 1e3:>10.1f}{before / after:>7.2f}x"
        print(line + (f"{row['codes_changed']:>15.2%}" if "codes_changed" in row else ""))
