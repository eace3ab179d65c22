"""What NNAPI lacks in operators that it has: GELU, Erf, LayerNormalization, Reciprocal, rows by int64."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from graphcompress.analysis.activations import GELU, activations
from graphcompress.graph.expressions import is_constant
from graphcompress.graph.match import is_standard
from graphcompress.rewrite.rewriter import Rewriter

_P = 0.3275911
_COEFFICIENTS = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)
"""erf(z) = 1 - (a1·t + … + a5·t⁵)·exp(-z²), t = 1 / (1 + p·z), for z ≥ 0; largest error 1.5e-7, which is a
rounding of float32. Abramowitz & Stegun, Handbook of Mathematical Functions, 7.1.26; a5 first."""


_CUBE = 0.044715
"""Of the tanh approximation of GELU, as the operator Gelu defines it."""


@dataclass(frozen=True)
class _Place:
    """Where new nodes go, and how they are named."""

    rw: Rewriter
    before: ir.Node
    name: str
    dtype: np.dtype[Any]

    def number(self, value: float, word: str) -> ir.Value:
        """A constant of this one number."""
        return self.rw.constant(np.array(value, self.dtype), f"{self.name}.{word}")

    def made(self, op_type: str, *inputs: ir.Value, word: str) -> ir.Value:
        """The output of a new node."""
        return self.rw.node(op_type, *inputs, before=self.before, name=f"{self.name}.{word}")


def without_erf(rw: Rewriter) -> int:
    """Every GELU and every Erf in operators that NNAPI has; how many.

    An exact GELU is ``Relu(x) - |x|·h(|x|)`` with ``h = ½·(1 - erf(|x|/√2))``: not an approximation by
    another function, the result is within a few roundings of float32. Gelu with ``approximate="tanh"``
    becomes its definition, and an Erf of something else what it lacks to 1 below 0 less that above 0.
    """
    gelus = [found for found in activations(rw.model) if found.function == GELU]
    for gelu in gelus:
        output = gelu.nodes[-1].outputs[0]
        rw.supersede(output, _gelu(_place(rw, gelu.x, gelu.nodes[-1], output.name or ""), gelu.x))
    rw.clean()
    return len(gelus) + sum(_each(rw, op_type, write) for op_type, write in _SPELT_OUT.items())


def _each(rw: Rewriter, op_type: str, write: Callable[[_Place, ir.Value], ir.Value]) -> int:
    """``write`` in the place of every node of a standard operator of one input; how many."""
    done = 0
    for node in list(rw.model.graph):
        operand = node.inputs[0] if is_standard(node, op_type) else None
        if operand is not None:
            place = _place(rw, operand, node, node.outputs[0].name or "")
            rw.supersede(node.outputs[0], write(place, operand))
            done += 1
    return done


def _place(rw: Rewriter, x: ir.Value, before: ir.Node, name: str) -> _Place:
    return _Place(rw, before, name, (x.dtype or ir.DataType.FLOAT).numpy())


def _gelu(place: _Place, x: ir.Value) -> ir.Value:
    size = place.made("Abs", x, word="size")
    tail = _tail(place, size, stretch=math.sqrt(0.5), share=0.5)
    lost = place.made("Mul", size, tail, word="lost")
    return place.made("Sub", place.made("Relu", x, word="positive"), lost, word="gelu")


def _erf(place: _Place, x: ir.Value) -> ir.Value:
    """``erf(x) = (1 - erf(max(-x, 0))) - (1 - erf(max(x, 0)))``."""
    left = place.made("Relu", place.made("Neg", x, word="negated"), word="left")
    right = place.made("Relu", x, word="right")
    tails = [
        _tail(replace(place, name=f"{place.name}.{word}"), side, stretch=1.0, share=1.0)
        for side, word in ((left, "below"), (right, "above"))
    ]
    return place.made("Sub", *tails, word="erf")


def _tail(place: _Place, size: ir.Value, *, stretch: float, share: float) -> ir.Value:
    """``share·(1 - erf(stretch·size))`` of what is not negative."""
    scaled = place.made("Mul", size, place.number(_P * stretch, "p"), word="scaled")
    one = place.number(1.0, "one")
    t = place.made("Div", one, place.made("Add", scaled, one, word="below"), word="t")
    series = place.number(_COEFFICIENTS[0] * share, "a5")
    for power, coefficient in zip((4, 3, 2, 1), _COEFFICIENTS[1:], strict=True):
        product = place.made("Mul", t, series, word=f"t{power}")
        series = place.made("Add", product, place.number(coefficient * share, f"a{power}"), word=f"s{power}")
    series = place.made("Mul", series, t, word="series")
    halved = place.made("Mul", size, place.number(-stretch * stretch, "half"), word="halved")
    bell = place.made("Exp", place.made("Mul", size, halved, word="square"), word="bell")
    return place.made("Mul", series, bell, word="tail")


def _gelu_by_tanh(place: _Place, x: ir.Value) -> ir.Value:
    """``½·x·(1 + tanh(√(2/π)·(x + 0.044715·x³)))``."""
    square = place.made("Mul", x, x, word="square")
    bent = place.made("Mul", square, place.number(_CUBE, "cube"), word="bent")
    one = place.number(1.0, "one")
    slope = place.made("Add", bent, one, word="slope")
    scaled = place.made("Mul", x, place.number(math.sqrt(2.0 / math.pi), "root"), word="scaled")
    bound = place.made("Tanh", place.made("Mul", scaled, slope, word="inner"), word="bound")
    half = place.made("Mul", x, place.number(0.5, "half"), word="halved")
    return place.made("Mul", half, place.made("Add", bound, one, word="raised"), word="gelu")


_SPELT_OUT: Mapping[str, Callable[[_Place, ir.Value], ir.Value]] = {"Erf": _erf, "Gelu": _gelu_by_tanh}


def reciprocal_as_division(rw: Rewriter) -> int:
    """Every Reciprocal as 1 divided by the same: the same number; how many."""
    return _each(rw, "Reciprocal", _division)


def _division(place: _Place, x: ir.Value) -> ir.Value:
    return place.made("Div", place.number(1.0, "one"), x, word="division")


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
            casts[rows] = rw.node("Cast", rows, before=node, name=f"{rows.name}.int32", to=to)
        rw.set_input(node, 1, casts[rows])
        done += 1
    return done


def normalisation_by_means(rw: Rewriter) -> int:
    """Every LayerNormalization over its last axis as means, a root and arithmetic; how many."""
    done = 0
    for node in list(rw.model.graph):
        if node.domain or node.op_type != "LayerNormalization" or len(node.outputs) > 1:
            continue
        x = node.inputs[0]
        if x is None or not _is_last(node.attributes.get_int("axis", -1), x):
            continue
        _normalise(rw, node, x)
        done += 1
    return done


def _is_last(axis: int, x: ir.Value) -> bool:
    return axis == -1 or (x.shape is not None and axis == len(x.shape) - 1)


def _normalise(rw: Rewriter, node: ir.Node, x: ir.Value) -> None:
    name = node.outputs[0].name
    dtype = (x.dtype or ir.DataType.FLOAT).numpy()
    centred = rw.node("Sub", x, _mean(rw, x, node, f"{name}.mean"), before=node, name=f"{name}.centred")
    square = rw.node("Mul", centred, centred, before=node, name=f"{name}.square")
    epsilon = rw.constant(np.array(node.attributes.get_float("epsilon", 1e-5), dtype), f"{name}.epsilon")
    variance = _mean(rw, square, node, f"{name}.variance")
    above = rw.node("Add", variance, epsilon, before=node, name=f"{name}.above")
    root = rw.node("Sqrt", above, before=node, name=f"{name}.deviation")
    result = rw.node("Div", centred, root, before=node, name=f"{name}.normal")
    for op_type, operand in zip(("Mul", "Add"), node.inputs[1:], strict=False):
        if operand is not None:
            result = rw.node(op_type, result, operand, before=node, name=f"{name}.{op_type.lower()}")
    rw.supersede(node.outputs[0], result)


def _mean(rw: Rewriter, x: ir.Value, before: ir.Node, name: str) -> ir.Value:
    if rw.model.opset < 18:
        return rw.node("ReduceMean", x, before=before, name=name, axes=[-1], keepdims=1)
    last = rw.constant(np.array([-1], np.int64), f"{name}.axis")
    return rw.node("ReduceMean", x, last, before=before, name=name, keepdims=1)
