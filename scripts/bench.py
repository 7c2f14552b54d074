"""Measures a generation phase by phase (text, every scale, decode): time, memory, FLOPs, achieved rate.

    python scripts/bench.py                                    the embedded model
    python scripts/bench.py --cold                             and from a cold process to the first image
    python scripts/bench.py --compile --repeat 5               and with blocks through torch.compile
    python scripts/bench.py --model infinity-2b --pixels 1024 --dtype bfloat16
    python scripts/bench.py --model infinity-8b --weights fp8 --text-encoder --presets balanced --alone
    python scripts/bench.py --model infinity-2b --pixels 1024 --presets balanced --batch 1,4
    python scripts/bench.py --model infinity-2b --pixels 1024 --presets balanced,paper --official CHECKOUT

The full-size models have random weights, which changes no time, and 64 random text features, so that no file
is needed; their text encoder is measured only with ``--text-encoder``. Every phase ends with a synchronised
clock. The machine's ceilings (matrix product in the compute dtype, copy) are measured before and after in the
same run, and the higher ones count. With ``--presets`` the acceleration presets are measured one after the
other and compared with ``off``. With ``--official`` a clone of FoundationVision/Infinity makes images of the
same size first, in a process of its own. The last line of the output is one JSON object;
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

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmark import compiling as bench_compile  # noqa: E402
from benchmark import official as bench_official  # noqa: E402
from benchmark import presets as bench_presets  # noqa: E402
from benchmark.machine import ceilings, code_version, hardware, higher  # noqa: E402
from benchmark.models import (  # noqa: E402
    EMBEDDED,
    FP8,
    FULL_SIZE,
    PROMPT,
    MeasuredPipeline,
    Run,
    load,
    measured,
    memory_by_kind,
    warm_up,
)

from stagevar_core.autoencoders.costs import decode_flops  # noqa: E402
from stagevar_core.conditioning.t5 import T5EncoderConfig  # noqa: E402
from stagevar_core.costs import condition_flops  # noqa: E402
from stagevar_core.devices import default_device  # noqa: E402

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
    costs[0] += condition_flops(
        pipeline.transformer.config, rows=about["rows"], text_tokens=about["text_tokens"]
    )
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
    parser.add_argument(
        "--weights", choices=("fp8",), help="storage of the transformer's weights, float8_e4m3fn"
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
        help="begin with a Flan-T5-XL of random weights, stored as --weights says, that then makes place",
    )
    parser.add_argument(
        "--official", type=Path, metavar="CHECKOUT", help="time this clone of FoundationVision/Infinity, too"
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
    if arguments.json and not arguments.json.parent.is_dir():
        raise ValueError(f"--json is {arguments.json}; expected a file in an existing folder")
    if arguments.presets is None:
        return
    try:
        arguments.presets = bench_presets.chosen(arguments.presets, arguments.batch, alone=arguments.alone)
    except ValueError as error:
        raise ValueError(f"--presets: {error}") from error


def check_together(arguments: argparse.Namespace) -> None:
    """``ValueError`` for options that do not go with the model or with each other."""
    full_size = arguments.model != EMBEDDED
    if arguments.cold and full_size:
        raise ValueError("--cold times the embedded model; leave --model out")
    if arguments.weights and not full_size:
        raise ValueError("--weights is of the full-size models; name one with --model")
    for name in ("official", "text_encoder"):
        if getattr(arguments, name) and not arguments.model.startswith("infinity-"):
            option = name.replace("_", "-")
            raise ValueError(f"--{option} is for Infinity of full size; the model is {arguments.model}")
    if arguments.alone and (arguments.presets is None or arguments.official):
        raise ValueError("--alone leaves off out of --presets, which --official is compared with")


def check_numbers(arguments: argparse.Namespace) -> None:
    """Batch sizes from their words; ``ValueError`` for numbers that nothing can be measured with."""
    try:
        arguments.batch = [int(number) for number in str(arguments.batch).split(",")]
    except ValueError:
        raise ValueError(f"--batch is {arguments.batch}; expected numbers with commas, as 1,4") from None
    for name, least in (
        ("repeat", arguments.repeat),
        ("batch", min(arguments.batch)),
        ("text_tokens", arguments.text_tokens),
    ):
        if least < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {least}; expected 1 or more")
    if len(arguments.batch) > 1 and arguments.presets is None:
        raise ValueError("--batch has several numbers, which --presets compares; name presets, or give one")


def main() -> int:
    """Measure and report."""
    arguments = parse_arguments()
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
        if arguments.cold:
            found["cold_seconds"] = cold_start(arguments)
        if arguments.official:
            job = bench_official.job_of(arguments.model, arguments, device, dtype)
            official = bench_official.measure(arguments.official, job)
        start = time.perf_counter()
        weights = FP8 if arguments.weights else None
        text = T5EncoderConfig() if arguments.text_encoder else None
        pipeline = load(arguments.model, arguments.text_tokens, device, dtype, weights, text)
        found["load_seconds"] = time.perf_counter() - start
        if text:
            found["text_encoder_seconds"] = pipeline.text_encoder.seconds
        found |= measure(pipeline, arguments, device) | {"hardware": hardware(device)}
        if arguments.official:
            found["official"] = baseline(found, official)
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
