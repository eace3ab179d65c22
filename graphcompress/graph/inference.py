"""Rules of symbolic shape inference that its library lacks, mostly sizes that are computed around an Expand.

A size ``-1`` in the target of an Expand means "as it is"; exporters spell that out as
``Where(Equal(target, -1), 1, target)`` with the -1 made by ConstantOfShape. A size is never negative, so what
comes out is known.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence

import onnx_ir as ir
from onnx_shape_inference import ShapeInferenceContext, _broadcast, registry

from graphcompress.files.declared import Dim
from graphcompress.graph.match import operand

_SINCE = 13
"""The lowest opset that is read; the library's own rules are registered for earlier ones."""

_LONGEST = 64
"""Integer vectors of at most this many elements are followed: sizes and axes are short, tables of ids are
not."""

_FAR = 2**31 - 1
"""An end of a Slice from here on means the end of the axis, however long."""

_CONTRIB = "com.microsoft"

Rule = Callable[[ShapeInferenceContext, ir.Node], None]


def _expand(ctx: ShapeInferenceContext, node: ir.Node) -> None:
    """As the library's; and the number of axes where only the length of the target is known.

    The library takes the target for the shape where that of the data is unknown, which may be larger.
    """
    data, target = node.inputs
    if data is not None and data.shape is None:
        ctx.set_shape_and_dtype(node.outputs[0], None, data.dtype)
        return
    _LIBRARY["Expand"](ctx, node)
    if node.outputs[0].shape is not None or data is None or target is None or data.shape is None:
        return
    length = None if target.shape is None or len(target.shape) != 1 else target.shape[0]
    if isinstance(length, int):
        rank = max(length, len(data.shape))
        dims = [ctx.new_symbolic_dim() for _ in range(rank)]
        ctx.set_shape_and_dtype(node.outputs[0], ir.Shape(dims), data.dtype)


def _constant_of_shape(ctx: ShapeInferenceContext, node: ir.Node) -> None:
    """As the library's; and shapes that are measured, and the numbers of a short integer vector."""
    _LIBRARY["ConstantOfShape"](ctx, node)
    length = _elements(ctx, node.inputs[0])
    value = node.attributes.get("value")
    if node.outputs[0].shape is None and length is not None:
        dtype = ir.DataType.FLOAT if value is None else value.as_tensor().dtype
        ctx.set_shape_and_dtype(node.outputs[0], ir.Shape(length), dtype)
    if length is None or len(length) != 1 or value is None:
        return
    size, tensor = length[0], value.as_tensor()
    if isinstance(size, int) and size <= _LONGEST and tensor.dtype == ir.DataType.INT64:
        ctx.set_shape_and_dtype(node.outputs[0], ir.Shape([size]), tensor.dtype)
        ctx.set_symbolic_value(node.outputs[0], [int(tensor.numpy().reshape(-1)[0])] * size)


def _where(ctx: ShapeInferenceContext, node: ir.Node) -> None:
    """As the library's; and the elements that a comparison with a negative number decides."""
    _LIBRARY["Where"](ctx, node)
    condition, then, otherwise = node.inputs
    test = None if condition is None else condition.producer()
    if test is None or test.domain or test.op_type != "Equal":
        return
    parts = [_elements(ctx, value) for value in (*test.inputs, then, otherwise)]
    if any(part is None for part in parts):
        return
    longest = max(len(part) for part in parts if part is not None)
    rows = [part * longest if len(part) == 1 else part for part in parts if part is not None]
    if longest > _LONGEST or any(len(row) != longest for row in rows):
        return
    chosen: list[Dim] = []
    for left, right, one, other in zip(*rows, strict=True):
        equal = _equal(left, right)
        if equal is None:
            return
        chosen.append(one if equal else other)
    ctx.set_symbolic_value(node.outputs[0], chosen)


