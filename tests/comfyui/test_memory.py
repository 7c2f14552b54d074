"""Running out of memory: the ladder of the sampler, tiles of the decoder, fp8 weights, partial loading."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.testbed import Bed, run_inside

CHECKS = ("ladder", "failure", "choice", "decoding", "text in fp8", "weights in fp8", "offloading", "lora")


@pytest.fixture(scope="module")
def said(bed: Bed, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the checks of `inside_memory.py` print, and how it ended."""
    return run_inside(bed, Path(__file__).with_name("inside_memory.py"), tmp_path_factory.mktemp("memory"))


@pytest.mark.parametrize("check", CHECKS)
def test_check_passes_inside_comfyui(said: str, check: str) -> None:
    assert f"ok: {check}\n" in said, said
