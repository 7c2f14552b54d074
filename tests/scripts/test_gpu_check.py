"""The check of a GPU, on the CPU: its dry run, what it says of parts that find nothing, how it counts."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import gpu_check
import pytest
import torch
from benchmark import launches
from gpu_check import LATE, Part, Refused

CPU = torch.device("cpu")


def raising(error: Exception, limit: float) -> dict:
    raise error


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (subprocess.TimeoutExpired("bench", 7.0), f"{LATE}; stopped after 7 s"),
        (Refused("--weights is int9"), "refused: --weights is int9"),
        (torch.OutOfMemoryError("no 16 GB\nand a long trace"), "failed: no 16 GB"),
        (AssertionError(), "failed: AssertionError"),
    ],
)
def test_a_part_that_finds_nothing_says_why_and_the_next_one_runs(error, status) -> None:
    wanted = [
        Part("bad", 0, 60, partial(raising, error)),
        Part("good", 0, 60, lambda limit: {"limit": limit}),
    ]
    found = gpu_check.check(wanted, 100)["parts"]
    assert found["bad"]["status"] == status
    assert found["good"]["status"] == "measured" and found["good"]["limit"] == 60


def test_no_part_begins_or_goes_on_without_time() -> None:
    wanted = [Part("short", 0, 60, lambda limit: {"limit": limit}), Part("long", 30, 60, lambda limit: {})]
    found = gpu_check.check(wanted, 20)["parts"]
    assert 0 < found["short"]["limit"] <= 20
    assert found["long"] == {"status": LATE}


def test_all_parts_are_known_to_the_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def run(command, *, timeout, **options):
        seen.append((command[2:], timeout))
        return subprocess.CompletedProcess(command, 2, "", "usage: x\nbench.py: error: not this one\n")

    monkeypatch.setattr(subprocess, "run", run)
    wanted = [part for part in gpu_check.parts(tmp_path, CPU) if part.name.startswith("infinity")]
    found = gpu_check.check(wanted, 480)["parts"]
    assert {result["status"] for result in found.values()} == {"refused: not this one"}
    assert sum(part.needs for part in gpu_check.parts(tmp_path, CPU)) < gpu_check.SECONDS
    assert len({command[-1] for command, _ in seen}) == len(wanted) == 7
    models = [command[command.index("--model") + 1] for command, _ in seen]
    assert sorted(set(models)) == ["infinity-2b", "infinity-8b"]
    weights = [command[command.index("--weights") + 1] for command, _ in seen if "--weights" in command]
    assert sorted(weights) == ["fp8", "fp8", "int8", "int8"]


def test_launches_are_counted_up_to_the_end_of_their_scale() -> None:
    events = [
        ("cudaLaunchKernel", 1),
        ("aten::add", 2),
        ("after scale 1", 6),
        ("cuLaunchKernelEx", 5),
        ("after scale 0", 3),
        ("cudaMemcpyAsync", 7),
        ("cudaMemsetAsync", 8),
        ("cudaStreamSynchronize", 9),
    ]
    assert launches.by_scale(events) == [1, 1, 2]


def run_main(monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", *options])
    return gpu_check.main()


def test_without_a_gpu_it_is_one_sentence(monkeypatch, capsys, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run_main(monkeypatch, "--out", str(tmp_path)) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "options",
    [("--dry-run",), ("--seconds", "0"), ("--seconds", "481"), ("--seconds", "nan"), ("--out", "nowhere")],
)
def test_what_it_cannot_do_is_said_before_it_begins(options, monkeypatch, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        run_main(monkeypatch, *options)
    assert "expected" in capsys.readouterr().err or options == ("--dry-run",)


@pytest.mark.slow
def test_the_dry_run_has_a_part_of_every_kind(monkeypatch, capsys, tmp_path: Path) -> None:
    assert run_main(monkeypatch, "--dry-run", "--out", str(tmp_path)) == 0
    found = json.loads((tmp_path / "gpu_check.json").read_text())
    assert found == json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["hardware"]["device"] == "cpu" and "commit" in found
    statuses = {name: part["status"] for name, part in found["parts"].items()}
    assert statuses["precision"] == statuses["launches"] == statuses["embedded"] == "measured"
    assert statuses["embedded_fp8"].startswith("refused: --weights") and statuses["endless"] == LATE
    for model in ("scenes", "artwork"):
        part = found["parts"]["precision"][model]
        assert 0 < part["logits"] < 0.01 and part["codes_equal"][0] == 1
        assert 0 < part["levels"]["mean"] < 0.5 and part["levels"]["max"] <= 4
    dense, fast = (found["parts"]["launches"][name]["scales"] for name in ("off", "balanced"))
    assert len(dense) > len(fast)  # scales that are skipped are not there
    assert set(found["parts"]["embedded"]["transformer"]) == {"off", "balanced"}
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 50_000
