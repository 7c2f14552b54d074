"""What a public tool says of our imports: it warns users of packs that a release of ComfyUI will break."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

from testbed.environment import ROOT

from tests.support.testbed import Bed, missing

RUN = "from comfy_import_guard.cli import main; raise SystemExit(main())"


def run(*command: object, cwd: Path) -> str:
    """What a command prints; it must succeed."""
    result = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def sources(folder: Path, target: Path, *parts: str) -> None:
    """Copies the Python files of a folder, or of these parts of it."""
    for source in (path for part in parts for path in folder.glob(part)):
        place = target / source.relative_to(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, place)


def test_every_name_that_we_import_is_there(bed: Bed, tmp_path: Path) -> None:
    if importlib.util.find_spec("comfy_import_guard") is None or shutil.which("git") is None:
        missing("comfy-import-guard or git is not installed")
    if not (bed.comfy_path / "main.py").is_file():
        missing(f"no ComfyUI in {bed.comfy_path}")
    history, install = tmp_path / "cache" / "ComfyUI", tmp_path / "install"
    sources(bed.comfy_path, history, "*.py", "comfy*/**/*.py", "app/**/*.py", "utils/**/*.py")
    sources(ROOT, install / "custom_nodes" / "StageVAR", "*.py", "nodes/**/*.py", "stagevar_core/**/*.py")
    for step in (("init", "-q"), ("add", "-A", "-f"), ("commit", "-qm", "tree")):
        run("git", "-c", "user.name=test", "-c", "user.email=test@localhost", *step, cwd=history)
    options = ("--cache-dir", history.parent, "--offline", "--json", "--quiet")
    check = ("check", "--comfy-dir", install, "--target", "HEAD", "--no-update", "--strict")
    (pack,) = json.loads(run(sys.executable, "-c", RUN, *options, *check, cwd=tmp_path))["packs"]
    assert pack["verdict"] == "SAFE" and pack["references"] > 50
