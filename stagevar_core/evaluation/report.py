"""What a comparison found: summaries with intervals, Markdown, JSON."""

import math
import os
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..acceleration.policy import AccelerationPolicy
from .compare import NEARNESS, REFERENCE, SCORED, Comparison, described
from .intervals import Interval, difference, interval

VERSION = 1


TASK_SCORES = ("strict", "texture")


_DECIMALS = {"psnr": 2, "ssim": 4, "lpips": 4}


def hardware(device: torch.device) -> dict[str, Any]:
    """What the times belong to."""
    name, info = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if info.is_file():
        found = re.search(r"model name\s*:\s*(.+)", info.read_text(encoding="utf-8", errors="replace"))
        name = found[1].strip() if found else name
    values = {
        "device": str(device),
        "processor": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "system": platform.system(),
    }
    if device.type == "cuda":
        values["gpu"] = torch.cuda.get_device_name(device)
    return values


def costs(found: Comparison, variant: str) -> dict[str, Any]:
    """Work and time of a variant against the dense run.

    ``wall_ratio``: transformer time, the median over batches of dense / variant, with quartiles. ``tokens``:
    share of all tokens of a row that the blocks ran on. ``scales``: per scale and picture.
    """
    work, dense = found.work[variant], found.work[REFERENCE]
    walls = dense["milliseconds"].sum(axis=1) / work["milliseconds"].sum(axis=1)
    low, middle, high = np.percentile(walls, (25, 50, 75))
    sizes = np.array([len(found.job.part(start)) for start in range(0, found.job.pictures, found.job.batch)])
    grids = np.array([scale.tokens for scale in found.schedule])
    computed = work["computed"].mean(axis=0)
    return {
        "flop_ratio": float(dense["flops"].sum() / work["flops"].sum()),
        "wall_ratio": float(middle),
        "wall_quartiles": [float(low), float(high)],
        "milliseconds": float(np.median(work["milliseconds"].sum(axis=1) / sizes)),
        "tokens": float(computed.sum() / grids.sum()),
        "scales_skipped": float((work["ran"] == 0).sum(axis=1).mean()),
        "kv_peak_bytes": int(work["kv_bytes"].max()),
        "one_by_one": variant in found.single,
        "notes": _shortened(found.notes[variant]),
        "scales": [
            {
                "grid": list(scale.grid),
                "computed": float(computed[scale.index]),
                "rows": float((work["rows"][:, scale.index] / sizes).mean()),
                "ran": float(work["ran"][:, scale.index].mean()),
                "flops": float(work["flops"][:, scale.index].sum() / sizes.sum()),
                "milliseconds": float(np.median(work["milliseconds"][:, scale.index] / sizes)),
            }
            for scale in found.schedule
        ],
    }


def _shortened(notes: Sequence[str]) -> list[str]:
    """All notes on the run, and the first few of those on single pictures."""
    single = [note for note in notes if note.startswith("image ")]
    found = [note for note in notes if note not in single]
    found += list(dict.fromkeys(note.partition(": ")[2] for note in single[:3]))
    return found + ([f"... and {len(single) - 3} more"] if len(single) > 3 else [])


def summary(found: Comparison, variant: str, against: str = REFERENCE) -> dict[str, Any]:
    """Costs, and means with 95% intervals; scores also per task and as paired differences to ``against``."""
    values = costs(found, variant)
    for measure in NEARNESS:
        if measure in found.measures[variant]:
            values[measure] = _plain(interval(found.per_caption(variant, measure)))
            pair = difference(found.per_caption(variant, measure), found.per_caption(against, measure))
            if against != REFERENCE:
                values[f"{measure}_difference"] = _plain(pair)
    if found.tasks is None:
        return values
    for measure in SCORED:
        groups = ["all", *sorted(set(found.tasks))] if measure in TASK_SCORES else ["all"]
        values[measure] = {}
        for task in groups:
            chosen = np.array([task in ("all", own) for own in found.tasks])
            own, other = (found.per_caption(name, measure)[chosen] for name in (variant, against))
            mean = interval(own, share=True)
            if mean is not None:
                pair = difference(own, other, share=True)
                values[measure][task] = {**_plain(mean), "difference": _plain(pair)}
    return values


def _plain(value: Interval | None) -> dict[str, float] | None:
    return None if value is None else dict(value._asdict())


def report(
    found: Comparison,
    policies: Mapping[str, AccelerationPolicy],
    about: Mapping[str, Any],
    against: str = REFERENCE,
) -> dict[str, Any]:
    """Everything as plain values; ``about``: hardware, dtype, command and the like.

    Values per picture are strings, one number or one of 1, 0, - (does not apply) per picture.
    """
    job = found.job
    variants = {}
    for name in found.variants:
        variants[name] = {
            "policy": described(policies.get(name)),
            **summary(found, name),
            "pictures": {key: _packed(key, value) for key, value in found.measures[name].items()},
        }
    if against != REFERENCE:
        for name in found.variants:
            variants[name][f"against {against}"] = _differences(summary(found, name, against))
    return {
        "version": VERSION,
        **about,
        "captions": list(job.captions),
        "tasks": None if found.tasks is None else " ".join(found.tasks),
        **{key: getattr(job, key) for key in ("seeds", "seed", "batch")},
        "settings": None if job.settings is None else asdict(job.settings),
        "schedule": [list(grid) for grid in found.schedule.grids],
        "variants": variants,
    }