def _div(ctx: ShapeInferenceContext, node: ir.Node) -> None:
    """As the library's; and exact quotients of sizes: 4·batch over 4 is the batch."""
    _LIBRARY["Div"](ctx, node)
    dividends, divisors = (_elements(ctx, value) for value in node.inputs)
    if dividends is None or divisors is None or len(divisors) != 1:
        return
    quotients = [_quotient(dividend, divisors[0]) for dividend in dividends]
    known = [quotient for quotient in quotients if quotient is not None]
    if len(known) == len(dividends):
        ctx.set_symbolic_value(node.outputs[0], known)


def _quotient(dividend: Dim, divisor: Dim) -> Dim | None:
    """The quotient of two integers where it has no rest, else None."""
    if not isinstance(divisor, int) or divisor == 0:
        return None
    if isinstance(dividend, int):
        return None if dividend % divisor else dividend // divisor
    if dividend.value is None or divisor < 0:
        return None
    quotient = dividend // divisor
    return None if quotient.value is None or "floor" in quotient.value else quotient


def _squeeze(ctx: ShapeInferenceContext, node: ir.Node) -> None:
    """As the library's, which takes no variable size for 1 where the axes are not given."""
    data = node.inputs[0]
    sizes = () if data is None or data.shape is None else data.shape
    axes = operand(node, 1) or node.attributes.get("axes")
    if data is not None and axes is None and not all(isinstance(size, int) for size in sizes):
        ctx.set_shape_and_dtype(node.outputs[0], None, data.dtype)
        return
    _LIBRARY["Squeeze"](ctx, node)


def _slice(ctx: ShapeInferenceContext, node: ir.Node) -> None:
    """As the library's, which takes every constant end on a variable size for one within it.

    A variable size may be smaller than the end, whoever chose or computed it: fewer elements are left then.
    """
    _LIBRARY["Slice"](ctx, node)
    data, out = node.inputs[0], node.outputs[0]
    if data is None or data.shape is None or out.shape is None:
        return
    dims, rank = list(out.shape), len(data.shape)
    axes = _elements(ctx, operand(node, 3))
    # The library says nothing of any axis where one start is computed.
    for axis in set(range(rank)) - {axis % rank for axis in axes or () if isinstance(axis, int)}:
        dims[axis] = dims[axis] if axes is None else data.shape[axis]
    for axis, bounds in _sliced(ctx, node).items():
        old, new = data.shape[axis % rank], dims[axis % rank]
        if isinstance(old, ir.SymbolicDim) and isinstance(new, int):
            dims[axis % rank] = _remaining(ctx, old, bounds)
        elif (last := _last(ctx, old, bounds)) is not None:
            dims[axis % rank] = last
    out.shape = ir.Shape(dims)


def _sliced(ctx: ShapeInferenceContext, node: ir.Node) -> dict[int, tuple[Dim, ...]]:
    """Axis → start, end and step of a Slice, where all of them are known."""
    parts = [_elements(ctx, value) for value in node.inputs[1:]]
    starts, ends, axes, steps = [*parts, None, None][:4]
    if starts is None or ends is None:
        return {}
    axes = axes or [*range(len(starts))]
    bounds = zip(starts, ends, steps or [1] * len(starts), strict=True)
    return {axis: found for axis, found in zip(axes, bounds, strict=True) if isinstance(axis, int)}


def _remaining(ctx: ShapeInferenceContext, old: ir.SymbolicDim, bounds: tuple[Dim, ...]) -> Dim:
    """The size after a Slice of an axis of the variable size ``old``, which is not 0."""
    start, end, step = bounds
    if (start, step) != (0, 1) or not isinstance(end, int):
        unknown: ir.SymbolicDim = ctx.new_symbolic_dim()
        return unknown
    if end >= _FAR:
        return old
    return 1 if end == 1 else ir.SymbolicDim(f"Min({end}, {old.value})")


