"""StageVAR Pick Different in ComfyUI: what is picked, what comes along, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.testbed import Bed, run_inside


@pytest.fixture(scope="module")
def said(bed: Bed, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the checks of `inside_variety.py` print, and how it ended."""
    return run_inside(bed, Path(__file__).with_name("inside_variety.py"), tmp_path_factory.mktemp("variety"))


@pytest.mark.parametrize("check", ("picked", "as core", "counts", "sampled", "refusals"))
def test_check_passes_inside_comfyui(said: str, check: str) -> None:
    assert f"ok: {check}\n" in said, said
