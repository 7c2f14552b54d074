"""Measures a generation phase by phase (text, every scale, decode): time, memory, FLOPs, achieved rate.

    python scripts/bench.py                                    the embedded model
    python scripts/bench.py --cold                             and from a cold process to the first image
    python scripts/bench.py --model infinity-2b --pixels 1024 --dtype bfloat16
    python scripts/bench.py --model infinity-2b --pixels 1024 --presets balanced,paper

The full-size models have random weights, which changes no time, and 64 random text features, so that no file
is needed; their text encoder is not part of the measurement. Every phase ends with a synchronised clock. The
machine's ceilings (matrix product in the same dtype, copy) are measured in the same run. With ``--presets``
the acceleration presets are measured one after the other and compared with ``off``. The last line of the
output is one JSON object.
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
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import bench_presets  # noqa: E402
from bench_models import EMBEDDED, FULL_SIZE, PROMPT, Run, load, measured, warm_up, weight_bytes  # noqa: E402
from machine import ceilings, hardware  # noqa: E402

from stagevar_core.costs import condition_flops, decode_flops  # noqa: E402
from stagevar_core.pipeline import Pipeline, default_device  # noqa: E402

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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


def described(pipeline: Pipeline, run: Run, arguments: argparse.Namespace) -> dict[str, Any]:
    """What was generated, the same for all runs."""
    return {
        "model": arguments.model,
        "dtype": str(pipeline.transformer.compute_dtype).removeprefix("torch."),
        "size": list(run.pictures.size),
        "batch": len(run.pictures.images),
        "rows": max(scale.rows for scale in run.trace.scales),
        "cfg": run.pictures.settings.cfg_scale,
        "text_tokens": pipeline.encode([PROMPT]).tokens,
        "repeat": arguments.repeat,
    }


def report(pipeline: Pipeline, runs: list[Run], arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything that was measured and counted of dense runs."""
    about = described(pipeline, runs[0], arguments)
    costs = [scale.flops.total for scale in runs[0].trace.scales]
    costs[0] += condition_flops(
        pipeline.transformer.config, rows=about["rows"], text_tokens=about["text_tokens"]
    )
    latent = pipeline.quantizer.latent_grid(runs[0].pictures.schedule.final)
    decoding = decode_flops(pipeline.tokenizer.config, latent, batch=about["batch"])
    seconds = {
        name: middle(run.pictures.seconds[name] for run in runs) for name in ("total", "text", "decode")
    }
    seconds["transformer"] = middle(sum(run.pictures.seconds["scales"]) for run in runs)
    return about | {
        "seconds": seconds,
        "scales": scale_rows(runs, costs),
        "flops": {"transformer": sum(costs), "decode": decoding},
        "flops_per_s": {
            "transformer": sum(costs) / seconds["transformer"],
            "decode": decoding / seconds["decode"],
        },
        "bytes": memory_by_kind(pipeline, runs),
    }


def scale_rows(runs: list[Run], costs: list[float]) -> list[dict[str, Any]]:
    """Time, cost and memory of every scale."""
    found = []
    for index, (scale, cost) in enumerate(zip(runs[0].pictures.schedule, costs, strict=True)):
        spent = middle(run.pictures.seconds["scales"][index] for run in runs)
        peaks = [run.peaks[index] for run in runs]
        known = {"flops": cost, "flops_per_s": cost / spent, "peak_bytes": max(peaks) if all(peaks) else None}
        found.append({"grid": list(scale.grid), "seconds": spent, **known})
    return found


def memory_by_kind(pipeline: Pipeline, runs: list[Run]) -> dict[str, int | None]:
    """Bytes of the weights and of the KV cache, and the peaks of the whole run and of decoding."""
    peaks = [peak for run in runs for peak in (run.peak, run.decode_peak) if peak]
    return {
        "transformer": weight_bytes(pipeline.transformer),
        "tokenizer": weight_bytes(pipeline.tokenizer),
        "text_encoder": weight_bytes(getattr(pipeline.text_encoder, "model", None)),
        "kv_cache": max(run.trace.kv_peak_bytes for run in runs),
        "peak": max(peaks, default=None),
        "peak_decode": max((run.decode_peak for run in runs if run.decode_peak), default=None),
    }


def measure(pipeline: Pipeline, arguments: argparse.Namespace) -> dict[str, Any]:
    """Warm up, generate ``--repeat`` times, of every preset where these are asked for."""
    request = {
        "width": arguments.pixels,
        "height": arguments.pixels,
        "batch": arguments.batch,
        "settings": pipeline.settings(cfg=arguments.cfg),
    }
    warm_up(pipeline, request, whole=arguments.model == EMBEDDED)
    if arguments.presets is None:
        runs = [measured(pipeline, request, index) for index in range(arguments.repeat)]
        return report(pipeline, runs, arguments)
    found = bench_presets.measure(pipeline, arguments.presets, request, arguments.repeat, print)
    about = described(pipeline, found[bench_presets.BASE][0], arguments)
    return about | {"presets": bench_presets.compare(found)}


