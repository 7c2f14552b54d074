"""Compiled models with the layers, the patchers and the sampler of a real ComfyUI."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.testbed import Bed, run_inside

CHECKS = ("clones", "pictures", "node", "decoder", "fp8")


@pytest.fixture(scope="module")
def said(bed: Bed, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the checks of `inside_compiling.py` print, and how it ended."""
    return run_inside(
        bed, Path(__file__).with_name("inside_compiling.py"), tmp_path_factory.mktemp("compiling")
    )


@pytest.mark.parametrize("check", CHECKS)
def test_check_passes_inside_comfyui(said: str, check: str) -> None:
    assert f"ok: {check}\n" in said, said
