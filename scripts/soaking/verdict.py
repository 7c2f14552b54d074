"""What a soak must reach, and whether it did: every count beside its bar."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from statistics import median

from .trials import HANG, Tally

SETTLED = 10  # queued runs after which memory must stay
SPREAD = 0.01
KINDS = ("graphs", "interrupts", "runs", "files")
NONE_OF = {
    "crashes": "died",
    f"hangs over {HANG:.0f} s": "hangs",
    "executed pickles": "executed",
    "foreign exceptions": "foreign",
    "wrong images": "image",
}


def grown(memory: Sequence[float]) -> float | None:
    """How much memory grew after the tenth run, as a share; None where too few runs say so.

    ``memory``: after every run. One reading moves with what the allocator keeps at hand, so that medians of
    as many runs as it takes to settle are compared, the first ones after that with the last ones.
    """
    after = list(memory[SETTLED - 1 :])
    if len(after) < 2 * SETTLED or not all(after):
        return None
    return median(after[-SETTLED:]) / median(after[:SETTLED]) - 1


def missing(options: argparse.Namespace, tally: Tally) -> list[str]:
    """What was not tried as often as it was to be."""
    return [
        f"{tally.counts[kind]} of {wanted} {kind}"
        for kind in KINDS
        if tally.counts[kind] < (wanted := getattr(options, kind))
    ]


def judge_memory(memory: Sequence[float], tally: Tally) -> None:
    """A fault where memory moved by more than :data:`SPREAD`."""
    share = grown(memory)
    if share is not None and abs(share) > SPREAD:
        about = f"{share:+.2%} from {memory[SETTLED - 1]:.0f} MiB; expected at most {SPREAD:.0%}"
        tally.faults.append({"fault": "memory moves", "about": about})


def verdict(options: argparse.Namespace, tally: Tally, memory: Sequence[float]) -> str:
    """All counts and bars in a few lines; the last one says whether they are held."""
    share = grown(memory)
    tried = [f"{tally.counts[kind]} of {getattr(options, kind)} {kind}" for kind in KINDS]
    moved = "not measured" if share is None else f"{share:+.2%}"
    lines = [
        f"tried: {', '.join(tried)}",
        f"memory after run {SETTLED}: {moved} (at most {SPREAD:.0%})",
        f"reference picture: compared {tally.counts['references']} times",
    ]
    named = [str(fault["fault"]) for fault in tally.faults]
    for what, word in NONE_OF.items():
        lines.append(f"{what}: {sum(word in name for name in named)} (at most 0)")
    short = missing(options, tally)
    ended = [
        *([f"{len(named)} faults"] if named else []),
        *([f"too few: {', '.join(short)}"] if short else []),
    ]
    return "\n".join([*lines, "; ".join(ended) or "no fault, nothing left out"])


def held(options: argparse.Namespace, tally: Tally) -> bool:
    """Whether nothing went wrong and nothing was left out."""
    return not tally.faults and not missing(options, tally)


def as_json(options: argparse.Namespace, tally: Tally, memory: Mapping[str, object]) -> dict[str, object]:
    """The verdict for scripts."""
    return {
        "seed": options.seed,
        "held": held(options, tally),
        "tried": dict(tally.counts),
        "wanted": {kind: getattr(options, kind) for kind in KINDS},
        "memory_mib": memory,
        "faults": tally.faults,
    }
