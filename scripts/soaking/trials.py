"""One graph against the server: how it ended, and whether that is how it should end."""

from __future__ import annotations

import hashlib
import io
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image
from testbed.comfy_server import PACK_NAME, ComfyServer, Json, PromptFailed, PromptRejected, ServerError

from .graphs import OURS, Edit, Graphs, applied

HANG = 20.0  # seconds
# Ours, and those that we raise of Python's.
OWN_ERRORS = ("ValueError", "RuntimeError", "CheckpointError", "NeedsCodeError", "NoTextEncoderError")
LONGEST = 1500  # characters of a message


@dataclass
class Tally:
    """What was tried and how it ended; ``faults``: each with the smallest graph that shows it."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[Json] = field(default_factory=list)


def run(server: ComfyServer, graph: Json, seconds: float) -> tuple[str, str]:
    """How a graph ends: 'done', 'refused', 'error' (one of ours), 'core' (of a core node), or a fault's name.

    The second value says more.
    """
    try:
        prompt_id = server.queue(graph)
    except PromptRejected as error:
        text = str(error)
        return (
            ("refused", text)
            if text.strip()
            else ("fault: refused without a word", repr(error.details)[:500])
        )
    except ServerError as error:
        return "fault: no answer", str(error)[:500]
    started = time.monotonic()
    try:
        entry = server.wait(prompt_id, timeout=seconds)
    except PromptFailed as error:
        return judged(error)
    except ServerError as error:
        if server.process is None or server.process.poll() is not None:
            return "fault: the server died", str(error)[-1500:]
        server.interrupt()
        return "fault: hangs", f"{time.monotonic() - started:.0f} s"
    for image in server.images(entry):
        try:
            with Image.open(io.BytesIO(server.view(image))) as opened:
                opened.load()
        except OSError as error:
            return "fault: no image", repr(error)
    return "done", ""


def judged(failed: PromptFailed) -> tuple[str, str]:
    """Whether an error during a run is one that a user should see."""
    if failed.interrupted:
        return "interrupted", ""
    said = next((data for name, data in failed.messages if name == "execution_error"), {})
    node, kind = str(said.get("node_type", "")), str(said.get("exception_type", ""))
    message = str(said.get("exception_message", "")).strip()
    frames = [line for line in said.get("traceback", []) if "File " in line]
    last = frames[-1] if frames else ""
    about = f"{node}: {kind}: {message[:400]} | {last.strip()[:200]}"
    if PACK_NAME not in last and not node.startswith(OURS):
        return "core", about
    if kind.rpartition(".")[2] not in OWN_ERRORS or PACK_NAME not in last:
        return "fault: foreign exception", about
    if not message or len(message) > LONGEST:
        return "fault: message", about
    return "error", about


def smallest(
    server: ComfyServer, template: Json, edits: Sequence[Edit], info: Json, fault: str, seconds: float
) -> list[Edit]:
    """As few of the edits as still show the fault."""
    kept = list(edits)
    for edit in list(edits):
        fewer = [each for each in kept if each is not edit]
        if run(server, applied(template, fewer, info), seconds)[0] == fault:
            kept = fewer
    return kept


def try_graph(server: ComfyServer, graphs: Graphs, tally: Tally, seconds: float) -> None:
    """One random graph."""
    name, edits = graphs.case()
    template = graphs.templates[name]
    ended, about = run(server, applied(template, edits, graphs.info), seconds)
    tally.counts["graphs"] += 1
    tally.counts[f"graphs: {ended}"] += 1
    if ended.startswith("fault"):
        few = smallest(server, template, edits, graphs.info, ended, seconds)
        tally.faults.append(
            {"fault": ended, "about": about, "template": name, "edits": [list(e) for e in few]}
        )


def fingerprint(server: ComfyServer, graph: Json, seconds: float) -> tuple[str, float]:
    """The pixels of a graph's pictures as one hash, and how long it took."""
    started = time.monotonic()
    entry = server.wait(server.queue(graph), timeout=seconds)
    found = hashlib.sha256()
    for image in server.images(entry):
        with Image.open(io.BytesIO(server.view(image))) as opened:
            found.update(opened.convert("RGB").tobytes())
    return found.hexdigest(), time.monotonic() - started


def try_interrupt(
    server: ComfyServer, graph: Json, rng: random.Random, tally: Tally, usual: float, seconds: float
) -> None:
    """A run that is stopped at a random time; one that was done before does not count as an interrupt."""
    prompt_id = server.queue(graph)
    time.sleep(rng.random() * usual)
    server.interrupt()
    try:
        server.wait(prompt_id, timeout=seconds)
        tally.counts["interrupts: done before"] += 1
    except PromptFailed as error:
        ended = "stopped" if error.interrupted else "fault: failed"
        tally.counts["interrupts"] += 1
        tally.counts[f"interrupts: {ended}"] += 1
        if not error.interrupted:
            tally.faults.append({"fault": "an interrupt ended in an error", "about": judged(error)[1]})
    except ServerError as error:
        fault = "the server died" if server.process.poll() is not None else "an interrupt hangs"
        tally.counts["interrupts"] += 1
        tally.counts[f"interrupts: fault: {fault}"] += 1
        tally.faults.append({"fault": fault, "about": str(error)[:300]})


def check(tally: Tally, holds: bool, fault: str, about: Any) -> None:
    """Note a fault that is none of a single graph."""
    if not holds:
        tally.faults.append({"fault": fault, "about": str(about)})
