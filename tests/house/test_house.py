"""Rules of the core and of the nodes that a reader should be able to rely on, checked on their source."""

import ast
import importlib
import pkgutil
import sys
from collections.abc import Iterator

from torch import Tensor, nn

import stagevar_core
from tests.support.sources import Source, circle, imported, sources

CORE = sources("stagevar_core")
NODES = sources("nodes")
BOTH = CORE | NODES
# From the top down: what stands in one line knows nothing of its neighbours, and nothing of what is above.
FLOORS = (
    ("__main__",),
    ("commands",),
    ("evaluation",),
    ("rendering",),
    ("pipeline", "scenes"),
    ("sampling", "checkpoints", "plots"),
    ("models",),
    ("autoencoders", "acceleration", "conditioning"),
    ("network",),
    ("costs",),
    ("schedule",),
    ("devices",),
    ("checks", "files", "embedded"),
    ("stagevar_core",),
)
FLOOR = {room: -floor for floor, rooms in enumerate(FLOORS) for room in rooms}
ALONE = {"scenes"}  # needs no other room
# What ComfyUI brings anyway; anything else would be a package that users have to install.
PACKAGES = {"torch", "safetensors", "numpy", "scipy", "PIL", "einops", "transformers", "tokenizers", "tqdm"}
# Parameters that stand for a part of the contract, which has a name for each.
CONTRACT = {
    "model",
    "network",
    "transformer",
    "tokenizer",
    "quantizer",
    "text_encoder",
    "conditioned",
    "head",
}
LONGEST_FILE, LONGEST_FUNCTION = 350, 60  # lines

Class = ast.ClassDef
Function = ast.FunctionDef | ast.AsyncFunctionDef


def room(module: str) -> str:
    """The room that a module is in: a folder or a file of the top; of the nodes one of two."""
    parts = module.split(".")
    if parts[0] == "nodes":
        return "nodes.host" if parts[1:2] == ["host"] else "nodes"
    return parts[1] if len(parts) > 1 else parts[0]


def downward(before: str, after: str) -> bool:
    """Whether one room may import another."""
    if before.startswith("nodes"):
        below = FLOOR.get(after, 1) <= FLOOR["pipeline"] and after not in ALONE
        return below or (before, after) == ("nodes", "nodes.host")
    return before not in ALONE and after in FLOOR and FLOOR[before] > FLOOR[after]


def listed(offenders: list[str]) -> str:
    """One offender a line."""
    return "\n".join(["", *offenders])


# ------------------------------------------------------------------------------------------------- imports


def test_every_room_has_a_floor() -> None:
    rooms = {room(module) for module in CORE}
    assert rooms <= set(FLOOR), f"no floor for {sorted(rooms - set(FLOOR))}"


def test_imports_between_rooms_point_down() -> None:
    offenders = [
        f"{room(module)} -> {room(name)}: {source.place}:{line} imports {name}"
        for module, source in BOTH.items()
        for line, name in imported(source, BOTH)
        if room(module) != room(name) and room(module) in {*FLOOR, "nodes", "nodes.host"}
        if not downward(room(module), room(name))
    ]
    assert not offenders, listed(offenders)


def test_no_files_import_each_other_in_a_circle() -> None:
    for known in (CORE, NODES):
        graph = {module: {name for _, name in imported(source, known)} for module, source in known.items()}
        found = circle(graph)
        assert not found, " -> ".join(found)


def test_a_circle_is_found_and_named() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}}) == []


def test_the_core_needs_nothing_of_its_host() -> None:
    allowed = PACKAGES | set(sys.stdlib_module_names)
    offenders = [
        f"{source.place}:{each.line} imports {each.name}"
        + (": relatively, please, the host loads us by folder name" if "stagevar_core" in each.name else "")
        for source in CORE.values()
        for each in source.imports
        if not each.level and each.name.split(".")[0] not in allowed
    ]
    assert not offenders, listed(offenders)


def test_relative_imports_stay_inside_the_core() -> None:
    offenders = [
        f"{source.place}:{each.line} leaves the package with {each.level} dots"
        for source in CORE.values()
        for each in source.imports
        if each.level > len(source.package)
    ]
    assert not offenders, listed(offenders)


def test_what_tests_share_is_in_their_support() -> None:
    known = sources("tests")
    offenders = [
        f"{source.place}:{line} imports {name}"
        for source in known.values()
        for line, name in imported(source, known)
        if name.rpartition(".")[2].startswith("test_")
    ]
    assert not offenders, listed(offenders)


# --------------------------------------------------------------------------------------------------- sizes


