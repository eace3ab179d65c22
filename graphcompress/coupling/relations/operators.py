"""What each operator says about the dimensions of its operands: a rule for every operator.

A rule may say less than the truth only by blocking: an operator without a rule blocks all that it touches.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from graphcompress.coupling.relations import attention, products, scales, selections, shapes
from graphcompress.coupling.relations.rules import Relations
from graphcompress.graph.match import inner_graphs

Rule = Callable[[Relations, ir.Node], None]

ELEMENTWISE = frozenset(
    """
    Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast
    CastLike Ceil Celu Clip Cos Cosh Div Dropout DynamicQuantizeLinear Elu Equal Erf Exp Floor Gelu Greater
    GreaterOrEqual HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Less LessOrEqual Log Max Mean Min Mish
    Mod Mul Neg Not Or PRelu Pow Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign
    Sqrt Sub Sum Swish Tan Tanh ThresholdedRelu Where Xor
    """.split()  # noqa: SIM905 (one name per line would fill a page)
)
"""Operators whose result at a place is computed from what their operands hold at that place."""


def apply(relations: Relations, node: ir.Node) -> None:
    """Add what ``node`` says about the dimensions of its operands."""
    rule = None if node.domain not in ("", "ai.onnx") else _RULES.get(node.op_type)
    if rule is None or next(inner_graphs(node), None) is not None:
        _unknown(relations, node)
    elif not _ranks_known(relations, node):
        relations.block_node(node, f"a shape around {node.op_type} is not known")
    else:
        rule(relations, node)


def _ranks_known(relations: Relations, node: ir.Node) -> bool:
    # Optional outputs may lack a shape without harm; the rules read the first.
    values = [*node.inputs, *node.outputs[:1]]
    return all(value is None or not value.name or relations.axes(value) is not None for value in values)


def _unknown(relations: Relations, node: ir.Node) -> None:
    relations.block_node(node, f"{node.domain or 'ai.onnx'}.{node.op_type} is not known")
    # A subgraph reads values of the graph around it without naming them as inputs of its node.
    for graph in inner_graphs(node):
        for inner in graph.all_nodes():
            for value in inner.inputs:
                if value is not None:
                    relations.block(relations.axes(value), "a subgraph reads it")


def _elementwise(relations: Relations, node: ir.Node) -> None:
    for output in range(len(node.outputs)):
        out = relations.output(node, output)
        for index in range(len(node.inputs)):
            relations.broadcast(relations.operand(node, index), out)


def _nothing(relations: Relations, node: ir.Node) -> None:
    """The result does not share dimensions with the operands."""


def _filled(relations: Relations, node: ir.Node) -> None:
    relations.block(relations.output(node), "its size is a constant of the graph")


_RULES: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys(selections.REDUCTIONS, selections.reduce),
    **dict.fromkeys(selections.ALONG_AXIS, selections.along_axis),
    "Attention": attention.attention,
    "BatchNormalization": scales.batch_norm,
    "Concat": shapes.concat,
    "Constant": _nothing,
    "ConstantOfShape": _filled,
    "Conv": products.conv,
    "CumSum": selections.cumsum,
    "DequantizeLinear": scales.quantize,
    "Einsum": products.einsum,
    "Expand": shapes.expand,
    "Flatten": shapes.reshape,
    "Gather": selections.gather,
    "GatherElements": selections.gather_elements,
    "GatherND": selections.gather_nd,
    "Gemm": products.gemm,
    "LayerNormalization": scales.layer_norm,
    "MatMul": products.matmul,
    "MatMulInteger": products.matmul_integer,
    "Pad": selections.pad,
    "QLinearMatMul": products.qlinear_matmul,
    "QuantizeLinear": scales.quantize,
    "RMSNormalization": scales.layer_norm,
    "Range": _filled,
    "Reshape": shapes.reshape,
    "RotaryEmbedding": attention.rotary,
    "Shape": _nothing,
    "Size": _nothing,
    "Slice": shapes.slice_,
    "Split": shapes.split,
    "Squeeze": shapes.squeeze,
    "Tile": shapes.tile,
    "Transpose": shapes.transpose,
    "Trilu": selections.trilu,
    "Unsqueeze": shapes.squeeze,
}
