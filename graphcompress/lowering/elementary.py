"""GELU and LayerNormalization in operators that every provider of a device has."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from graphcompress.forms.gelu import Gelu, GeluSite
from graphcompress.rewrite import Rewriter

_P = 0.3275911
_COEFFICIENTS = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)
"""erf(z) = 1 - (a1·t + … + a5·t⁵)·exp(-z²), t = 1 / (1 + p·z), for z ≥ 0; largest error 1.5e-7, which is a
rounding of float32. Abramowitz & Stegun, Handbook of Mathematical Functions, 7.1.26; a5 first."""


def gelu_without_erf(rw: Rewriter) -> int:
    """Every exact GELU as ``Relu(x) - |x|·h(|x|)`` with ``h = ½·(1 - erf(|x|/√2))``; how many.

    Relu, Abs, Exp and arithmetic, where an Erf splits the graph. Not an approximation of GELU by another
    function: the result is within a few roundings of float32.
    """
    sites = [site for site in Gelu().sites(rw.model) if isinstance(site, GeluSite)]
    for site in sites:
        last = site.nodes[-1]
        x = site.nodes[0].outputs[0] if site.bias is not None else site.x
        rw.supersede(last.outputs[0], _gelu(rw, x, last, site.name))
    return len(sites)


def _gelu(rw: Rewriter, x: ir.Value, before: ir.Node, name: str) -> ir.Value:
    dtype = (x.dtype or ir.DataType.FLOAT).numpy()

    def number(value: float, word: str) -> ir.Value:
        return rw.constant(np.array(value, dtype), f"{name}.{word}")

    def made(op_type: str, *inputs: ir.Value, word: str) -> ir.Value:
        return rw.node(op_type, *inputs, before=before, name=f"{name}.{word}")

    size = made("Abs", x, word="size")
    scaled = made("Mul", size, number(_P / math.sqrt(2.0), "p"), word="scaled")
    one = number(1.0, "one")
    t = made("Div", one, made("Add", scaled, one, word="below"), word="t")
    series = number(_COEFFICIENTS[0] / 2, "a5")
    for power, coefficient in zip((4, 3, 2, 1), _COEFFICIENTS[1:], strict=True):
        product = made("Mul", t, series, word=f"t{power}")
        series = made("Add", product, number(coefficient / 2, f"a{power}"), word=f"s{power}")
    series = made("Mul", series, t, word="series")
    square = made("Mul", x, made("Mul", x, number(-0.5, "half"), word="halved"), word="square")
    tail = made("Mul", series, made("Exp", square, word="bell"), word="tail")
    return made("Sub", made("Relu", x, word="positive"), made("Mul", size, tail, word="lost"), word="gelu")


def normalisation_by_means(rw: Rewriter) -> int:
    """Every LayerNormalization over its last axis as means, a root and arithmetic; how many."""
    done = 0
    for node in list(rw.model.graph):
        if node.domain or node.op_type != "LayerNormalization" or len(node.outputs) > 1:
            continue
        x = node.inputs[0]
        axis = node.attributes.get_int("axis", -1)
        if x is None or x.shape is None or axis not in (-1, len(x.shape) - 1):
            continue
        _normalise(rw, node, x)
        done += 1
    return done


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
