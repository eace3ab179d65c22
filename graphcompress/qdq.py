"""Writes quantised forms into a graph: Q/DQ around linears, dynamic quantisation, int8 tables and int8 factors."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphcompress.analysis.linears import Embedding, Linear
from graphcompress.numerics.quantise import Affine, QuantisedArray, quantise_symmetric
from graphcompress.rewrite import Rewriter


class QdqWriter:
    """Edits one graph through a rewriter; what can be shared between consumers is written once."""

    def __init__(self, rewriter: Rewriter) -> None:
        self.rw = rewriter
        self._activations: dict[ir.Value, tuple[ir.Value, ...]] = {}
        self._weights: dict[ir.Value, tuple[ir.Value, ...]] = {}

    # ---- linears

    def static(self, linear: Linear, activation: Affine, weight: QuantisedArray) -> None:
        """Input → QuantizeLinear → DequantizeLinear → MatMul with DequantizeLinear(int8 weight).

        All consumers share the QuantizeLinear; each has its own DequantizeLinear, which ONNX Runtime wants for fusion.
        """
        quantised, scale, zero_point = self._quantised_input(linear, activation)
        values, weight_scale, weight_zero = self._stored_weight(linear, weight)
        product = self._normalised(linear, self._dequantised(linear, values, weight_scale, weight_zero, axis=1))
        dequantised = self.rw.node(
            "DequantizeLinear", quantised, scale, zero_point, before=product, name=f"{linear.input.name}.dequantised"
        )
        self.rw.set_input(product, 0, dequantised)

    def dynamic(self, linear: Linear, weight: QuantisedArray) -> None:
        """DynamicQuantizeLinear → MatMulInteger → Cast → Mul by both scales, in place of the MatMul."""
        values, weight_scale, weight_zero = self._stored_weight(linear, weight)
        product = self._normalised(linear, linear.weight)
        node, name = product, product.outputs[0].name
        quantised, scale, zero_point = self._dynamic_input(linear.input, node)
        integers = self.rw.node(
            "MatMulInteger", quantised, values, zero_point, weight_zero, before=node, name=f"{name}.int32"
        )
        floats = self.rw.node("Cast", integers, before=node, name=f"{name}.float", to=int(ir.DataType.FLOAT))
        scales = self.rw.node("Mul", scale, weight_scale, before=node, name=f"{name}.scale")
        self.rw.replace(product.outputs[0], self.rw.node("Mul", floats, scales, before=node, name=f"{name}.scaled"))

    def _quantised_input(self, linear: Linear, activation: Affine) -> tuple[ir.Value, ...]:
        x = linear.input
        if x not in self._activations:
            dtype = np.int8 if activation.signed else np.uint8
            scale = self.rw.constant(np.array(activation.scale, np.float32), f"{x.name}.scale")
            zero_point = self.rw.constant(np.array(activation.zero_point, dtype), f"{x.name}.zero_point")
            quantised = self.rw.node(
                "QuantizeLinear", x, scale, zero_point, before=linear.node, name=f"{x.name}.quantised"
            )
            self._activations[x] = (quantised, scale, zero_point)
        return self._activations[x]

    def _dynamic_input(self, x: ir.Value, before: ir.Node) -> tuple[ir.Value, ...]:
        if x not in self._activations:
            quantised = self.rw.node(
                "DynamicQuantizeLinear", x, before=before, name=f"{x.name}.quantised", outputs=3
            )
            node = quantised.producer()
            self._activations[x] = tuple(node.outputs) if node is not None else ()
        return self._activations[x]

    def _stored_weight(self, linear: Linear, weight: QuantisedArray) -> tuple[ir.Value, ...]:
        """Values, scale and zero point; for a weight that stays an expression, values are quantised from it."""
        if linear.weight not in self._weights:
            scale = self.rw.constant(weight.scale, f"{linear.name}.scale")
            zero_point = self.rw.constant(np.zeros(weight.scale.shape, np.int8), f"{linear.name}.zero_point")
            values = self.rw.constant(weight.values, f"{linear.name}.quantised")
            self._weights[linear.weight] = (values, scale, zero_point)
        return self._weights[linear.weight]

    def _dequantised(self, linear: Linear, *quantised: ir.Value, axis: int) -> ir.Value:
        return self.rw.node(
            "DequantizeLinear", *quantised, before=linear.node, name=f"{linear.name}.dequantised", axis=axis
        )

    def _normalised(self, linear: Linear, weight: ir.Value) -> ir.Node:
        """The MatMul node of ``linear`` with ``weight`` [in, out], whatever node it was."""
        self.rw.set_weight(linear, weight)
        if linear.node.op_type == "MatMul":
            return linear.node
        return next(node for node, index in weight.uses() if node.op_type == "MatMul" and index == 1)

    # ---- embeddings

    def embedding_by_column(self, embedding: Embedding, table: QuantisedArray) -> None:
        """Gather from the int8 table, then DequantizeLinear with one scale per column."""
        scale = self.rw.constant(table.scale, f"{embedding.name}.scale")
        zero_point = self.rw.constant(np.zeros(table.scale.shape, np.int8), f"{embedding.name}.zero_point")
        rows = self._gathered(embedding, table)
        self.rw.replace(
            embedding.output,
            self.rw.node(
                "DequantizeLinear",
                rows,
                scale,
                zero_point,
                before=embedding.node,
                name=f"{embedding.output.name}.dequantised",
                axis=-1,
            ),
        )

    def embedding_by_row(self, embedding: Embedding, table: QuantisedArray) -> None:
        """Gather from the int8 table and from its scales per row, then Cast and Mul."""
        scale = self.rw.constant(table.scale, f"{embedding.name}.scale")
        rows = self._gathered(embedding, table)
        name = embedding.output.name
        steps = self.rw.node("Gather", scale, embedding.indices, before=embedding.node, name=f"{name}.scale", axis=0)
        floats = self.rw.node(
            "Cast", rows, before=embedding.node, name=f"{name}.float", to=int(ir.DataType.FLOAT)
        )
        self.rw.replace(
            embedding.output,
            self.rw.node("Mul", floats, steps, before=embedding.node, name=f"{name}.dequantised"),
        )

    def _gathered(self, embedding: Embedding, table: QuantisedArray) -> ir.Value:
        values = self.rw.constant(table.values, f"{embedding.name}.quantised")
        return self.rw.node(
            "Gather",
            values,
            embedding.indices,
            before=embedding.node,
            name=f"{embedding.output.name}.int8",
            axis=0,
        )
