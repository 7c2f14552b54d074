"""Measures a generation phase by phase (text, every scale, decode): time, memory, FLOPs, achieved rate.

    python scripts/bench.py                                    the embedded model
    python scripts/bench.py --cold                             and from a cold process to the first image
    python scripts/bench.py --model infinity-2b --pixels 1024 --dtype bfloat16

The full-size models have random weights, which changes no time, and 64 random text features, so that no file
is needed; their text encoder is not part of the measurement. Every phase ends with a synchronised clock. The
machine's ceilings (matrix product in the same dtype, copy) are measured in the same run. The last line of the
output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from machine import PeakMemory, ceilings, hardware  # noqa: E402

from stagevar_core.autoencoders.bsq import BSQTokenizer, BSQTokenizerConfig  # noqa: E402
from stagevar_core.costs import condition_flops, decode_flops, kv_bytes, schedule_flops  # noqa: E402
from stagevar_core.models.infinity import (  # noqa: E402
    INFINITY_2B,
    INFINITY_8B,
    INFINITY_125M,
    Infinity,
    InfinityConfig,
)
from stagevar_core.pipeline import Pictures, Pipeline, default_device  # noqa: E402
from stagevar_core.sampling import Monitor  # noqa: E402
from stagevar_core.schedule import Scale, infinity_aspect_table  # noqa: E402

PROMPT = "a red circle left of a blue square"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FULL_SIZE: dict[str, tuple[InfinityConfig, BSQTokenizerConfig]] = {
    "infinity-125m": (INFINITY_125M, BSQTokenizerConfig(16)),
    "infinity-2b": (INFINITY_2B, BSQTokenizerConfig(32)),
    "infinity-8b": (INFINITY_8B, BSQTokenizerConfig(14, multipliers=(1, 2, 4, 4))),
}
WARM_UP_TOKENS = 64  # the full-size models warm up on the scales up to here: that touches every weight


def fill(module: nn.Module, device: torch.device, seed: int = 0) -> nn.Module:
    """Storage and random weights for a module built on meta; no weight is ever held twice.

    Values come from one block of normal numbers, repeated: drawing 8 billion takes minutes and changes no
    time. Its odd length keeps rows from being equal.
    """
    module.to_empty(device=device)
    block = torch.randn(2**20 + 7, generator=torch.Generator().manual_seed(seed)).to(device)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            flat = parameter.view(-1)
            spread = 1.0 / math.sqrt(parameter[0].numel()) if parameter.dim() > 1 else 0.02
            for start in range(0, flat.numel(), len(block)):
                part = flat[start : start + len(block)]
                part.copy_(block[: len(part)]).mul_(spread)
            if parameter.dim() == 1 and "norm" in name and not name.endswith("bias"):
                parameter.add_(1.0)
    return module.eval().requires_grad_(False)


class RandomText:
    """Stands in for the text encoder of the full-size models: fixed random features of a usual length."""

    def __init__(self, width: int, tokens: int, device: torch.device) -> None:
        self.width, self.device = width, device
        self.features = torch.randn(tokens, width, generator=torch.Generator().manual_seed(1)).to(device)

    def encode(self, prompts: list[str], max_tokens: int = 512) -> tuple[Tensor, ...]:
        return tuple(self.features[:max_tokens] for _ in prompts)


class MeasuredPipeline(Pipeline):
    """Forgets the peak of sampling before it decodes; by then the KV cache is gone."""

    def decode(self, f_hat: Tensor) -> Tensor:
        PeakMemory(self.device).reset()
        return super().decode(f_hat)


def load(arguments: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> Pipeline:
    """The models to measure."""
    if arguments.model == "embedded":
        return MeasuredPipeline.embedded(dtype=dtype, device=device)
    config, codes = FULL_SIZE[arguments.model]
    transformer = fill(Infinity(config, dtype=dtype, device="meta"), device)
    tokenizer = fill(BSQTokenizer(codes, dtype=dtype, device="meta"), device)
    text = RandomText(config.text_width, arguments.text_tokens, device)
    return MeasuredPipeline(transformer, tokenizer, text, infinity_aspect_table(), device=device)


class _Stop(Exception):
    """Ends a warm-up."""


class _WarmUp(Monitor):
    def scale(self, scale: Scale, f_hat: Tensor) -> None:
        if scale.tokens >= WARM_UP_TOKENS:
            raise _Stop


class _Peaks(Monitor):
    """Peak memory per scale."""

    def __init__(self, memory: PeakMemory) -> None:
        self.memory, self.values = memory, []

    def scale(self, scale: Scale, f_hat: Tensor) -> None:
        self.values.append(self.memory.peak())
        self.memory.reset()


@dataclass(frozen=True)
class Run:
    """One measured generation."""

    pictures: Pictures
    scale_peaks: list[int | None]
    decode_peak: int | None


def measure(pipeline: Pipeline, arguments: argparse.Namespace) -> list[Run]:
    """Warm up, then generate ``--repeat`` times."""
    request = {
        "width": arguments.pixels,
        "height": arguments.pixels,
        "batch": arguments.batch,
        "settings": pipeline.settings(cfg=arguments.cfg),
    }
    try:
        pipeline(PROMPT, monitor=None if arguments.model == "embedded" else _WarmUp(), **request)
    except _Stop:
        pipeline.decode(torch.zeros(1, pipeline.tokenizer.config.dim, 8, 8, device=pipeline.device))
    memory = PeakMemory(pipeline.device)
    runs = []
    for index in range(arguments.repeat):
        memory.reset()
        peaks = _Peaks(memory)
        pictures = pipeline(PROMPT, seed=index, monitor=peaks, **request)
        runs.append(Run(pictures, peaks.values, memory.peak()))
    return runs


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


def weight_bytes(module: Any) -> int:
    """Memory of all weights; 0 for what has none."""
    parameters = module.parameters() if isinstance(module, nn.Module) else ()
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters)


def report(pipeline: Pipeline, runs: list[Run], arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything that was measured and counted."""
    config = pipeline.transformer.config
    first = runs[0].pictures
    batch, guided = len(first.images), any(value != 1.0 for value in _each(first.settings.cfg_scale))
    rows = batch * (2 if guided else 1)
    tokens = len(pipeline.encode([PROMPT]).features[0])
    costs = [cost.total for cost in schedule_flops(config, first.schedule, rows=rows, text_tokens=tokens)]
    costs[0] += condition_flops(config, rows=rows, text_tokens=tokens)
    latent = pipeline.transformer.quantizer().latent_grid(first.schedule.final)
    decoding = decode_flops(pipeline.tokenizer.config, latent, batch=batch)
    seconds = {
        name: middle(run.pictures.seconds[name] for run in runs) for name in ("total", "text", "decode")
    }
    seconds["transformer"] = middle(sum(run.pictures.seconds["scales"]) for run in runs)
    return {
        "model": arguments.model,
        "dtype": str(pipeline.transformer.compute_dtype).removeprefix("torch."),
        "size": list(first.size),
        "batch": batch,
        "rows": rows,
        "cfg": first.settings.cfg_scale,
        "text_tokens": tokens,
        "repeat": len(runs),
        "seconds": seconds,
        "scales": scale_rows(runs, costs),
        "flops": {"transformer": sum(costs), "decode": decoding},
        "flops_per_s": {
            "transformer": sum(costs) / seconds["transformer"],
            "decode": decoding / seconds["decode"],
        },
        "bytes": memory_by_kind(pipeline, runs, rows),
    }


