"""Which linears and embeddings may be quantised, and why the others stay in float."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from graphcompress.analysis.experts import Experts
from graphcompress.analysis.linears import Embedding, Linear
from graphcompress.graph.expressions import expression_nodes, is_constant, leaves
from graphcompress.passes.quantize.lowbit import low_bit_leaves, stays_expression
from graphcompress.plugin.capabilities import Capabilities

SMALLEST_SIDE = 16
"""A product with fewer inputs or outputs is not faster in int8 (NVIDIA ModelOpt draws the same line)."""

SMALLEST_TABLE = 4096
"""An embedding with fewer parameters than this stays in float: int8 would save less than 12 kB."""

_QUANTISED = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger"})


def linear_reason(
    linear: Linear, nodes: Collection[ir.Node], tables: Collection[ir.Value], target: Capabilities
) -> str | None:
    """Why a linear stays in float, or None.

    ``nodes`` are those of all linears, ``tables`` those of the embeddings that are to be quantised.
    """
    producer = linear.input.producer()
    made = [*expression_nodes(linear.weight), *([producer] if producer is not None else [])]
    if any(node.op_type in _QUANTISED for node in made):
        return "it is quantised already"
    width = linear.width if isinstance(linear, Experts) else linear.out_features
    if min(linear.in_features, width) < SMALLEST_SIDE:
        return f"narrower than {SMALLEST_SIDE}: an int8 product would not be faster"
    if any(leaf.dtype != ir.DataType.FLOAT for leaf in (linear.input, linear.weight)):
        return f"it computes in {linear.input.dtype}, int8 starts from FLOAT"
    if stays_expression(linear) and not target.constant_expressions:
        return "its weight is an expression, which the target does not fold"
    if isinstance(linear, Experts):
        return _experts_reason(linear, nodes, target)
    others = [node for node, _ in linear.weight.uses() if node not in nodes and not _is_lookup(node)]
    if linear.weight.const_value is not None and others:
        return f"its weight is also read by a {others[0].op_type}, which needs it in float"
    looked_up = [leaf for leaf in leaves(linear.weight) if any(_is_lookup(node) for node, _ in leaf.uses())]
    if not looked_up:
        return None
    # The linear reads the Transpose of the int8 table, which the runtime has to fold.
    if tied_table(linear) not in tables or not target.constant_expressions:
        return "its weight is the table of an embedding that stays in float"
    return None


def _experts_reason(experts: Experts, nodes: Collection[ir.Node], target: Capabilities) -> str | None:
    """Why experts stay in float, beyond what holds for any linear."""
    if not multiplies_stacks(target) and not target.constant_expressions:
        return "the target has no integer product of a stack of weights, and stores weights as they are"
    lookups = {experts.lookup} - {None}
    others = [node for node, _ in experts.weight.uses() if node not in nodes and node not in lookups]
    return f"its weight is also read by a {others[0].op_type}, which needs it in float" if others else None


def multiplies_stacks(target: Capabilities) -> bool:
    """Whether a target runs MatMulInteger, the one integer product that takes a stack of weights.

    A DequantizeLinear has scales along one axis, whereas these have one for each expert and channel.
    """
    return any(scheme.activations is not None and scheme.activations.dynamic for scheme in target.schemes)


def tied_table(linear: Linear) -> ir.Value | None:
    """The stored table [out, in] of an embedding that ``linear`` reads transposed; None for others."""
    if isinstance(linear, Experts):
        return None  # what looks experts up multiplies them, too
    table = linear.weight if linear.transposed else None
    node = linear.weight.producer()
    if not linear.transposed and node is not None and node.op_type == "Transpose":
        table = node.inputs[0]
    if table is None or table.const_value is None:
        return None
    return table if any(_is_lookup(user) for user, _ in table.uses()) else None


def table_reason(table: Embedding, target: Capabilities) -> str | None:
    """Why an embedding stays in float, or None."""
    if any(node.op_type in _QUANTISED for node in expression_nodes(table.weight)):
        return "it is quantised already"
    if table.parameters < SMALLEST_TABLE:
        return f"smaller than {SMALLEST_TABLE:,} parameters"
    if table.weight.dtype != ir.DataType.FLOAT:
        return f"it is stored in {table.weight.dtype}, int8 starts from FLOAT"
    if stays_expression(table):
        if not target.constant_expressions:
            return "its table is an expression, which the target does not fold"
        reason = "the leaves of its table are small, shared or beyond float16"
        return None if low_bit_leaves(table.weight) else reason
    others = [node for node, _ in table.weight.uses() if not _is_lookup(node)]
    if table.weight.const_value is not None and others:
        return f"its table is also read by a {others[0].op_type}, which needs it in float"
    return None


def _is_lookup(node: ir.Node) -> bool:
    return node.op_type == "Gather" and not node.domain and not is_constant(node.outputs[0])
