"""Hours of a public server in minutes: random graphs, interrupts and queues, and files with faults.

    python3 scripts/soak.py --minutes 20

Sets up what the tests need, once. Prints what was tried and a verdict; every fault comes with the smallest
graph that shows it. The same seed tries the same graphs. Exit code 1: there are faults.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from soaking.graphs import Graphs  # noqa: E402
from soaking.trials import HANG, Tally, check, fingerprint, try_graph, try_interrupt  # noqa: E402
from testbed.comfy_server import ComfyServer, Json, read_json  # noqa: E402
from testbed.environment import ROOT  # noqa: E402

REFERENCE = "02_faster_no_download"
SETTLED = 10  # queued runs after which memory must stay
SPREAD = 0.01
SLOWER = 8  # than the reference may a graph be, where the machine is busy


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=20.0, help="after which no more is begun")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--graphs", type=int, default=300)
    parser.add_argument("--interrupts", type=int, default=200)
    parser.add_argument("--runs", type=int, default=100, help="queued runs in a row, whose memory is watched")
    parser.add_argument("--files", type=int, default=2000, help="checkpoint files with faults; 0: none")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the verdict")
    return parser.parse_args()


def bed() -> tuple[Path, Path]:
    """Python and a ComfyUI tree: those of the variables that the tests know, else what the setup makes."""
    given = [os.environ.get(name) for name in ("STAGEVAR_PYTHON", "STAGEVAR_TESTBED")]
    if all(given):
        return Path(str(given[0])), Path(str(given[1]))
    from testbed.bootstrap import bootstrap

    place = bootstrap(tests=True)
    return place.python, place.comfy_path


def templates() -> dict[str, Json]:
    """The shipped workflows that need no download, in API format, with few pictures each."""
    found = {}
    for path in sorted((ROOT / "workflows" / "api").glob("*_no_download.json")):
        graph = read_json(path)
        for node in graph.values():
            for name in ("batch_size", "amount"):
                if isinstance(node["inputs"].get(name), int):
                    node["inputs"][name] = min(node["inputs"][name], 3)
        found[path.stem] = graph
    return found


def with_seed(graph: Json, seed: int) -> Json:
    """A graph with another seed, so that nothing of it is cached."""
    made = copy.deepcopy(graph)
    for node in made.values():
        if "seed" in node["inputs"] and isinstance(node["inputs"]["seed"], int):
            node["inputs"]["seed"] = seed
    return made


def files(count: int, tally: Tally) -> None:
    """Files with faults, each loaded or refused in our own words; by the test that CI runs on fewer."""
    if not count:
        return
    environment = os.environ | {"STAGEVAR_FUZZ_FILES": str(count), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "tests/checkpoints/test_fuzzing.py"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    tally.counts["files: tried"] += count
    check(tally, done.returncode == 0, "a file with a fault", done.stdout[-3000:])


def soak(server: ComfyServer, options: argparse.Namespace, tally: Tally) -> dict[str, float]:
    """Graphs, interrupts and queued runs in turn until all are done or the time is over; memory in MiB."""
    until = time.monotonic() + options.minutes * 60
    rng, shipped = random.Random(options.seed), templates()
    graphs = Graphs(server.object_info(), shipped, options.seed)
    reference = with_seed(shipped[REFERENCE], 1)
    before, _ = fingerprint(server, reference, 300)
    usual = fingerprint(server, with_seed(reference, 2), 300)[1]
    patience = max(HANG, SLOWER * usual)
    memory = {"start": server.memory_mib()}
    left = {"graphs": options.graphs, "interrupts": options.interrupts, "runs": options.runs}
    while any(left.values()) and time.monotonic() < until:
        kind = rng.choices(list(left), list(left.values()))[0]
        if kind == "runs":  # at once, so that memory is that of the same work again and again
            left["runs"] = queue_runs(server, reference, left["runs"], until, tally, memory)
            continue
        left[kind] -= 1
        if kind == "graphs":
            try_graph(server, graphs, tally, patience)
        else:
            graph = with_seed(reference, rng.randrange(2**32))
            try_interrupt(server, graph, rng, tally, usual, patience)
        if any(fault["fault"].endswith("died") for fault in tally.faults):
            return memory
    server.request("/free", {"unload_models": True, "free_memory": True})
    time.sleep(2)
    after, _ = fingerprint(server, with_seed(reference, 1), 300)
    check(tally, after == before, "the reference changed", f"{before[:16]} before, {after[:16]} after")
    memory["end"] = server.memory_mib()
    for kind, count in left.items():
        if count:
            tally.counts[f"{kind}: not tried, the time was over"] += count
    return memory


def queue_runs(
    server: ComfyServer, graph: Json, count: int, until: float, tally: Tally, memory: dict[str, float]
) -> int:
    """Runs in a row with new seeds; returns how many the time did not allow."""
    for index in range(count):
        if time.monotonic() > until:
            return count - index
        fingerprint(server, with_seed(graph, 1000 + index), 300)
        tally.counts["runs: done"] += 1
        if index + 1 == SETTLED:
            memory["run 10"] = server.memory_mib()
    if count > SETTLED:
        memory[f"run {count}"] = last = server.memory_mib()
        first = memory["run 10"]
        about = f"{first:.0f} MiB after run 10, {last:.0f} MiB after run {count}"
        check(tally, not first or abs(last / first - 1) <= SPREAD, "memory grows", about)
    return 0


def main() -> int:
    """The command; returns the exit status."""
    options, tally, started = arguments(), Tally(), time.monotonic()
    with ComfyServer(*bed()) as server:
        memory = soak(server, options, tally)
    files(options.files, tally)
    for name, count in sorted(tally.counts.items()):
        print(f"{name}: {count}")
    print("memory: " + ", ".join(f"{name} {value:.0f} MiB" for name, value in memory.items()))
    for fault in tally.faults:
        print(json.dumps(fault, indent=1, ensure_ascii=False))
    minutes = (time.monotonic() - started) / 60
    verdict = f"{len(tally.faults)} faults" if tally.faults else "no fault"
    print(f"{verdict} in {minutes:.1f} minutes, seed {options.seed}")
    if options.json is not None:
        result = {
            "seed": options.seed,
            "minutes": round(minutes, 1),
            "tried": dict(tally.counts),
            "memory_mib": memory,
        }
        options.json.write_text(
            json.dumps(result | {"faults": tally.faults}, indent=1) + "\n", encoding="utf-8"
        )
    return 1 if tally.faults else 0


if __name__ == "__main__":
    sys.exit(main())
