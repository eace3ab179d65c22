"""What each operator says about the dimensions of its operands.

A rule may say less than the truth only by blocking: an operator without a rule blocks all that it touches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from graphcompress.analysis.relations import AVERAGED, CONTRACTED, Axes, Relations
from graphcompress.analysis.sizes import Size

Rule = Callable[[Relations, ir.Node], None]

_ELEMENTWISE = frozenset(
    """
    Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast
    CastLike Ceil Celu Clip Cos Cosh Div Dropout DynamicQuantizeLinear Elu Equal Erf Exp Floor Gelu Greater
    GreaterOrEqual HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Less LessOrEqual Log Max Mean Min Mish
    Mod Mul Neg Not Or PRelu Pow Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign
    Sqrt Sub Sum Swish Tan Tanh ThresholdedRelu Where Xor
    """.split()  # noqa: SIM905 (one name per line would fill a page)
)
_MEAN_LIKE = ("ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2")
_MIXING = ("ReduceMax", "ReduceMin", "ReduceProd", "ReduceLogSum", "ReduceLogSumExp", "ArgMax", "ArgMin")
_ALONG_AXIS = {"Softmax": -1, "LogSoftmax": -1, "Hardmax": -1, "TopK": -1}


def apply(relations: Relations, node: ir.Node) -> None:
    """Add what ``node`` says about the dimensions of its operands."""
    rule = None if node.domain not in ("", "ai.onnx") else _RULES.get(node.op_type)
    if rule is None or any(_is_graph(attr) for attr in node.attributes.values()):
        _unknown(relations, node)
    elif not _ranks_known(relations, node):
        relations.block_node(node, f"a shape around {node.op_type} is not known")
    else:
        rule(relations, node)


def _is_graph(attribute: ir.Attr) -> bool:
    return attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def _ranks_known(relations: Relations, node: ir.Node) -> bool:
    values = [*node.inputs, *node.outputs[:1]]
    return all(value is None or not value.name or relations.axes(value) is not None for value in values)


def _unknown(relations: Relations, node: ir.Node) -> None:
    relations.block_node(node, f"{node.domain or 'ai.onnx'}.{node.op_type} is not known")
    for attribute in node.attributes.values():
        for graph in _graphs(attribute):
            for inner in graph.all_nodes():
                for value in inner.inputs:
                    if value is not None:
                        relations.block(relations.axes(value), "a subgraph reads it")


def _graphs(attribute: ir.Attr) -> Sequence[ir.Graph]:
    if attribute.type == ir.AttributeType.GRAPH:
        return [attribute.as_graph()]
    return attribute.as_graphs() if attribute.type == ir.AttributeType.GRAPHS else []


# ---- elementwise


def _elementwise(relations: Relations, node: ir.Node) -> None:
    for output in range(len(node.outputs)):
        out = relations.output(node, output)
        for index in range(len(node.inputs)):
            _broadcast(relations, relations.operand(node, index), out)


def _broadcast(relations: Relations, operand: Axes | None, out: Axes | None) -> None:
    """Trailing axes are the same where both are longer than 1."""
    for one, other in zip(reversed(operand or ()), reversed(out or ()), strict=False):
        relations.atoms.unify(one, other)


# ---- contractions


def _matmul(relations: Relations, node: ir.Node) -> None:
    _product(relations, node, 0, 1)


def _matmul_integer(relations: Relations, node: ir.Node) -> None:
    _product(relations, node, 0, 1)
    _per_axis(relations, relations.operand(node, 2), relations.operand(node, 0), -2)
    _per_axis(relations, relations.operand(node, 3), relations.operand(node, 1), -1)


def _qlinear_matmul(relations: Relations, node: ir.Node) -> None:
    _product(relations, node, 0, 3)
    for first, operand, axis in ((1, relations.operand(node, 0), -2), (4, relations.operand(node, 3), -1)):
        for index in (first, first + 1):
            _per_axis(relations, relations.operand(node, index), operand, axis)
    for index in (6, 7):
        _per_axis(relations, relations.operand(node, index), relations.output(node), -2)


def _product(relations: Relations, node: ir.Node, left_index: int, right_index: int) -> None:
    left, right = relations.operand(node, left_index) or [], relations.operand(node, right_index) or []
    out = relations.output(node) or []
    _contract(relations, node, left[-1], right[-2] if len(right) > 1 else right[-1])
    tail = ([left[-2]] if len(left) > 1 else []) + ([right[-1]] if len(right) > 1 else [])
    split = len(out) - len(tail)
    relations.unify(tail, out[split:])
    for operand in (left, right):
        _broadcast(relations, operand[:-2], out[:split])


def _contract(relations: Relations, node: ir.Node, left: int | None, right: int | None) -> None:
    relations.atoms.unify(left, right)
    constant = [relations.constant(value) for value in node.inputs[:2]]
    if left is not None and constant[0] == constant[1]:
        relations.atoms.mark(left, CONTRACTED, node.name or "")


def _gemm(relations: Relations, node: ir.Node) -> None:
    left, right = relations.operand(node, 0) or [], relations.operand(node, 1) or []
    left = left[::-1] if node.attributes.get_int("transA", 0) else left
    right = right[::-1] if node.attributes.get_int("transB", 0) else right
    _contract(relations, node, left[1], right[0])
    out = relations.output(node)
    relations.unify([left[0], right[1]], out)
    _broadcast(relations, relations.operand(node, 2), out)


def _einsum(relations: Relations, node: ir.Node) -> None:
    equation = node.attributes.get_string("equation", "").replace(" ", "")
    inputs, arrow, output = equation.partition("->")
    terms = [*inputs.split(","), output]
    values = [relations.operand(node, index) for index in range(len(node.inputs))] + [relations.output(node)]
    repeated = any(len(set(term)) < len(term) for term in terms)
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
        if sum(label in term for term in terms) < 2:
            relations.atoms.mark(seen[label], AVERAGED, "a sum runs over it")
        elif len(computed) > 1:
            relations.atoms.mark(seen[label], CONTRACTED, node.name or "")


def _conv(relations: Relations, node: ir.Node) -> None:
    data, weight = relations.operand(node, 0) or [], relations.operand(node, 1) or []
    out = relations.output(node) or []
    groups = node.attributes.get_int("group", 1)
    relations.block(data[2:] + weight[2:] + out[2:], "a convolution runs over it")
    relations.atoms.unify(data[0], out[0])
    relations.atoms.unify(weight[0], out[1])
    _broadcast(relations, relations.operand(node, 2), [out[1]])
    if groups == 1:
        relations.atoms.unify(data[1], weight[1])
    else:
        relations.block([data[1], weight[0], weight[1]], "a grouped convolution runs over it")


# ---- shapes


def _reshape(relations: Relations, node: ir.Node) -> None:
    source, target = relations.operand(node, 0) or [], relations.output(node) or []
    relations.atoms.match([a for a in source if a is not None], [a for a in target if a is not None])


def _squeeze(relations: Relations, node: ir.Node) -> None:
    source: Axes = [atom for atom in relations.operand(node, 0) or [] if atom is not None]
    target: Axes = [atom for atom in relations.output(node) or [] if atom is not None]
    if len(source) == len(target):
        relations.unify(source, target)
    else:
        _reshape(relations, node)
    if node.op_type == "Squeeze" and len(node.inputs) < 2:
        relations.block(source, "a Squeeze without axes would take away what shrinks to 1")


def _transpose(relations: Relations, node: ir.Node) -> None:
    source = relations.operand(node, 0) or []
    order = node.attributes.get_ints("perm", list(reversed(range(len(source)))))
    relations.unify([source[axis] for axis in order], relations.output(node))


def _expand(relations: Relations, node: ir.Node) -> None:
    _broadcast(relations, relations.operand(node, 0), relations.output(node))


def _gather_elements(relations: Relations, node: ir.Node) -> None:
    """Along every other axis, indices select from data at their own position."""
    data, indices = relations.operand(node, 0) or [], relations.operand(node, 1) or []
    axis = _axis(node, len(data), 0)
    relations.unify(indices, relations.output(node))
    relations.block([data[axis]], "it is selected from by index")
    for other, (one, index) in enumerate(zip(data, indices, strict=True)):
        if other != axis and (one is None) != (index is None):
            relations.block([one, index], "GatherElements reads a part of it")
        elif other != axis:
            relations.atoms.unify(one, index)


def _tile(relations: Relations, node: ir.Node) -> None:
    source, target = relations.operand(node, 0) or [], relations.output(node) or []
    for one, other in zip(source, target, strict=True):
        _tiled(relations, one, other)


def _tiled(relations: Relations, one: int | None, other: int | None) -> None:
    if other is None:
        return
    times = relations.atoms.size(other).over(Size(1) if one is None else relations.atoms.size(one))
    if times is None:
        relations.atoms.block([one, other], "it is repeated")
        return
    if times != Size(1):
        repeat = relations.atoms.new(times)
        relations.atoms.block([repeat], "a constant number of repeats")
        one = repeat if one is None else relations.atoms.product([repeat, one])
    relations.atoms.unify(one, other)


def _split(relations: Relations, node: ir.Node) -> None:
    source = relations.operand(node, 0) or []
    outs = [relations.output(node, index) or [] for index in range(len(node.outputs))]
    axis = _axis(node, len(source), 0)
    _segments(relations, source, outs, axis)


def _concat(relations: Relations, node: ir.Node) -> None:
    out = relations.output(node) or []
    parts = [relations.operand(node, index) or [] for index in range(len(node.inputs))]
    _segments(relations, out, parts, _axis(node, len(out), 0))


def _segments(relations: Relations, whole: Axes, parts: Sequence[Axes], axis: int) -> None:
    """``whole`` is the concatenation of ``parts`` along ``axis``."""
    for part in parts:
        for other in range(len(whole)):
            if other != axis:
                relations.atoms.unify(whole[other], part[other])
    sizes = [part[axis] for part in parts]
    _concatenated(relations, whole[axis], sizes)


def _concatenated(relations: Relations, whole: int | None, parts: Sequence[int | None]) -> None:
    if whole is None:
        return
    if len(parts) == 1:
        relations.atoms.unify(whole, parts[0])
        return
    one = Size(1)
    filled = [relations.atoms.new(one) if part is None else part for part in parts]
    if not all(relations.atoms.size(atom).fixed for atom in (whole, *filled)):
        relations.atoms.block([whole, *parts], "it is joined along an axis of variable size")
        return
    relations.atoms.unify(whole, relations.atoms.concat(filled))


def _slice(relations: Relations, node: ir.Node) -> None:
    source, target = relations.operand(node, 0) or [], relations.output(node) or []
    ranges = slice_ranges(node)
    for axis, (one, other) in enumerate(zip(source, target, strict=True)):
        _sliced(relations, one, other, None if ranges is None else ranges.get(axis, (0, None, 1)))


def _sliced(
    relations: Relations, one: int | None, other: int | None, bounds: tuple[int, int | None, int] | None
) -> None:
    if one is None:
        return
    size = relations.atoms.size(one)
    if bounds is not None and bounds == (0, None, 1):
        relations.atoms.unify(one, other)
        return
    if bounds is None or bounds[2] != 1 or not size.fixed:
        relations.atoms.block([one, other], "it is sliced at bounds that are not constant or not contiguous")
        return
    start, stop, _ = slice(*bounds).indices(size.number)
    middle = relations.atoms.new(Size(1)) if other is None else other
    segments = [
        middle if begin == start else relations.atoms.new(Size(end - begin))
        for begin, end in ((0, start), (start, stop), (stop, size.number))
        if end > begin
    ]
    if start >= stop:
        relations.atoms.block([one, other], "an empty slice")
    else:
        _concatenated(relations, one, segments)


def slice_ranges(node: ir.Node) -> dict[int, tuple[int, int | None, int]] | None:
    """Axis → (start, stop, step) of a Slice with constant bounds (stop None: to the end), or None."""
    operands = [constant_integers(node, index) for index in range(1, 5)]
    given = [index + 1 < len(node.inputs) and node.inputs[index + 1] is not None for index in range(4)]
    if any(want and got is None for want, got in zip(given, operands, strict=True)):
        return None
    starts, stops, axes, steps = operands
    if starts is None or stops is None or node.inputs[0] is None or node.inputs[0].shape is None:
        return None
    rank = len(node.inputs[0].shape)
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    last = np.iinfo(np.int32).max
    return {
        axis % rank: (start, None if stop >= last else stop, step)
        for axis, start, stop, step in zip(axes, starts, stops, steps, strict=True)
    }


def constant_integers(node: ir.Node, index: int) -> list[int] | None:
    """The numbers of an integer input that is known, or None."""
    value = node.inputs[index] if index < len(node.inputs) else None
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else [int(number) for number in tensor.numpy().reshape(-1)]


# ---- selections


def _gather(relations: Relations, node: ir.Node) -> None:
    data, indices = relations.operand(node, 0) or [], relations.operand(node, 1) or []
    axis = _axis(node, len(data), 0)
    relations.block([data[axis]], "it is selected from by index")
    relations.unify(data[:axis] + indices + data[axis + 1 :], relations.output(node))


def _along_axis(relations: Relations, node: ir.Node) -> None:
    for index in range(len(node.outputs)):
        out = relations.output(node, index) or []
        axis = _axis(node, len(out), _ALONG_AXIS.get(node.op_type, -1))
        source = relations.operand(node, 0) or []
        relations.block([source[axis], out[axis]], f"{node.op_type} mixes it")
        relations.unify(source[:axis] + source[axis + 1 :], out[:axis] + out[axis + 1 :])


def _cumsum(relations: Relations, node: ir.Node) -> None:
    source = relations.operand(node, 0)
    relations.unify(source, relations.output(node))
    axis = constant_integers(node, 1)
    mixed = source if axis is None else [(source or [])[axis[0]]]
    relations.block(mixed, "CumSum mixes it")


def _trilu(relations: Relations, node: ir.Node) -> None:
    source = relations.operand(node, 0) or []
    relations.unify(source, relations.output(node))
    relations.block(source[-2:], "Trilu reads positions in it")


def _pad(relations: Relations, node: ir.Node) -> None:
    source, target = relations.operand(node, 0) or [], relations.output(node) or []
    for one, other in zip(source, target, strict=True):
        if one is not None and other is not None and relations.atoms.size(one) == relations.atoms.size(other):
            relations.atoms.unify(one, other)
        else:
            relations.atoms.block([one, other], "it is padded")


def _reduce(relations: Relations, node: ir.Node) -> None:
    source, out = relations.operand(node, 0) or [], relations.output(node) or []
    axes = _reduced_axes(node, len(source))
    if axes is None:
        relations.block_node(node, "reduced axes are not constant")
        return
    kept = [axis for axis in range(len(source)) if axis not in axes]
    keepdims = node.attributes.get_int("keepdims", 1)
    relations.unify([source[axis] for axis in kept], [out[axis] for axis in kept] if keepdims else out)
    for axis in axes:
        _mix(relations, source[axis], node.op_type)


def _mix(relations: Relations, atom: int | None, op_type: str) -> None:
    if atom is None:
        return
    if op_type in _MEAN_LIKE:
        relations.atoms.mark(atom, AVERAGED, f"{op_type} runs over it")
    else:
        relations.atoms.block([atom], f"{op_type} mixes it")


def _reduced_axes(node: ir.Node, rank: int) -> list[int] | None:
    if node.op_type in ("ArgMax", "ArgMin"):
        return [node.attributes.get_int("axis", 0) % rank]
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        axes = constant_integers(node, 1)
    else:
        axes = list(node.attributes.get_ints("axes", []))
        if not axes and node.attributes.get_int("noop_with_empty_axes", 0) == 1:
            return []
    return None if axes is None else [axis % rank for axis in axes] or list(range(rank))


# ---- normalisation, quantisation


def _layer_norm(relations: Relations, node: ir.Node) -> None:
    source, out = relations.operand(node, 0) or [], relations.output(node) or []
    relations.unify(source, out)
    for index in (1, 2):
        _broadcast(relations, relations.operand(node, index), out)
    first = _axis(node, len(source), -1)
    for atom in source[first:]:
        if atom is not None:
            relations.atoms.mark(atom, AVERAGED, f"{node.op_type} runs over it")
    for index in range(1, len(node.outputs)):
        statistics = relations.output(node, index)
        if statistics is not None:
            relations.unify(source[:first], statistics[:first])


def _batch_norm(relations: Relations, node: ir.Node) -> None:
    source = relations.operand(node, 0) or []
    relations.unify(source, relations.output(node))
    for index in range(1, 5):
        relations.unify([source[1]], relations.operand(node, index))


def _quantize(relations: Relations, node: ir.Node) -> None:
    source = relations.operand(node, 0) or []
    relations.unify(source, relations.output(node))
    block_size = node.attributes.get_int("block_size", 0)
    for index in (1, 2):
        scale = relations.operand(node, index)
        if scale is None:
            continue
        if block_size:
            _per_block(relations, source, scale, _axis(node, len(source), 1))
        elif len(scale) == 1:
            _per_axis(relations, scale, source, _axis(node, len(source), 1))


def _per_block(relations: Relations, source: Axes, scale: Axes, axis: int) -> None:
    relations.unify(source[:axis] + source[axis + 1 :], scale[:axis] + scale[axis + 1 :])
    relations.block([source[axis], scale[axis]], "it is quantised in blocks")


def _per_axis(relations: Relations, scale: Axes | None, source: Axes | None, axis: int) -> None:
    if scale and source and len(source) >= -axis:
        relations.atoms.unify(scale[-1], source[axis])


# ---- others


def _attention(relations: Relations, node: ir.Node) -> None:
    """Attention of opset 23: heads are axis 1 of [batch, heads, length, size], or part of the last axis."""
    atoms = relations.atoms
    query, key, value = (_by_heads(relations, node, index) for index in range(3))
    out = _heads_of(relations, relations.output(node), node.attributes.get_int("q_num_heads", 0))
    if query is None or key is None or value is None or out is None:
        relations.block_node(node, "the heads of an Attention are not known")
        return
    for operand in (key, value, out):
        atoms.unify(query[0], operand[0])
    atoms.unify(key[1], value[1])
    atoms.unify(query[1], out[1])
    _grouped_heads(relations, query[1], key[1])
    atoms.unify(query[2], out[2])
    atoms.unify(key[2], value[2])
    atoms.unify(query[3], key[3])
    atoms.unify(value[3], out[3])
    if query[3] is not None:
        atoms.mark(query[3], CONTRACTED, node.name or "")
        if "scale" not in node.attributes:
            atoms.block([query[3]], "the scale of an Attention follows from it")
    _broadcast(relations, relations.operand(node, 3), [query[0], query[1], query[2], key[2]])
    cached = [relations.operand(node, index) for index in (4, 5)]
    cached += [relations.axes(value) for value in node.outputs[1:] if value.uses() or value.is_graph_output()]
    for axes in cached:
        relations.block(axes, "a cache or a trace of an Attention")
    if any(cached):
        atoms.block([key[1], key[3], value[3], query[1]], "a cache or a trace of an Attention has this shape")


def _by_heads(relations: Relations, node: ir.Node, index: int) -> Axes | None:
    name = "q_num_heads" if index == 0 else "kv_num_heads"
    return _heads_of(relations, relations.operand(node, index), node.attributes.get_int(name, 0))


def _heads_of(relations: Relations, axes: Axes | None, heads: int) -> Axes | None:
    """Axes as [batch, heads, length, size]."""
    if axes is None or len(axes) == 4:
        return axes
    batch, length, width = axes
    size = None if width is None else relations.atoms.size(width).over(Size(heads or 1))
    if not heads or width is None or size is None:
        return None
    parts = [None if part == Size(1) else relations.atoms.new(part) for part in (Size(heads), size)]
    relations.atoms.match([width], [part for part in parts if part is not None])
    return [batch, parts[0], length, parts[1]]


def _grouped_heads(relations: Relations, query: int | None, key: int | None) -> None:
    """Each head of keys and values serves a run of consecutive query heads."""
    if query is None or key is None:
        return
    repeat = relations.atoms.size(query).over(relations.atoms.size(key))
    if repeat is None:
        relations.atoms.block([query, key], "query heads are no multiple of key heads")
    elif repeat == Size(1):
        relations.atoms.unify(query, key)
    else:
        relations.atoms.unify(query, relations.atoms.product([key, relations.atoms.new(repeat)]))


def _rotary(relations: Relations, node: ir.Node) -> None:
    """RotaryEmbedding of opset 23: turns pairs within each head."""
    relations.unify(relations.operand(node, 0), relations.output(node))
    heads = _heads_of(relations, relations.output(node), node.attributes.get_int("num_heads", 0))
    if heads is None:
        relations.block_node(node, "the heads of a RotaryEmbedding are not known")
        return
    relations.block(heads[3:], "RotaryEmbedding turns pairs in it")
    for index in (1, 2, 3):
        relations.block(relations.operand(node, index), "RotaryEmbedding reads it by position")


def _nothing(relations: Relations, node: ir.Node) -> None:
    """The result does not share dimensions with the operands."""


def _filled(relations: Relations, node: ir.Node) -> None:
    relations.block(relations.output(node), "its size is a constant of the graph")


def _axis(node: ir.Node, rank: int, default: int) -> int:
    return node.attributes.get_int("axis", default) % rank


_RULES: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys([*_MEAN_LIKE, *_MIXING], _reduce),
    **dict.fromkeys(_ALONG_AXIS, _along_axis),
    "Attention": _attention,
    "BatchNormalization": _batch_norm,
    "Concat": _concat,
    "Constant": _nothing,
    "ConstantOfShape": _filled,
    "Conv": _conv,
    "CumSum": _cumsum,
    "DequantizeLinear": _quantize,
    "Einsum": _einsum,
    "Expand": _expand,
    "Flatten": _reshape,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "Gemm": _gemm,
    "LayerNormalization": _layer_norm,
    "MatMul": _matmul,
    "MatMulInteger": _matmul_integer,
    "Pad": _pad,
    "QLinearMatMul": _qlinear_matmul,
    "QuantizeLinear": _quantize,
    "RMSNormalization": _layer_norm,
    "Range": _filled,
    "Reshape": _reshape,
    "RotaryEmbedding": _rotary,
    "Shape": _nothing,
    "Size": _nothing,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Trilu": _trilu,
    "Unsqueeze": _squeeze,
}
