"""The tables of a comparison's report, in Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .compare import NEARNESS, REFERENCE
from .report import DECIMALS, READ, TASK_SCORES


def markdown(values: Mapping[str, Any], against: str = REFERENCE) -> str:
    """All tables of a report: costs and quality, scores per task, differences to ``against``."""
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
    """Costs and quality, a row for each variant, as one Markdown table."""
    variants = values["variants"]
    scored = [measure for measure in READ if measure in variants[REFERENCE]]
    distance = "frechet" in variants[REFERENCE]
    near = [measure for measure in NEARNESS if measure in variants[REFERENCE]]
    header = ["preset", "FLOP ratio", "wall ratio", "tokens", "scales skipped", *(m.upper() for m in near)]
    header += [cell for measure in scored for cell in (measure, "minus off")] + ["Frechet"] * distance
    rows = []
    for name, row in variants.items():
        cells = [name, f"{row['flop_ratio']:.2f}", f"{row['wall_ratio']:.2f}" + " †" * row["one_by_one"]]
        cells += [f"{row['tokens']:.1%}", f"{row['scales_skipped']:g}"]
        cells += ["" if name == REFERENCE else _mean(row[m], DECIMALS[m]) for m in near]
        for measure in scored:
            total = row[measure].get("all")
            cells.append("" if total is None else f"{total['mean']:.3f}")
            cells.append("" if total is None or name == REFERENCE else _signed(total["difference"], 3))
        rows.append([*cells, f"{row['frechet']:.1f}"] if distance else cells)
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
    """``against`` minus each of the others, paired, as one Markdown table."""
    variants = values["variants"]
    near = [measure for measure in NEARNESS if measure in variants[REFERENCE]]
    scored = [measure for measure in READ if measure in variants[REFERENCE]]
    header = [f"{against} minus", *(m.upper() for m in near), *scored]
    rows = []
    for name, row in variants.items():
        if name in (against, REFERENCE):
            continue
        found = row[f"against {against}"]
        cells = [name, *(_signed(found[f"{m}_difference"], DECIMALS[m], -1) for m in near)]
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
