"""Writes what both embedded models say of the presets into README.md and docs/artwork-model.md.

    python scripts/side_by_side.py

reads docs/measurements: compare.json (scenes; `python -m stagevar_core compare`), compare_artwork.json
(the artwork model; `python -m scripts.train_artwork.measure`) and experiments/h_late.json (the scenes model
without its last scales; `python scripts/experiments.py --only h`). Tables stand between comments; the text
around them stays.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from stagevar_core.evaluation.intervals import difference  # noqa: E402
from stagevar_core.evaluation.report import unpacked  # noqa: E402
from stagevar_core.evaluation.tables import overview  # noqa: E402

MEASUREMENTS = ROOT / "docs" / "measurements"
README, ARTWORK = ROOT / "README.md", ROOT / "docs" / "artwork-model.md"
OURS = ("quality", "balanced", "fast", "turbo", "auto")
PUBLISHED = ("paper", "paper-released", "fastvar", "skipvar", "sparsevar", "faster-hart")
SHORTER = ("without the last 1", "without the last 2", "without the last 3")
EQUAL = 0.97  # of the FLOP ratio: methods that save as much, or nearly
Values = dict[str, Any]


def read(folder: Path = MEASUREMENTS) -> tuple[Values, Values]:
    """The variants of both models by name; rows without the last scales are called alike."""
    scenes, artwork, late = (
        json.loads((folder / name).read_text(encoding="utf-8"))
        for name in ("compare.json", "compare_artwork.json", "experiments/h_late.json")
    )
    shorter = {name: late["variants"][name] for name in SHORTER if name in late["variants"]}
    return {**scenes["variants"], **shorter}, artwork["variants"]


def mean(row: Values | None, measure: str, digits: int) -> str:
    """A cell: a mean of all pictures."""
    value = None if row is None else row.get(measure)
    value = value.get("all") if value and "all" in value else value
    return "" if value is None else f"{value['mean']:.{digits}f}"


def presets(scenes: Values, artwork: Values) -> str:
    """Costs and quality on both, a row for each preset and each number of scales that did not run."""
    header = ["", "scenes: FLOPs", "strict", "texture", "PSNR"]
    header += ["artwork: FLOPs", "top-1", "PSNR", "edges"]
    rows = []
    for name in ("off", *OURS, *PUBLISHED, *SHORTER):
        one, other = scenes.get(name), artwork.get(name)
        if one is None and other is None:
            continue
        dense = name == "off"
        rows.append(
            [
                f"`{name}`" if name not in SHORTER else name,
                "" if one is None else f"{one['flop_ratio']:.2f}x",
                *(mean(one, measure, 3) for measure in ("strict", "texture")),
                "" if dense else mean(one, "psnr", 1),
                "" if other is None else f"{other['flop_ratio']:.2f}x",
                mean(other, "top1", 3),
                "" if dense else mean(other, "psnr", 1),
                mean(other, "edges", 2),
            ]
        )
    return table(header, rows)


def rivals(scenes: Values, artwork: Values) -> str:
    """Ours against the published method that saves as much and comes nearest to `off`, on both models."""
    header = [
        "",
        "scenes: nearest rival",
        "PSNR",
        "strict",
        "texture",
        "artwork: nearest rival",
        "PSNR",
        "top-1",
    ]
    rows = []
    for name in OURS:
        cells = [f"`{name}`"]
        for variants, measures in ((scenes, ("psnr", "strict", "texture")), (artwork, ("psnr", "top1"))):
            rival = nearest(variants, name)
            if rival is None:
                cells += ["none saves as much", *[""] * len(measures)]
                continue
            cells.append(f"`{rival}` {variants[rival]['flop_ratio']:.2f}x")
            cells += [against(variants, name, rival, measure) for measure in measures]
        rows.append(cells)
    return table(header, rows)


def nearest(variants: Values, name: str) -> str | None:
    """The published method with the highest PSNR among those that save as much as ``name``."""
    if name not in variants:
        return None
    least = EQUAL * variants[name]["flop_ratio"]
    found = [other for other in PUBLISHED if other in variants and variants[other]["flop_ratio"] >= least]
    return max(found, key=lambda other: variants[other]["psnr"]["mean"], default=None)


def against(variants: Values, name: str, rival: str, measure: str) -> str:
    """``name`` minus ``rival``, paired by picture, with its 95% interval."""
    own, other = (unpacked(variants[each]["pictures"][measure]) for each in (name, rival))
    found = difference(own.astype(np.float64), other.astype(np.float64), share=measure != "psnr")
    if found is None:
        return ""
    digits = 1 if measure == "psnr" else 3
    low, middle, high = (f"{round(x, digits) + 0.0:+.{digits}f}" for x in (found.low, found.mean, found.high))
    return f"{middle} [{low}, {high}]"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def pictures(values: Values) -> str:
    """What was measured and how, in a sentence."""
    machine = values["hardware"]
    return (
        f"{len(values['captions'])} pictures of each variant from seed {values['seed']}, {values['dtype']}, "
        f"{machine['processor']}, {machine['threads']} threads, PyTorch {machine['torch']}; "
        f"`{values['command']}`."
    )


def placed(text: str, name: str, content: str) -> str:
    """A document with what stands between its comments replaced; ``ValueError`` where they are missing."""
    begin, end = f"<!-- figures: {name} -->", f"<!-- end of figures: {name} -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"there is no {begin} with {end} after it; put both where the table belongs")
    return f"{before}{begin}\n\n{content}\n\n{end}{after}"


def written(folder: Path = MEASUREMENTS) -> dict[Path, str]:
    """The documents as they should be."""
    scenes, artwork = read(folder)
    whole = json.loads((folder / "compare_artwork.json").read_text(encoding="utf-8"))
    readme = placed(README.read_text(encoding="utf-8"), "both models", presets(scenes, artwork))
    readme = placed(readme, "rivals", rivals(scenes, artwork))
    about = f"{overview(whole)}\n\n{pictures(whole)}"
    return {README: readme, ARTWORK: placed(ARTWORK.read_text(encoding="utf-8"), "artwork", about)}


def main() -> int:
    """The command."""
    try:
        documents = written()
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path, text in documents.items():
        path.write_text(text, encoding="utf-8")
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
