"""``bench.py --presets``: the acceleration presets in one process, each against ``off``.

The presets take turns, so that a machine that slows down slows all of them down.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from bench_models import Run, measured

from stagevar_core.acceleration.policy import AccelerationPolicy
from stagevar_core.acceleration.presets import PRESETS, preset
from stagevar_core.pipeline import Pipeline

BASE, LOCAL = "off", "+local"


def chosen(names: str) -> dict[str, AccelerationPolicy]:
    """The presets of a list with commas, or 'all'; ``off`` comes first, asked for or not.

    'quality+local' is ``quality`` with local attention. ``ValueError`` for an unknown name.
    """
    wanted = list(PRESETS) if names == "all" else [name.strip() for name in names.split(",")]
    found = {BASE: preset(BASE)}
    for name in wanted:
        local = {"attention": "local"} if name.endswith(LOCAL) else {}
        found[name] = preset(name.removesuffix(LOCAL), **local)
    return found


def measure(
    pipeline: Pipeline,
    policies: dict[str, AccelerationPolicy],
    request: dict[str, Any],
    repeat: int,
    say: Callable[[str], None],
) -> dict[str, list[Run]]:
    """``repeat`` runs of every preset in turn, on a GPU after one that does not count."""
    runs: dict[str, list[Run]] = {name: [] for name in policies}
    for index in range(-1 if pipeline.device.type == "cuda" else 0, repeat):
        for name, policy in policies.items():
            run = measured(pipeline, request, max(0, index), policy)
            if index >= 0:
                runs[name].append(run)
                say(f"{name}, run {index + 1} of {repeat}: {run.trace.summary()}")
    return runs


def phases(run: Run) -> dict[str, float]:
    """Seconds by phase; a scale that a preset skips is part of the transformer's."""
    found = {name: run.pictures.seconds[name] for name in ("text", "decode", "total")}
    return found | {"transformer": run.trace.milliseconds / 1e3}


def compare(runs: dict[str, list[Run]]) -> list[dict[str, Any]]:
    """A row per preset: medians of the times, ratios over ``off``, and the trace of the median run."""
    rows: list[dict[str, Any]] = []
    for preset_name, found in runs.items():
        times = [phases(run) for run in found]
        seconds = {name: statistics.median(time[name] for time in times) for name in times[0]}
        rows.append(
            {
                "preset": preset_name,
                "flops": statistics.median(run.trace.flops for run in found),
                "seconds": seconds,
                "kv_peak_bytes": max(run.trace.kv_peak_bytes for run in found),
                "peak_bytes": max((run.peak for run in found if run.peak), default=None),
                "peak_decode_bytes": max((run.decode_peak for run in found if run.decode_peak), default=None),
                "scales_skipped": statistics.median(run.trace.skipped for run in found),
                "notes": found[0].trace.notes,
                "trace": _middle(found).trace.to_dict(),
            }
        )
    base = rows[0]
    for row in rows:
        row["flop_ratio"] = base["flops"] / row["flops"]
        row["wall_ratio"] = base["seconds"]["transformer"] / row["seconds"]["transformer"]
        row["wall_ratio_total"] = base["seconds"]["total"] / row["seconds"]["total"]
        row["wall_share"] = row["wall_ratio"] / row["flop_ratio"]
    return rows


def _middle(runs: Sequence[Run]) -> Run:
    """The run with the median transformer time, the faster one of two."""
    return sorted(runs, key=lambda run: run.trace.milliseconds)[(len(runs) - 1) // 2]


def show(rows: list[dict[str, Any]]) -> None:
    """The tables for people."""
    for row in rows:
        _show_scales(row)
    print(
        f"\n{'preset':<16}{'TFLOP':>9}{'FLOPs':>8}{'seconds':>10}{'wall':>8}{'of FLOPs':>10}{'total s':>10}"
        f"{'total':>8}{'KV GB':>8}{'peak GB':>9}{'skipped':>9}"
    )
    for row in rows:
        seconds = row["seconds"]
        peak = f"{row['peak_bytes'] / 1e9:.2f}" if row["peak_bytes"] else "-"
        print(
            f"{row['preset']:<16}{row['flops'] / 1e12:>9.3f}{row['flop_ratio']:>7.2f}x"
            f"{seconds['transformer']:>10.3f}{row['wall_ratio']:>7.2f}x{row['wall_share']:>10.0%}"
            f"{seconds['total']:>10.3f}{row['wall_ratio_total']:>7.2f}x{row['kv_peak_bytes'] / 1e9:>8.3f}"
            f"{peak:>9}{row['scales_skipped']:>9g}"
        )


def _show_scales(row: dict[str, Any]) -> None:
    print(f"\n{row['preset']}" + "".join(f"\n  {note}" for note in row["notes"]))
    print(
        f"  {'grid':<9}{'stage':<11}{'guidance':<28}{'computed':>9}{'visible':>9}{'GFLOP':>11}{'ms':>11}"
        f"{'TFLOP/s':>9}{'KV MB':>9}"
    )
    for scale in row["trace"]["scales"]:
        flops, time = scale["flops"]["total"], scale["milliseconds"]
        print(
            f"  {'x'.join(map(str, scale['scale']['grid'])):<9}{scale['stage']:<11}"
            f"{scale['guidance'] if scale['ran'] else 'skipped':<28}{scale['computed']:>9.0f}"
            f"{scale['visible']:>9.0f}{flops / 1e9:>11.3f}{time:>11.2f}{flops / 1e9 / time:>9.3f}"
            f"{scale['kv_bytes'] / 1e6:>9.1f}"
        )
