"""The bench of the nodes beside the core."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

import bench
import pytest
import torch
from benchmark import comfyui, models
from testbed.comfy_server import read_json, shipped_workflow

from stagevar_core.pipeline import Pipeline
from tests.support import tiny_families
from tests.support.testbed import Bed, missing


def test_bench_times_nodes_and_core_in_turn(
    bed: Bed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    if not (bed.comfy_path / "main.py").is_file():
        missing(f"no ComfyUI in {bed.comfy_path}: run python scripts/test.py")
    out = tmp_path / "bench.json"
    options = ["--device", "cpu", "--presets", "balanced", "--repeat", "2", "--json", str(out)]
    monkeypatch.setattr(sys, "argv", ["bench.py", *options, "--comfyui", str(bed.comfy_path)])
    assert bench.main() == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found == json.loads(out.read_text()) and found["hardware"]["torch"] == torch.__version__
    assert (found["model"], found["dtype"], found["size"], found["batch"]) == (
        "embedded",
        "float32",
        [128, 128],
        1,
    )
    assert [row["preset"] for row in found["comfyui"]] == ["off", "balanced"]
    for row in found["comfyui"]:
        assert all(len(runs) == 2 and min(runs) > 0 for runs in row["runs"].values())
        nodes, core = (statistics.median(row["runs"][side]) for side in ("nodes", "core"))
        assert row["ratio"] == pytest.approx(nodes / core)


def test_bench_writes_random_models_that_load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(models.FULL_SIZE, "var-d16", ("var", tiny_families.VAR, tiny_families.TOKENIZER))
    files = comfyui.write_models("var-d16", tmp_path, torch.float32)
    assert {file.parent.name for file in files.values()} == {"diffusion_models", "vae"}
    pipeline = Pipeline.load(**files, device="cpu")
    assert pipeline.transformer.config == tiny_families.VAR


def test_bench_runs_the_graph_that_is_shipped() -> None:
    asked = comfyui.Asked(["balanced"], (128, 128), 1, 1)
    ours = comfyui.workflow("embedded", asked, "balanced", "default", 1)
    shipped = read_json(shipped_workflow("02_faster_no_download"))
    kinds = [sorted(node["class_type"] for node in graph.values()) for graph in (ours, shipped)]
    assert kinds[0] == kinds[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--comfyui", "."), "which holds no ComfyUI"),
        (("--model", "infinity-2b", "--comfyui"), "models without a text encoder: var-d16"),
    ],
)
def test_bench_refuses_what_the_nodes_cannot_be_timed_with(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, options: tuple[str, ...], message: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench.py", *options])
    with pytest.raises(SystemExit):
        bench.main()
    assert message in capsys.readouterr().err