def scale_rows(runs: list[Run], costs: list[float]) -> list[dict[str, Any]]:
    """Time, cost and memory of every scale."""
    found = []
    for index, (scale, cost) in enumerate(zip(runs[0].pictures.schedule, costs, strict=True)):
        spent = middle(run.pictures.seconds["scales"][index] for run in runs)
        peaks = [run.scale_peaks[index] for run in runs]
        known = {"flops": cost, "flops_per_s": cost / spent, "peak_bytes": max(peaks) if all(peaks) else None}
        found.append({"grid": list(scale.grid), "seconds": spent, **known})
    return found


def memory_by_kind(pipeline: Pipeline, runs: list[Run], rows: int) -> dict[str, int | None]:
    """Bytes of the weights and of the KV cache, and the peaks of the whole run and of decoding."""
    itemsize = torch.empty(0, dtype=pipeline.transformer.compute_dtype).element_size()
    tokens = runs[0].pictures.schedule.tokens
    peaks = [peak for run in runs for peak in (*run.scale_peaks, run.decode_peak) if peak]
    return {
        "transformer": weight_bytes(pipeline.transformer),
        "tokenizer": weight_bytes(pipeline.tokenizer),
        "text_encoder": weight_bytes(getattr(pipeline.text_encoder, "model", None)),
        "kv_cache": kv_bytes(pipeline.transformer.config, tokens, rows=rows, itemsize=itemsize),
        "peak": max(peaks, default=None),
        "peak_decode": max((run.decode_peak for run in runs if run.decode_peak), default=None),
    }


