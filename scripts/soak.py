"""Hours of a public server in minutes: random graphs, interrupts and queues, and files with faults.

    python3 scripts/soak.py --minutes 20

Sets up what the tests need, once. Prints what was tried and a verdict with every count beside its bar; every
fault comes with the smallest graph that shows it. The same seed tries the same graphs. Exit code 1: there are
faults, or the time was over before all was tried.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from soaking.graphs import Graphs  # noqa: E402
from soaking.trials import HANG, Tally, check, fingerprint, try_graph, try_interrupt  # noqa: E402
from soaking.verdict import as_json, held, judge_memory, verdict  # noqa: E402
from testbed.comfy_server import ComfyServer, Json, ServerError, read_json  # noqa: E402
from testbed.environment import ROOT  # noqa: E402

REFERENCE = "02_faster_no_download"
SLOWER = 8  # than the reference may a graph be, where the machine is busy
BETWEEN_REFERENCES = 30  # graphs
FUZZING = "tests/checkpoints/test_fuzzing.py"


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


def files_begun(count: int) -> subprocess.Popen[str] | None:
    """Files with faults beside the server, by the test that CI runs on fewer."""
    if not count:
        return None
    environment = os.environ | {"STAGEVAR_FUZZ_FILES": str(count), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "--hypothesis-show-statistics", FUZZING]
    output = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output, text=True)


def files_ended(begun: subprocess.Popen[str] | None, tally: Tally) -> None:
    """Each was loaded or refused in our own words; counted is what was tried, by the test's own words."""
    if begun is None:
        return
    said, _ = begun.communicate()
    tally.counts["files"] += sum(map(int, re.findall(r"(\d+) passing examples", said)))
    kind = "executed a pickle" if "code of a file ran" in said else "a file with a fault"
    check(tally, begun.returncode == 0, kind, said[-3000:])


class Soak:
    """One server, and what it is asked for until all is done or the time is over."""

    def __init__(self, server: ComfyServer, options: argparse.Namespace, tally: Tally) -> None:
        self.server, self.options, self.tally = server, options, tally
        self.until = time.monotonic() + options.minutes * 60
        self.rng, shipped = random.Random(options.seed), templates()
        self.graphs = Graphs(server.object_info(), shipped, options.seed)
        self.reference = with_seed(shipped[REFERENCE], 1)
        self.before, _ = fingerprint(server, self.reference, 300)
        self.usual = fingerprint(server, with_seed(self.reference, 2), 300)[1]
        self.patience = max(HANG, SLOWER * self.usual)
        self.memory: list[float] = []  # MiB after every queued run

    def __call__(self) -> None:
        """Everything; what the reference itself or the server cannot do any more is a fault, too."""
        try:
            self.queue()
            self.mix()
        except (ServerError, OSError) as error:
            dead = self.server.process is None or self.server.process.poll() is not None
            fault = "the server died" if dead else "a run of the reference hangs or fails"
            self.tally.faults.append({"fault": fault, "about": str(error)[-1500:]})

    def mix(self) -> None:
        """Graphs and interrupts in any order, the reference in between."""
        wanted = {"graphs": self.options.graphs, "interrupts": self.options.interrupts}
        while self.on_time() and not self.died():
            left = {kind: count - self.tally.counts[kind] for kind, count in wanted.items()}
            open_ones = {kind: count for kind, count in left.items() if count > 0}
            if not open_ones:
                break
            if self.rng.choices(list(open_ones), list(open_ones.values()))[0] == "graphs":
                try_graph(self.server, self.graphs, self.tally, self.patience)
                if self.tally.counts["graphs"] % BETWEEN_REFERENCES == 0:
                    self.compare()
            else:
                graph = with_seed(self.reference, self.rng.randrange(2**32))
                try_interrupt(self.server, graph, self.rng, self.tally, self.usual, self.patience)
        if not self.died():
            self.server.request("/free", {"unload_models": True, "free_memory": True})
            time.sleep(2)
            self.compare()

    def queue(self) -> None:
        """Runs in a row with new seeds, on a fresh server, so that memory is that of the same work."""
        for index in range(self.options.runs):
            if not self.on_time():
                break
            fingerprint(self.server, with_seed(self.reference, 1000 + index), 300)
            self.memory.append(self.server.memory_mib())
            self.tally.counts["runs"] += 1
        judge_memory(self.memory, self.tally)

    def compare(self) -> None:
        """The first picture once more, bit by bit."""
        after, _ = fingerprint(self.server, self.reference, 300)
        about = f"{self.before[:16]} before, {after[:16]} after {self.tally.counts['graphs']} graphs"
        check(self.tally, after == self.before, "wrong image of the reference", about)
        self.tally.counts["references"] += 1

    def on_time(self) -> bool:
        """Whether something may still begin."""
        return time.monotonic() < self.until

    def died(self) -> bool:
        """Whether there is a server left to ask."""
        return any("died" in fault["fault"] for fault in self.tally.faults)


def main() -> int:
    """The command; returns the exit status."""
    options, tally, started = arguments(), Tally(), time.monotonic()
    begun = files_begun(options.files)
    try:
        with ComfyServer(*bed()) as server:
            memory = {"start": server.memory_mib()}
            soak = Soak(server, options, tally)
            soak()
            memory["end"] = server.memory_mib()
        files_ended(begun, tally)
    finally:
        if begun is not None and begun.poll() is None:
            begun.kill()
    for name, count in sorted(tally.counts.items()):
        print(f"{name}: {count}")
    print("memory: " + ", ".join(f"{name} {value:.0f} MiB" for name, value in memory.items()))
    for fault in tally.faults:
        print(json.dumps(fault, indent=1, ensure_ascii=False))
    minutes = (time.monotonic() - started) / 60
    print(f"{minutes:.1f} minutes, seed {options.seed}")
    print(verdict(options, tally, soak.memory))
    if options.json is not None:
        result = as_json(options, tally, {**memory, "runs": soak.memory}) | {"minutes": round(minutes, 1)}
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0 if held(options, tally) else 1


if __name__ == "__main__":
    sys.exit(main())
