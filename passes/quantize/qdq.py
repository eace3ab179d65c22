"""Writes quantised forms into a graph: Q/DQ around linears, dynamic quantisation, int8 tables and factors."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from graphcompress.analysis.experts import Experts, stacked
from graphcompress.analysis.linears import Embedding, Linear
from graphcompress.graph.match import fixed_shape
from graphcompress.numerics.quantise import Affine, QuantisedArray
from graphcompress.passes.quantize.lowbit import Leaf, LowBitWeight
from graphcompress.passes.quantize.quantisable import tied_table
from graphcompress.rewrite.builder import Builder
from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.rules.opsets.versions import AXES_AS_INPUT

SMALLEST_STEP = 1e-12
"""A token is divided by at least this much."""


class QdqWriter:
    """Edits one graph through a rewriter; what consumers can share is written once.

    Attributes:
        tables: int8 values and scales of the tables that were written, which others read, too; and what their
            columns have to be multiplied by, if anything.
    """

    def __init__(self, rewriter: Rewriter) -> None:
        self.rw = rewriter
        self._activations: dict[ir.Value, tuple[ir.Value, ir.Value, ir.Value]] = {}
        self._weights: dict[tuple[ir.Value, ir.Value | None, bytes], tuple[ir.Value, ir.Value, ir.Value]] = {}
        self._stacks: dict[tuple[ir.Value | None, ...], tuple[ir.Value, ir.Value]] = {}
        self.tables: dict[ir.Value, tuple[ir.Value, ir.Value, ir.Value | None]] = {}

    # ---- linears

    def static(self, linear: Linear, activation: Affine, weight: LowBitWeight) -> None:
        """Input → QuantizeLinear → DequantizeLinear → MatMul with DequantizeLinear(int8 weight).

        All consumers share the QuantizeLinear; each has a DequantizeLinear of its own, as ONNX Runtime's
        fusion wants.
        """
        quantised, scale, zero_point = self._static_input(linear, activation, weight)
        values = self._weight(linear, weight)
        b = self.rw.at(linear.node, linear.name)
        dequantised = b.op("DequantizeLinear", *values, name="dequantised", axis=1)
        product = self._as_matmul(linear, dequantised)
        b = self.rw.at(product, linear.input.name)
        x = b.op("DequantizeLinear", quantised, scale, zero_point, name="dequantised")
        self.rw.set_input(product, 0, x)

    def dynamic(self, linear: Linear, weight: LowBitWeight) -> None:
        """DynamicQuantizeLinear → MatMulInteger → Cast → Mul by both scales, in place of the MatMul."""
        values, weight_scale, weight_zero = self._weight(linear, weight)
        # MatMulInteger adds no bias and transposes nothing, so a Gemm becomes MatMul and Add first.
        product = self._as_matmul(linear, linear.weight)
        quantised, scale, zero_point = self._dynamic_input(linear.input, weight, product)
        b = self.rw.at(product)
        integers = b.op("MatMulInteger", quantised, values, zero_point, weight_zero, name="int32")
        floats = b.op("Cast", integers, name="float", to=ir.DataType.FLOAT)
        scales = b.op("Mul", scale, weight_scale, name="scale")
        self.rw.replace(product.outputs[0], b.op("Mul", floats, scales, name="scaled"))

    def per_token(self, linear: Linear, weight: LowBitWeight) -> None:
        """A scale for each token → QuantizeLinear → MatMulInteger → Cast → Mul by both scales."""
        values, weight_scale, _ = self._weight(linear, weight)
        product = self._as_matmul(linear, linear.weight)
        quantised, scale, zero_point = self._token_input(linear.input, weight, product)
        b = self.rw.at(product)
        integers = b.op("MatMulInteger", quantised, values, zero_point, name="int32")
        floats = b.op("Cast", integers, name="float", to=ir.DataType.FLOAT)
        columns = b.op("Mul", floats, weight_scale, name="columns")
        self.rw.replace(product.outputs[0], b.op("Mul", columns, scale, name="scaled"))

    def experts(self, experts: Experts, activation: Affine | None, weight: LowBitWeight) -> None:
        """MatMulInteger with a stack of int8 weights → Cast → Mul by the scales of expert and channel.

        The range of the activation is ``activation``, or (None) found at run time.
        """
        node = experts.node
        if activation is None:
            quantised, x_scale, zero_point = self._dynamic_input(experts.input, weight, node)
        else:
            quantised, x_scale, zero_point = self._static_input(experts, activation, weight)
        values, scale = self._selected(experts, *self._stack(experts, weight))
        b = self.rw.at(node)
        integers = b.op("MatMulInteger", quantised, values, zero_point, name="int32")
        floats = b.op("Cast", integers, name="float", to=ir.DataType.FLOAT)
        scales = b.op("Mul", x_scale, scale, name="scale")
        self.rw.replace(node.outputs[0], b.op("Mul", floats, scales, name="scaled"))

    def stored_experts(self, experts: Experts, weight: LowBitWeight) -> None:
        """Store a stack in int8 and multiply floats: Mul(Cast(int8), scale), of the experts that are read."""
        b = self.rw.at(experts.node, experts.name)
        self.rw.set_input(experts.node, 0, _divided(b, experts.input, weight))
        if weight.is_expression:
            self.leaves(weight.leaves, experts.node)
            return
        values, scale = self._selected(experts, *self._stack(experts, weight))
        floats = b.op("Cast", values, name="float", to=ir.DataType.FLOAT)
        self.rw.set_input(experts.node, 1, b.op("Mul", floats, scale, name="dequantised"))

    def _stack(self, experts: Experts, weight: LowBitWeight) -> tuple[ir.Value, ir.Value]:
        """int8 values [experts, in, out] and scale [experts, 1, out]; written once for a stack used twice."""
        key = (experts.weight, experts.input if weight.factors is not None else None)
        if key not in self._stacks:
            count = experts.experts
            stacked_scale = stacked(weight.quantised.scale[None], count)
            scale = self.rw.constant(stacked_scale, f"{experts.name}.scale")
            if weight.is_expression:
                values = self._stack_at_load(experts, weight)
            else:
                array = stacked(weight.quantised.values, count)
                values = self.rw.constant(array, f"{experts.name}.quantised")
            self._stacks[key] = (values, scale)
        return self._stacks[key]

    def _stack_at_load(self, experts: Experts, weight: LowBitWeight) -> ir.Value:
        """An expression that the runtime quantises when the session is made, the experts side by side."""
        self.leaves(weight.leaves, experts.node)
        b = self.rw.at(experts.node, experts.name)
        columns = b.op("Transpose", experts.weight, name="moved", perm=[1, 0, 2])
        columns = b.op("Reshape", columns, [experts.in_features, experts.out_features], name="columns")
        if weight.factors is not None:
            columns = b.op("Mul", columns, b.constant(weight.factors[:, None], "factors"), name="grown")
        scale = b.constant(weight.quantised.scale, "column_scale")
        zeros = b.constant(np.zeros(weight.quantised.scale.shape, np.int8), "column_zero_point")
        values = b.op("QuantizeLinear", columns, scale, zeros, name="quantised", axis=1)
        shape = [experts.in_features, experts.experts, experts.width]
        return b.op("Transpose", b.op("Reshape", values, shape, name="parts"), name="stack", perm=[1, 0, 2])

    def _selected(self, experts: Experts, values: ir.Value, scale: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Values and scales of the experts that are looked up, where that is done."""
        if experts.lookup is None:
            return values, scale
        b, index = self.rw.at(experts.node, experts.name), experts.lookup.inputs[1]
        return b.op("Gather", values, index, name="read"), b.op("Gather", scale, index, name="read_scale")

    def _static_input(
        self, linear: Linear, activation: Affine, weight: LowBitWeight
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        x = linear.input
        if x not in self._activations:
            dtype = np.int8 if activation.signed else np.uint8
            b = self.rw.at(linear.node, x.name)
            scale = b.constant(np.array(activation.scale, np.float32), "scale")
            zero_point = b.constant(np.array(activation.zero_point, dtype), "zero_point")
            divided = _divided(b, x, weight)
            quantised = b.op("QuantizeLinear", divided, scale, zero_point, name="quantised")
            self._activations[x] = (quantised, scale, zero_point)
        return self._activations[x]

    def _dynamic_input(
        self, x: ir.Value, weight: LowBitWeight, before: ir.Node
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        if x not in self._activations:
            b = self.rw.at(before, x.name)
            node = b.node("DynamicQuantizeLinear", _divided(b, x, weight), name="quantised", outputs=3)
            self._activations[x] = (node.outputs[0], node.outputs[1], node.outputs[2])
        return self._activations[x]

    def _token_input(
        self, x: ir.Value, weight: LowBitWeight, before: ir.Node
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        """uint8 around 128, the scale [..., 1] of each token, and 128."""
        if x not in self._activations:
            b = self.rw.at(before, x.name)
            divided = _divided(b, x, weight)
            peaks = b.op("Abs", divided, name="magnitude")
            if self.rw.model.opset < AXES_AS_INPUT:
                peaks = b.op("ReduceMax", peaks, name="peak", axes=[-1], keepdims=1)
            else:
                peaks = b.op("ReduceMax", peaks, b.constant([-1], "peak_axis"), name="peak", keepdims=1)
            # A token of zeros alone has no scale, and nothing may be divided by zero.
            scale = b.op("Max", b.op("Mul", peaks, 1.0 / 127.0, name="step"), SMALLEST_STEP, name="scale")
            steps = b.op("Div", divided, scale, name="steps")
            zero_point = b.constant(np.array(128, np.uint8), "zero_point")
            quantised = b.op("QuantizeLinear", steps, 1.0, zero_point, name="quantised")
            self._activations[x] = (quantised, scale, zero_point)
        return self._activations[x]

    def _weight(self, linear: Linear, weight: LowBitWeight) -> tuple[ir.Value, ir.Value, ir.Value]:
        """int8 values [in, out], scale [out], zero point [out]; written once for a weight used twice."""
        layout = linear.weight if linear.transposed else None
        # A weight behind two activations of different factors is written twice.
        factors = b"" if weight.factors is None else weight.factors.tobytes()
        key = (tied_table(linear) or linear.weight, layout, factors)
        if key not in self._weights:
            scale = self.rw.constant(weight.quantised.scale, f"{linear.name}.scale")
            zeros = np.zeros(weight.quantised.scale.shape, np.int8)
            zero_point = self.rw.constant(zeros, f"{linear.name}.zero_point")
            values = self._values(linear, weight, scale, zero_point)
            self._weights[key] = (values, scale, zero_point)
        return self._weights[key]

    def _values(
        self, linear: Linear, weight: LowBitWeight, scale: ir.Value, zero_point: ir.Value
    ) -> ir.Value:
        table = tied_table(linear)
        if table is not None:
            return self._transposed_table(table, linear, weight)
        if not weight.is_expression:
            return self.rw.constant(weight.quantised.values, f"{linear.name}.quantised")
        self.leaves(weight.leaves, linear.node)
        b, expression = self.rw.at(linear.node, linear.name), linear.weight
        if linear.transposed:
            expression = b.op("Transpose", expression, name="transposed", perm=[1, 0])
        if weight.factors is not None:
            expression = b.op("Mul", expression, b.constant(weight.factors[:, None], "factors"), name="grown")
        # The runtime folds everything up to here when the session is made, so that the product finds an
        # int8 constant.
        return b.op("QuantizeLinear", expression, scale, zero_point, name="quantised", axis=1)

    def _transposed_table(self, table: ir.Value, linear: Linear, weight: LowBitWeight) -> ir.Value:
        """The int8 table that an embedding shares, stored once [out, in]; its Transpose is folded at load."""
        values = self.rw.constant(np.ascontiguousarray(weight.quantised.values.T), f"{linear.name}.quantised")
        scale = self.rw.constant(weight.quantised.scale[:, None], f"{linear.name}.row_scale")
        inverse = None
        if weight.factors is not None:
            inverse = self.rw.constant(_inverse(weight.factors), f"{linear.name}.inverse_factors")
        self.tables[table] = (values, scale, inverse)
        return self.rw.at(linear.node, linear.name).op("Transpose", values, name="transposed", perm=[1, 0])

    def _as_matmul(self, linear: Linear, weight: ir.Value) -> ir.Node:
        """The MatMul node of ``linear`` with ``weight`` [in, out], whatever node it was."""
        if linear.node.op_type == "MatMul":
            self.rw.set_weight(linear, weight)
            return linear.node
        # Setting the weight of a Gemm replaces its node; the new one is found as the reader that was not
        # there before.
        known = {node for node, _ in weight.uses()}
        self.rw.set_weight(linear, weight)
        return next(node for node, _ in weight.uses() if node not in known)

    # ---- expressions

    def leaves(self, forms: Mapping[ir.Value, Leaf], before: ir.Node) -> None:
        """Store leaves of expressions as Cast(float16), or as Reshape(Mul(Cast(int8 blocks), scale)).

        Cast and Mul are folded when a session is made; a DequantizeLinear would not be.
        """
        for leaf, form in forms.items():
            b, shape = self.rw.at(before, leaf.name or "leaf"), fixed_shape(leaf) or ()
            stored = form.values if isinstance(form, QuantisedArray) else form
            value = b.op("Cast", b.constant(stored, "quantised"), name="float", to=ir.DataType.FLOAT)
            if isinstance(form, QuantisedArray):
                value = b.op("Mul", value, b.constant(form.scale, "scale"), name="scaled")
            if stored.shape != shape:
                value = b.op("Reshape", value, shape, name="restored")
            self.rw.replace(leaf, value)

    # ---- embeddings

    def embedding(self, embedding: Embedding, table: QuantisedArray) -> None:
        """Gather from the int8 table and multiply by its scales: per column [width], or per row [rows, 1]."""
        values = self.rw.constant(table.values, f"{embedding.name}.quantised")
        scale = self.rw.constant(table.scale, f"{embedding.name}.scale")
        self.tables[embedding.weight] = (values, scale, None)
        self.embedding_from(embedding, values, scale, None)

    def embedding_from(
        self, embedding: Embedding, values: ir.Value, scale: ir.Value, inverse: ir.Value | None
    ) -> None:
        """As :meth:`embedding`, from a stored table and its scales, times ``inverse`` [width] if given."""
        b = self.rw.at(embedding.node, embedding.output.name)
        # Gathering before dequantising touches only the rows of the tokens, and the whole table never
        # becomes float.
        rows = b.op("Gather", values, embedding.indices, name="int8", axis=0)
        shape = fixed_shape(scale) or ()
        if len(shape) == 1:
            zero_point = self.rw.constant(np.zeros(shape, np.int8), f"{embedding.name}.zero_point")
            out = b.op("DequantizeLinear", rows, scale, zero_point, name="dequantised", axis=-1)
        else:
            # DequantizeLinear takes one scale per index of a fixed axis, whereas here each token brings its
            # own.
            steps = b.op("Gather", scale, embedding.indices, name="scale", axis=0)
            floats = b.op("Cast", rows, name="float", to=ir.DataType.FLOAT)
            out = b.op("Mul", floats, steps, name="dequantised")
        if inverse is not None:
            out = b.op("Mul", out, inverse, name="restored")
        self.rw.replace(embedding.output, out)


def _divided(b: Builder, x: ir.Value, weight: LowBitWeight) -> ir.Value:
    """The activation divided by the factors that its readers' weights took over."""
    if weight.factors is None:
        return x
    # A product with the inverse is cheaper than a division, and rounds about as well.
    return b.op("Mul", x, b.constant(_inverse(weight.factors), "inverse_factors"), name="divided")


def _inverse(factors: np.ndarray) -> np.ndarray:
    return (1.0 / factors).astype(np.float32)
