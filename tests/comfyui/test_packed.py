"""Weights in the order that a CPU's products read, as ComfyUI sees them."""

from __future__ import annotations

from pathlib import Path

from tests.support.testbed import Bed, run_inside

INSIDE = Path(__file__).parent / "inside_packed.py"


def test_packed_weights_stay_weights_for_the_host(bed: Bed, tmp_path: Path) -> None:
    said = run_inside(bed, INSIDE, tmp_path)
    assert said.count("ok: ") == 4, said
