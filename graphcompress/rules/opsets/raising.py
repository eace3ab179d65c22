"""An older model in a newer opset."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from graphcompress.graph.match import operand
from graphcompress.graph.model import Model
from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.rules.opsets.versions import AXES_AS_INPUT, definition

_ANOTHER_MEANING = {"GroupNormalization": 21, "RoiAlign": 16}
"""Operators that mean something else since that opset, which their definitions' names and types do not tell:
scale and bias are per channel, and were per group; regions begin half a pixel earlier, unless a new attribute
says otherwise."""


def raise_opset(rw: Rewriter, version: int) -> str | None:
    """Write the model in opset ``version`` when it declares an older one; returns why not, where not.

    An operator stays as it is where its newer definition only adds optional inputs, attributes with defaults
    or data types; the axes of reductions become an input.
    """
    model = rw.model
    reason = why_not_raised(model, version)
    if reason is not None or model.opset >= version:
        return reason
    if model.opset < AXES_AS_INPUT:
        for node in _standard_nodes(model):
            _convert(rw, node)
    model.graph.opset_imports[""] = version
    least = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", version)])
    model.ir.ir_version = max(model.ir.ir_version, least)
    rw.modified = True
    return None


def why_not_raised(model: Model, version: int) -> str | None:
    """Why the model cannot be written in opset ``version``; None where it can, or is in a newer one."""
    if model.opset >= version:
        return None
    for node in _standard_nodes(model):
        if not _extends(node, model.opset, version) and not _convertible(node):
            return f"{node.op_type} (node {node.name!r}) means something else in opset {version}"
    return None


def _standard_nodes(model: Model) -> list[ir.Node]:
    return [node for graph in model.ir.graphs() for node in graph if not node.domain]


def _convertible(node: ir.Node) -> bool:
    """Whether :func:`_convert` knows the node; a BatchNormalization with one output has stayed the same."""
    normalises = node.op_type == "BatchNormalization" and len(node.outputs) == 1
    return normalises or node.op_type.startswith("Reduce") or node.op_type == "Split"


def _convert(rw: Rewriter, node: ir.Node) -> None:
    if node.op_type == "Split" and operand(node, "split") is None:
        rw.set_attribute(node, "num_outputs", len(node.outputs))
    if node.op_type.startswith("Reduce") and "axes" in node.attributes:
        axes, keepdims = node.attributes.get_ints("axes", ()), node.attributes.get_int("keepdims", 1)
        rw.set_attribute(node, "keepdims", keepdims)  # patterns want it spelt out
        rw.set_attribute(node, "axes", None)
        rw.set_input(node, 1, rw.at(node).constant(list(axes), "axes"))


def _extends(node: ir.Node, opset: int, version: int) -> bool:
    """Whether the newer definition of ``node`` only adds to the one it was written for."""
    if opset < _ANOTHER_MEANING.get(node.op_type, 0) <= version:
        return False
    used, newer = definition(node.op_type, opset), definition(node.op_type, version)
    if used is None or newer is None or used.attributes.keys() - newer.attributes.keys():
        return False
    for name, attribute in newer.attributes.items():
        if name not in used.attributes and attribute.required:
            return False
        if name in used.attributes and attribute.default_value != used.attributes[name].default_value:
            return False
    for old, new in ((used.inputs, newer.inputs), (used.outputs, newer.outputs)):
        if [item.name for item in new[: len(old)]] != [item.name for item in old]:
            return False
        optional = onnx.defs.OpSchema.FormalParameterOption.Optional
        if any(item.option != optional for item in new[len(old) :]):
            return False
    return True
