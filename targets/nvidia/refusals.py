"""What TensorRT refuses, or accepts and silently does not run in int8: found in the graph, by name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from graphcompress.errors import UnsupportedModelError
from graphcompress.graph.expressions import is_constant
from graphcompress.graph.match import is_standard
from graphcompress.graph.model import Model

SHOWN = 5
"""Refusals told in one error."""

_QOPERATORS = {
    "ConvInteger": "write it as Conv between QuantizeLinear and DequantizeLinear",
    "DynamicQuantizeLinear": "calibrate the scales: int8{scheme=static} with --data",
    "MatMulInteger": "calibrate the scales: int8{scheme=static} with --data",
    "QLinearConv": "write it as Conv between QuantizeLinear and DequantizeLinear",
    "QLinearMatMul": "write it as MatMul between QuantizeLinear and DequantizeLinear",
}
_UNSIGNED = frozenset({ir.DataType.UINT8, ir.DataType.UINT4, ir.DataType.UINT16, ir.DataType.UINT2})
_MOVES = frozenset({"Cast", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
_WEIGHT_ONLY = frozenset({ir.DataType.INT4})


@dataclass(frozen=True)
class Refusal:
    """A node that TensorRT refuses (or does not run in int8), why, and what to do."""

    node: str
    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"node {self.node!r}: {self.reason}; {self.remedy}"


def refuse(model: Model) -> None:
    """Fail when TensorRT refuses something in ``model``.

    Raises:
        UnsupportedModelError: names every such node (the first few), the reason and what to do.
    """
    found = list(refusals(model))
    if found:
        more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise UnsupportedModelError(f"TensorRT refuses {'; '.join(map(str, found[:SHOWN]))}{more}")


def refusals(model: Model) -> Iterator[Refusal]:
    """Everything in ``model`` that TensorRT 10 or 11 refuses."""
    for graph in model.ir.graphs():
        for node in graph:
            found = _operator(node) or _quantisation(node) or _product(node)
            if found is not None:
                yield Refusal(_name(node), *found)


def _operator(node: ir.Node) -> tuple[str, str] | None:
    if node.domain:
        remedy = "export the model again without ONNX Runtime's fusions"
        return f"{node.domain}.{node.op_type} is no operator of the ONNX standard", remedy
    if node.op_type in _QOPERATORS:
        return f"{node.op_type} is not read", _QOPERATORS[node.op_type]
    if node.op_type == "Attention":
        remedy = "export the model again with an opset below 23"
        return "the operator Attention ends the compiler, and this one has no equal in others", remedy
    return None


def _quantisation(node: ir.Node) -> tuple[str, str] | None:
    if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
        stored = next((v for v in node.inputs if _is_int8_constant(v)), None)
        if stored is None or node.op_type in ("Shape", "Size"):
            return None
        remedy = "read it with a DequantizeLinear"
        return f"the int8 constant {stored.name!r} is read by a {node.op_type}", remedy
    quantised = node.outputs[0] if node.op_type == "QuantizeLinear" else node.inputs[0]
    dtype = quantised.dtype if quantised is not None else None
    if dtype in _UNSIGNED:
        return f"{dtype} is not supported", "quantise to int8: int8{activations=int8}"
    if dtype in _WEIGHT_ONLY and not is_constant(quantised):
        return f"an activation in {dtype} is not supported", "quantise activations to int8"
    return _zero_point(node) or _activation_scale(node, quantised)


def _is_int8_constant(value: ir.Value | None) -> bool:
    stored = value.const_value if value is not None else None
    return stored is not None and stored.dtype == ir.DataType.INT8


def _zero_point(node: ir.Node) -> tuple[str, str] | None:
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    if zero is None:
        return None
    remedy = "quantise symmetrically: int8{activations=int8}"
    if zero.const_value is None:
        return "its zero point is computed", remedy
    if zero.dtype is not None and zero.dtype.name.startswith("FLOAT8"):
        return None
    return ("its zero point is not zero", remedy) if zero.const_value.numpy().any() else None


def _activation_scale(node: ir.Node, quantised: ir.Value | None) -> tuple[str, str] | None:
    scale = node.inputs[1]
    if scale is None or scale.const_value is None:
        return "its scale is computed", "calibrate the scales: int8{scheme=static} with --data"
    if quantised is not None and not is_constant(quantised) and scale.const_value.size != 1:
        return "an activation has several scales", "quantise activations per tensor"
    return None


def _product(node: ir.Node) -> tuple[str, str] | None:
    """A weight whose scales lie on the axis that is summed over: built, but silently not in int8."""
    if not is_integer_product(node):
        return None
    for index, value in enumerate(node.inputs[:2]):
        made = value.producer() if value is not None else None
        if made is None or value is None or not is_constant(value):
            continue
        scale, weight = made.inputs[1], made.inputs[0]
        if scale is None or scale.shape is None or scale.const_value is None or scale.const_value.size == 1:
            continue
        rank = len(weight.shape) if weight is not None and weight.shape is not None else 2
        transposed = node.attributes.get_int(("transA", "transB")[index], 0) if node.op_type == "Gemm" else 0
        wanted = rank - 1 if (index == 1) != bool(transposed) else rank - 2
        axis = made.attributes.get_int("axis", 1) % rank
        if axis != wanted:
            reason = f"the scales of its weight lie on axis {axis}, which is summed over"
            return reason, f"put them on axis {wanted}; it would be built without int8 and without a word"
    return None


def is_integer_product(node: ir.Node) -> bool:
    """Whether ``node`` multiplies two dequantised int8 values, one of them constant: an Int8 GEMM."""
    if node.domain or node.op_type not in ("MatMul", "Gemm"):
        return False
    made = [value.producer() if value is not None else None for value in node.inputs[:2]]
    if not all(it is not None and is_standard(it, "DequantizeLinear") and _reads_int8(it) for it in made):
        return False
    return sum(is_constant(value) for value in node.inputs[:2]) == 1


def products_left_in_float(model: Model) -> list[str]:
    """Names of products with a weight stored in int8 that are no Int8 GEMM: nothing says so later."""
    return [_name(node) for node in products_stored_in_int8(model) if not is_integer_product(node)]


def products_stored_in_int8(model: Model) -> list[ir.Node]:
    """Products with a weight that is stored in int8."""
    return [
        node
        for node in model.graph
        if not node.domain
        and node.op_type in ("MatMul", "Gemm")
        and any(_stored_in_int8(value) for value in node.inputs[:2])
    ]


def _name(node: ir.Node) -> str:
    return node.name or node.outputs[0].name or node.op_type


def _stored_in_int8(value: ir.Value | None) -> bool:
    """Whether ``value`` is a dequantised int8 constant (or what is computed from constants alone).

    It may be moved or cast before it is read.
    """
    node = value.producer() if value is not None else None
    while node is not None and not node.domain and node.op_type in _MOVES:
        first = node.inputs[0]
        node = first.producer() if first is not None else None
    if node is None or not is_standard(node, "DequantizeLinear") or node.inputs[0] is None:
        return False
    return _reads_int8(node) and is_constant(node.inputs[0])


def _reads_int8(dequantize: ir.Node) -> bool:
    value = dequantize.inputs[0]
    return value is not None and value.dtype == ir.DataType.INT8
