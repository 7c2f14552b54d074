"""comfy-cli, the command line most people install packs and run workflows with."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from testbed.comfy_server import NOT_IN_PACK, ComfyServer, Json, nodes_of, shipped_workflow
from testbed.environment import ROOT

from tests.support.testbed import Bed, missing

WORKFLOW = "01_text_to_image_no_download"
QUIET = {
    "DO_NOT_TRACK": "1",
    "COMFY_NO_UPDATE_CHECK": "1",
    "COMFY_CLI_NO_REMOTE_REFRESH": "1",
    "COMFY_KNOWLEDGE_DISABLE": "1",
    "COMFY_OBJECT_INFO_TTL": "0",
}
# What a user's ComfyUI needs of this pack; everything else must stay out of the archive.
RUNTIME_PLACES = {"nodes", "stagevar_core", "workflows", "subgraphs", "models", "locales", "web", "assets"}
RUNTIME_FILES = {"__init__.py", "pyproject.toml", "requirements.txt", "README.md", "LICENSE", "CHANGELOG.md"}

Comfy = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def comfy(bed: Bed, tmp_path_factory: pytest.TempPathFactory) -> Comfy:
    """Runs comfy-cli with a home of its own."""
    if not bed.comfy_cli.is_file():
        missing(f"no comfy-cli at {bed.comfy_cli}: run python scripts/test.py")
    home = tmp_path_factory.mktemp("comfy-cli-home")
    path = f"{bed.python.parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = os.environ | QUIET | {"HOME": str(home), "USERPROFILE": str(home), "PATH": path}

    def call(*arguments: str | Path, cwd: Path = home) -> subprocess.CompletedProcess[str]:
        command = [str(bed.comfy_cli), "--skip-prompt", *map(str, arguments)]
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)

    call("tracking", "disable")
    return call


@pytest.fixture(scope="session")
def checkout_copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a commit of the working tree would hold, as a git repository of its own."""
    copy = tmp_path_factory.mktemp("checkout") / "pack"
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:  # an unpacked archive instead of a clone
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*NOT_IN_PACK))
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    for command in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", *command], cwd=copy, check=True, capture_output=True)
    return copy


def address(server: ComfyServer) -> list[str]:
    """The options that point comfy-cli at our server."""
    return ["--host", "127.0.0.1", "--port", str(server.port)]


def envelope(result: subprocess.CompletedProcess[str]) -> Json:
    """comfy-cli's JSON answer."""
    assert result.stdout.strip(), result.stderr
    return json.loads(result.stdout.strip().splitlines()[-1])


@pytest.mark.parametrize("api", [True, False], ids=["api", "ui"])
def test_run_makes_an_image(comfy: Comfy, comfy_server: ComfyServer, api: bool) -> None:
    workflow = shipped_workflow(WORKFLOW, api)
    result = comfy("run", "--workflow", workflow, "--wait", *address(comfy_server))
    answer = envelope(result)
    assert result.returncode == 0 and answer["ok"], result.stdout + result.stderr
    assert answer["data"]["status"] == "completed"
    assert any(".png" in output for output in answer["data"]["outputs"])


def test_every_stored_workflow_is_valid(comfy: Comfy, comfy_server: ComfyServer) -> None:
    stored = sorted((ROOT / "workflows").rglob("*.json"))
    api_format = [path for path in stored if "nodes" not in json.loads(path.read_text(encoding="utf-8"))]
    assert api_format
    for path in api_format:
        data = envelope(comfy("workflow", "validate", "--workflow", path, *address(comfy_server)))["data"]
        # Workflows for downloaded models and for pictures name files that are not here; the rest must fit.
        absent = ("_name", "image")
        errors = [error for error in data["errors"] if not str(error.get("field")).endswith(absent)]
        assert not errors, f"{path.name}: {errors}"
        if path == shipped_workflow(WORKFLOW):
            assert data["valid"], data["errors"]


def test_validation_finds_a_bad_value(
    comfy: Comfy, comfy_server: ComfyServer, prompt: Json, tmp_path: Path
) -> None:
    prompt[nodes_of(prompt, "StageVARSampler")[0]]["inputs"]["seed"] = -1
    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps(prompt), encoding="utf-8")
    result = comfy("workflow", "validate", "--workflow", broken, *address(comfy_server))
    assert result.returncode == 1 and "seed" in result.stdout


def test_pack_passes_the_registry_checks(comfy: Comfy, checkout_copy: Path) -> None:
    result = comfy("node", "validate", cwd=checkout_copy)
    text = result.stdout + result.stderr
    assert result.returncode == 0, text
    # The command only warns about what the registry would reject, so its exit code says little.
    assert "All validation checks passed" in text
    assert not [
        line for line in text.splitlines() if "warning" in line.lower() or "S102" in line or "S307" in line
    ]


def test_archive_holds_only_runtime_files(comfy: Comfy, checkout_copy: Path) -> None:
    result = comfy("node", "pack", cwd=checkout_copy)
    assert result.returncode == 0, result.stdout + result.stderr
    with zipfile.ZipFile(checkout_copy / "node.zip") as archive:
        names = archive.namelist()
    strangers = [name for name in names if name.split("/")[0] not in RUNTIME_PLACES | RUNTIME_FILES]
    assert not strangers
    assert {
        "__init__.py",
        "pyproject.toml",
        "LICENSE",
        "nodes/__init__.py",
        "stagevar_core/__init__.py",
    } <= set(names)
    assert any(name.endswith(".safetensors") for name in names), "the embedded model is missing"
    assert f"workflows/{WORKFLOW}.json" in names
    assert {f"locales/{language}/nodeDefs.json" for language in ("en", "zh")} <= set(names)
    assert [name for name in names if name.startswith("subgraphs/") and name.endswith(".json")]
