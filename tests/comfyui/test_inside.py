"""What cannot be seen through the server: clones, running out of memory, progress, estimates."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.testbed import Bed, run_inside

CHECKS = ("clones", "changes", "out of memory", "progress", "memory", "attention")


@pytest.fixture(scope="module")
def said(bed: Bed, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the checks of `inside.py` print, and how it ended."""
    return run_inside(bed, Path(__file__).with_name("inside.py"), tmp_path_factory.mktemp("inside"))


@pytest.mark.parametrize("check", CHECKS)
def test_check_passes_inside_comfyui(said: str, check: str) -> None:
    assert f"ok: {check}\n" in said, said
