"""StageVAR Vary in ComfyUI: what stays of a picture or a run, what it costs, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.testbed import Bed, run_inside
from tests.support.tiny_families import write_families


@pytest.fixture(scope="module")
def said(bed: Bed, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the checks of `inside_varying.py` print, and how it ended."""
    models = tmp_path_factory.mktemp("varying")
    write_families(models)
    return run_inside(bed, Path(__file__).with_name("inside_varying.py"), models, models)


@pytest.mark.parametrize(
    "check", ("same", "varied", "drafts", "sixteen", "batches", "sizes", "families", "refusals")
)
def test_check_passes_inside_comfyui(said: str, check: str) -> None:
    assert f"ok: {check}\n" in said, said
