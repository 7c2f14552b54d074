"""The tables of both models: they are what the measurements say, and compare ours with the right rivals."""

import json

import numpy as np
import pytest
import side_by_side

from stagevar_core.acceleration.presets import PRESETS


def test_the_documents_have_what_the_measurements_say():
    for path, text in side_by_side.written().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: run python scripts/side_by_side.py"


def test_every_preset_of_both_models_has_a_row():
    scenes, artwork = side_by_side.read()
    rows = side_by_side.presets(scenes, artwork).splitlines()[2:]
    named = {row.split(" | ")[0].strip("| `") for row in rows}
    assert set(artwork) <= named | {"faster-hart"}
    assert set(side_by_side.OURS) | set(side_by_side.PUBLISHED) <= named & set(PRESETS)
    assert "without the last 2" in named


def test_cells_are_the_stored_numbers():
    stored = json.loads((side_by_side.MEASUREMENTS / "compare.json").read_text(encoding="utf-8"))["variants"]
    scenes, artwork = side_by_side.read()
    row = next(
        line for line in side_by_side.presets(scenes, artwork).splitlines() if line.startswith("| `balanced`")
    )
    cells = row.strip("| ").split(" | ")
    assert cells[1] == f"{stored['balanced']['flop_ratio']:.2f}x"
    assert cells[2] == f"{stored['balanced']['strict']['all']['mean']:.3f}"
    assert cells[7] == f"{artwork['balanced']['psnr']['mean']:.1f}"


def variant(ratio: float, psnr: list[float]) -> dict:
    packed = " ".join(f"{value:.2f}" for value in psnr)
    return {"flop_ratio": ratio, "psnr": {"mean": float(np.mean(psnr))}, "pictures": {"psnr": packed}}


def test_a_rival_saves_as_much_and_is_the_best_that_does():
    variants = {
        "balanced": variant(4.0, [20.0, 22.0, 24.0]),
        "paper": variant(8.0, [19.0, 19.0, 19.0]),
        "fastvar": variant(3.9, [21.0, 21.5, 23.5]),
        "skipvar": variant(3.0, [30.0, 30.0, 30.0]),
        "turbo": variant(9.0, [10.0, 10.0, 10.0]),
    }
    assert side_by_side.nearest(variants, "balanced") == "fastvar"
    assert side_by_side.nearest(variants, "turbo") is None and side_by_side.nearest(variants, "auto") is None
    assert side_by_side.against(variants, "balanced", "fastvar", "psnr").startswith("+0.0 [-")


def test_tables_leave_the_text_around_them():
    text = "Why.\n<!-- figures: a -->\nold\n<!-- end of figures: a -->\nSo."
    found = side_by_side.placed(text, "a", "| new |")
    assert found == "Why.\n<!-- figures: a -->\n\n| new |\n\n<!-- end of figures: a -->\nSo."
    assert side_by_side.placed(found, "a", "| new |") == found
    with pytest.raises(ValueError, match="there is no <!-- figures: b -->"):
        side_by_side.placed(text, "b", "")
