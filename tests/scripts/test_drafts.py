"""What drafts cost: counted for the 2B at a megapixel, timed on the embedded model."""

import json
import sys
from pathlib import Path

import pytest
from benchmark import drafts as bench_drafts

import bench


@pytest.fixture(scope="module")
def stages() -> dict[str, dict]:
    """Eight drafts of the 2B, two of them finished."""
    shape = bench_drafts.without_weights("infinity-2b", 1024, 3.0, 64)
    return {row["stage"]: row for row in bench_drafts.counted(shape, 8, 2)["stages"]}


def test_drafts_cost_what_is_promised(stages: dict[str, dict]) -> None:
    assert stages["structure"]["draft"] <= 0.19 and stages["structure"]["draft_with_decode"] <= 0.24
    assert stages["semantic"]["draft"] <= 0.04
    assert stages["semantic"]["scales"] < stages["structure"]["scales"] < 13


def test_finishing_two_of_eight_costs_what_is_promised(stages: dict[str, dict]) -> None:
    finish = stages["structure"]["finish"]
    assert finish["off"]["kept"]["with_drafts"] < finish["off"]["again"]["with_drafts"] <= 0.45
    assert finish["balanced"]["kept"]["with_drafts"] <= 0.20
    assert finish["balanced"]["again"]["with_drafts"] <= 0.22
    for ways in finish.values():
        for found in ways.values():
            assert 0 < found["alone"] < found["with_drafts"] < 1


def test_the_stored_count_is_that_of_this_code(stages: dict[str, dict]) -> None:
    root = Path(bench.__file__).parents[1]
    stored = json.loads((root / "docs/measurements/drafts_infinity_2b_counted.json").read_text("utf-8"))
    for row in stored["stages"]:
        assert row["draft"] == pytest.approx(stages[row["stage"]]["draft"])
        assert row["finish"]["balanced"]["kept"] == pytest.approx(
            stages[row["stage"]]["finish"]["balanced"]["kept"]
        )


@pytest.mark.slow
def test_bench_times_drafts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    out = tmp_path / "drafts.json"
    monkeypatch.setattr(sys, "argv", ["bench.py", "--drafts", "2", "--pick", "1", "--json", str(out)])
    assert bench.main() == 0
    found = json.loads(out.read_text("utf-8"))
    assert [row["stage"] for row in found["wall"]] == ["semantic", "structure"]
    assert all(0 < row["draft"] < 1.5 for row in found["wall"])
    assert "structure, balanced, kept, with drafts" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--drafts", "1", "--pick", "2"], "--pick is 2; expected 1 to 1"),
        (["--drafts", "0"], "--pick"),
        (["--drafts", "4", "--presets", "all"], "--drafts is measured alone"),
        (["--counted"], "--counted counts --drafts"),
        (["--drafts", "4", "--counted"], "--counted counts --drafts"),
    ],
)
def test_what_cannot_be_measured_is_said(monkeypatch, capsys, arguments: list[str], message: str) -> None:
    monkeypatch.setattr(sys, "argv", ["bench.py", *arguments])
    with pytest.raises(SystemExit):
        bench.main()
    assert message in capsys.readouterr().err
