"""What a comparison found, as plain values: costs, summaries with intervals, everything for JSON."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from ..acceleration.policy import AccelerationPolicy
from .compare import NEARNESS, REFERENCE, Comparison, described
from .intervals import Interval, difference, interval
from .reading import EDGES, JUDGED, TOP1
from .score import SCORED

VERSION = 1  # of the JSON
TASK_SCORES = ("strict", "texture")  # reported for every task
READ = (*TASK_SCORES, *JUDGED)  # what is read back of pictures, as far as it is
DECIMALS = {"psnr": 2, "ssim": 4, "lpips": 4, EDGES: 3}  # that are worth keeping


def costs(found: Comparison, variant: str) -> dict[str, Any]:
    """Work and time of a variant against the dense run.

    ``wall_ratio``: transformer time, the median over batches of dense / variant, with quartiles. ``tokens``:
    share of all tokens of a row that the blocks ran on. ``scales``: per scale and picture.
    """
    work, dense = found.work[variant], found.work[REFERENCE]
    walls = dense["milliseconds"].sum(axis=1) / work["milliseconds"].sum(axis=1)
    low, middle, high = np.percentile(walls, (25, 50, 75))
    sizes = np.array(list(map(len, found.job.batches)))
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
            own, other = (found.per_caption(name, measure) for name in (variant, against))
            values[measure] = _plain(interval(own))
            if against != REFERENCE:
                values[f"{measure}_difference"] = _plain(difference(own, other))
    if variant in found.frechet:
        values["frechet"] = found.frechet[variant]
    tasks = found.tasks or ("all",) * len(found.job.captions)
    for measure in (*SCORED, *JUDGED):
        if measure not in found.measures[variant]:
            continue
        groups = ["all", *sorted(set(tasks) - {"all"})] if measure in TASK_SCORES else ["all"]
        values[measure] = {}
        for task in groups:
            chosen = np.array([task in ("all", own) for own in tasks])
            own, other = (found.per_caption(name, measure)[chosen] for name in (variant, against))
            share = measure in (*SCORED, TOP1)
            mean = _plain(interval(own, share=share))
            if mean is not None:
                pair = difference(own, other, share=share)
                values[measure][task] = {**mean, "difference": _plain(pair)}
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
        "seeds": job.seeds,
        "seed": job.seed,
        "batch": job.batch,
        "settings": None if job.settings is None else asdict(job.settings),
        "schedule": [list(grid) for grid in found.schedule.grids],
        "variants": variants,
    }


def _differences(values: Mapping[str, Any]) -> dict[str, Any]:
    """The differences in a summary alone."""
    found = {key: value for key, value in values.items() if key.endswith("_difference")}
    for measure in (each for each in READ if each in values):
        found |= {measure: {task: row["difference"] for task, row in values[measure].items()}}
    return found


def _packed(measure: str, values: np.ndarray) -> str:
    if measure in DECIMALS:
        return " ".join(f"{value:.{DECIMALS[measure]}f}" for value in values.tolist())
    return "".join("-" if math.isnan(value) else str(int(value)) for value in values.tolist())


def unpacked(text: str) -> np.ndarray:
    """Values per picture (pictures,) from their string in the report; NaN where one does not apply."""
    if set(text) <= set("10-"):
        return np.array([np.nan if sign == "-" else float(sign) for sign in text])
    return np.array([float(number) for number in text.split()])
