"""Operators that act on each element: arithmetic, comparisons, activations, types."""

from __future__ import annotations

import operator as op
from collections.abc import Callable
from functools import reduce
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, fx
from torch.nn import functional

from graphcompress.fx.builder import FxBuilder, Operand
from graphcompress.fx.ops.table import operator, single_call
from graphcompress.fx.sizes import Sizes
from graphcompress.fx.types import NARROW, compute_type
from graphcompress.graph.match import operand

_SAME_NAME = """
    Abs Acos Acosh Asin Asinh Atan Atanh Ceil Cos Cosh Erf Exp Floor IsNaN Log Reciprocal Round Sigmoid Sign
    Sin Sinh Sqrt Tan Tanh
"""

_UNARY: dict[str, Callable[..., Any]] = {
    **{name: getattr(torch, name.lower()) for name in _SAME_NAME.split()},
    "BitwiseNot": torch.bitwise_not,
    "HardSwish": functional.hardswish,
    "Mish": functional.mish,
    "Neg": op.neg,
    "Not": torch.logical_not,
    "Relu": functional.relu,
    "Softsign": functional.softsign,
}

_BINARY: dict[str, Callable[..., Any]] = {
    "Add": op.add,
    "And": torch.logical_and,
    "BitwiseAnd": op.and_,
    "BitwiseOr": op.or_,
    "BitwiseXor": op.xor,
    "Equal": op.eq,
    "Greater": op.gt,
    "GreaterOrEqual": op.ge,
    "Less": op.lt,
    "LessOrEqual": op.le,
    "Mul": op.mul,
    "Or": torch.logical_or,
    "Sub": op.sub,
    "Xor": torch.logical_xor,
}

_TENSORS_ONLY = frozenset({"And", "Or", "Xor"})


@operator(*_UNARY)
def unary(builder: FxBuilder, node: ir.Node) -> Operand:
    """One operand, one function."""
    return builder.call(_UNARY[node.op_type], builder.tensor(node.inputs[0]))


@operator(*_BINARY)
def binary(builder: FxBuilder, node: ir.Node) -> Operand:
    """Two operands that broadcast."""
    left, right = operands(builder, node, numbers=node.op_type not in _TENSORS_ONLY)
    return builder.call(_BINARY[node.op_type], left, right)


def operands(
    builder: FxBuilder, node: ir.Node, *, numbers: bool = True
) -> tuple[fx.Node | float, fx.Node | float]:
    """Both operands of ``node``; at most one is a plain number."""
    first, second = node.inputs[:2]
    if not numbers:
        return builder.tensor(first), builder.tensor(second)
    left, right = builder.operand(first), builder.operand(second)
    if not _is_tensor(builder, first, left) and not _is_tensor(builder, second, right):
        left = builder.tensor(first)
    return left, right


def _is_tensor(builder: FxBuilder, value: ir.Value | None, operand: fx.Node | float) -> bool:
    return isinstance(operand, fx.Node) and builder.sizes(value) is None


@operator("Div")
def div(builder: FxBuilder, node: ir.Node) -> Operand:
    """Division; integers are rounded towards zero."""
    left, right = operands(builder, node)
    if _is_integer(node.inputs[0]) and node.inputs[0] not in builder.quantised:
        return builder.call(torch.div, builder.tensor(node.inputs[0]), right, rounding_mode="trunc")
    return builder.call(op.truediv, left, right)


@operator("Mod")
def mod(builder: FxBuilder, node: ir.Node) -> Operand:
    """Remainder with the sign of the divisor, or of the dividend with ``fmod``."""
    left, right = builder.tensor(node.inputs[0]), builder.operand(node.inputs[1])
    return builder.call(torch.fmod if node.attributes.get_int("fmod", 0) else torch.remainder, left, right)


@operator("Pow")
def power(builder: FxBuilder, node: ir.Node) -> Operand:
    """Power, in the type of the base."""
    left, right = operands(builder, node)
    if isinstance(right, float) and right.is_integer() and not _is_integer(node.inputs[0]):
        return builder.call(op.pow, left, int(right))
    made = builder.call(op.pow, left, right)
    base, exponent = node.inputs
    if base is None or exponent is None or base.dtype == exponent.dtype:
        return made
    return builder.method("to", made, compute_type(base.dtype))


@operator("Max", "Min")
def extreme(builder: FxBuilder, node: ir.Node) -> Operand:
    """Largest or smallest of any number of operands that broadcast."""
    function = torch.maximum if node.op_type == "Max" else torch.minimum
    return reduce(lambda a, b: builder.call(function, a, b), map(builder.tensor, node.inputs))


