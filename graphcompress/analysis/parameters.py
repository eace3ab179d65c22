"""Every float parameter of a model, and what it is there for: nothing is left out of a count."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from graphcompress.analysis.experts import all_experts
from graphcompress.analysis.linears import Embedding, Linear, embeddings, linears
from graphcompress.graph.expressions import leaves
from graphcompress.graph.match import is_standard, rank_of
from graphcompress.graph.model import Model, number_of_parameters

_ELEMENTWISE = ("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Clip", "Where", "PRelu")
_NORMALISATIONS = (
    *("LayerNormalization", "RMSNormalization", "BatchNormalization"),
    *("GroupNormalization", "InstanceNormalization"),
)

BIAS = 2
"""Which input of a Gemm is added to the product."""

VECTOR = "added or multiplied elementwise: a bias, a scale or a constant"
NORMALISATION = "a scale or a shift of a normalisation"
BESIDE_WEIGHTS = frozenset({VECTOR, NORMALISATION})
"""Reasons of what stands beside the weights: many small tensors, which a person does not count one by one."""


@dataclass(frozen=True, eq=False)
class Parameters:
    """One stored tensor of floats or of low-bit numbers.

    Attributes:
        value: the initializer, of the main graph or of a subgraph.
        count: how many numbers it holds.
        readers: linears, experts and embeddings whose weight it is, or is a part of.
        reason: why no pass looks at it where it has no such reader; else empty.
    """

    value: ir.Value
    count: int
    readers: tuple[Linear | Embedding, ...]
    reason: str

    @property
    def name(self) -> str:
        """Name of the initializer."""
        return self.value.name or ""


def weighted(model: Model) -> list[Linear | Embedding]:
    """Linears, experts and embeddings of the main graph: what compresses."""
    return [*linears(model), *all_experts(model), *embeddings(model)]


def all_parameters(model: Model) -> list[Parameters]:
    """Every stored tensor that :attr:`Model.parameters` counts, in the order of the file."""
    readers: dict[ir.Value, list[Linear | Embedding]] = {}
    for item in weighted(model):
        for leaf in leaves(item.weight):
            readers.setdefault(leaf, []).append(item)
    return [
        Parameters(value, count, tuple(mine), "" if mine else _reason(model, value))
        for value in model.initializers()
        if (count := number_of_parameters(value))
        for mine in [readers.get(value, [])]
    ]


def _reason(model: Model, value: ir.Value) -> str:
    """Why nothing compresses a tensor that is no weight of a linear, of experts or of an embedding."""
    if value.is_graph_input():
        return "it is an input, too: a caller may override it"
    readers = list(value.uses())
    if not readers:
        return "an output of the model" if value.is_graph_output() else "nothing reads it"
    if any(use.node.graph is not model.graph for use in readers):
        return "read inside a subgraph, where no pass looks"
    return _reader_reason(*readers[0])


def _reader_reason(node: ir.Node, index: int) -> str:
    """What a stored tensor, its input ``index``, is to a node that reads it other than as a weight."""
    if is_standard(node, "Conv", "ConvTranspose"):
        return "a convolution; int8 alone compresses it, over a few positions of a sequence"
    if is_standard(node, *_NORMALISATIONS):
        return NORMALISATION
    if is_standard(node, *_ELEMENTWISE) or (is_standard(node, "Gemm") and index == BIAS):
        return VECTOR
    if is_standard(node, "MatMul", "Gemm"):
        return f"no linear: {_why_no_linear(node, index)}"
    return f"read by {node.op_type}, which no pass compresses"


def _why_no_linear(node: ir.Node, index: int) -> str:
    """What keeps a product from being one of an activation with a matrix."""
    if index == 0:
        return f"it stands on the left in its {node.op_type}"
    if (rank_of(node.inputs[index]) or 0) > 3:
        return "it has more than three axes"
    return f"its {node.op_type} has a factor, a transposed input or a computed addend: simplify first"
