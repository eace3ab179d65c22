"""Products of tensors: MatMul, Gemm, Einsum, Conv."""

from __future__ import annotations

import onnx_ir as ir

from graphcompress.coupling.relations.rules import AVERAGED, CONTRACTED, Relations
from graphcompress.coupling.relations.scales import per_axis


def matmul(relations: Relations, node: ir.Node) -> None:
    """The last axis of one meets the last but one of the other."""
    _product(relations, node, 0, 1)


def matmul_integer(relations: Relations, node: ir.Node) -> None:
    """A MatMul whose zero points stand along rows and columns."""
    _product(relations, node, 0, 1)
    per_axis(relations, relations.operand(node, 2), relations.operand(node, 0), -2)
    per_axis(relations, relations.operand(node, 3), relations.operand(node, 1), -1)


def qlinear_matmul(relations: Relations, node: ir.Node) -> None:
    """A MatMul whose scales and zero points stand along rows and columns."""
    _product(relations, node, 0, 3)
    for first, operand, axis in ((1, relations.operand(node, 0), -2), (4, relations.operand(node, 3), -1)):
        for index in (first, first + 1):
            per_axis(relations, relations.operand(node, index), operand, axis)
    for index in (6, 7):
        per_axis(relations, relations.operand(node, index), relations.output(node), -2)


def gemm(relations: Relations, node: ir.Node) -> None:
    """A MatMul of two matrices, each of them transposed on request, and a bias."""
    left, right = relations.operand(node, 0) or [], relations.operand(node, 1) or []
    left = left[::-1] if node.attributes.get_int("transA", 0) else left
    right = right[::-1] if node.attributes.get_int("transB", 0) else right
    _contract(relations, node, left[1], right[0])
    out = relations.output(node)
    relations.unify([left[0], right[1]], out)
    relations.broadcast(relations.operand(node, 2), out)


def einsum(relations: Relations, node: ir.Node) -> None:
    """Axes of the same label are the same; an ellipsis, a diagonal or no explicit output blocks."""
    equation = node.attributes.get_string("equation", "").replace(" ", "")
    inputs, arrow, output = equation.partition("->")
    terms = [*inputs.split(","), output]
    values = [relations.operand(node, index) for index in range(len(node.inputs))] + [relations.output(node)]
    repeated = any(len(set(term)) < len(term) for term in terms)
    # Each of these gives axes without a label, or one label twice, which the rules below cannot follow.
    if not arrow or "." in equation or repeated:
        relations.block_node(node, "Einsum with an ellipsis, a diagonal or no explicit output")
        return
    seen: dict[str, int] = {}
    for term, axes in zip(terms, values, strict=True):
        for label, atom in zip(term, axes or (), strict=True):
            if atom is not None:
                relations.atoms.unify(seen.setdefault(label, atom), atom)
    computed = [value for value in node.inputs if not relations.constant(value)]
    for label in set(seen) - set(output):
        # A label in one term alone is summed like a ReduceSum; in two terms it is a product.
        if sum(label in term for term in terms) < 2:
            relations.atoms.mark(seen[label], AVERAGED, "a sum runs over it")
        elif len(computed) > 1:
            relations.atoms.mark(seen[label], CONTRACTED, node.name or "")


def conv(relations: Relations, node: ir.Node) -> None:
    """Channels relate; a convolution runs over positions, and a grouped one over channels too."""
    data, weight = relations.operand(node, 0) or [], relations.operand(node, 1) or []
    out = relations.output(node) or []
    groups = node.attributes.get_int("group", 1)
    relations.block(data[2:] + weight[2:] + out[2:], "a convolution runs over it")
    relations.atoms.unify(data[0], out[0])
    relations.atoms.unify(weight[0], out[1])
    relations.broadcast(relations.operand(node, 2), [out[1]])
    if groups == 1:
        relations.atoms.unify(data[1], weight[1])
    else:
        relations.block([data[1], weight[0], weight[1]], "a grouped convolution runs over it")


def _product(relations: Relations, node: ir.Node, left_index: int, right_index: int) -> None:
    left, right = relations.operand(node, left_index) or [], relations.operand(node, right_index) or []
    out = relations.output(node) or []
    _contract(relations, node, left[-1], right[-2] if len(right) > 1 else right[-1])
    tail = ([left[-2]] if len(left) > 1 else []) + ([right[-1]] if len(right) > 1 else [])
    split = len(out) - len(tail)
    relations.unify(tail, out[split:])
    for operand in (left, right):
        relations.broadcast(operand[:-2], out[:split])


def _contract(relations: Relations, node: ir.Node, left: int | None, right: int | None) -> None:
    relations.atoms.unify(left, right)
    constant = [relations.constant(value) for value in node.inputs[:2]]
    # A sum between a weight and an activation has the weight as its consumer; only where both or neither is
    # stored nothing else says that the axis may go.
    if left is not None and constant[0] == constant[1]:
        relations.atoms.mark(left, CONTRACTED, node.name or "")
