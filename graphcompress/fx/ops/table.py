"""The decorator that puts a function into the op table, and the look-up."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

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
)
"""Modules of this package that fill the table."""


def operator(*names: str, domain: str = "") -> Callable[[Operator], Operator]:
    """Enter a function into the table under one or more names of operators."""

    def enter(function: Operator) -> Operator:
        for name in names:
            _TABLE[domain, name] = function
        return function

    return enter


def single_call(name: str, function: Callable[..., Any], **attributes: float | str) -> None:
    """Enter an operator that is one call: of its operands as tensors, then its attributes in this order.

    An attribute comes with the default of the standard.
    """

    def write(builder: FxBuilder, node: ir.Node) -> Operand:
        given = {key: node.attributes[key].value for key in attributes if key in node.attributes}
        return builder.call(function, *map(builder.tensor, node.inputs), *{**attributes, **given}.values())

    _TABLE["", name] = write


def find(node: ir.Node) -> Operator | None:
    """The function that writes ``node``, or None."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    return table().get((domain, node.op_type))


def table() -> dict[tuple[str, str], Operator]:
    """Domain and name of every operator → the function that writes it."""
    for family in FAMILIES:
        importlib.import_module(f"graphcompress.fx.ops.{family}")
    return _TABLE
