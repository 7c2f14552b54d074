"""What the test bed consists of, and what happens to tests when a part of it is missing."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest
from testbed.environment import ROOT


def missing(what: str) -> NoReturn:
    """Skips a test for want of something, except in CI, where everything must run."""
    if os.environ.get("CI"):
        pytest.fail(f"{what} (CI is set, so this is an error)")
    pytest.skip(what)


@dataclass(frozen=True)
class Bed:
    """Where the parts of the test bed are."""

    python: Path
    comfy_path: Path
    comfy_cli: Path
    chromium: str | None
    no_browser: str


def run_inside(bed: Bed, script: Path, folder: Path, *arguments: Path) -> str:
    """What a script of checks prints, and how it ended; it runs in ``folder`` with ComfyUI's Python."""
    if not (bed.comfy_path / "main.py").is_file():
        missing(f"no ComfyUI in {bed.comfy_path}: run python scripts/test.py")
    result = subprocess.run(
        [str(part) for part in (bed.python, script, bed.comfy_path, ROOT, *arguments)],
        cwd=folder,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    return result.stdout + result.stderr[-3000:]
