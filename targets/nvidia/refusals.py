"""What TensorRT refuses, or accepts and silently does not run in int8: found in the graph, by name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from graphcompress.analysis.integer import dequantised_operands
from graphcompress.errors import UnsupportedModelError
from graphcompress.graph.expressions import is_constant
from graphcompress.graph.match import is_standard, operand, producer, rank_of, tensor_of
from graphcompress.graph.model import Model

SHOWN = 5
"""One error tells at most this many refusals."""

_QOPERATORS = {
    "ConvInteger": "write it as Conv between QuantizeLinear and DequantizeLinear",
    "DynamicQuantizeLinear": "calibrate the scales: int8{scheme=static} with --data",
    "MatMulInteger": "calibrate the scales: int8{scheme=static} with --data",
    "QLinearConv": "write it as Conv between QuantizeLinear and DequantizeLinear",
    "QLinearMatMul": "write it as MatMul between QuantizeLinear and DequantizeLinear",
}
_UNSIGNED = frozenset({ir.DataType.UINT8, ir.DataType.UINT4, ir.DataType.UINT16, ir.DataType.UINT2})
_MOVES = frozenset({"Cast", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
_PRODUCTS = ("MatMul", "Gemm")
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
    stored = tensor_of(value)
    return stored is not None and stored.dtype == ir.DataType.INT8


def _zero_point(node: ir.Node) -> tuple[str, str] | None:
    zero = operand(node, 2)
    if zero is None:
        return None
    remedy, stored = "quantise symmetrically: int8{activations=int8}", tensor_of(zero)
    if stored is None:
        return "its zero point is computed", remedy
    if stored.dtype.name.startswith("FLOAT8"):
        return None
    return ("its zero point is not zero", remedy) if stored.numpy().any() else None


def _activation_scale(node: ir.Node, quantised: ir.Value | None) -> tuple[str, str] | None:
    scale = tensor_of(operand(node, 1))
    if scale is None:
        return "its scale is computed", "calibrate the scales: int8{scheme=static} with --data"
    if not is_constant(quantised) and scale.size != 1:
        return "an activation has several scales", "quantise activations per tensor"
    return None


def _product(node: ir.Node) -> tuple[str, str] | None:
    """A weight whose scales lie on the axis that is summed over: built, but silently not in int8."""
    if not is_integer_product(node):
        return None
    for index, value in enumerate(node.inputs[:2]):
        made = producer(value) if is_constant(value) else None
        scale = tensor_of(operand(made, 1))
        if made is None or scale is None or scale.size == 1:
            continue
        rank = rank_of(operand(made, 0)) or 2
        transposed = node.attributes.get_int(("transA", "transB")[index], 0) if node.op_type == "Gemm" else 0
        wanted = rank - 1 if (index == 1) != bool(transposed) else rank - 2
        axis = made.attributes.get_int("axis", 1) % rank
        if axis != wanted:
            reason = f"the scales of its weight lie on axis {axis}, which is summed over"
            return reason, f"put them on axis {wanted}; it would be built without int8 and without a word"
    return None


def is_integer_product(node: ir.Node) -> bool:
    """Whether ``node`` multiplies two dequantised int8 values, one of them constant: an Int8 GEMM."""
    return dequantised_operands(node) is not None and all(map(_is_dequantised_int8, node.inputs[:2]))


def products_left_in_float(model: Model) -> list[str]:
    """Names of products with a weight stored in int8 that are no Int8 GEMM: nothing says so later."""
    return [_name(node) for node in products_stored_in_int8(model) if not is_integer_product(node)]


def products_stored_in_int8(model: Model) -> list[ir.Node]:
    """Products with a weight that is stored in int8."""
    products = (node for node in model.graph if is_standard(node, *_PRODUCTS))
    return [node for node in products if any(map(_stored_in_int8, node.inputs[:2]))]


def _name(node: ir.Node) -> str:
    return node.name or node.outputs[0].name or node.op_type


def _stored_in_int8(value: ir.Value | None) -> bool:
    """Whether ``value`` is a dequantised int8 constant (or what is computed from constants alone).

    It may be moved or cast before it is read.
    """
    while (node := producer(value, *_MOVES)) is not None:
        value = node.inputs[0]
    return _is_dequantised_int8(value) and is_constant(value)


def _is_dequantised_int8(value: ir.Value | None) -> bool:
    values = operand(producer(value, "DequantizeLinear"), 0)
    return values is not None and values.dtype == ir.DataType.INT8
