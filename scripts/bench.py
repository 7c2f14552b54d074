"""Measures a generation phase by phase (text, every scale, decode): time, memory, FLOPs, achieved rate.

    python scripts/bench.py                                    the embedded model
    python scripts/bench.py --cold                             and from a cold process to the first image
    python scripts/bench.py --compile --repeat 5               and with blocks through torch.compile
    python scripts/bench.py --model infinity-2b --pixels 1024 --dtype bfloat16
    python scripts/bench.py --model infinity-8b --weights fp8 --text-encoder --presets balanced --alone
    python scripts/bench.py --model infinity-2b --pixels 1024 --presets balanced --batch 1,4
    python scripts/bench.py --model var-d16 --pixels 256 --presets balanced --repeat 5 --comfyui
    python scripts/bench.py --drafts 8 --pick 2
    python scripts/bench.py --model infinity-2b --pixels 1024 --drafts 8 --pick 2 --counted
    python scripts/bench.py --model infinity-2b --pixels 1024 --presets balanced,paper --official CHECKOUT
    python scripts/bench.py --model infinity-2b-edit-512 --pixels 512 --presets balanced

The full-size models have random weights, which changes no time, and 64 random text features, so that no file
is needed; their text encoder is measured only with ``--text-encoder``. Every phase ends with a synchronised
clock. The machine's ceilings (matrix product in the compute dtype, copy) are measured before and after in the
same run, and the higher ones count. With ``--presets`` the acceleration presets are measured one after the
other and compared with ``off``. With ``--drafts`` runs stop after a stage, and some of them are finished;
``--counted`` says what that costs without running it. With ``--comfyui`` the nodes of a running ComfyUI and
the core take turns, from the request to saved pictures. With ``--official`` a clone of
FoundationVision/Infinity makes images of the same size first, in a process of its own. The last line of the
output is one JSON object;
``performance_report.py`` makes the tables of the documentation from such objects.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from benchmark import ROOT
from benchmark import comfyui as bench_comfyui
from benchmark import compiling as bench_compile
from benchmark import drafts as bench_drafts
from benchmark import official as bench_official
from benchmark import presets as bench_presets
from benchmark.machine import ceilings, code_version, higher
from benchmark.models import (
    EMBEDDED,
    PROMPT,
    MeasuredPipeline,
    Run,
    load,
    measured,
    memory_by_kind,
    warm_up,
)
from benchmark.operations import operations
from benchmark.options import parse
from benchmark.weights import STORED

from stagevar_core.autoencoders.costs import decode_flops
from stagevar_core.conditioning.t5 import T5EncoderConfig
from stagevar_core.devices import DTYPES, default_device, hardware


def cold_start(arguments: argparse.Namespace) -> float:
    """Seconds from starting a Python process to the written image of the embedded model."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--prompt", PROMPT, "--out", str(Path(folder) / "x.png")]
        for name in ("dtype", "device", "threads"):
            if getattr(arguments, name) is not None:
                options += [f"--{name}", str(getattr(arguments, name))]
        start = time.perf_counter()
        command = [sys.executable, "-m", "stagevar_core", "generate", *options]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start


def middle(values: Iterable[float]) -> float:
    """The median, to a microsecond."""
    return round(statistics.median(values), 6)


def described(pipeline: MeasuredPipeline, run: Run, arguments: argparse.Namespace) -> dict[str, Any]:
    """What was generated, the same for all runs."""
    dtype = str(pipeline.transformer.compute_dtype).removeprefix("torch.")
    return {
        "model": arguments.model,
        "dtype": dtype,
        "weights": arguments.weights or dtype,
        "size": list(run.pictures.size),
        "batch": len(run.pictures.images),
        "rows": max(scale.rows for scale in run.trace.scales),
        "cfg": run.pictures.settings.cfg_scale,
        "text_tokens": pipeline.encode([PROMPT]).tokens,
        "repeat": arguments.repeat,
    }


def report(
    pipeline: MeasuredPipeline, runs: list[Run], about: dict[str, Any], ceiling: float
) -> dict[str, Any]:
    """Everything that was measured and counted of dense runs."""
    costs = [scale.flops.total for scale in runs[0].trace.scales]
    before = runs[0].trace.prefix  # a picture to edit, whose time counts to the first scale
    costs[0] += before.flops.total if before else 0.0
    costs[0] += pipeline.transformer.config.condition_flops(about["rows"], about["text_tokens"])
    latent = pipeline.quantizer.latent_grid(runs[0].pictures.schedule.final)
    decoding = decode_flops(pipeline.tokenizer.config, latent, batch=about["batch"])
    seconds = {
        name: middle(run.pictures.seconds[name] for run in runs) for name in ("total", "text", "decode")
    }
    seconds["transformer"] = middle(sum(run.pictures.seconds["scales"]) for run in runs)
    rates = {"transformer": sum(costs) / seconds["transformer"], "decode": decoding / seconds["decode"]}
    return {
        "seconds": seconds,
        "scales": scale_rows(runs, costs, ceiling),
        "flops": {"transformer": sum(costs), "decode": decoding},
        "flops_per_s": rates,
        "of_ceiling": {name: rate / ceiling for name, rate in rates.items()},
        "bytes": memory_by_kind(pipeline, runs),
    }


