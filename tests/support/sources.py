"""The source of the core and of the nodes as it stands on disk: files, imports, functions."""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[2]
Definition = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Import:
    """One imported module or name: where it stands, and the dotted name that it resolves to.

    ``level``: how many dots a relative import has; 0 is an absolute one.
    """

    line: int
    name: str
    level: int


@dataclass(frozen=True)
class Source:
    """One file; ``module``: its dotted name from the root of the repository, of a package without
    ``__init__``.
    """

    path: Path
    module: str

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def place(self) -> str:
        """The path from the root of the repository, for messages."""
        return self.path.relative_to(ROOT).as_posix()

    @property
    def package(self) -> tuple[str, ...]:
        """The package that one dot of a relative import means."""
        parts = tuple(self.module.split("."))
        return parts if self.path.name == "__init__.py" else parts[:-1]

    @cached_property
    def imports(self) -> tuple[Import, ...]:
        """All imports, also those inside functions and under ``TYPE_CHECKING``."""
        return tuple(self._imports())

    def _imports(self) -> Iterator[Import]:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from (Import(node.lineno, alias.name, 0) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = self.package[: len(self.package) + 1 - node.level] if node.level else ()
                stem = ".".join((*base, *(node.module or "").split("."))).strip(".")
                yield from (
                    Import(node.lineno, f"{stem}.{alias.name}".strip("."), node.level) for alias in node.names
                )

    def functions(self) -> Iterator[Definition]:
        """Every function of the file, methods and nested ones too."""
        return (node for node in ast.walk(self.tree) if isinstance(node, Definition))


def sources(*folders: str) -> dict[str, Source]:
    """The files of these folders of the repository by the names of their modules."""
    found = {}
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[module] = Source(path, module)
    return found


def imported(source: Source, known: Mapping[str, Source]) -> Iterator[tuple[int, str]]:
    """Line and module of every import of one of the ``known`` modules."""
    for each in source.imports:
        # The name may be a module or something in one; the longest that is a file counts.
        name = each.name
        while name and name not in known:
            name = name.rpartition(".")[0]
        if name and name != source.module:
            yield each.line, name


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """The nodes of a circle in the order of its edges, the first again at the end; empty without one."""
    done: set[str] = set()

    def walk(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node not in done:
            for following in sorted(graph.get(node, ())):
                if found := walk(following, [*path, node]):
                    return found
            done.add(node)
        return []

    return next((found for start in sorted(graph) if (found := walk(start, []))), [])
