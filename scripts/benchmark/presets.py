"""``bench.py --presets``: the acceleration presets in one process, each against ``off``.

The presets take turns, so that a machine that slows down slows all of them down. With several batch sizes
every preset runs at each of them, and ``off`` at the first; at the others only where it is asked for.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from stagevar_core.acceleration.policy import AccelerationPolicy
from stagevar_core.acceleration.presets import PRESETS, preset

from .models import MeasuredPipeline, Run, measured, memory_by_kind

BASE, LOCAL = "off", "+local"


class Variant(NamedTuple):
    """What one row of the report is about."""

    preset: str
    batch: int


def chosen(
    names: str, batches: Sequence[int] = (1,), *, alone: bool = False
) -> dict[Variant, AccelerationPolicy]:
    """The presets of a list with commas, or 'all', at every batch size; ``off`` at the first comes first.

    'quality+local' is ``quality`` with local attention. ``alone``: ``off`` only where it is in the list.
    ``ValueError`` for an unknown name.
    """
    wanted = list(PRESETS) if names == "all" else [name.strip() for name in names.split(",")]
    found = {} if alone else {Variant(BASE, batches[0]): preset(BASE)}
    for batch in batches:
        for name in wanted:
            local = {"attention": "local"} if name.endswith(LOCAL) else {}
            found[Variant(name, batch)] = preset(name.removesuffix(LOCAL), **local)
    return found


def measure(
    pipeline: MeasuredPipeline,
    policies: Mapping[Variant, AccelerationPolicy],
    request: dict[str, Any],
    repeat: int,
    say: Callable[[str], None],
) -> dict[Variant, list[Run]]:
    """``repeat`` runs of every preset in turn, on a GPU after one that does not count."""
    runs: dict[Variant, list[Run]] = {variant: [] for variant in policies}
    for index in range(-1 if pipeline.device.type == "cuda" else 0, repeat):
        for variant, policy in policies.items():
            run = measured(pipeline, request | {"batch": variant.batch}, max(0, index), policy)
            if index >= 0:
                runs[variant].append(run)
                size = f", batch {variant.batch}" if variant.batch > 1 else ""
                say(f"{variant.preset}{size}, run {index + 1} of {repeat}: {run.trace.summary()}")
    return runs


def compare(
    pipeline: MeasuredPipeline, runs: Mapping[Variant, Sequence[Run]], ceiling: float
) -> list[dict[str, Any]]:
    """A row per preset and batch size: medians, ratios, memory, and the trace of the median run.

    ``wall_ratio`` (transformer) and ``wall_ratio_total`` are over ``off`` at the same batch size, where that
    ran; ``wall_share`` is the wall ratio over the FLOP ratio. ``batch_ratio``: time over that of the same
    preset at the first batch size. ``of_ceiling``: the transformer's rate over that of a matrix product.
    """
    rows = {variant: _row(pipeline, variant, found, ceiling) for variant, found in runs.items()}
    first = next(iter(rows)).batch
    for (name, batch), row in rows.items():
        dense, alone = rows.get(Variant(BASE, batch)), rows.get(Variant(name, first))
        for key, base, upside in (("wall_ratio", dense, False), ("batch_ratio", alone, True)):
            for suffix, phase in (("", "transformer"), ("_total", "total")):
                own, other = row["seconds"][phase], base and base["seconds"][phase]
                row[key + suffix] = other and (own / other if upside else other / own)
        row["wall_share"] = row["wall_ratio"] and row["wall_ratio"] / row["flop_ratio"]
    return list(rows.values())


def _row(
    pipeline: MeasuredPipeline, variant: Variant, found: Sequence[Run], ceiling: float
) -> dict[str, Any]:
    """What one variant says without the others."""
    seconds = {name: statistics.median(run.seconds[name] for run in found) for name in found[0].seconds}
    flops = statistics.median(run.trace.flops for run in found)
    rate = flops / seconds["transformer"]
    return {
        "preset": variant.preset,
        "batch": variant.batch,
        "flops": flops,
        "flop_ratio": statistics.median(run.trace.dense_flops for run in found) / flops,
        "flops_per_s": rate,
        "of_ceiling": rate / ceiling,
        "seconds": seconds,
        "bytes": memory_by_kind(pipeline, found),
        "scales_skipped": statistics.median(run.trace.skipped for run in found),
        "notes": found[0].trace.notes,
        "trace": _middle(found).trace.to_dict(),
    }


def _middle(runs: Sequence[Run]) -> Run:
    """The run with the median transformer time, the faster one of two."""
    return sorted(runs, key=lambda run: run.trace.milliseconds)[(len(runs) - 1) // 2]


def show(rows: list[dict[str, Any]]) -> None:
    """The tables for people."""
    for row in rows:
        _show_scales(row)
    print(
        f"\n{'preset':<16}{'batch':>6}{'TFLOP':>9}{'FLOPs':>8}{'seconds':>10}{'wall':>8}{'of FLOPs':>10}"
        f"{'of peak':>9}{'total s':>10}{'total':>8}{'/batch':>8}{'KV GB':>8}{'peak GB':>9}{'skipped':>9}"
    )
    for row in rows:
        seconds, memory = row["seconds"], row["bytes"]
        print(
            f"{row['preset']:<16}{row['batch']:>6}{row['flops'] / 1e12:>9.3f}{row['flop_ratio']:>7.2f}x"
            f"{seconds['transformer']:>10.3f}{_times(row['wall_ratio'])}{_percent(row['wall_share']):>10}"
            f"{row['of_ceiling']:>9.0%}{seconds['total']:>10.3f}{_times(row['wall_ratio_total'])}"
            f"{_times(row['batch_ratio_total'])}{memory['kv_cache'] / 1e9:>8.3f}"
            f"{_gigabytes(memory['peak']):>9}{row['scales_skipped']:>9g}"
        )


def _times(ratio: float | None) -> str:
    return f"{'-':>8}" if ratio is None else f"{ratio:>7.2f}x"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _gigabytes(size: int | None) -> str:
    return f"{size / 1e9:.2f}" if size else "-"


def _show_scales(row: dict[str, Any]) -> None:
    print(f"\n{row['preset']}, batch {row['batch']}" + "".join(f"\n  {note}" for note in row["notes"]))
    print(
        f"  {'grid':<9}{'stage':<11}{'guidance':<28}{'computed':>9}{'visible':>9}{'GFLOP':>11}"
        f"{'attention':>11}{'ms':>11}{'TFLOP/s':>9}{'KV MB':>9}"
    )
    for scale in row["trace"]["scales"]:
        flops, time = scale["flops"]["total"], scale["milliseconds"]
        attention = scale["flops"]["attention"] + scale["flops"]["text"]
        print(
            f"  {'x'.join(map(str, scale['scale']['grid'])):<9}{scale['stage']:<11}"
            f"{scale['guidance'] if scale['ran'] else 'skipped':<28}{scale['computed']:>9.0f}"
            f"{scale['visible']:>9.0f}{flops / 1e9:>11.3f}{attention / 1e9:>11.3f}{time:>11.2f}"
            f"{flops / 1e9 / time:>9.3f}{scale['kv_bytes'] / 1e6:>9.1f}"
        )