def scale_rows(runs: list[Run], costs: list[float], ceiling: float) -> list[dict[str, Any]]:
    """Time, cost and memory of every scale; ``flops`` of the first one includes the text's projections.

    ``attention_flops``: of those, scores and mixing of self- and cross-attention; the rest are matrix
    products with weights.
    """
    found = []
    for index, (scale, cost) in enumerate(zip(runs[0].trace.scales, costs, strict=True)):
        spent = middle(run.pictures.seconds["scales"][index] for run in runs)
        peaks = [run.peaks[index] for run in runs]
        found.append(
            {
                "grid": list(scale.scale.grid),
                "seconds": spent,
                "flops": cost,
                "attention_flops": scale.flops.attention + scale.flops.text,
                "flops_per_s": cost / spent,
                "of_ceiling": cost / spent / ceiling,
                "peak_bytes": max(peaks) if all(peaks) else None,
                "kv_bytes": scale.kv_bytes,
            }
        )
    return found


def measure(pipeline: MeasuredPipeline, arguments: argparse.Namespace, device: torch.device) -> dict:
    """Warm up, generate ``--repeat`` times, of every preset where these are asked for."""
    request = {
        "width": arguments.pixels,
        "height": arguments.pixels,
        "batch": arguments.batch[0],
        "settings": pipeline.settings(cfg=arguments.cfg),
    }
    before = ceilings(device, pipeline.transformer.compute_dtype)
    warm_up(pipeline, request, whole=arguments.model == EMBEDDED)
    if arguments.presets is None:
        runs = [measured(pipeline, request, index) for index in range(arguments.repeat)]
    else:
        found = bench_presets.measure(pipeline, arguments.presets, request, arguments.repeat, print)
        runs = next(iter(found.values()))
    ceiling = higher(before, ceilings(device, pipeline.transformer.compute_dtype))
    about, rate = described(pipeline, runs[0], arguments), ceiling["matmul_flops_per_s"]
    about["ceilings"] = ceiling
    if arguments.compile:
        about["compile"] = bench_compile.measure(pipeline, request, arguments.repeat)
    if arguments.presets is None:
        return about | report(pipeline, runs, about, rate)
    return about | {"presets": bench_presets.compare(pipeline, found, rate)}


