"""How different the layouts of one caption's pictures can get, and what it costs in right pictures.

    python -m scripts.diversity                      everything, 100 captions
    python -m scripts.diversity --prompts 10         a quick look

On the embedded model, with captions that training never saw, four pictures each. Layouts are settled early,
so most variants stop after the structure stage (5 of 7 scales, 8x8 tokens). Temperature and guidance of
single scales are the trivial ways to get other layouts: anything else has to lie beyond what they reach.
Results so far are kept in the JSON, the same command continues there. The table in docs/experiments.md is
replaced.
"""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from stagevar_core.devices import hardware
from stagevar_core.evaluation.diversity import SAME, Diversity, summarise

from ..experiments import replaced
from .lab import DRAFTS, SHOWN, Lab, apart, central, different, drawn, likeliest, picked, sampled, seeds_of
from .methods import Damped, NoisyText, SpatialGuidance

ROOT = Path(__file__).resolve().parents[2]
OFF, WARM = "off", "temperature 6 at the first 3 scales"
TRIVIAL = "trivial"
Results = dict[str, list[Diversity]]
Jobs = dict[str, Callable[[], Results]]


def trivial(lab: Lab) -> Jobs:
    """Temperature and guidance of the first scales."""
    temperatures, cfgs = (0.5, 1.0, 1.4, 2.5, 6.0, 12.0, 1e6), (3.0, 1.5, 1.0, 0.5, 0.0)
    variants = {OFF: lab.settings()}
    variants |= {
        f"temperature {t:g} at the first 3 scales": lab.settings(3, temperature=t) for t in temperatures
    }
    variants |= {f"cfg {w:g} at the first 3 scales": lab.settings(3, cfg=w) for w in cfgs}
    variants["temperature 6, cfg 0.5 at the first 3 scales"] = lab.settings(3, temperature=6.0, cfg=0.5)
    return {name: lambda name=name, s=s: {name: sampled(lab, s)} for name, s in variants.items()}


def papers(lab: Lab) -> Jobs:
    """What the papers do."""
    own, warm = lab.settings(), lab.settings(3, temperature=6.0)
    ways: dict[str, tuple] = {
        "spatial guidance .3": (own, lambda inner: SpatialGuidance(inner, 0.3)),
        f"spatial guidance .3, {WARM}": (warm, lambda inner: SpatialGuidance(inner, 0.3)),
        f"spatial guidance 1, {WARM}": (warm, lambda inner: SpatialGuidance(inner, 1.0)),
        "input damped .5 at 4x4 and 6x6": (own, lambda inner: Damped(inner, {2, 3}, 0.5)),
        "blocks damped and boosted .5 there": (own, lambda inner: Damped(inner, {2, 3}, 0.5, 0.5)),
        "text noise .2 at the first 3 scales": (own, lambda inner: NoisyText(inner, 0.2, 3)),
        "text noise .4 there, then back to 4x4": (own, lambda inner: NoisyText(inner, 0.4, 3), 2),
    }
    return {name: lambda name=name, way=way: {name: sampled(lab, *way)} for name, way in ways.items()}


def drafted(lab: Lab) -> Jobs:
    """Four of sixteen drafts, at two temperatures."""
    jobs: Jobs = {}
    for name, settings in ((OFF, lab.settings()), (WARM, lab.settings(3, temperature=6.0))):
        plain, best = f"{name}, the first 4 drafts", f"{name}, most different of {DRAFTS}"
        ways = {
            plain: seeds_of,
            f"{name}, most different of 8": different(8),
            best: different(DRAFTS),
            f"{name}, farthest latents of {DRAFTS}": apart,
            f"{name}, middles of clusters of {DRAFTS}": central,
            f"{name}, likeliest of {DRAFTS}": likeliest,
        }
        finished = (plain, best) if name == WARM else ()
        jobs[plain] = lambda s=settings, w=ways, f=finished: picked(lab, s, w, f)
    return jobs


def cells(row: dict[str, Any], best: float | None) -> str:
    """A row of the table."""

    def cell(name: str, digits: int) -> str:
        value = row[name]
        if value is None:
            return ""
        return f"{value['mean']:.{digits}f} ± {(value['high'] - value['low']) / 2:.{digits}f}"

    columns = [cell("strict", 3), cell("spread", 2), cell("backgrounds", 2), cell("distinct", 2)]
    return " | ".join([*columns, "" if best is None else f"{best:.2f}"])


def table(values: dict[str, Any]) -> str:
    """What goes between the markers; the last column is what the trivial ways reach with as many right."""
    rows, machine = values["variants"], values["hardware"]
    known = [row for row in rows.values() if row["kind"] == TRIVIAL]
    lines = [
        f"| variant | strict | spread, px | other backgrounds | distinct of {SHOWN} | trivially |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in rows.items():
        reached = [one["distinct"]["mean"] for one in known if one["strict"]["high"] >= row["strict"]["mean"]]
        best = max(reached, default=None) if row["kind"] not in (TRIVIAL, "scenes") else None
        lines.append(f"| {name} | {cells(row, best)} |")
    said = (
        f"{values['prompts']} captions (drafts: half of them), {SHOWN} pictures each, after 8x8 of "
        f"16x16 tokens where not finished, float32, {machine['processor']}, PyTorch {machine['torch']}; 95% "
        "intervals. *Spread*: mean distance of the same object in two right pictures, of x, y and radius. "
        "*Other backgrounds*: share of pairs, where the caption names none. *Distinct*: layouts among the "
        f"right pictures, more than {SAME:g} px apart or on another background. *Trivially*: the most "
        "distinct layouts of a row of temperature or guidance alone whose interval reaches this strict "
        "score. "
        f"Made by `{values['command']}`."
    )
    return "\n".join(lines) + "\n\n" + said


def main() -> int:
    """Measure what is missing, write the figures and the table of the documentation."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--threads", type=int)
    folder = ROOT / "docs"
    parser.add_argument(
        "--json", type=Path, default=folder / "measurements" / "experiments" / "g_diversity.json"
    )
    parser.add_argument("--doc", type=Path, default=folder / "experiments.md")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    lab = Lab(arguments.prompts)
    values: dict[str, Any] = {
        "experiment": "Other layouts",
        "command": shlex.join(["python", "-m", "scripts.diversity", *sys.argv[1:]]),
        "prompts": arguments.prompts,
        "hardware": hardware(lab.pipeline.device),
        "variants": {},
    }
    if arguments.json.is_file():
        earlier = json.loads(arguments.json.read_text(encoding="utf-8"))
        if earlier["prompts"] == arguments.prompts:
            values["variants"] = earlier["variants"]
    scenes = {"scenes as drawn": lambda: {"scenes as drawn": drawn(lab)}}
    kinds = {"scenes": scenes, TRIVIAL: trivial(lab), "papers": papers(lab), "drafts": drafted(lab)}
    for kind, jobs in kinds.items():
        for name, measure in jobs.items():
            if name in values["variants"]:
                continue
            started = time.perf_counter()
            for variant, found in measure().items():
                row = {"kind": TRIVIAL if "the first 4" in variant else kind, **summarise(found)}
                values["variants"][variant] = row
                print(
                    f"{variant}: {cells(row, None)}, {time.perf_counter() - started:.0f} s", file=sys.stderr
                )
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
            arguments.json.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    if arguments.doc.is_file():
        doc = replaced(arguments.doc.read_text(encoding="utf-8"), "g", table(values))
        arguments.doc.write_text(doc, encoding="utf-8")
    print(table(values))
    return 0


if __name__ == "__main__":
    sys.exit(main())