def _each(value: Any) -> list[float]:
    return list(value) if isinstance(value, list | tuple) else [value]


def show(found: dict[str, Any]) -> None:
    """The report for people."""
    machine, seconds, flops, memory = (found[part] for part in ("hardware", "seconds", "flops", "bytes"))
    ceiling, copy = found["ceilings"]["matmul_flops_per_s"], found["ceilings"]["copy_bytes_per_s"]
    width, height = found["size"]
    print(f"{found['model']}, {width} x {height}, {found['dtype']}, batch {found['batch']}")
    print(
        f"{machine.get('gpu', machine['processor'])}, {machine['threads']} threads, torch {machine['torch']}"
    )
    print(f"ceiling: {ceiling / 1e12:.2f} TFLOP/s, copy {copy / 1e9:.1f} GB/s\n")
    print(f"{'phase':<12}{'seconds':>10}{'TFLOP':>10}{'TFLOP/s':>10}{'of peak':>9}{'memory GB':>11}")

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
    if "cold_seconds" in found:
        print(f"cold process to first image: {found['cold_seconds']:.1f} s")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=("embedded", *FULL_SIZE), default="embedded")
    parser.add_argument("--pixels", type=int, help="side of the square image (default: the model's own)")
    parser.add_argument("--dtype", choices=DTYPES, help="default: bfloat16, float32 for embedded on the CPU")
    parser.add_argument("--device", help="default: cuda where there is one")
    parser.add_argument("--cfg", type=float, help="guidance; 1 runs the conditional rows alone")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=1, help="measured runs; medians are reported")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--text-tokens", type=int, default=64, help="of the full-size models")
    parser.add_argument("--cold", action="store_true", help="also time a cold process (embedded model)")
    arguments = parser.parse_args()
    if arguments.cold and arguments.model != "embedded":
        parser.error("--cold times the embedded model; leave --model out")
    for name in ("repeat", "batch", "text_tokens"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')} is {getattr(arguments, name)}; expected 1 or more")
    return arguments


def main() -> int:
    """Measure and report."""
    arguments = parse_arguments()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device) if arguments.device else default_device()
    small = arguments.model == "embedded" and device.type == "cpu"
    dtype = DTYPES[arguments.dtype or ("float32" if small else "bfloat16")]
    try:
        cold = {"cold_seconds": cold_start(arguments)} if arguments.cold else {}
        start = time.perf_counter()
        pipeline = load(arguments, device, dtype)
        built = {"load_seconds": time.perf_counter() - start}
        ceiling = ceilings(device, dtype)
        found = report(pipeline, measure(pipeline, arguments), arguments)
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    command = {"command": " ".join(["python", "scripts/bench.py", *sys.argv[1:]])}
    found = command | found | built | cold | {"ceilings": ceiling, "hardware": hardware(device)}
    show(found)
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