def _differences(values: Mapping[str, Any]) -> dict[str, Any]:
    """The differences in a summary alone."""
    found = {key: value for key, value in values.items() if key.endswith("_difference")}
    for measure in TASK_SCORES:
        found |= {measure: {task: row["difference"] for task, row in values.get(measure, {}).items()}}
    return found


def _packed(measure: str, values: np.ndarray) -> str:
    if measure in _DECIMALS:
        return " ".join(f"{value:.{_DECIMALS[measure]}f}" for value in values.tolist())
    return "".join("-" if math.isnan(value) else str(int(value)) for value in values.tolist())


def unpacked(text: str) -> np.ndarray:
    """Values per picture from their string in the report."""
    if set(text) <= set("10-"):
        return np.array([np.nan if sign == "-" else float(sign) for sign in text])
    return np.array([float(number) for number in text.split()])


def markdown(values: Mapping[str, Any], against: str = REFERENCE) -> str:
    """The tables of a :func:`report`: costs and quality, scores per task, differences to ``against``."""
    variants, tables = values["variants"], [overview(values)]
    if any(row["one_by_one"] for row in variants.values()):
        tables.append("† makes the pictures one by one, `off` all of a batch at once.")
    if values["tasks"] is not None:
        known = [measure for measure in TASK_SCORES if variants[REFERENCE][measure]]
        tables += [_per_task(variants, measure) for measure in known]
    if against != REFERENCE:
        tables.append(differences(values, against))
    return "\n\n".join(tables) + "\n"


def overview(values: Mapping[str, Any]) -> str:
    """Costs and quality, a row for each variant."""
    variants, scored = values["variants"], values["tasks"] is not None
    near = [measure for measure in NEARNESS if measure in variants[REFERENCE]]
    header = ["preset", "FLOP ratio", "wall ratio", "tokens", "scales skipped", *(m.upper() for m in near)]
    if scored:
        header += ["strict", "minus off", "texture", "minus off"]
    rows = []
    for name, row in variants.items():
        cells = [name, f"{row['flop_ratio']:.2f}", f"{row['wall_ratio']:.2f}" + " †" * row["one_by_one"]]
        cells += [f"{row['tokens']:.1%}", f"{row['scales_skipped']:g}"]
        cells += ["" if name == REFERENCE else _mean(row[m], _DECIMALS[m]) for m in near]
        for measure in TASK_SCORES if scored else ():
            total = row[measure].get("all")
            cells.append("" if total is None else f"{total['mean']:.3f}")
            cells.append("" if total is None or name == REFERENCE else _signed(total["difference"], 3))
        rows.append(cells)
    return _table(header, rows)


def _per_task(variants: Mapping[str, Any], measure: str) -> str:
    """Means, and differences to the dense run."""
    tasks = [task for task in variants[REFERENCE][measure] if task != "all"]
    rows = []
    for name, row in variants.items():
        cells = [name]
        for task in tasks:
            value = row[measure][task]
            extra = "" if name == REFERENCE else f" ({_signed(value['difference'], 3)})"
            cells.append(f"{value['mean']:.3f}{extra}")
        rows.append(cells)
    return _table([f"{measure} by task", *tasks], rows)


def differences(values: Mapping[str, Any], against: str) -> str:
    """``against`` minus each of the others, paired."""
    variants = values["variants"]
    near = [measure for measure in NEARNESS if measure in variants[REFERENCE]]
    scored = TASK_SCORES if values["tasks"] is not None else ()
    header = [f"{against} minus", *(m.upper() for m in near), *scored]
    rows = []
    for name, row in variants.items():
        if name in (against, REFERENCE):
            continue
        found = row[f"against {against}"]
        cells = [name, *(_signed(found[f"{m}_difference"], _DECIMALS[m], -1) for m in near)]
        for measure in scored:
            value = found[measure].get("all")
            cells.append("" if value is None else _signed(value, 3, -1))
        rows.append(cells)
    return _table(header, rows)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _mean(value: Mapping[str, float], decimals: int) -> str:
    return f"{value['mean']:.{decimals}f} ± {value['high'] - value['mean']:.{decimals}f}"


def _signed(value: Mapping[str, float], decimals: int, sign: int = 1) -> str:
    """A difference with its interval; ``sign`` -1 turns it around."""
    low, high = sorted(sign * value[end] for end in ("low", "high"))
    # Adding zero turns -0.0 into 0.0.
    mean, low, high = (f"{round(x, decimals) + 0.0:+.{decimals}f}" for x in (sign * value["mean"], low, high))
    return f"{mean} [{low}, {high}]"
