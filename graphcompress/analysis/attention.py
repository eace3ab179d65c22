"""Attention, found by data flow."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from graphcompress.analysis.linears import Linear
from graphcompress.model import Model


@dataclass(frozen=True, eq=False)
class Attention:
    """``output = softmax(scale · q · kᵀ + mask) · v``, whatever operators an exporter wrote it with.

    Attributes:
        node: the Softmax, or the Attention operator of opset 23.
        scores: value before the mask is added, [..., queries, keys]; None inside an Attention operator.
        probabilities: value that is multiplied with ``v``, after any guards; None inside an Attention operator.
        q, k, v: operands of the products as they come out of their linears (before head splitting), or, where there
            is no single linear, as close to it as one value stands for the operand.
        output: the product of probabilities and values, before heads are merged.
        num_heads, kv_heads, head_dim: sizes; ``head_dim`` is that of queries and keys.
        scale: factor on the scores when it is a constant, else None.
        producers: linears that produce q, k and v (one, when packed); those found.
        consumers: linears that read the output after the heads were merged; those found.
    """

    node: ir.Node
    scores: ir.Value | None
    probabilities: ir.Value | None
    q: ir.Value
    k: ir.Value
    v: ir.Value
    output: ir.Value
    num_heads: int
    kv_heads: int
    head_dim: int
    scale: float | None
    producers: tuple[Linear, ...]
    consumers: tuple[Linear, ...]


def attentions(model: Model) -> list[Attention]:
    """Attentions of the main graph in execution order."""
    raise NotImplementedError
