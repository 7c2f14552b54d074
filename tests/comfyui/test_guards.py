"""What is refused or said instead of a wrong picture, inside ComfyUI's process."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.testbed import Bed, run_inside

CHECKS = ("sockets", "tiles", "numbers", "pictures", "steering", "regions", "ranges", "weights", "joined")


@pytest.fixture(scope="module")
def said(bed: Bed, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the checks of `inside_guards.py` print, and how it ended."""
    script = Path(__file__).with_name("inside_guards.py")
    return run_inside(bed, script, tmp_path_factory.mktemp("guards"))


@pytest.mark.parametrize("check", CHECKS)
def test_check_passes_inside_comfyui(said: str, check: str) -> None:
    assert f"ok: {check}\n" in said, said
