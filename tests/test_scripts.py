"""The parts of the setup and quickstart scripts that need neither a network nor ComfyUI."""

from __future__ import annotations

from pathlib import Path

import bootstrap
import comfy_server
import environment
import pytest
import setup_torch
from environment import SetupError


def test_pip_failures_become_one_line() -> None:
    said = "Collecting torch\nERROR: Could not install packages: [Errno 28] No space left on device\n"
    assert environment.explain(said, ("install",)).startswith("The disk is full")
    said = "WARNING: Retrying ... NewConnectionError: [Errno -3] Temporary failure in name resolution\n"
    assert environment.explain(said, ("install",)).startswith("No network")
    said = "Collecting x\nERROR: No matching distribution found for x\n"
    assert (
        environment.explain(said, ("install", "x"))
        == "pip install x failed: ERROR: No matching distribution found for x"
    )


def fake_pip(monkeypatch: pytest.MonkeyPatch, outputs: list[tuple[int, str]]) -> list[int]:
    """Lets pip answer with given exit codes and outputs; returns a list that grows with each call."""
    calls: list[int] = []

    def answer(command: list, **_: object) -> object:
        code, text = outputs[len(calls)]
        calls.append(code)
        return type("Result", (), {"returncode": code, "stdout": text, "stderr": ""})

    monkeypatch.setattr(environment, "run_quiet", answer)
    monkeypatch.setattr(environment.time, "sleep", lambda seconds: None)
    return calls


def test_pip_retries_what_may_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_pip(monkeypatch, [(1, "ReadTimeoutError: Read timed out."), (1, "error 503"), (0, "done")])
    environment.pip(Path("python"), "install", "x")
    assert calls == [1, 1, 0]


def test_pip_gives_up_on_what_cannot_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_pip(monkeypatch, [(1, "ERROR: No matching distribution found for x")])
    with pytest.raises(SetupError, match="No matching distribution"):
        environment.pip(Path("python"), "install", "x")
    assert calls == [1]


def test_torch_choice_follows_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    listing = type(
        "Result", (), {"stdout": "Available versions: 2.15.0, 2.13.0+cpu, 2.13.0", "returncode": 0}
    )
    monkeypatch.delenv("STAGEVAR_TORCH", raising=False)
    monkeypatch.setattr(setup_torch.sys, "platform", "linux")
    monkeypatch.setattr(setup_torch, "run_quiet", lambda command: listing)
    monkeypatch.setattr(setup_torch, "reachable", lambda url: False)
    monkeypatch.setattr(setup_torch, "has_nvidia", lambda: True)
    assert setup_torch.torch_arguments(Path("python")) == ["torch", "torchvision"]
    monkeypatch.setattr(setup_torch, "has_nvidia", lambda: False)
    assert setup_torch.torch_arguments(Path("python")) == ["torch==2.13.0", "torchvision==0.28.0"]
    listing.stdout = "Available versions: 2.15.0"
    assert setup_torch.torch_arguments(Path("python")) == ["torch", "torchvision"]
    monkeypatch.setenv("STAGEVAR_TORCH", "torch==2.9.1 torchvision==0.24.1")
    assert setup_torch.torch_arguments(Path("python")) == ["torch==2.9.1", "torchvision==0.24.1"]


def test_dependencies_are_read_from_pyproject() -> None:
    names = {requirement.split(">")[0] for requirement in bootstrap.project_requirements()}
    assert {"torch", "safetensors", "numpy"} <= names
    assert all(">=" in requirement for requirement in bootstrap.project_requirements())


def test_given_tree_must_be_comfyui(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(SetupError, match="main.py is missing"):
        bootstrap.fetch_comfy(Path("python"))


def test_requirements_of_a_newer_tree_leave_pytorch_alone(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text(
        "torch\ncomfy-kitchen>=0.2 # kernels\n\n#x\nPyOpenGL\nav>=16\n"
    )
    assert bootstrap.comfy_requirements(tmp_path) == ["comfy-kitchen>=0.2", "av>=16"]


def test_positive_text_is_found_through_other_nodes() -> None:
    prompt = {
        "1": {"class_type": "CLIPTextEncode", "inputs": {"text": "good", "clip": ["9", 0]}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "bad", "clip": ["9", 0]}},
        "3": {
            "class_type": "ConditioningSetTimestepRange",
            "inputs": {"conditioning": ["1", 0], "start": 0.0},
        },
        "4": {
            "class_type": "StageVARSampler",
            "inputs": {"positive": ["3", 0], "negative": ["2", 0], "seed": 1},
        },
    }
    assert comfy_server.positive_text_node(prompt) == "1"


def test_base_directory_links_the_pack_and_survives_a_second_call(tmp_path: Path) -> None:
    pack = tmp_path / "pack"
    pack.mkdir()
    (pack / "__init__.py").write_text("")
    for _ in range(2):
        place = comfy_server.make_base_directory(tmp_path / "base", pack)
    assert (place / "__init__.py").is_file()
    assert (tmp_path / "base" / "models").is_dir()
