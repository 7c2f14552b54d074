"""The workers of Ray draw what one process draws, and one that dies costs only what it had not finished."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from stagevar_core.commands.main import main
from stagevar_core.rendering.cluster import Cluster, OnRay
from stagevar_core.rendering.work import Load

pytest.importorskip("ray.data", reason="the optional engine ray[data] is not installed")
pytestmark = pytest.mark.slow

ONE = ("--threads", "1", "--batch", "2")
ROOT = Path(__file__).parents[2]
PROMPTS = [f"a {colour} {shape}" for colour in ("red", "blue", "green") for shape in ("circle", "square")]


def begun(folder: Path, *options: str) -> subprocess.Popen:
    sheet = folder / "sheet.txt"
    sheet.write_text("\n".join(PROMPTS), encoding="utf-8")
    command = [sys.executable, "-m", "stagevar_core", "render", "--prompts", str(sheet), "--preset", "turbo"]
    return subprocess.Popen(
        [*command, *options], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def last_line(process: subprocess.Popen) -> dict:
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, err[-2000:]
    return json.loads(out.strip().splitlines()[-1])


def lines(folder: Path) -> list[dict]:
    file = folder / "manifest.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()[1:]] if file.is_file() else []


def pictures(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*.png"))}


def test_two_workers_draw_what_one_process_draws_though_one_is_killed(tmp_path: Path) -> None:
    alone = last_line(begun(tmp_path, "--out", str(tmp_path / "alone"), "--images", "4", *ONE))
    assert alone["drawn"] == 24
    out = tmp_path / "ray"
    ray = ("--ray", "local", "--workers", "2", "--batch", "2")  # batches as alone: the decoder rounds by them
    process = begun(tmp_path, "--out", str(out), "--images", "4", *ray)
    until = time.monotonic() + 300
    while len(lines(out)) < 4 and time.monotonic() < until and process.poll() is None:
        time.sleep(0.1)
    before = lines(out)
    assert 4 <= len(before) < 24, process.poll()
    os.kill(before[-1]["process"], signal.SIGKILL)
    found = last_line(process)
    assert found["drawn"] == 24 and len(lines(out)) == 24
    assert len({line["file"] for line in lines(out)}) == 24, "no picture is drawn twice"
    assert pictures(out) == pictures(tmp_path / "alone")


def test_a_cluster_that_is_not_there_is_an_error_of_ours(tmp_path: Path) -> None:
    process, started = (
        begun(tmp_path, "--out", str(tmp_path / "out"), "--ray", "127.0.0.1:1"),
        time.monotonic(),
    )
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2 and "no cluster of Ray there" in err
    assert time.monotonic() - started < 60, "most of it is the start of Python"


MEASURES = {
    "scenes": ("score", "--prompts", "6", "--batch", "2", "--json"),
    "classes": ("score", "--model", "artwork", "--prompts", "6", "--batch", "2", "--json"),
    "stages": ("calibrate", "--limit", "3", "--chunks", "2", "--out"),
}


@pytest.mark.parametrize("name", MEASURES)
def test_workers_measure_what_one_process_measures(name: str, tmp_path: Path, capsys) -> None:
    found = []
    for options in ((), ("--ray", "local", "--workers", "2")):
        out = tmp_path / f"{len(found)}.json"
        assert main([*MEASURES[name], str(out), *options, "--threads", "1"]) == 0, capsys.readouterr()
        found.append(json.loads(out.read_text()))
    assert found[0] == found[1]


def test_workers_compare_classes_as_one_process_does(tmp_path: Path, capsys) -> None:
    found = []
    for options in ((), ("--ray", "local", "--workers", "2")):
        out = tmp_path / str(len(found))
        command = ["compare", "--model", "artwork", "--presets", "turbo", "--prompts", "4", "--batch", "2"]
        report = ("--out", str(out), "--json", str(out.with_suffix(".json")))
        assert main([*command, *report, *options, "--threads", "1"]) == 0, capsys.readouterr()
        values = json.loads(out.with_suffix(".json").read_text())["variants"]
        read = ("psnr", "ssim", "top1", "edges", "frechet", "pictures", "notes")
        found.append({name: {key: row.get(key) for key in read} for name, row in values.items()})
        assert found[-1]["turbo"]["frechet"] and found[-1]["turbo"]["top1"] and found[-1]["turbo"]["edges"]
    assert found[0] == found[1]


def test_what_a_worker_cannot_do_is_one_line(tmp_path: Path, capsys) -> None:
    """Files that only the workers read, compared and calibrated: the error is the one without Ray."""
    ray = ("--transformer", str(tmp_path / "no.safetensors"), "--out", str(tmp_path / "out"))
    assert main(["compare", *ray, "--ray", "local"]) == 2
    assert "no.safetensors" in capsys.readouterr().err.splitlines()[-1]


def test_an_error_at_an_item_is_raised_here() -> None:
    class Numbers:
        def begin(self, load: Load) -> Callable[[str], int]:
            return int

    engine = OnRay(Cluster("local", 2), lambda: pytest.fail("no model is needed"))
    with engine.open():
        assert sorted(done.result for done in engine.run(Numbers(), ["4", "5"])) == [4, 5]
        with pytest.raises(ValueError, match="invalid literal"):
            list(engine.run(Numbers(), ["4", "five"]))
