"""StageVAR Scales to Images and previews in ComfyUI."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.testbed import Bed, run_inside
from tests.support.tiny_families import write_families


@pytest.fixture(scope="module")
def said(bed: Bed, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the checks of `inside_scales.py` print, and how it ended."""
    models = tmp_path_factory.mktemp("scales")
    write_families(models)
    return run_inside(bed, Path(__file__).with_name("inside_scales.py"), models, models)


@pytest.mark.parametrize("check", ("pictures", "skipped", "batches", "families", "refusals", "previews"))
def test_check_passes_inside_comfyui(said: str, check: str) -> None:
    assert f"ok: {check}\n" in said, said
