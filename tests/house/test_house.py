"""Rules of the core that a reader should be able to rely on, checked on its source."""

import ast
import importlib
import pkgutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import Tensor, nn

import stagevar_core

CORE = Path(stagevar_core.__file__).parent
SOURCES = sorted(CORE.rglob("*.py"))
# What ComfyUI brings anyway; anything else would be a package that users have to install.
PACKAGES = {"torch", "safetensors", "numpy", "PIL", "einops", "transformers", "tokenizers", "tqdm"}


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and top-level name of every absolute import, also of those inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.lineno, node.module.split(".")[0]


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: str(source.relative_to(CORE)))
def test_the_core_needs_nothing_of_its_host(source: Path) -> None:
    for line, name in imports(ast.parse(source.read_text(encoding="utf-8"))):
        assert name != "stagevar_core", (
            f"{source}:{line}: import relatively, the host loads us by folder name"
        )
        assert name in PACKAGES or name in sys.stdlib_module_names, f"{source}:{line}: imports {name}"


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: str(source.relative_to(CORE)))
def test_relative_imports_stay_inside_the_core(source: Path) -> None:
    depth = len(source.relative_to(CORE).parts)
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level <= depth, f"{source}:{node.lineno}: leaves the package"


def tensors(value: object, depth: int = 2) -> bool:
    """Whether a module-level value is or holds a tensor or a module with weights."""
    if isinstance(value, Tensor | nn.Module):
        return True
    inside = (
        value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple | set) else ()
    )
    return depth > 0 and any(tensors(item, depth - 1) for item in inside)


def test_no_module_holds_tensors() -> None:
    for info in pkgutil.walk_packages([str(CORE)], "stagevar_core."):
        if info.name.endswith("__main__"):
            continue
        module = importlib.import_module(info.name)
        held = [name for name, value in vars(module).items() if not name.startswith("__") and tensors(value)]
        assert not held, f"{info.name} holds tensors in {held}: state belongs to a model or a run"


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: str(source.relative_to(CORE)))
def test_files_stay_readable_in_one_sitting(source: Path) -> None:
    assert len(source.read_text(encoding="utf-8").splitlines()) <= 400
