"""The plan of the house: which room may import which, and that no two rooms or modules import each other."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import graphcompress.passes
import graphcompress.targets
from graphcompress.plugin.capabilities import Capabilities

FRAMEWORK = Path(graphcompress.__file__).parent
ROOTS = {
    "graphcompress.passes": Path(graphcompress.passes.__file__).parent,
    "graphcompress.targets": Path(graphcompress.targets.__file__).parent,
    "graphcompress": FRAMEWORK,
}
HEAVY = {"torch", "transformers", "tensorrt", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "scipy"}
LIGHT = (
    "graphcompress",
    "graphcompress.cli",
    "graphcompress.build.request",
    "graphcompress.plugin.base",
    "graphcompress.plugin.registry",
)
GRAPH_LIBRARIES = {"onnx", "onnx_ir", "onnxruntime", "onnxscript", "onnx_shape_inference"}


@cache
def modules() -> dict[str, Path]:
    """Every module of the package: dotted name → file."""
    found = {}
    for package, root in ROOTS.items():
        for path in sorted(root.rglob("*.py")):
            parts = [part for part in path.relative_to(root).with_suffix("").parts if part != "__init__"]
            found.setdefault(".".join([package, *parts]), path)
    return found


def imports(path: Path, *, top_level_only: bool = False) -> Iterator[str]:
    """Dotted names that a file imports; under ``if TYPE_CHECKING`` the running program imports nothing."""
    pending: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            pending.extend(node.orelse)
        elif not (top_level_only and isinstance(node, (ast.FunctionDef, ast.Lambda))):
            pending.extend(ast.iter_child_nodes(node))


@cache
def own_imports(module: str, *, top_level_only: bool = False) -> frozenset[str]:
    """Modules of this package that ``module`` imports."""
    known = modules()
    found = set()
    for name in imports(known[module], top_level_only=top_level_only):
        while name not in known and "." in name:
            name = name.rpartition(".")[0]
        if name in known and name != "graphcompress":
            found.add(name)
    return frozenset(found - {module})


@cache
def reached(module: str, *, top_level_only: bool = False) -> frozenset[str]:
    """All modules of this package that are imported with ``module``."""
    seen: set[str] = set()
    pending = [module]
    while pending:
        for name in own_imports(pending.pop(), top_level_only=top_level_only) - seen:
            seen.add(name)
            pending.append(name)
    return frozenset(seen)


def within(*packages: str) -> list[str]:
    return [name for name in modules() if any(name == p or name.startswith(f"{p}.") for p in packages)]


PLAN: dict[str, str] = {
    "errors": "",
    "numerics": "",
    "plugin": "errors",
    "files": "errors",
    "graph": "errors files",
    "ranges": "errors files graph",
    "analysis": "errors numerics files graph",
    "coupling": "errors numerics files graph analysis",
    "rewrite": "errors numerics files graph plugin analysis",
    "cutting": "errors numerics files graph plugin analysis coupling rewrite",
    "data": "errors files graph plugin analysis",
    "rules": "errors numerics files graph ranges plugin analysis rewrite",
    "generation": "errors files graph plugin analysis data",
    "measure": "errors numerics files graph plugin analysis data generation",
    "narrowing": "errors numerics files graph plugin analysis coupling cutting rewrite data measure",
    "latency": "errors files graph plugin analysis coupling cutting rewrite data measure",
    "fx": "errors numerics files graph plugin analysis rewrite rules",
    "capturing": "errors files graph plugin data generation measure",
    "training": "errors numerics files graph plugin analysis coupling cutting rewrite data generation"
    " measure fx",
    "instruments": "errors numerics files graph plugin analysis coupling cutting rewrite fx training",
    "pipeline": "errors numerics files graph plugin analysis coupling rewrite rules data measure",
    "artifact": "errors files graph plugin analysis coupling rewrite rules data measure capturing",
    "reporting": "errors numerics files graph plugin analysis measure pipeline artifact",
    "build": "errors numerics files graph plugin analysis coupling rewrite rules data generation"
    " measure latency capturing training pipeline artifact reporting",
    "cli": "errors numerics files graph plugin analysis coupling rules data generation measure"
    " capturing training pipeline artifact reporting build",
}
"""Room → the rooms that it may import, its own aside; a room stands below all that it imports."""

LARGEST_ROOM = 3000
"""Lines of the modules of a room; one that is larger holds two things."""

FOR_PLUGINS = {"errors", *PLAN} - {"reporting", "build", "cli"}
"""Rooms that a pass, a target or a task may import."""

PASSES = ("simplify", "kron", "prune", "quantize", "blockprune", "distill", "vocab")
TARGETS = ("common", "cpu", "nvidia", "mobile", "openvino")
TASKS = (
    "automatic_speech_recognition",
    "feature_extraction",
    "fill_mask",
    "image_classification",
    "image_to_text",
    "question_answering",
    "text2text_generation",
    "text_classification",
    "text_generation",
    "token_classification",
)
PLUGINS = {
    **{f"passes.{name}": set[str]() for name in PASSES},
    **{f"targets.{name}": {"targets.common"} for name in TARGETS},
    **{f"tasks.{name}": set[str]() for name in TASKS},
}
"""Room of a pass, a target or a task → the rooms of its kind that it may import, its own aside."""

ROOT = {"__main__": "cli"}
"""Modules that belong to no room → what they import; the public face imports names when they are used."""


def room(module: str) -> str:
    """The room of a module; of a pass or a target its kind and name."""
    parts = module.split(".")[1:]
    return ".".join(parts[:2]) if parts and parts[0] in ("passes", "targets", "tasks") else (parts or [""])[0]


def rooms_imported(name: str) -> set[str]:
    """Rooms that the modules of the room ``name`` import, lazily too."""
    return {room(other) for module in modules() if room(module) == name for other in own_imports(module)} - {
        name
    }


def test_every_room_is_in_the_plan() -> None:
    facades = {"", "passes", "targets", "tasks"}
    assert {room(module) for module in modules()} == {*PLAN, *PLUGINS, *ROOT, *facades}


def test_the_page_has_a_map_of_every_room() -> None:
    page = (FRAMEWORK.parent / "docs" / "how-it-works.md").read_text(encoding="utf-8")
    rooms = page.partition("## The rooms")[2].partition("\n## ")[0]
    assert set(PLAN) <= set(re.findall(r"\w+", rooms))


@pytest.mark.parametrize("name", PLAN)
def test_a_room_imports_what_the_plan_says(name: str) -> None:
    assert rooms_imported(name) <= set(PLAN[name].split())


@pytest.mark.parametrize("name", PLUGINS)
def test_a_pass_target_or_task_imports_the_framework_alone(name: str) -> None:
    assert rooms_imported(name) <= FOR_PLUGINS | PLUGINS[name]


def test_the_plan_has_no_circle_and_no_room_that_is_not_there() -> None:
    above: set[str] = set()
    for name, allowed in PLAN.items():
        assert set(allowed.split()) <= above, name
        above.add(name)


def test_no_module_imports_itself_in_a_circle() -> None:
    for module in modules():
        assert module not in reached(module)


def test_the_framework_spells_out_no_pass_target_or_task() -> None:
    """Also not as a text: the registry finds them by the name that a user gives."""
    for module, path in modules().items():
        if room(module) in PLAN:
            text = path.read_text(encoding="utf-8")
            found = re.findall(r"graphcompress\.(?:passes|targets|tasks)\.\w+|\.find\([\"']\w+", text)
            assert not found, module


@pytest.mark.parametrize("module", within("graphcompress.numerics"))
def test_numerics_know_no_graph(module: str) -> None:
    assert not {name.partition(".")[0] for name in imports(modules()[module])} & GRAPH_LIBRARIES


@pytest.mark.parametrize("module", LIGHT)
def test_starting_up_loads_nothing_heavy(module: str) -> None:
    for name in (module, *reached(module, top_level_only=True)):
        loaded = {found.partition(".")[0] for found in imports(modules()[name], top_level_only=True)}
        assert not loaded & HEAVY, name


def test_only_what_trains_or_captures_imports_torch() -> None:
    allowed = set(
        within(*(f"graphcompress.{name}" for name in ("fx", "capturing", "training", "instruments")))
    )
    for module in set(modules()) - allowed:
        assert "torch" not in {name.partition(".")[0] for name in imports(modules()[module])}, module


def test_every_class_name_is_defined_once() -> None:
    defined = [
        node.name
        for path in modules().values()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    ]
    assert sorted(defined) == sorted(set(defined))


def test_no_variable_of_the_library_is_called_it() -> None:
    for module, path in modules().items():
        named = {
            node.arg if isinstance(node, ast.arg) else node.id
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, (ast.arg, ast.Name))
        }
        assert "it" not in named, module


def test_every_capability_of_a_target_is_read() -> None:
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in modules().values()]
    read = {node.attr for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert {field.name for field in dataclasses.fields(Capabilities)} <= read


@pytest.mark.parametrize("package", ["passes", "targets"])
def test_the_plain_package_name_is_refused(package: str) -> None:
    root = str(ROOTS[f"graphcompress.{package}"].parent)
    code = f"import sys; sys.path.insert(0, {root!r}); import {package}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"import this package as 'graphcompress.{package}', not as '{package}'" in done.stderr


def test_every_public_name_of_the_package_is_there() -> None:
    package = importlib.import_module("graphcompress")
    assert all(getattr(package, name) is not None for name in package.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = package.nothing


def test_no_room_has_more_lines_than_a_person_knows() -> None:
    lines: Counter[str] = Counter()
    for name, path in modules().items():
        lines[room(name)] += len(path.read_text(encoding="utf-8").splitlines())
    assert {name: count for name, count in lines.items() if count > LARGEST_ROOM} == {}