def test_files_stay_readable_in_one_sitting() -> None:
    lengths = {source.place: len(source.text.splitlines()) for source in CORE.values()}
    offenders = [f"{place}: {length} lines" for place, length in lengths.items() if length > LONGEST_FILE]
    assert not offenders, listed(offenders)


def test_functions_fit_on_a_screen() -> None:
    offenders = [
        f"{source.place}:{node.lineno} {node.name}: {node.end_lineno - node.lineno + 1} lines"
        for source in CORE.values()
        for node in source.functions()
        if node.end_lineno - node.lineno + 1 > LONGEST_FUNCTION
    ]
    assert not offenders, listed(offenders)


# --------------------------------------------------------------------------------------------------- state


def tensors(value: object, depth: int = 2) -> bool:
    """Whether a module-level value is or holds a tensor or a module with weights."""
    if isinstance(value, Tensor | nn.Module):
        return True
    inside = (
        value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple | set) else ()
    )
    return depth > 0 and any(tensors(item, depth - 1) for item in inside)


def test_no_module_holds_tensors() -> None:
    offenders = []
    for info in pkgutil.walk_packages(stagevar_core.__path__, "stagevar_core."):
        if not info.name.endswith("__main__"):  # which runs when it is imported
            held = vars(importlib.import_module(info.name)).items()
            offenders += [f"{info.name}.{key}" for key, value in held if key[:2] != "__" and tensors(value)]
    assert not offenders, "state belongs to a model or a run:" + listed(offenders)


# --------------------------------------------------------------------------------------- words and types


def public(name: str) -> bool:
    return not name.startswith("_")


def methods(node: Class) -> dict[str, Function]:
    """The methods that a class defines itself."""
    return {item.name: item for item in node.body if isinstance(item, Function)}


def bases(node: Class) -> list[str]:
    """The names of its bases, without their packages and parameters."""
    plain = [base.value if isinstance(base, ast.Subscript) else base for base in node.bases]
    return [base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "") for base in plain]


CLASSES = {
    node.name: node for source in CORE.values() for node in ast.walk(source.tree) if isinstance(node, Class)
}


def ancestors(node: Class) -> Iterator[Class]:
    """The classes of the core that a class derives from."""
    for name in bases(node):
        if name in CLASSES and CLASSES[name] is not node:
            yield CLASSES[name]
            yield from ancestors(CLASSES[name])


def signed(node: Class) -> Iterator[Class]:
    """The protocols that a class keeps by having all of their methods."""
    own = {name for each in (node, *ancestors(node)) for name in methods(each)}
    for other in CLASSES.values():
        wanted = set(methods(other))
        if "Protocol" in bases(other) and wanted and wanted <= own:
            yield other


def explained(name: str, node: Class) -> bool:
    """Whether a class or a protocol that it keeps says what the method is."""
    if "Protocol" in bases(node) and len(methods(node)[name].body) == 1:
        return bool(ast.get_docstring(node))  # a value that the protocol's own words name
    places = [*ancestors(node), *signed(node)]
    told = any(name in methods(each) and ast.get_docstring(methods(each)[name]) for each in places)
    return bool(told) or (name == "forward" and "Module" in bases(node))


def silent(source: Source) -> Iterator[str]:
    """Public functions, classes and methods of a file that do not say what they are."""
    for node in source.tree.body:
        if not isinstance(node, Class | Function) or not public(node.name):
            continue
        if not ast.get_docstring(node):
            yield f"{source.place}:{node.lineno} {node.name}"
        for name, method in methods(node).items() if isinstance(node, Class) else ():
            if public(name) and not ast.get_docstring(method) and not explained(name, node):
                yield f"{source.place}:{method.lineno} {node.name}.{name}"


def test_everything_public_says_what_it_is() -> None:
    offenders = [line for source in CORE.values() for line in silent(source)]
    assert not offenders, f"{len(offenders)} without a docstring:{listed(offenders)}"


def anything(node: ast.AST | None) -> bool:
    """Whether an annotation says ``Any`` somewhere, or nothing at all."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return anything(ast.parse(node.value))
    names = {each.id for each in ast.walk(node) if isinstance(each, ast.Name)} if node else {"Any"}
    return "Any" in names


def test_parts_of_the_contract_are_never_just_anything() -> None:
    offenders = [
        f"{source.place}:{each.lineno} {node.name}({each.arg})"
        for source in CORE.values()
        for node in source.functions()
        for each in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
        if each.arg in CONTRACT and anything(each.annotation)
    ]
    assert not offenders, f"{len(offenders)} without a type of the contract:{listed(offenders)}"