@operator("Sum", "Mean")
def total(builder: FxBuilder, node: ir.Node) -> Operand:
    """Sum or mean of any number of operands that broadcast."""
    made = reduce(lambda a, b: builder.call(op.add, a, b), map(builder.tensor, node.inputs))
    return made if node.op_type == "Sum" else builder.call(op.truediv, made, len(node.inputs))


@operator("Where")
def where(builder: FxBuilder, node: ir.Node) -> Operand:
    """One of two operands, by a condition."""
    condition = builder.tensor(node.inputs[0])
    then, otherwise = builder.operand(node.inputs[1]), builder.operand(node.inputs[2])
    are_numbers = not isinstance(then, fx.Node) and not isinstance(otherwise, fx.Node)
    # Of two plain numbers torch.where makes its default type.
    if are_numbers and node.outputs[0].dtype != ir.DataType.FLOAT:
        then = builder.tensor(node.inputs[1])
    return builder.call(torch.where, condition, then, otherwise)


@operator("Clip")
def clip(builder: FxBuilder, node: ir.Node) -> Operand:
    """Values limited from below, from above or both."""
    x = builder.tensor(node.inputs[0])
    limits = [operand(node, index) for index in (1, 2)]
    low, high = (None if limit is None else builder.operand(limit) for limit in limits)
    if low is None and high is None:
        return x
    # torch.clamp takes two tensors or two numbers, but not one of each.
    if isinstance(low, fx.Node) != isinstance(high, fx.Node):
        low, high = (None if limit is None else builder.tensor(limit) for limit in limits)
    return builder.call(torch.clamp, x, low, high)


_INTEGERS = (ir.DataType.INT64, ir.DataType.INT32)


@operator("Cast")
def cast(builder: FxBuilder, node: ir.Node) -> Operand:
    """Another data type; float16 and bfloat16 are computed in float32."""
    return _cast(builder, node, ir.DataType(node.attributes.get_int("to")))


@operator("CastLike")
def cast_like(builder: FxBuilder, node: ir.Node) -> Operand:
    """The data type of another value."""
    other = node.inputs[1]
    if other is None or other.dtype is None:
        builder.refuse(node, "the type to cast to is not known")
    return _cast(builder, node, other.dtype)


def _cast(builder: FxBuilder, node: ir.Node, dtype: ir.DataType) -> Operand:
    source = node.inputs[0]
    target = compute_type(dtype)
    if target is None or dtype in NARROW:
        builder.refuse(node, f"torch has no type {dtype}")
    found = builder.sizes(source)
    if found is not None and found.dtype in _INTEGERS and dtype in _INTEGERS:
        return Sizes(found.items, found.scalar, dtype)
    x = builder.tensor(source)
    same = source is not None and source.dtype is not None and compute_type(source.dtype) == target
    if same and source not in builder.quantised:
        return x
    if source in builder.quantised and target == torch.float32:
        return x
    return builder.method("to", x, target)


@operator("Identity", "Dropout")
def identity(builder: FxBuilder, node: ir.Node) -> Operand | tuple[Operand | None, ...]:
    """The operand itself; of dropout, what it is at inference."""
    if node.op_type == "Dropout" and (training := operand(node, 2)) is not None:
        flag = builder.array(training)
        if flag is None or flag.any():
            builder.refuse(node, "it drops at random")
    found = builder.sizes(node.inputs[0])
    made = builder.tensor(node.inputs[0]) if found is None else found
    if len(node.outputs) == 1:
        return made
    return made, builder.call(torch.ones_like, builder.tensor(node.inputs[0]), dtype=torch.bool)


def is_inf(x: Tensor, positive: int, negative: int) -> Tensor:
    """Whether ``x`` is infinite, of the signs that are asked for."""
    return (torch.isposinf(x) & bool(positive)) | (torch.isneginf(x) & bool(negative))


def bit_shift(x: Tensor, places: Tensor, direction: str) -> Tensor:
    """Bits moved ``LEFT`` or ``RIGHT``."""
    return x << places if direction == "LEFT" else x >> places


single_call("BitShift", bit_shift, direction="LEFT")
single_call("IsInf", is_inf, detect_positive=1, detect_negative=1)


def _is_integer(value: ir.Value | None) -> bool:
    return value is not None and value.dtype is not None and value.dtype.is_integer()
