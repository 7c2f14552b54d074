"""What the soak tries: graphs that fit together, the same for a seed; and how it judges how they end."""

import random

import pytest
from soaking.graphs import BETWEEN, Graphs, applied, is_link, reaches
from soaking.trials import judged
from testbed.comfy_server import PACK_NAME, PromptFailed

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