def show(found: dict[str, Any]) -> None:
    """The report for people."""
    machine, (width, height) = found["hardware"], found["size"]
    ceiling, copy = found["ceilings"]["matmul_flops_per_s"], found["ceilings"]["copy_bytes_per_s"]
    print(f"{found['model']}, {width} x {height}, {found['dtype']}, batch {found['batch']}")
    print(
        f"{machine.get('gpu', machine['processor'])}, {machine['threads']} threads, torch {machine['torch']}"
    )
    print(f"ceiling: {ceiling / 1e12:.2f} TFLOP/s, copy {copy / 1e9:.1f} GB/s")
    if "presets" in found:
        bench_presets.show(found["presets"])
    else:
        show_phases(found, ceiling)
    if "cold_seconds" in found:
        print(f"cold process to first image: {found['cold_seconds']:.1f} s")


def show_phases(found: dict[str, Any], ceiling: float) -> None:
    """One line per phase."""
    seconds, flops, memory = (found[part] for part in ("seconds", "flops", "bytes"))
    print(f"\n{'phase':<12}{'seconds':>10}{'TFLOP':>10}{'TFLOP/s':>10}{'of peak':>9}{'memory GB':>11}")

    def row(name: str, seconds: float, cost: float | None, peak: int | None = None) -> None:
        line = f"{name:<12}{seconds:>10.3f}"
        if cost is not None:
            rate = cost / seconds
            line += f"{cost / 1e12:>10.3f}{rate / 1e12:>10.3f}{rate / ceiling:>9.0%}"
        print(line + (f"{peak / 1e9:>11.2f}" if peak else ""))

    row("text", seconds["text"], None)
    for scale in found["scales"]:
        row("x".join(map(str, scale["grid"])), scale["seconds"], scale["flops"], scale["peak_bytes"])
    row("transformer", seconds["transformer"], flops["transformer"])
    row("decode", seconds["decode"], flops["decode"], memory["peak_decode"])
    row("total", seconds["total"], flops["transformer"] + flops["decode"], memory["peak"])
    print("\nmemory in GB: " + ", ".join(f"{kind} {size / 1e9:.2f}" for kind, size in memory.items() if size))


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=(EMBEDDED, *FULL_SIZE), default=EMBEDDED)
    parser.add_argument("--pixels", type=int, help="side of the square image (default: the model's own)")
    parser.add_argument("--dtype", choices=DTYPES, help="default: bfloat16, float32 for embedded on the CPU")
    parser.add_argument("--device", help="default: cuda where there is one")
    parser.add_argument("--cfg", type=float, help="guidance; 1 runs the conditional rows alone")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=1, help="measured runs; medians are reported")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--text-tokens", type=int, default=64, help="of the full-size models")
    parser.add_argument(
        "--presets", help="'all' or names with commas, compared with off; with '+local' local attention"
    )
    parser.add_argument("--json", type=Path, help="file to write the JSON object to as well")
    parser.add_argument("--cold", action="store_true", help="also time a cold process (embedded model)")
    arguments = parser.parse_args()
    if arguments.cold and arguments.model != EMBEDDED:
        parser.error("--cold times the embedded model; leave --model out")
    for name in ("repeat", "batch", "text_tokens"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')} is {getattr(arguments, name)}; expected 1 or more")
    if arguments.json and not arguments.json.parent.is_dir():
        parser.error(f"--json is {arguments.json}; expected a file in an existing folder")
    if arguments.presets is not None:
        try:
            arguments.presets = bench_presets.chosen(arguments.presets)
        except ValueError as error:
            parser.error(f"--presets: {error}")
    return arguments


def main() -> int:
    """Measure and report."""
    arguments = parse_arguments()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device) if arguments.device else default_device()
    small = arguments.model == EMBEDDED and device.type == "cpu"
    dtype = DTYPES[arguments.dtype or ("float32" if small else "bfloat16")]
    try:
        cold = {"cold_seconds": cold_start(arguments)} if arguments.cold else {}
        start = time.perf_counter()
        pipeline = load(arguments.model, arguments.text_tokens, device, dtype)
        built = {"load_seconds": time.perf_counter() - start}
        ceiling = ceilings(device, dtype)
        found = measure(pipeline, arguments)
        command = {"command": " ".join(["python", "scripts/bench.py", *sys.argv[1:]])}
        found = command | found | built | cold | {"ceilings": ceiling, "hardware": hardware(device)}
        show(found)
        line = json.dumps(found)
        if arguments.json:
            arguments.json.write_text(line + "\n", encoding="utf-8")
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
