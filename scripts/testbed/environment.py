"""What the setup scripts share: where things are, running pip, and errors a user can act on.

Importing this module ends the script with one line when the interpreter is too old, so import it first.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

MIN_PYTHON = (3, 10)
if sys.version_info < MIN_PYTHON:
    FOUND = ".".join(map(str, sys.version_info[:3]))
    sys.exit(f"error: Python {FOUND} is too old: run this script with Python 3.10 or newer.")

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv"
TESTBED = ROOT / ".testbed"
TRANSIENT = re.compile(
    r"timed? ?out|connection (reset|aborted|broken|refused)|temporary failure|remote end closed"
    r"|incomplete ?read|\b(429|500|502|503|504)\b|protocol ?error|ssl: unexpected|max retries",
    re.IGNORECASE,
)
NO_NETWORK = re.compile(
    r"name resolution|name or service not known|network is unreachable|nodename nor servname|getaddrinfo",
    re.IGNORECASE,
)


class SetupError(RuntimeError):
    """A problem the user can act on; the message is one line."""


def log(message: str) -> None:
    """Prints one progress line at once, also when the output is a file."""
    print(f"[setup] {message}", flush=True)


def venv_bin(environment: Path, name: str) -> Path:
    """The path of a program of a virtual environment."""
    folder, suffix = ("Scripts", ".exe") if os.name == "nt" else ("bin", "")
    return environment / folder / (name + suffix)


def run_quiet(command: list[str | Path], **kwargs) -> subprocess.CompletedProcess[str]:
    """Runs a command and captures what it says."""
    parts = [str(part) for part in command]
    return subprocess.run(parts, capture_output=True, encoding="utf-8", errors="replace", **kwargs)


def pip(python: Path, *args: str, tries: int = 4) -> None:
    """Runs pip, again after transient network errors, and turns a failure into one line."""
    command = [python, "-m", "pip", "--disable-pip-version-check", *args]
    for attempt in range(1, tries + 1):
        result = run_quiet(command)
        if result.returncode == 0:
            return
        output = result.stdout + result.stderr
        if attempt < tries and TRANSIENT.search(output) and not NO_NETWORK.search(output):
            log(f"network hiccup, try {attempt + 1} of {tries} ...")
            time.sleep(3 * attempt)
            continue
        raise SetupError(explain(output, args))


def disk_full() -> str:
    """The message for a full disk."""
    free = shutil.disk_usage(ROOT).free / 2**30
    return f"The disk is full ({free:.1f} GiB free at {ROOT}): free about 8 GiB, then run this again."


def explain(output: str, args: tuple[str, ...]) -> str:
    """One line that says why pip failed."""
    if "no space left on device" in output.lower() or "Errno 28" in output:
        return disk_full()
    if NO_NETWORK.search(output):
        return "No network: the package index cannot be reached. Check the connection or pip's proxy setting."
    lines = output.splitlines()
    errors = [line.strip() for line in lines if "error" in line.lower()] or lines[-1:]
    return f"pip {' '.join(args[:2])} failed: {' | '.join(errors[:3])[:600]}"


def python_says(python: Path, code: str) -> str | None:
    """What a one-liner prints in another interpreter, or None where it fails."""
    result = run_quiet([python, "-c", code])
    return result.stdout.strip() if result.returncode == 0 else None