def drafted(arguments: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """What drafts and finishing some of them cost, counted and, where that is wanted, timed."""
    drafts, picked = arguments.drafts, arguments.pick
    if arguments.counted:
        shape = bench_drafts.without_weights(
            arguments.model, arguments.pixels, arguments.cfg, arguments.text_tokens
        )
        return bench_drafts.counted(shape, drafts, picked)
    weights = STORED.get(arguments.weights)
    pipeline = load(arguments.model, arguments.text_tokens, device, dtype, weights)
    side = arguments.pixels
    request = {"width": side, "height": side, "batch": 1, "settings": pipeline.settings(cfg=arguments.cfg)}
    warm_up(pipeline, request, whole=arguments.model == EMBEDDED)
    found = bench_drafts.counted(bench_drafts.of(pipeline, request), drafts, picked)
    return found | {"wall": bench_drafts.timed(pipeline, request, drafts, picked, print)}


def baseline(found: dict[str, Any], official: dict[str, Any]) -> dict[str, Any]:
    """What the official code took beside the dense run of ours."""
    dense = found["presets"][0] if "presets" in found else found
    flops = dense["flops"] if "presets" in found else dense["flops"]["transformer"]
    ceiling = found["ceilings"]["matmul_flops_per_s"]
    return bench_official.compare(official, dense["seconds"], flops, ceiling)


def show(found: dict[str, Any]) -> None:
    """The report for people."""
    machine, (width, height) = found["hardware"], found["size"]
    ceiling, copy = found["ceilings"]["matmul_flops_per_s"], found["ceilings"]["copy_bytes_per_s"]
    stored = "" if found["weights"] == found["dtype"] else f" from {found['weights']} weights"
    print(f"{found['model']}, {width} x {height}, {found['dtype']}{stored}, batch {found['batch']}")
    print(
        f"{machine.get('gpu', machine['processor'])}, {machine['threads']} threads, torch {machine['torch']}"
    )
    print(f"ceiling: {ceiling / 1e12:.2f} TFLOP/s, copy {copy / 1e9:.1f} GB/s")
    if "presets" in found:
        bench_presets.show(found["presets"])
        memory = found["presets"][0]["bytes"]
    else:
        show_phases(found, ceiling)
        memory = found["bytes"]
    sizes = ((kind, size) for kind, size in memory.items() if kind != "kind" and size)
    print(
        f"\nmemory in GB ({memory['kind']}): " + ", ".join(f"{kind} {size / 1e9:.2f}" for kind, size in sizes)
    )
    if "operations" in found:
        counts = ", ".join(f"{name} {count}" for name, count in found["operations"].items())
        print(f"operations of one picture that are no views: {counts}")
    if "official" in found:
        bench_official.show(found["official"])
    if "compile" in found:
        bench_compile.show(found["compile"])
    if "cold_seconds" in found:
        print(f"cold process to first image: {found['cold_seconds']:.1f} s")


def show_phases(found: dict[str, Any], ceiling: float) -> None:
    """One line per phase."""
    seconds, flops, memory = (found[part] for part in ("seconds", "flops", "bytes"))
    print(
        f"\n{'phase':<12}{'seconds':>10}{'GEMM':>10}{'attention':>10}{'TFLOP/s':>10}{'of peak':>9}"
        f"{'memory GB':>11}"
    )

    def row(
        name: str, seconds: float, cost: float | None, attention: float = 0.0, peak: int | None = None
    ) -> None:
        line = f"{name:<12}{seconds:>10.3f}"
        if cost is not None:
            rate = cost / seconds
            line += f"{(cost - attention) / 1e12:>10.3f}{attention / 1e12:>10.3f}{rate / 1e12:>10.3f}"
            line += f"{rate / ceiling:>9.0%}"
        print(line + (f"{peak / 1e9:>11.2f}" if peak else ""))

    row("text", seconds["text"], None)
    for scale in found["scales"]:
        grid = "x".join(map(str, scale["grid"]))
        row(grid, scale["seconds"], scale["flops"], scale["attention_flops"], scale["peak_bytes"])
    attention = sum(scale["attention_flops"] for scale in found["scales"])
    row("transformer", seconds["transformer"], flops["transformer"], attention, memory["peak_sampling"])
    row("decode", seconds["decode"], flops["decode"], peak=memory["peak_decode"])
    row("total", seconds["total"], flops["transformer"] + flops["decode"], attention, memory["peak"])


def written(found: dict[str, Any], file: Path | None) -> None:
    """The last line of the output, also to a file."""
    line = json.dumps(found)
    if file:
        file.write_text(line + "\n", encoding="utf-8")
    print(line)


def main() -> int:
    """Measure and report."""
    arguments = parse(__doc__)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device) if arguments.device else default_device()
    small = arguments.model == EMBEDDED and device.type == "cpu"
    dtype = DTYPES[arguments.dtype or ("float32" if small else "bfloat16")]
    try:
        found = {
            "command": " ".join(["python", "scripts/bench.py", *sys.argv[1:]]),
            "date": datetime.now(timezone.utc).date().isoformat(),
            "commit": code_version(ROOT),
            "note": arguments.note,
        }
        if arguments.drafts is not None:
            found |= {"model": arguments.model, "dtype": str(dtype).removeprefix("torch.")}
            found |= drafted(arguments, device, dtype)
            if not arguments.counted:
                found["hardware"] = hardware(device)
            bench_drafts.show(found)
            written(found, arguments.json)
            return 0
        if arguments.comfyui is not None:
            found |= bench_comfyui.measure(arguments, device, dtype)
            bench_comfyui.show(found)
            written(found, arguments.json)
            return 0
        if arguments.cold:
            found["cold_seconds"] = cold_start(arguments)
        if arguments.official:
            job = bench_official.job_of(arguments.model, arguments, device, dtype)
            official = bench_official.measure(arguments.official, job)
        start = time.perf_counter()
        weights = STORED.get(arguments.weights)
        text = T5EncoderConfig() if arguments.text_encoder else None
        pipeline = load(arguments.model, arguments.text_tokens, device, dtype, weights, text)
        found["load_seconds"] = time.perf_counter() - start
        if text:
            found["text_encoder_seconds"] = pipeline.text_encoder.seconds
        found |= measure(pipeline, arguments, device) | {"hardware": hardware(device)}
        if arguments.model != EMBEDDED and not pipeline.transformer.edits:
            found["operations"] = operations(arguments.model, arguments.pixels, arguments.text_tokens)
        if arguments.official:
            found["official"] = baseline(found, official)
        show(found)
        written(found, arguments.json)
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
