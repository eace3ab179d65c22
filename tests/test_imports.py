"""The import directions: errors, numerics ← model ← analyses ← pipeline ← passes, targets ← command line."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import graphcompress.passes
import graphcompress.targets
import pytest

from graphcompress.base import Capabilities

FRAMEWORK = Path(graphcompress.__file__).parent
ROOTS = {
    "graphcompress.passes": Path(graphcompress.passes.__file__).parent,
    "graphcompress.targets": Path(graphcompress.targets.__file__).parent,
    "graphcompress": FRAMEWORK,
}
HEAVY = {"torch", "transformers", "tensorrt", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "scipy"}
LIGHT = ("graphcompress", "graphcompress.cli", "graphcompress.base", "graphcompress.registry")
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


@pytest.mark.parametrize("module", within("graphcompress.passes"))
def test_a_pass_imports_no_other_pass_and_no_target(module: str) -> None:
    others = set(within("graphcompress.passes", "graphcompress.targets")) - {module, "graphcompress.passes"}
    assert not reached(module) & others


@pytest.mark.parametrize("module", within("graphcompress.targets"))
def test_a_target_imports_no_pass_and_no_other_target(module: str) -> None:
    others = set(within("graphcompress.passes", "graphcompress.targets")) - {module, "graphcompress.targets"}
    assert not reached(module) & others


def test_the_framework_names_no_concrete_pass_or_target() -> None:
    concrete = set(within("graphcompress.passes", "graphcompress.targets"))
    for module in set(modules()) - concrete:
        assert not own_imports(module) & concrete, module


def test_only_the_command_line_imports_the_command_line() -> None:
    command_line = set(within("graphcompress.cli", "graphcompress.commands", "graphcompress.__main__"))
    for module in set(modules()) - command_line:
        assert not own_imports(module) & command_line, module


@pytest.mark.parametrize("module", within("graphcompress.numerics"))
def test_numerics_know_no_graph(module: str) -> None:
    assert not {name.partition(".")[0] for name in imports(modules()[module])} & GRAPH_LIBRARIES
    assert reached(module) <= {*within("graphcompress.numerics"), "graphcompress.errors"}


LAYERS = (
    ("errors", "extras", "numerics", "processes"),
    ("options", "reading", "scratch", "model", "base", "registry", "runtime"),
    ("expressions", "analysis", "rewrite", "data", "calibrate", "measure"),
    ("forms", "kronecker_forms", "pruning", "quantisation", "rules"),
    (
        "artifact",
        "capturing",
        "metrics",
        "support",
        "verify",
        "pipeline",
        "report",
        "build",
    ),
    ("bench", "inspection", "roofline", "tuning", "reference", "fx", "distillation"),
)
"""Modules import their own layer and the ones above it only."""


def test_layers_import_one_way() -> None:
    allowed: set[str] = set()
    for layer in LAYERS[:-1]:
        assert all(f"graphcompress.{name}" in modules() for name in layer), layer
        allowed |= set(within(*(f"graphcompress.{name}" for name in layer)))
        later = set(within(*(f"graphcompress.{name}" for rest in LAYERS for name in rest))) - allowed
        for module in within(*(f"graphcompress.{name}" for name in layer)):
            assert not reached(module) & later, module


def test_no_module_imports_itself_in_a_circle() -> None:
    for module in modules():
        assert module not in reached(module)


@pytest.mark.parametrize("module", LIGHT)
def test_starting_up_loads_nothing_heavy(module: str) -> None:
    for name in (module, *reached(module, top_level_only=True)):
        loaded = {found.partition(".")[0] for found in imports(modules()[name], top_level_only=True)}
        assert not loaded & HEAVY, name


def test_only_what_trains_or_captures_imports_torch() -> None:
    allowed = set(within("graphcompress.fx", "graphcompress.capturing", "graphcompress.distillation"))
    for module in set(modules()) - allowed:
        assert "torch" not in {name.partition(".")[0] for name in imports(modules()[module])}, module


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
