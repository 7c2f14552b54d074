"""What the soak tries: graphs that fit together, the same for a seed; and how it judges how they end."""

import ast
import random
import subprocess
import sys
from argparse import Namespace
from collections import Counter

import pytest
from soak import files_ended
from soaking.graphs import BETWEEN, Graphs, applied, is_link, reaches
from soaking.trials import OWN_ERRORS, Tally, judged
from soaking.verdict import grown, held, judge_memory, verdict
from testbed.comfy_server import PACK_NAME, PromptFailed
from testbed.environment import ROOT

INFO = {
    "StageVARSampler": {
        "input": {
            "required": {"model": ["MODEL"], "seed": ["INT", {"min": 0, "max": 9, "default": 3}]},
            "optional": {"latent": ["LATENT"], "batch_size": ["INT", {"min": 1, "max": 64}]},
        },
        "output": ["LATENT"],
    },
    "LatentFlip": {
        "input": {"required": {"samples": ["LATENT"], "method": [["x", "y"]]}},
        "output": ["LATENT"],
    },
    "Load": {"input": {"required": {"name": [["a", "b"]]}}, "output": ["MODEL"]},
}
TEMPLATE = {
    "1": {"class_type": "Load", "inputs": {"name": "a"}},
    "2": {"class_type": "StageVARSampler", "inputs": {"model": ["1", 0], "seed": 3, "batch_size": 2}},
    "3": {"class_type": "LatentFlip", "inputs": {"samples": ["2", 0], "method": "x"}},
}


def cases(seed: int, count: int = 200) -> list[tuple]:
    graphs = Graphs(INFO, {"t": TEMPLATE}, seed)
    return [graphs.case() for _ in range(count)]


def test_a_seed_tries_the_same_graphs() -> None:
    assert cases(1) == cases(1) != cases(2)


def test_graphs_have_no_circle_and_no_link_into_nothing() -> None:
    kinds = set()
    for _, edits in cases(3):
        kinds |= {edit.kind for edit in edits}
        graph = applied(TEMPLATE, edits, INFO)
        for node, entry in graph.items():
            links = [value for value in entry["inputs"].values() if is_link(value)]
            assert all(source in graph and not reaches(graph, source, node) for source, _ in links), edits
            assert entry["inputs"].get("batch_size", 1) <= 65
    assert kinds == {"value", "relink", "cut", "insert"} and "LatentFlip" in BETWEEN["LATENT"]


def test_fewer_edits_make_a_graph_as_well() -> None:
    """A node that an edit left out would have added is not linked to."""
    rng = random.Random(0)
    for _, edits in cases(4):
        graph = applied(TEMPLATE, rng.sample(edits, len(edits) // 2), INFO)
        links = (value for entry in graph.values() for value in entry["inputs"].values() if is_link(value))
        assert all(source in graph for source, _ in links)


OURS, CORE = (f'  File "/x/{name}/a.py", line 1\n' for name in (f"custom_nodes/{PACK_NAME}", "comfy"))


@pytest.mark.parametrize(
    ("node", "kind", "last", "message", "ended"),
    [
        ("StageVARSampler", "ValueError", OURS, "cfg is -1; expected 0 to 30", "error"),
        ("VAEDecode", "ValueError", OURS, "samples: expected a latent", "error"),
        ("StageVARSampler", "KeyError", OURS, "'x'", "fault: foreign exception"),
        ("StageVARSampler", "RuntimeError", CORE, "shapes do not match", "fault: foreign exception"),
        ("LatentBlend", "RuntimeError", CORE, "shapes do not match", "core"),
        ("StageVARSampler", "ValueError", OURS, "", "fault: message"),
    ],
)
def test_an_error_is_judged_by_who_raised_it(
    node: str, kind: str, last: str, message: str, ended: str
) -> None:
    said = {
        "node_type": node,
        "exception_type": kind,
        "exception_message": message,
        "traceback": [CORE, last],
    }
    assert judged(PromptFailed([("execution_error", said)]))[0] == ended
    assert judged(PromptFailed([("execution_interrupted", {})]))[0] == "interrupted"


# ------------------------------------------------------------------------------------------------ verdicts
WANTED = Namespace(graphs=3, interrupts=2, runs=40, files=5, seed=0)


def tried(**counts: int) -> Tally:
    return Tally(Counter({"graphs": 3, "interrupts": 2, "runs": 40, "files": 5, "references": 1} | counts))


def test_a_verdict_has_every_count_beside_its_bar() -> None:
    steady = [900.0] * 9 + [1000.0, 1004.0] * 20
    text = verdict(WANTED, tried(), steady)
    for part in ("3 of 3 graphs", "2 of 2 interrupts", "40 of 40 runs", "5 of 5 files", "(at most 1%)"):
        assert part in text
    assert text.endswith("no fault, nothing left out") and held(WANTED, tried())


@pytest.mark.parametrize("kind", ["graphs", "interrupts", "runs", "files"])
def test_what_was_left_out_is_a_failure(kind: str) -> None:
    few = tried(**{kind: 1})
    assert not held(WANTED, few) and f"too few: 1 of {getattr(WANTED, kind)} {kind}" in verdict(
        WANTED, few, []
    )


def test_memory_is_judged_by_medians_after_the_tenth_run() -> None:
    tally = tried()
    peak = [500.0] * 9 + [1000.0] * 15 + [1300.0] + [1000.0] * 20
    judge_memory(peak, tally)
    judge_memory(peak[:15], tally)  # too few to say
    assert grown(peak) == 0 and grown(peak[:15]) is None and not tally.faults
    for end in (1011.0, 989.0):
        tally = tried()
        judge_memory([1000.0] * 30 + [end] * 10, tally)
        assert not held(WANTED, tally) and "memory moves" in tally.faults[0]["fault"]


@pytest.mark.parametrize("fault", ["fault: the server died", "fault: hangs", "wrong image of the reference"])
def test_faults_are_counted_by_what_they_are(fault: str) -> None:
    tally = tried()
    tally.faults.append({"fault": fault, "about": ""})
    text = verdict(WANTED, tally, [])
    assert text.count(": 1 (at most 0)") == 1 and text.endswith("1 faults") and not held(WANTED, tally)


GENERATED = "  - during generate phase (1 s):\n    - "
SHRUNK = "\n  - during shrink phase (1 s):\n    - 9 passing examples\nAssertionError: code of a file ran"


def test_the_files_that_a_test_tried_are_counted() -> None:
    """What it says itself, not what it was asked for; a file that ran code is named as that."""
    for said, code, files, fault in (
        (f"{GENERATED}1990 passing examples, 0 failing", 0, 1990, None),
        (f"{GENERATED}3 passing examples{SHRUNK}", 1, 3, "executed a pickle"),
    ):
        tally = Tally()
        command = [sys.executable, "-c", f"import sys; print({said!r}); sys.exit({code})"]
        files_ended(subprocess.Popen(command, stdout=subprocess.PIPE, text=True), tally)
        assert tally.counts["files"] == files
        assert [each["fault"] for each in tally.faults] == ([fault] if fault else [])


def test_every_error_of_ours_counts_as_ours() -> None:
    ours = set()
    for folder in ("nodes", "stagevar_core"):
        for path in (ROOT / folder).rglob("*.py"):
            for found in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(found, ast.ClassDef) and found.name.endswith("Error"):
                    ours.add(found.name)
    assert ours and ours <= set(OWN_ERRORS)