def _last(ctx: ShapeInferenceContext, old: Dim, bounds: tuple[Dim, ...]) -> Dim | None:
    """The size after a Slice that takes the last n of ``old`` elements; None where it is no such Slice.

    From max(0, old - n) on they are min(old, n). From old - n on they are n as well, but for n > old, where a
    negative start is counted from the end and leaves fewer than n: then min(n, unknown).
    """
    start, end, step = bounds
    if isinstance(start, int) or start.value is None or step != 1 or not isinstance(end, int) or end < _FAR:
        return None
    clamped = re.fullmatch(r"Max\(0, (.+)\)", start.value)
    count = (old - (ir.SymbolicDim(clamped[1]) if clamped else start)).simplify()
    if count.value is None or not count.value.isidentifier():  # a name is a size, which is not negative
        return None
    most = old if clamped else ctx.new_symbolic_dim()
    least: Dim = ir.SymbolicDim(f"Min({most if isinstance(most, int) else most.value}, {count.value})")
    return least


def _max(ctx: ShapeInferenceContext, node: ir.Node) -> None:
    """As the library's; and the larger of a number and a size."""
    _LIBRARY["Max"](ctx, node)
    parts = [_elements(ctx, value) for value in node.inputs]
    if len(parts) != 2 or any(part is None or len(part) != 1 for part in parts):
        return
    (left,), (right,) = (part for part in parts if part is not None)
    names = [dim if isinstance(dim, int) else dim.value for dim in (left, right)]
    if None not in names and left != right and not all(isinstance(name, int) for name in names):
        larger = ir.SymbolicDim(f"Max({names[0]}, {names[1]})").simplify()
        text = str(larger.value)
        known = int(text) if text.isdecimal() else larger
        ctx.set_symbolic_value(node.outputs[0], [known])


def _concat(ctx: ShapeInferenceContext, node: ir.Node) -> None:
    """As the library's, which gives every element of a long vector a name; here a long one has none."""
    shapes = [None if value is None else value.shape for value in node.inputs]
    vectors = [shape[0] for shape in shapes if shape is not None and len(shape) == 1]
    length: Dim = 0
    for size in vectors:
        length = length + size
    if len(vectors) < len(shapes) or not isinstance(length, int) or length <= _LONGEST:
        _LIBRARY["Concat"](ctx, node)
        return
    dtype = next(
        (value.dtype for value in node.inputs if value is not None and value.dtype is not None), None
    )
    ctx.set_shape_and_dtype(node.outputs[0], ir.Shape([length]), dtype)


def _loop(ctx: ShapeInferenceContext, node: ir.Node) -> None:
    """Types alone: the library asks for a condition, and takes the first turn's shapes for those of all."""
    body = node.attributes["body"].as_graph()
    for output, made in zip(node.outputs, body.outputs[1:], strict=False):
        if isinstance(made.type, ir.TensorType):
            ctx.set_dtype(output, made.type.dtype)
        elif made.type is not None:
            ctx.set_type(output, made.type)


def _reads(op_type: str, rule: Rule) -> Rule:
    """``rule`` where every optional input of ``_OPTIONAL`` that is given is known; else nothing is said."""

    def guarded(ctx: ShapeInferenceContext, node: ir.Node) -> None:
        given = (operand(node, index) for index in _OPTIONAL[op_type])
        known = (value is None or _elements(ctx, value) for value in given)
        if all(known):
            rule(ctx, node)
            return
        data = node.inputs[0]
        dtype, shape = (None, None) if data is None else (data.dtype, data.shape)
        for output in node.outputs:
            unknown = None
            if shape is not None and op_type != "Squeeze":
                unknown = ir.Shape([ctx.new_symbolic_dim() for _ in shape])
            ctx.set_shape_and_dtype(output, unknown, dtype)

    return guarded


