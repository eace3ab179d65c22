"""Products with a weight have it on the right, and stacks of weights are [experts, in, out].

After these rules every such product is a linear or one of several experts (see
:mod:`graphcompress.analysis.experts`).
"""

from __future__ import annotations

import onnx_ir as ir

from graphcompress.analysis.linears import NAME_KEY
from graphcompress.graph.match import (
    array_of,
    fixed_shape,
    fixed_size,
    integers_of,
    only_reader,
    operand,
    producer,
    rank_of,
)
from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.rules.base import Rule


def lookup_of_rows(rw: Rewriter, node: ir.Node) -> str | None:
    """A GatherND by one index for each row selects along the first axis: a Gather."""
    data, indices = node.inputs
    rank = rank_of(indices)
    if rank is None or fixed_size(indices, -1) != 1 or node.attributes.get_int("batch_dims", 0) != 0:
        return None
    unsqueezed = producer(indices, "Unsqueeze")
    if integers_of(operand(unsqueezed, 1)) in ([-1], [rank - 1]):
        index = operand(unsqueezed, 0)
    else:
        index = rw.at(node).op("Squeeze", indices, [-1], name="index")
    rw.replace(node.outputs[0], rw.at(node).op("Gather", data, index, name="looked_up"), take_name=True)
    return "GatherND that selects rows"


def transposed_lookup(rw: Rewriter, node: ir.Node) -> str | None:
    """Matrices that are transposed after they were looked up are looked up in the transposed stack."""
    rank = rank_of(node.inputs[0])
    if rank is None or not _swaps(node, rank) or _stack_behind(rw, node.inputs[0]) is None:
        return None
    rw.replace(node.outputs[0], _transposed(rw, node, node.inputs[0]), take_name=True)
    return "Transpose of looked-up weights"


def weight_on_the_left(rw: Rewriter, node: ir.Node) -> str | None:
    """W · x becomes (xᵀ · Wᵀ)ᵀ, where x is one column, or the Transpose of something.

    Left alone: a product with what is not transposed; there two Transposes more would be needed.
    """
    weight, x = node.inputs
    if weight is None or x is None or rw.is_constant(x) or rank_of(weight) is None:
        return None
    if not rw.is_constant(weight) and _stack_behind(rw, weight) is None:
        return None
    rank = rank_of(node.outputs[0])
    if rank is None:
        return None
    b = rw.at(node)
    if fixed_size(x, -1) == 1:
        # To swap axes of which one has size 1 moves nothing.
        row = b.op("Unsqueeze", b.op("Squeeze", x, [-1], name="vector"), [-2], name="row")
        product = b.op("MatMul", row, _transposed(rw, node, weight), name="product")
        vector = b.op("Squeeze", product, [-2], name="product_vector")
        rw.replace(node.outputs[0], b.op("Unsqueeze", vector, [-1], name="column"), take_name=True)
        return "weight on the left of its product"
    turned = producer(x, "Transpose")
    if turned is None or not _swaps(turned, rank_of(x) or 0):
        return None
    product = b.op("MatMul", turned.inputs[0], _transposed(rw, node, weight), name="product")
    restored = only_reader(node.outputs[0], "Transpose")
    if restored is not None and _swaps(restored, rank):
        rw.replace(restored.outputs[0], product, take_name=True)
    else:
        rw.replace(node.outputs[0], b.op("Transpose", product, name="turned", perm=_swapped(rank)))
    return "weight on the left of its product"


def stack_of_one(rw: Rewriter, node: ir.Node) -> str | None:
    """A stored weight [1, …, in, out] loses the leading axes of size 1 that its input has as well."""
    x, weight = node.inputs
    shape, rank = fixed_shape(weight), rank_of(x)
    if weight is None or shape is None or rank is None or not rw.is_constant(weight) or rw.is_constant(x):
        return None
    ones = next((axis for axis, size in enumerate(shape) if size != 1), len(shape))
    ones = min(ones, len(shape) - 2)
    if ones < 1 or rank < len(shape):
        return None
    array = array_of(weight)
    # A weight with other readers is reshaped in the graph: a second stored array would untie the two.
    if array is not None and only_reader(weight) is not None:
        plain = rw.constant(array.reshape(shape[ones:]), weight.name or "weight", weight.dtype)
        plain.metadata_props[NAME_KEY] = weight.metadata_props.get(NAME_KEY) or weight.name or ""
    else:
        plain = rw.at(node).op("Reshape", weight, shape[ones:], name="matrix")
    rw.set_input(node, 1, plain)
    return "stack of one weight"


def _stack_behind(rw: Rewriter, value: ir.Value | None) -> ir.Value | None:
    """The constant stack [experts, rows, columns] that ``value``, read once, is looked up in."""
    lookup = producer(value, "Gather") if only_reader(value) is not None else None
    stack = operand(lookup, 0)
    if lookup is None or lookup.attributes.get_int("axis", 0) != 0 or rank_of(stack) != 3:
        return None
    return stack if rw.is_constant(stack) and not rw.is_constant(value) else None


def _transposed(rw: Rewriter, node: ir.Node, weight: ir.Value | None) -> ir.Value:
    """``weight`` with its last two axes swapped; of one that is looked up the stack is transposed."""
    b, stack = rw.at(node), _stack_behind(rw, weight)
    if stack is None or weight is None:
        return b.op("Transpose", weight, name="transposed", perm=_swapped(rank_of(weight) or 2))
    turned = b.op("Transpose", stack, name="stack", perm=_swapped(3))
    return b.op("Gather", turned, operand(producer(weight), 1), name="looked_up")


def _swaps(node: ir.Node, rank: int) -> bool:
    """Whether a Transpose swaps the last two axes."""
    return list(node.attributes.get_ints("perm", [])) == _swapped(rank)


def _swapped(rank: int) -> list[int]:
    return [*range(rank - 2), rank - 1, rank - 2]


RULES: dict[str, tuple[Rule, ...]] = {
    "GatherND": (lookup_of_rows,),
    "MatMul": (weight_on_the_left, stack_of_one),
    "Transpose": (transposed_lookup,),
}
"""Operator → rules, tried in this order."""
