"""The parity runner on the stored outputs of the official code, and the runner's own manners."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.parity import __main__ as parity
from tests.parity.report import Report

FIXTURES = Path(__file__).parents[1] / "fixtures"
COMMITTED = FIXTURES / "infinity"
ALL = Path(__file__).parents[3] / "shared" / "fixtures"
# Of the committed folders of each family, at most.
MEGABYTES = {
    "infinity": 8,
    "var": 3,
    "star": 3,
    "accelerated": 3,
    "varedit": 2.5,
    "varestorer": 2.5,
    "hart": 3,
    "switti": 2,
}


def run(folder: Path) -> tuple[Report, str]:
    """The report of one folder and what was printed."""
    lines: list[str] = []
    report = Report(lines.append)
    parity.compare_folder(folder, report)
    return report, "\n".join(lines)


@pytest.mark.parametrize(
    "folder",
    sorted(path.parent for path in FIXTURES.glob("*/*/config.json")),
    ids=lambda folder: f"{folder.parent.name}-{folder.name}",
)
def test_committed_fixtures(folder: Path) -> None:
    report, printed = run(folder)
    print(printed)
    assert not report.failed, printed
    assert not report.left_out, printed


@pytest.mark.slow
@pytest.mark.parametrize("family", MEGABYTES)
def test_all_fixtures_where_they_are(family: str) -> None:
    if not (ALL / family).is_dir():
        pytest.skip(f"{ALL / family} is absent; only the committed fixtures were compared")
    assert parity.main([str(path) for path in sorted((ALL / family).glob("*"))]) == 0


@pytest.mark.parametrize(("family", "megabytes"), MEGABYTES.items())
def test_committed_fixtures_stay_small(family: str, megabytes: int) -> None:
    files = [path for path in (FIXTURES / family).rglob("*") if path.is_file()]
    assert files and sum(path.stat().st_size for path in files) <= megabytes * 1_000_000


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(COMMITTED / "teacher_forced_patchify", tmp_path / "any name"))


def change(folder: Path, name: str, tensor: str, index: tuple, by: float) -> None:
    stored = load_file(folder / f"{name}.safetensors")
    stored[tensor] = stored[tensor].clone()
    stored[tensor][index] += by
    save_file(stored, folder / f"{name}.safetensors")


def test_a_wrong_logit_is_a_miss(copy: Path) -> None:
    change(copy, "outputs", "logits", (0, 3, 5), 1e-3)
    report, printed = run(copy)
    assert report.missed == 1
    assert any(line.startswith("MISS") and " logits " in line for line in printed.splitlines())


def test_one_wrong_bit_is_a_miss_and_counted(copy: Path) -> None:
    change(copy, "outputs", "scale02.target_bits", (1, 0, 0), 1)
    report, printed = run(copy)
    assert report.missed == 1
    line = next(line for line in printed.splitlines() if line.startswith("MISS"))
    assert "target_bits x5" in line and "mismatched bits 1/" in line and "worst at scale02" in line


PEERS = FIXTURES / "accelerated"


@pytest.mark.parametrize("folder", sorted((ALL / "accelerated").glob("*")), ids=lambda folder: folder.name)
def test_the_public_code_of_the_peers_is_met_bit_for_bit(folder: Path) -> None:
    report, printed = run(folder)
    assert not report.failed and not report.left_out, printed
    lines = printed.splitlines()
    for name in json.loads((folder / "config.json").read_text(encoding="utf-8"))["runs"]:
        said = next(line for line in lines if f" {name} " in line and ": " in line)
        assert "preset paper" in said or "preset fastvar" in said  # not a plan of the folder's own
        assert any(
            f" {name} " in line and " bits x" in line and "mismatched bits 0/" in line for line in lines
        )


@pytest.fixture
def peer(tmp_path: Path) -> Path:
    return Path(shutil.copytree(PEERS / "fastervar_d8", tmp_path / "any name"))


@pytest.mark.parametrize("named", ["paper", "off"])
def test_a_folder_with_a_plan_of_its_own_is_compared_on_its_own_numbers(peer: Path, named: str) -> None:
    config = json.loads((peer / "config.json").read_text(encoding="utf-8"))
    config |= {"preset": named, "preset_noskip": "fastvar"}
    (peer / "config.json").write_text(json.dumps(config), encoding="utf-8")
    report, printed = run(peer)
    assert not report.failed and not report.left_out, printed
    assert f"method of {named} on the folder's own scales" in printed
    assert "method of fastvar on the folder's own" in printed


def test_another_drawn_position_and_another_rank_are_misses(peer: Path) -> None:
    stored = load_file(peer / "outputs_greedy.safetensors")
    name = "scale10.chunk3.I"
    save_file({**stored, name: stored[name][:, :-1].contiguous()}, peer / "outputs_greedy.safetensors")
    report, printed = run(peer)
    assert report.missed
    assert "other ranks in its tensors than in config.json" in printed
    assert any(line.startswith("MISS") and " bits x" in line for line in printed.splitlines())


def test_a_wrong_weight_is_a_miss(copy: Path) -> None:
    change(copy, "transformer", "pos_start", (0, 0, 0), 1.0)
    assert run(copy)[0].missed


def test_not_a_number_is_a_miss() -> None:
    report = Report(lambda line: None)
    nan = torch.tensor([float("nan"), 0.0])
    report.compare("run", "logits", [("scale00", nan, torch.zeros(2)), ("scale01", nan[1:], nan[1:])], 1e-4)
    assert report.missed == 1


def test_tensors_that_nobody_compares_are_named(copy: Path) -> None:
    stored = load_file(copy / "outputs.safetensors")
    save_file({**stored, "something_new": torch.zeros(1)}, copy / "outputs.safetensors")
    report, printed = run(copy)
    assert report.left_out == 1 and "something_new" in printed


def rewrite(folder: Path, part: str, key: str, value: object) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config[part][key] = value
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def test_unreleased_options_are_skipped_by_name(copy: Path, capsys: pytest.CaptureFixture) -> None:
    rewrite(copy, "transformer", "swiglu", True)
    other = COMMITTED / "rope_tables"
    assert parity.main([str(copy), str(other), str(COMMITTED / "README.md")]) == 0
    printed = capsys.readouterr().out
    assert "any name: skipped, options no release uses: swiglu True" in printed
    assert "README.md: ignored, a plain file" in printed


def test_comparing_nothing_is_no_success(copy: Path, capsys: pytest.CaptureFixture) -> None:
    rewrite(copy, "transformer", "rms_norm", True)
    assert parity.main([str(copy)]) == 1
    assert "FAILED: 0 quantities compared" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "config.json").write_text("{", encoding="utf-8"), "not valid JSON"),
        (lambda folder: (folder / "transformer.safetensors").unlink(), "transformer.safetensors is missing"),
        (lambda folder: (folder / "outputs.safetensors").write_bytes(b"short"), "cannot be read: Safetensor"),
        (lambda folder: shutil.rmtree(folder), "no such folder"),
    ],
)
def test_a_folder_that_cannot_be_read_fails_with_the_reason(copy: Path, spoil, reason: str, capsys) -> None:
    spoil(copy)
    assert parity.main([str(copy), str(COMMITTED / "rope_tables")]) == 1
    assert reason in capsys.readouterr().out


def test_a_family_without_a_runner_fails_unless_told_otherwise(tmp_path: Path, capsys) -> None:
    (tmp_path / "config.json").write_text('{"model": "someday"}', encoding="utf-8")
    other = str(COMMITTED / "rope_tables")
    assert parity.main([str(tmp_path), other]) == 1
    assert "not supported: no runner for this family (model 'someday')" in capsys.readouterr().out
    assert parity.main([str(tmp_path), other, "--skip-unsupported"]) == 0
