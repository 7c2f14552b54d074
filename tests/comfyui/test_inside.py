"""What cannot be seen through the server: clones, running out of memory, progress, estimates."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from environment import ROOT
from testbed import Bed, missing

CHECKS = ("clones", "out of memory", "progress", "memory")


@pytest.fixture(scope="module")
def said(bed: Bed, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the checks of `inside.py` print, and how it ended."""
    if not (bed.comfy_path / "main.py").is_file():
        missing(f"no ComfyUI in {bed.comfy_path}: run python scripts/test.py")
    script = Path(__file__).with_name("inside.py")
    result = subprocess.run(
        [str(bed.python), str(script), str(bed.comfy_path), str(ROOT)],
        cwd=tmp_path_factory.mktemp("inside"),
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return result.stdout + result.stderr[-3000:]


@pytest.mark.parametrize("check", CHECKS)
def test_check_passes_inside_comfyui(said: str, check: str) -> None:
    assert f"ok: {check}\n" in said, said
