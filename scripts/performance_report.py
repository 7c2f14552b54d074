"""Writes the tables of docs/performance.md and README.md from what ``bench.py --json`` measured.

    python scripts/performance_report.py                  all of docs/measurements/bench_*.json
    python scripts/performance_report.py --check          changes nothing, fails where a table is another

A document has a table between ``<!-- table NAME -->`` and ``<!-- end of table NAME -->``; all other text
stays. Every row says which file it is from, on what hardware and when it was measured; what is not in the
files is not in the tables.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = (ROOT / "docs" / "performance.md", ROOT / "README.md")
MEASUREMENTS = ROOT / "docs" / "measurements"
# What a GPU has to be measured on: model and preset, 1024 pixels, bfloat16, one image.
WANTED_ON_GPU = [
    (model, preset) for model in ("infinity-2b", "infinity-8b") for preset in ("off", "balanced")
]
NONE = "-"

Found = dict[str, Any]


def read(paths: Iterable[Path]) -> list[Found]:
    """The measurements of files, each with its ``name``; ``ValueError`` for what no bench wrote."""
    files = []
    for path in sorted(paths, key=lambda path: path.stem):
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is no JSON ({error}); expected a file of bench.py --json") from error
        if "ceilings" not in found or "date" not in found:
            raise ValueError(f"{path} has no ceilings or no date; expected a file of bench.py --json")
        files.append(found | {"name": path.stem})
    return files


def rows(found: Found) -> list[Found]:
    """What was measured: a row per preset and batch size, or one of the dense run, all with the same keys."""
    if "presets" in found:
        return [row | {"kv": row["bytes"]["kv_cache"]} for row in found["presets"]]
    transformer = found["flops"]["transformer"]
    return [
        {
            "preset": "off",
            "batch": found["batch"],
            "flops": transformer,
            "of_ceiling": found["of_ceiling"]["transformer"],
            "seconds": found["seconds"],
            "bytes": found["bytes"],
            "kv": found["bytes"]["kv_cache"],
        }
    ]


def with_dense(files: Iterable[Found]) -> list[Found]:
    """Those that begin with the dense run; the others have presets without anything beside them."""
    return [found for found in files if rows(found)[0]["preset"] == "off"]


def is_gpu(found: Found) -> bool:
    """Whether it ran on a GPU."""
    return "gpu" in found["hardware"]


# ------------------------------------------------------------------------------------------------- words


def seconds(value: float | None) -> str:
    """Three digits."""
    if value is None:
        return NONE
    return f"{value:.2f} s" if value < 10 else f"{value:.1f} s" if value < 100 else f"{value:.0f} s"


def size(value: float | None) -> str:
    """Bytes in GB, small ones in MB; a dash for None."""
    return NONE if value is None else f"{value / 1e9:.2f} GB" if value >= 1e8 else f"{value / 1e6:.1f} MB"


def times(value: float | None) -> str:
    """A ratio; a dash for None."""
    return NONE if value is None else f"{value:.2f}x"


def percent(value: float | None) -> str:
    """A share from 0 to 1 in percent; a dash for None."""
    return NONE if value is None else f"{value:.0%}"


def what(found: Found) -> str:
    """Model, size and number format."""
    width, height = found["size"]
    stored = "" if found["weights"] == found["dtype"] else f", {found['weights']} weights"
    return f"{found['model']}, {width} x {height}, {found['dtype']}{stored}"


def where(found: Found) -> str:
    """Hardware, date and file of a row."""
    machine = found["hardware"]
    name = machine.get("gpu") or f"{machine['processor']}, {machine['threads']} threads"
    return f"{name}, {found['date']}, `{found['name']}`"


def table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """Markdown; a sentence instead of a table without rows."""
    lines = ["| " + " | ".join(row) + " |" for row in body]
    if not lines:
        return "Not measured."
    return "\n".join(["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *lines])


# ------------------------------------------------------------------------------------------------ tables


def models(files: Sequence[Found]) -> str:
    """The dense run of every file, and a cold start where it was timed."""
    body = []
    for found in with_dense(files):
        row, place = rows(found)[0], where(found)
        spent, memory = row["seconds"], row["bytes"]
        times_of = [seconds(spent[phase]) for phase in ("transformer", "decode", "total")]
        name = what(found) + (f", batch {row['batch']}" if row["batch"] > 1 else "")
        share = percent(row["of_ceiling"])
        body.append([name, times_of[0], share, *times_of[1:], size(memory["peak"]), place])
        if "cold_seconds" in found:
            cold = ["the same, cold process to the first image", *[""] * 3, seconds(found["cold_seconds"])]
            body.append([*cold, "", place])
    head = ("model, `off`", "transformer", "of the ceiling", "decode", "total", "peak memory", "measured on")
    return table(head, body)


def presets(files: Sequence[Found]) -> str:
    """Every preset beside ``off``, one image at a time."""
    head = "model|preset|TFLOP|FLOPs|transformer|wall|of the ceiling|total|wall|KV cache|peak memory"
    body = []
    for found in with_dense(files):
        for row in found.get("presets", ()):
            if row["batch"] != found["batch"]:
                continue
            spent = row["seconds"]
            body.append(
                [
                    what(found),
                    f"`{row['preset']}`",
                    f"{row['flops'] / 1e12:.1f}",
                    times(row["flop_ratio"]),
                    seconds(spent["transformer"]),
                    times(row["wall_ratio"]),
                    percent(row["of_ceiling"]),
                    seconds(spent["total"]),
                    times(row["wall_ratio_total"]),
                    size(row["bytes"]["kv_cache"]),
                    size(row["bytes"]["peak"]),
                    f"{row['scales_skipped']:g}",
                    where(found),
                ]
            )
    return table([*head.split("|"), "scales skipped", "measured on"], body)


def batches(files: Sequence[Found]) -> str:
    """What several images at once cost."""
    head = ("model", "preset", "batch", "transformer", "total", "of one: transformer", "of one: total")
    body = [
        [
            what(found),
            f"`{row['preset']}`",
            str(row["batch"]),
            seconds(row["seconds"]["transformer"]),
            seconds(row["seconds"]["total"]),
            times(row["batch_ratio"]),
            times(row["batch_ratio_total"]),
            size(row["bytes"]["peak"]),
            where(found),
        ]
        for found in files
        for row in found.get("presets", ())
        if row["batch"] != found["batch"] and row["batch_ratio"] is not None
    ]
    return table([*head, "peak memory", "measured on"], body)


def memory(files: Sequence[Found]) -> str:
    """The peak by what it is for."""
    kinds = {
        "peak_text": "text before",
        "weights": "weights",
        "process": "process",
        "kv_cache": "KV cache",
        "activations": "activations",
        "activations_decode": "decode",
        "peak": "peak",
        "beyond_weights": "beyond weights",
        "resident": "resident",
    }
    body = []
    for found in files:
        for row in rows(found):
            parts = [size(row["bytes"].get(kind)) for kind in kinds]
            name = f"`{row['preset']}`" + (f", batch {row['batch']}" if row["batch"] > 1 else "")
            body.append([what(found), name, *parts, where(found)])
    return table(["model", "preset", *kinds.values(), "measured on"], body)


def scales(files: Sequence[Found]) -> str:
    """Time and work of every scale of the dense run; one table per file."""
    parts = []
    for found in with_dense(files):
        ceiling, body = found["ceilings"]["matmul_flops_per_s"], []
        for grid, spent, flops, attention in _scales(found):
            figures = [(flops - attention) / 1e12, attention / 1e12, flops / spent / 1e12]
            share = percent(flops / spent / ceiling)
            body.append([grid, f"{spent:.3f}", *(f"{figure:.3f}" for figure in figures), share])
        head = ("scale", "seconds", "matrix products, TFLOP", "attention, TFLOP", "TFLOP/s", "of the ceiling")
        parts.append(f"{what(found)}; {where(found)}:\n\n{table(head, body)}")
    return "\n\n".join(parts) or "Not measured."


def _scales(found: Found) -> list[tuple[str, float, float, float]]:
    """Grid, seconds, FLOPs and those of attention by scale."""
    if "presets" not in found:
        return [
            ("x".join(map(str, scale["grid"])), scale["seconds"], scale["flops"], scale["attention_flops"])
            for scale in found["scales"]
        ]
    traced = []
    for scale in found["presets"][0]["trace"]["scales"]:
        flops, grid = scale["flops"], "x".join(map(str, scale["scale"]["grid"]))
        attention = flops["attention"] + flops["text"]
        traced.append((grid, scale["milliseconds"] / 1e3, flops["total"], attention))
    return traced


def official(files: Sequence[Found]) -> str:
    """The official code and ``off`` of the same run."""
    body = []
    for found in files:
        if "official" not in found:
            continue
        theirs, ours = found["official"], rows(found)[0]
        plain = {**found, "weights": found["dtype"]}  # it knows no others
        for about, name, each in ((plain, "official", theirs), (found, "`off`", ours)):
            spent = each["seconds"]
            cells = [seconds(spent[phase]) for phase in ("transformer", "decode", "total")]
            share, peak = percent(each["of_ceiling"]), size(each["bytes"]["peak"])
            body.append([what(about), name, cells[0], share, *cells[1:], peak, where(found)])
        ratio = theirs["ratio"]
        cells = [times(ratio[phase]) for phase in ("transformer", "decode", "total")]
        smaller = theirs["bytes"]["peak"] and times(theirs["bytes"]["peak"] / ours["bytes"]["peak"])
        body.append([what(found), "ratio", cells[0], "", *cells[1:], smaller or NONE, where(found)])
    head = ("model", "code", "transformer", "of the ceiling", "decode", "total", "peak memory", "measured on")
    return table(head, body)


def gpu(files: Sequence[Found]) -> str:
    """What was measured on GPUs, and what was not."""
    body, left = [], list(WANTED_ON_GPU)
    for found in filter(is_gpu, files):
        for row in rows(found):
            key, wanted = (found["model"], row["preset"]), ([1024, 1024], "bfloat16", 1)
            if key in left and (found["size"], found["weights"], row["batch"]) == wanted:
                left.remove(key)
            spent = row["seconds"]
            cells = [seconds(spent["total"]), size(row["bytes"]["peak"]), where(found)]
            body.append([what(found), f"`{row['preset']}`", str(row["batch"]), *cells])
    body += [
        [f"{model}, 1024 x 1024, bfloat16", f"`{preset}`", "1", "not measured", "not measured", ""]
        for model, preset in left
    ]
    return table(("model", "preset", "batch", "prompt to image", "peak memory", "measured on"), body)


def runs(files: Sequence[Found]) -> str:
    """The command, code and ceilings of every file."""
    body = []
    for found in files:
        ceiling, machine = found["ceilings"], found["hardware"]
        body.append(
            [
                f"`{found['name']}`",
                found["date"],
                found.get("commit") or NONE,
                f"{machine.get('gpu') or machine['processor']}, {machine['threads']} threads",
                machine["torch"],
                f"{ceiling['matmul_flops_per_s'] / 1e12:.2f} TFLOP/s",
                f"{ceiling['copy_bytes_per_s'] / 1e9:.0f} GB/s",
                f"`{found['command']}`",
                found.get("note") or "",
            ]
        )
    head = ("file", "date", "commit", "hardware", "torch", "matrix product", "copy", "command", "note")
    return table(head, body)


TABLES: dict[str, Callable[[Sequence[Found]], str]] = {
    each.__name__: each for each in (models, presets, batches, memory, scales, official, gpu, runs)
}


def filled(text: str, files: Sequence[Found]) -> str:
    """A document with its tables made anew; ``ValueError`` for an unknown table or one without an end."""
    for name in re.findall(r"<!-- table (.+?) -->", text):
        begin, end = f"<!-- table {name} -->", f"<!-- end of table {name} -->"
        if name not in TABLES:
            raise ValueError(f"{begin}: there is no such table; expected one of {', '.join(TABLES)}")
        before, _, rest = text.partition(begin)
        if end not in rest:
            raise ValueError(f"{begin} has no {end} after it; put it back below the table")
        text = f"{before}{begin}\n\n{TABLES[name](files)}\n\n{end}{rest.partition(end)[2]}"
    return text


def main() -> int:
    """Write or check the documents."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", type=Path, nargs="*", help="default: docs/measurements/bench_*.json")
    parser.add_argument("--check", action="store_true", help="change nothing, say which documents differ")
    arguments = parser.parse_args()
    try:
        files = read(arguments.files or MEASUREMENTS.glob("bench_*.json"))
        stale = False
        for document in DOCUMENTS:
            text = document.read_text(encoding="utf-8")
            made = filled(text, files)
            if made == text:
                continue
            stale = True
            print(f"{document.relative_to(ROOT)} {'is out of date' if arguments.check else 'written'}")
            if not arguments.check:
                document.write_text(made, encoding="utf-8")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return int(stale and arguments.check)


if __name__ == "__main__":
    sys.exit(main())
