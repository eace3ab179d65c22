"""Writes quantised forms into a graph: Q/DQ around linears, dynamic quantisation, int8 tables and factors."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from graphcompress.analysis.linears import Embedding, Linear
from graphcompress.numerics.quantise import Affine, QuantisedArray
from graphcompress.passes.quantize.lowbit import Leaf, LowBitWeight
from graphcompress.passes.quantize.quantisable import tied_table
from graphcompress.rewrite.rewriter import Rewriter


class QdqWriter:
    """Edits one graph through a rewriter; what consumers can share is written once.

    Attributes:
        tables: int8 values and scales per row of the tables that a quantised linear shares with an embedding.
    """

    def __init__(self, rewriter: Rewriter) -> None:
        self.rw = rewriter
        self._activations: dict[ir.Value, tuple[ir.Value, ir.Value, ir.Value]] = {}
        self._weights: dict[tuple[ir.Value | None, ...], tuple[ir.Value, ir.Value, ir.Value]] = {}
        self.tables: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}

    # ---- linears

    def static(self, linear: Linear, activation: Affine, weight: LowBitWeight) -> None:
        """Input → QuantizeLinear → DequantizeLinear → MatMul with DequantizeLinear(int8 weight).

        All consumers share the QuantizeLinear; each has a DequantizeLinear of its own, as ONNX Runtime's
        fusion wants.
        """
        quantised, scale, zero_point = self._static_input(linear, activation, weight)
        values = self._weight(linear, weight)
        dequantised = self.rw.node(
            "DequantizeLinear", *values, before=linear.node, name=f"{linear.name}.dequantised", axis=1
        )
        product = self._as_matmul(linear, dequantised)
        x = self.rw.node(
            "DequantizeLinear",
            quantised,
            scale,
            zero_point,
            before=product,
            name=f"{linear.input.name}.dequantised",
        )
        self.rw.set_input(product, 0, x)

    def dynamic(self, linear: Linear, weight: LowBitWeight) -> None:
        """DynamicQuantizeLinear → MatMulInteger → Cast → Mul by both scales, in place of the MatMul."""
        values, weight_scale, weight_zero = self._weight(linear, weight)
        product = self._as_matmul(linear, linear.weight)
        quantised, scale, zero_point = self._dynamic_input(linear.input, weight, product)
        out = product.outputs[0]
        integers = self.rw.node(
            "MatMulInteger",
            quantised,
            values,
            zero_point,
            weight_zero,
            before=product,
            name=f"{out.name}.int32",
        )
        floats = self.rw.node(
            "Cast", integers, before=product, name=f"{out.name}.float", to=int(ir.DataType.FLOAT)
        )
        scales = self.rw.node("Mul", scale, weight_scale, before=product, name=f"{out.name}.scale")
        self.rw.replace(out, self.rw.node("Mul", floats, scales, before=product, name=f"{out.name}.scaled"))

    def _static_input(
        self, linear: Linear, activation: Affine, weight: LowBitWeight
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        x = linear.input
        if x not in self._activations:
            dtype = np.int8 if activation.signed else np.uint8
            scale = self.rw.constant(np.array(activation.scale, np.float32), f"{x.name}.scale")
            zero_point = self.rw.constant(np.array(activation.zero_point, dtype), f"{x.name}.zero_point")
            divided = self._divided(x, weight, linear.node)
            quantised = self.rw.node(
                "QuantizeLinear", divided, scale, zero_point, before=linear.node, name=f"{x.name}.quantised"
            )
            self._activations[x] = (quantised, scale, zero_point)
        return self._activations[x]

    def _dynamic_input(
        self, x: ir.Value, weight: LowBitWeight, before: ir.Node
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        if x not in self._activations:
            divided = self._divided(x, weight, before)
            first = self.rw.node(
                "DynamicQuantizeLinear", divided, before=before, name=f"{x.name}.quantised", outputs=3
            )
            node: ir.Node = first.producer()  # type: ignore[assignment]
            self._activations[x] = (node.outputs[0], node.outputs[1], node.outputs[2])
        return self._activations[x]

    def _divided(self, x: ir.Value, weight: LowBitWeight, before: ir.Node) -> ir.Value:
        """The activation divided by the factors that its readers' weights took over."""
        if weight.factors is None:
            return x
        inverse = self.rw.constant((1.0 / weight.factors).astype(np.float32), f"{x.name}.inverse_factors")
        return self.rw.node("Mul", x, inverse, before=before, name=f"{x.name}.divided")

    def _weight(self, linear: Linear, weight: LowBitWeight) -> tuple[ir.Value, ir.Value, ir.Value]:
        """int8 values [in, out], scale [out], zero point [out]; written once for a weight used twice."""
        layout = linear.weight if linear.transposed else None
        key = (linear.weight, layout, linear.input if weight.factors is not None else None)
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
        node, expression = linear.node, linear.weight
        if linear.transposed:
            expression = self.rw.node(
                "Transpose", expression, before=node, name=f"{linear.name}.transposed", perm=[1, 0]
            )
        if weight.factors is not None:
            factors = self.rw.constant(weight.factors[:, None], f"{linear.name}.factors")
            expression = self.rw.node("Mul", expression, factors, before=node, name=f"{linear.name}.grown")
        return self.rw.node(
            "QuantizeLinear",
            expression,
            scale,
            zero_point,
            before=node,
            name=f"{linear.name}.quantised",
            axis=1,
        )

    def _transposed_table(self, table: ir.Value, linear: Linear, weight: LowBitWeight) -> ir.Value:
        """The int8 table that an embedding shares, stored once [out, in]; its Transpose is folded at load."""
        values = self.rw.constant(np.ascontiguousarray(weight.quantised.values.T), f"{linear.name}.quantised")
        scale = self.rw.constant(weight.quantised.scale[:, None], f"{linear.name}.row_scale")
        self.tables[table] = (values, scale)
        return self.rw.node(
            "Transpose", values, before=linear.node, name=f"{linear.name}.transposed", perm=[1, 0]
        )

    def _as_matmul(self, linear: Linear, weight: ir.Value) -> ir.Node:
        """The MatMul node of ``linear`` with ``weight`` [in, out], whatever node it was."""
        if linear.node.op_type == "MatMul":
            self.rw.set_weight(linear, weight)
            return linear.node
        known = {node for node, _ in weight.uses()}
        self.rw.set_weight(linear, weight)
        return next(node for node, _ in weight.uses() if node not in known)

    # ---- expressions

    def leaves(self, forms: Mapping[ir.Value, Leaf], before: ir.Node) -> None:
        """Store leaves of expressions as Cast(float16), or as Reshape(Mul(Cast(int8 blocks), scale)).

        Cast and Mul are folded when a session is made; a DequantizeLinear would not be.
        """
        for leaf, form in forms.items():
            name = leaf.name or "leaf"
            stored = form.values if isinstance(form, QuantisedArray) else form
            value = self.rw.node(
                "Cast",
                self.rw.constant(stored, f"{name}.quantised"),
                before=before,
                name=f"{name}.float",
                to=int(ir.DataType.FLOAT),
            )
            if isinstance(form, QuantisedArray):
                scale = self.rw.constant(form.scale, f"{name}.scale")
                value = self.rw.node("Mul", value, scale, before=before, name=f"{name}.scaled")
            shape = list(leaf.shape.numpy()) if leaf.shape is not None else []
            if list(stored.shape) != shape:
                target = self.rw.constant(np.array(shape, np.int64), f"{name}.shape")
                value = self.rw.node("Reshape", value, target, before=before, name=f"{name}.restored")
            self.rw.replace(leaf, value)

    # ---- embeddings

    def embedding(self, embedding: Embedding, table: QuantisedArray) -> None:
        """Gather from the int8 table and multiply by its scales: per column [width], or per row [rows, 1]."""
        values = self.rw.constant(table.values, f"{embedding.name}.quantised")
        scale = self.rw.constant(table.scale, f"{embedding.name}.scale")
        self.embedding_from(embedding, values, scale)

    def embedding_from(self, embedding: Embedding, values: ir.Value, scale: ir.Value) -> None:
        """As :meth:`embedding`, from a stored table and its scales."""
        node, name = embedding.node, embedding.output.name
        rows = self.rw.node("Gather", values, embedding.indices, before=node, name=f"{name}.int8", axis=0)
        if scale.shape is not None and len(scale.shape) == 1:
            zero_point = self.rw.constant(
                np.zeros(scale.shape.numpy(), np.int8), f"{embedding.name}.zero_point"
            )
            out = self.rw.node(
                "DequantizeLinear", rows, scale, zero_point, before=node, name=f"{name}.dequantised", axis=-1
            )
        else:
            steps = self.rw.node(
                "Gather", scale, embedding.indices, before=node, name=f"{name}.scale", axis=0
            )
            floats = self.rw.node("Cast", rows, before=node, name=f"{name}.float", to=int(ir.DataType.FLOAT))
            out = self.rw.node("Mul", floats, steps, before=node, name=f"{name}.dequantised")
        self.rw.replace(embedding.output, out)
