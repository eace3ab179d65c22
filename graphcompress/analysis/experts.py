"""Experts: linears with an expert axis, whose weights are one stack [experts, in, out]."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphcompress.analysis.linears import IsConstant, Linear, display_name
from graphcompress.graph.expressions import Constants, evaluate
from graphcompress.graph.match import fixed_shape, is_standard, operand, producer
from graphcompress.graph.model import Model


@dataclass(frozen=True, eq=False)
class Experts(Linear):
    """Linears side by side: ``output[e] = input[e] · weight[e]``, of every expert or of those looked up.

    Seen as one linear, its output features are those of all experts, one expert after the other. The matrices
    of heads that an exporter has stacked are experts, too.

    Attributes:
        input: [..., in] for every expert, or the same for all of them.
        weight: [experts, in, out], a stored tensor or a constant expression.
        bias: None; what is added to the products stays an operator of its own.
        output: the products [..., out], with an axis for the experts or for those looked up.
        out_features: experts · out.
        experts: how many there are.
        lookup: the Gather that picks experts by index in every run; None: all of them multiply.
    """

    experts: int
    lookup: ir.Node | None

    @property
    def width(self) -> int:
        """Output features of one expert."""
        return self.out_features // self.experts

    def stack(self) -> np.ndarray:
        """The weight as an array [experts, in, out]."""
        return evaluate(self.weight)

    def arranged(self, array: np.ndarray) -> np.ndarray:
        """A stack [experts, in, out] as the matrices of all experts side by side, [in, experts · out]."""
        return np.ascontiguousarray(array.transpose(1, 0, 2)).reshape(array.shape[1], -1)


def stacked(columns: np.ndarray, experts: int) -> np.ndarray:
    """The stack [experts, in, out] that ``columns`` [in, experts · out] are made of."""
    parts = columns.reshape(len(columns), experts, -1)
    return np.ascontiguousarray(parts.transpose(1, 0, 2))


def all_experts(model: Model, layers: str = "*") -> list[Experts]:
    """Experts of the main graph in execution order whose name matches the glob ``layers``.

    ``simplify`` leaves every product with a stack in the form that is found here.
    """
    constant = Constants()
    found = (experts_at(node, constant) for node in model.graph)
    return [each for each in found if each is not None and fnmatch.fnmatchcase(each.name, layers)]


def experts_at(node: ir.Node, constant: IsConstant) -> Experts | None:
    """The experts whose product ``node`` is, or None."""
    x, weight = (operand(node, place) for place in (0, 1)) if is_standard(node, "MatMul") else (None, None)
    if x is None or weight is None or constant(x):
        return None
    lookup = producer(weight, "Gather") if not constant(weight) else None
    if lookup is not None and not lookup.attributes.get_int("axis", 0):
        weight = lookup.inputs[0]
    shape = fixed_shape(weight) if weight is not None and constant(weight) else None
    if weight is None or shape is None or len(shape) != 3:
        return None
    experts, rows, columns = shape
    name = display_name(weight, None)
    return Experts(
        node, x, weight, None, node.outputs[0], name, rows, experts * columns, False, experts, lookup
    )
