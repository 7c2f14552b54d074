"""Sets up everything and runs all checks: ruff, its formatter, types, pytest with ComfyUI and a browser.

python3 scripts/test.py                  everything, in as many processes as there are cores, four at most
python3 scripts/test.py --fast           lint, types and the tests without ComfyUI that take no seconds
python3 scripts/test.py tests/test_x.py  extra arguments go to pytest, which then runs in one process
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from testbed.bootstrap import Setup, bootstrap
from testbed.chromium import ensure_chromium
from testbed.environment import ROOT, TESTBED, SetupError, log

Command = list[str | Path]
FAST = "not (comfy or browser or slow)"
# A process for every core takes whole files, in the order of tests/conftest.py; each uses one thread.
SHARED = ["-n", str(min(4, os.cpu_count() or 1)), "--dist", "loadfile", "--no-loadscope-reorder"]


def test_environment(setup: Setup) -> dict[str, str]:
    """What the tests are told about this machine (see tests/conftest.py)."""
    chromium, reason = ensure_chromium()
    if chromium is None:
        log(f"browser tests {'will fail' if os.environ.get('CI') else 'are skipped'}: {reason}")
    told = {
        "STAGEVAR_TESTBED": str(setup.comfy_path),
        "STAGEVAR_PYTHON": str(setup.python),
        "STAGEVAR_COMFY_CLI": str(setup.comfy_cli),
        "STAGEVAR_CHROMIUM": chromium or "",
        "STAGEVAR_NO_BROWSER": reason,
    }
    return os.environ | told


def type_check(setup: Setup) -> Command:
    """The core and the nodes; with another ComfyUI than the test bed's the core alone, as types differ."""
    whole = setup.comfy_path == TESTBED / "ComfyUI"
    return ["-m", "basedpyright", *([] if whole else ["stagevar_core"])]


def main(arguments: list[str]) -> int:
    """Runs every check, also after one failed, and returns 1 if any did."""
    fast = "--fast" in arguments
    rest = [argument for argument in arguments if argument != "--fast"] or [*SHARED, "tests"]
    setup = bootstrap(tests=True)
    log(f"ready after {setup.seconds:.0f} s")
    environment = test_environment(setup)
    checks: list[Command] = [
        ["-m", "ruff", "check", "."],
        ["-m", "ruff", "format", "--check", "."],
        type_check(setup),
        # pytest last: its closing line is the last line of the run.
        ["-m", "pytest", *(["-m", FAST] if fast else []), *rest],
    ]
    failed = []
    for check in checks:
        log(f"python {' '.join(map(str, check))}")
        if subprocess.run([str(setup.python), *map(str, check)], cwd=ROOT, env=environment).returncode:
            failed.append(str(check[1]) + (" format" if "format" in check else ""))
    if failed:
        print(f"FAILED: {', '.join(failed)}", file=sys.stderr, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except SetupError as failure:
        sys.exit(f"error: {failure}")
