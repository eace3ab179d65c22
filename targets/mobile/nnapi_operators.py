"""What NNAPI lacks in operators that it has: GELU, Erf, LayerNormalization, Reciprocal, rows by int64."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import onnx_ir as ir

from graphcompress.analysis.activations import GELU, activations
from graphcompress.graph.expressions import is_constant
from graphcompress.graph.match import is_standard, rank_of
from graphcompress.rewrite.builder import Builder
from graphcompress.rewrite.rewriter import Rewriter

_P = 0.3275911
"""The p of the approximation of erf below."""
_COEFFICIENTS = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)
"""erf(z) = 1 - (a1·t + … + a5·t⁵)·exp(-z²), t = 1 / (1 + p·z), for z ≥ 0; largest error 1.5e-7, which is a
rounding of float32. Abramowitz & Stegun, Handbook of Mathematical Functions, 7.1.26; a5 first."""


_CUBE = 0.044715
"""The factor of the cube in the tanh approximation of GELU, as the operator Gelu defines it."""


def without_erf(rw: Rewriter) -> int:
    """Every GELU and every Erf in operators that NNAPI has; how many.

    An exact GELU is ``Relu(x) - |x|·h(|x|)`` with ``h = ½·(1 - erf(|x|/√2))``: not an approximation by
    another function, the result is within a few roundings of float32. Gelu with ``approximate="tanh"``
    becomes its definition, and an Erf of something else what it lacks to 1 below 0 less that above 0.
    """
    gelus = [found for found in activations(rw.model) if found.function == GELU]
    for gelu in gelus:
        output = gelu.nodes[-1].outputs[0]
        rw.replace(output, _gelu(rw.at(gelu.nodes[-1]), gelu.x), take_name=True)
    rw.clean()
    return len(gelus) + sum(_each(rw, op_type, write) for op_type, write in _SPELT_OUT.items())


def _each(rw: Rewriter, op_type: str, write: Callable[[Builder, ir.Value], ir.Value]) -> int:
    """``write`` in the place of every node of a standard operator of one input; how many."""
    done = 0
    for node in list(rw.model.graph):
        x = node.inputs[0] if is_standard(node, op_type) else None
        if x is not None:
            rw.replace(node.outputs[0], write(rw.at(node), x), take_name=True)
            done += 1
    return done


def _gelu(place: Builder, x: ir.Value) -> ir.Value:
    size = place.op("Abs", x, name="size")
    tail = _tail(place, size, stretch=math.sqrt(0.5), share=0.5)
    lost = place.op("Mul", size, tail, name="lost")
    return place.op("Sub", place.op("Relu", x, name="positive"), lost, name="gelu")


def _erf(place: Builder, x: ir.Value) -> ir.Value:
    """``erf(x) = (1 - erf(max(-x, 0))) - (1 - erf(max(x, 0)))``."""
    left = place.op("Relu", place.op("Neg", x, name="negated"), name="left")
    right = place.op("Relu", x, name="right")
    tails = [
        _tail(place, side, stretch=1.0, share=1.0, prefix=prefix)
        for side, prefix in ((left, "below."), (right, "above."))
    ]
    return place.op("Sub", *tails, name="erf")


def _tail(place: Builder, size: ir.Value, *, stretch: float, share: float, prefix: str = "") -> ir.Value:
    """``share·(1 - erf(stretch·size))`` of what is not negative."""

    def number(value: float, name: str) -> ir.Value:
        return place.constant(value, f"{prefix}{name}", like=size)

    def made(op_type: str, *operands: ir.Value, name: str) -> ir.Value:
        return place.op(op_type, *operands, name=f"{prefix}{name}")

    scaled = made("Mul", size, number(_P * stretch, "p"), name="scaled")
    one = number(1.0, "one")
    t = made("Div", one, made("Add", scaled, one, name="below"), name="t")
    # The share goes into the coefficients, which saves a product on every entry.
    series = number(_COEFFICIENTS[0] * share, "a5")
    for power, coefficient in zip((4, 3, 2, 1), _COEFFICIENTS[1:], strict=True):
        product = made("Mul", t, series, name=f"t{power}")
        series = made("Add", product, number(coefficient * share, f"a{power}"), name=f"s{power}")
    series = made("Mul", series, t, name="series")
    halved = made("Mul", size, number(-stretch * stretch, "half"), name="halved")
    bell = made("Exp", made("Mul", size, halved, name="square"), name="bell")
    return made("Mul", series, bell, name="tail")


def _gelu_by_tanh(place: Builder, x: ir.Value) -> ir.Value:
    """``½·x·(1 + tanh(√(2/π)·(x + 0.044715·x³)))``."""
    square = place.op("Mul", x, x, name="square")
    bent = place.op("Mul", square, place.constant(_CUBE, "cube", like=x), name="bent")
    one = place.constant(1.0, "one", like=x)
    slope = place.op("Add", bent, one, name="slope")
    root = place.constant(math.sqrt(2.0 / math.pi), "root", like=x)
    inner = place.op("Mul", place.op("Mul", x, root, name="scaled"), slope, name="inner")
    bound = place.op("Tanh", inner, name="bound")
    half = place.op("Mul", x, place.constant(0.5, "half", like=x), name="halved")
    return place.op("Mul", half, place.op("Add", bound, one, name="raised"), name="gelu")


_SPELT_OUT: Mapping[str, Callable[[Builder, ir.Value], ir.Value]] = {"Erf": _erf, "Gelu": _gelu_by_tanh}


def reciprocal_as_division(rw: Rewriter) -> int:
    """Every Reciprocal as 1 divided by the same: the same number; how many."""
    return _each(rw, "Reciprocal", _division)


def _division(place: Builder, x: ir.Value) -> ir.Value:
    return place.op("Div", place.constant(1.0, "one", like=x), x, name="division")


def rows_by_int32(rw: Rewriter) -> int:
    """Every Gather by variable int64 numbers takes them as int32, which NNAPI has; how many.

    The same rows: an axis of more than 2³¹ entries is none that a device holds.
    """
    casts: dict[ir.Value, ir.Value] = {}
    done = 0
    for node in list(rw.model.graph):
        rows = node.inputs[1] if is_standard(node, "Gather") else None
        if rows is None or rows.dtype != ir.DataType.INT64 or is_constant(rows):
            continue
        if rows not in casts:
            to = int(ir.DataType.INT32)
            casts[rows] = rw.at(node, rows.name).op("Cast", rows, name="int32", to=to)
        rw.set_input(node, 1, casts[rows])
        done += 1
    return done


def normalisation_by_means(rw: Rewriter) -> int:
    """Every LayerNormalization over its last axis as means, a root and arithmetic; how many."""
    done = 0
    for node in list(rw.model.graph):
        if not is_standard(node, "LayerNormalization") or len(node.outputs) > 1:
            continue
        x, axis = node.inputs[0], node.attributes.get_int("axis", -1)
        if x is not None and (axis == -1 or rank_of(x) == axis + 1):
            _normalise(rw, node, x)
            done += 1
    return done


def _normalise(rw: Rewriter, node: ir.Node, x: ir.Value) -> None:
    place = rw.at(node)
    centred = place.op("Sub", x, _mean(place, x, "mean"), name="centred")
    square = place.op("Mul", centred, centred, name="square")
    epsilon = place.constant(node.attributes.get_float("epsilon", 1e-5), "epsilon", like=x)
    above = place.op("Add", _mean(place, square, "variance"), epsilon, name="above")
    result = place.op("Div", centred, place.op("Sqrt", above, name="deviation"), name="normal")
    for op_type, factor in zip(("Mul", "Add"), node.inputs[1:], strict=False):
        if factor is not None:
            result = place.op(op_type, result, factor)
    rw.replace(node.outputs[0], result, take_name=True)


def _mean(place: Builder, x: ir.Value, name: str) -> ir.Value:
    if place.rw.model.opset < 18:
        return place.op("ReduceMean", x, name=name, axes=[-1], keepdims=1)
    return place.op("ReduceMean", x, place.constant([-1], f"{name}.axis"), name=name, keepdims=1)