def _either_size(left: Dim, right: Dim) -> Dim | None:
    """The size of an axis that two sizes broadcast to; None where they do not.

    The library takes the first of two variable sizes, which is wrong wherever that one is 1.
    """
    if not (isinstance(left, ir.SymbolicDim) and isinstance(right, ir.SymbolicDim)):
        known: Dim | None = _LIBRARY_BROADCAST(left, right)
        return known
    if left.value is None or right.value is None or left == right:
        return left if right.value is not None else right
    for smaller, size in ((left, right), (right, left)):
        # The smaller of a and b broadcasts to a only where it is a, or where it is 1: the size is a.
        if re.fullmatch(rf"Min\((.+, )?{re.escape(str(size.value))}(, .+)?\)", str(smaller.value)):
            return size
    larger: Dim = ir.SymbolicDim(f"Max({left.value}, {right.value})").simplify()
    return larger


def _fused_matmul(ctx: ShapeInferenceContext, node: ir.Node) -> None:
    """As the library's, which reads the axes wrong where batch axes are moved: then nothing is said."""
    moved = any(node.attributes.get_int(name, 0) for name in ("transBatchA", "transBatchB"))
    if not moved:
        _LIBRARY["FusedMatMul"](ctx, node)


def _elements(ctx: ShapeInferenceContext, value: ir.Value | None) -> list[Dim] | None:
    """The elements of an integer vector, numbers or sizes, where they are known."""
    if value is None:
        return None
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is not None:
        integers = tensor.size <= _LONGEST and tensor.dtype in (ir.DataType.INT64, ir.DataType.INT32)
        return [int(number) for number in tensor.numpy().reshape(-1)] if integers else None
    known: Sequence[Dim] | None = ctx.get_symbolic_value(value)
    return None if known is None else list(known)


def _equal(left: Dim, right: Dim) -> bool | None:
    """Whether two elements are equal in every run, or in none (a size is not negative); None: unknown."""
    if isinstance(left, int) and isinstance(right, int):
        return left == right
    for number, size in ((left, right), (right, left)):
        if isinstance(number, int) and number < 0 and isinstance(size, ir.SymbolicDim):
            return False if size.value is not None and "-" not in size.value else None
    return None


_RULES: dict[str, Rule] = {
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Div": _div,
    "Expand": _expand,
    "Loop": _loop,
    "Max": _max,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Where": _where,
}
_OPTIONAL = {"Pad": (3,), "Slice": (3, 4), "Split": (1,), "Squeeze": (1,)}
"""Inputs that may be left out: the library takes axes, steps or sizes that it cannot read for left out."""
_CONTRIB_RULES: dict[str, Rule] = {"FusedMatMul": _fused_matmul}

registry.collect()  # the library's rules come first, so that those of this file take their place
_LIBRARY: dict[str, Rule] = {
    op_type: registry.get("", op_type, _SINCE - 1) for op_type in (*_RULES, *_OPTIONAL)
}
_RULES |= {op_type: _reads(op_type, _RULES.get(op_type, _LIBRARY[op_type])) for op_type in _OPTIONAL}
_LIBRARY |= {op_type: registry.get(_CONTRIB, op_type, 1) for op_type in _CONTRIB_RULES}
for _op_type, _rule in _RULES.items():
    registry.register("", _op_type, since_version=_SINCE)(_rule)
for _op_type, _rule in _CONTRIB_RULES.items():
    registry.register(_CONTRIB, _op_type, since_version=1)(_rule)
_LIBRARY_BROADCAST = _broadcast._broadcast_dim
_broadcast._broadcast_dim = _either_size


def inferable(model: ir.Model, node: ir.Node) -> bool:
    """Whether shapes of the outputs of ``node`` are inferred rather than believed."""
    version = model.opset_imports.get(node.domain, 1)
    return not node.domain or registry.get(node.domain, node.op_type, version) is not None


@contextlib.contextmanager
def overridable(graph: ir.Graph) -> Iterator[None]:
    """Libraries see inputs with a default as inputs: they would take the default for a constant."""
    defaults = [(value, value.const_value) for value in graph.initializers.values() if value.is_graph_input()]
    try:
        for value, _ in defaults:
            value.const_value = None
        yield
    finally:
        for value, tensor in defaults:
            value.const_value = tensor
