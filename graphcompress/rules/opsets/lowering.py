"""Brings a model into the range of opsets that is emitted, which every runtime in use reads."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

import onnx
import onnx_ir as ir

from graphcompress.graph.match import is_standard
from graphcompress.graph.model import Model
from graphcompress.plugin.context import Context
from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.rules.opsets.attention import decompose_attention
from graphcompress.rules.opsets.versions import NEWEST_IR_VERSION, NEWEST_OPSET, definition


def legalise(model: Model, ctx: Context, newest: int = NEWEST_OPSET) -> str | None:
    """Write ``model`` in opset ``newest`` when it declares a later one; returns why not, where it needs it.

    Attention becomes its own definition in elementary operators. Another operator stays as it is when its
    last definition up to that opset has the same inputs, outputs and attributes (later ones often only add
    data types).
    """
    with Rewriter(model, ctx) as rw:
        for node in list(model.graph):
            if is_standard(node, "Attention"):
                decompose_attention(rw, node)
    reason = _lower_opset(model, newest) if model.opset > newest else None
    if model.ir.ir_version > NEWEST_IR_VERSION and not _needs_newer_types(model):
        model.ir.ir_version = NEWEST_IR_VERSION
    return reason


def _lower_opset(model: Model, newest: int) -> str | None:
    # Nothing is edited on the way: a model that cannot be lowered keeps the opset that all its nodes have.
    for graph in model.ir.graphs():
        for node in graph:
            if not node.domain and not _unchanged(node, model.opset, newest):
                return f"{node.op_type} (node {node.name!r}) has no equal in opset {newest}"
    model.graph.opset_imports[""] = newest
    return None


def _needs_newer_types(model: Model) -> bool:
    newer = {"FLOAT4E2M1", "FLOAT8E8M0", "INT2", "UINT2"}
    return any(value.dtype and value.dtype.name in newer for value in model.initializers())


def _unchanged(node: ir.Node, opset: int, newest: int) -> bool:
    """Whether the definition of ``node`` in the older opset means the same; no attribute added may be set."""
    used, older = definition(node.op_type, opset), definition(node.op_type, newest)
    if used is None or older is None:  # as GroupNormalization before opset 21, which reads other scales
        return False
    added = used.attributes.keys() - older.attributes.keys()
    if any(name in node.attributes for name in added):
        return False
    return _interface(used, added) == _interface(older, frozenset())


def _interface(schema: onnx.defs.OpSchema, without: AbstractSet[str]) -> tuple[object, ...]:
    attributes = {
        name: (attribute.type, attribute.required, attribute.default_value.SerializeToString())
        for name, attribute in schema.attributes.items()
        if name not in without
    }
    operands = [[(item.name, item.option) for item in side] for side in (schema.inputs, schema.outputs)]
    return attributes, operands
