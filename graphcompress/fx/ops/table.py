"""The decorator that puts a function into the op table, and the look-up."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import onnx_ir as ir

from graphcompress.fx.builder import FxBuilder, Operand

Result = Operand | tuple[Operand | None, ...]
Operator = Callable[[FxBuilder, ir.Node], Result]

_TABLE: dict[tuple[str, str], Operator] = {}

FAMILIES = (
    "activations",
    "elementwise",
    "reductions",
    "shape",
    "slicing",
    "products",
    "normalisation",
    "quantisation",
    "selections",
    "attention",
    "contrib",
)
"""Modules of this package that fill the table."""


def operator(*names: str, domain: str = "") -> Callable[[Operator], Operator]:
    """Enter a function into the table under one or more names of operators."""

    def enter(function: Operator) -> Operator:
        for name in names:
            _TABLE[domain, name] = function
        return function

    return enter


def find(node: ir.Node) -> Operator | None:
    """The function that writes ``node``, or None."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    return table().get((domain, node.op_type))


def table() -> dict[tuple[str, str], Operator]:
    """Domain and name of every operator → the function that writes it."""
    for family in FAMILIES:
        importlib.import_module(f"graphcompress.fx.ops.{family}")
    return _TABLE
