"""What all tests share: where ComfyUI, comfy-cli and Chromium are, and one running ComfyUI for the session.

`python scripts/test.py` sets everything up and says where it is through environment variables; a plain
`pytest` looks in the default places. What is missing skips its tests with the reason, or fails them in CI.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from testbed.chromium import find_chromium
from testbed.comfy_server import ComfyServer
from testbed.environment import ROOT, TESTBED, venv_bin

from tests.support.testbed import Bed, missing

if TYPE_CHECKING:
    from stagevar_core.pipeline import Pipeline

# Tiny tensors gain nothing from a second thread, which costs more in waiting than it computes; with a second
# process beside it a hundred times more. Set before torch is imported; programs that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A compilation that fails leaves torch's evaluator of frames behind, which holds arguments longer. So in any
# process the tests that count storages come before those that compile.
COMPILES = Path(__file__).parent / "models" / "test_compiling.py"

# Screenshots and the like, for people to look at; ignored by git.
ARTIFACTS = Path(os.environ.get("STAGEVAR_ARTIFACTS", ROOT / "output" / "tests"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What compiles comes last, and the quick files where processes share them, so that all end at once."""
    shared = hasattr(config, "workerinput")
    long = {item.path for item in items if item.get_closest_marker("slow")}
    long |= {item.path for item in items if item.path.parent.name == "comfyui"}
    items.sort(key=lambda item: (shared and item.path not in long, item.path == COMPILES))


@pytest.fixture(autouse=True)
def same_weights() -> None:
    """What layers draw for themselves must not depend on the tests that ran before in the process."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def bed() -> Bed:
    """The test bed, from the environment or the default places."""
    told = os.environ.get
    chromium = told("STAGEVAR_CHROMIUM", find_chromium() or "")
    return Bed(
        Path(told("STAGEVAR_PYTHON", sys.executable)),
        Path(told("STAGEVAR_TESTBED") or told("COMFYUI_PATH") or TESTBED / "ComfyUI"),
        Path(told("STAGEVAR_COMFY_CLI", venv_bin(TESTBED / "comfy-cli", "comfy"))),
        chromium or None,
        told("STAGEVAR_NO_BROWSER") or "no Chromium found",
    )


@pytest.fixture(scope="session")
def comfy_server(bed: Bed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """A headless ComfyUI with this checkout as its only custom node."""
    if not (bed.comfy_path / "main.py").is_file():
        missing(f"no ComfyUI in {bed.comfy_path}: run python scripts/test.py")
    with ComfyServer(bed.python, bed.comfy_path, tmp_path_factory.mktemp("comfyui")) as server:
        yield server


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The three files of a tiny model."""
    from tests.support.tiny_files import (
        write_models,  # not above: the tests of the host start without the models
    )

    return write_models(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def pipeline(files: dict[str, Path]) -> Pipeline:
    """The tiny model, loaded."""
    from stagevar_core.pipeline import Pipeline

    return Pipeline.load(**files, device="cpu")


@pytest.fixture(scope="session")
def artifacts() -> Path:
    """A folder for what a person may want to look at after the run."""
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    return ARTIFACTS
