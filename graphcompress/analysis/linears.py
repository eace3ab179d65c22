"""Linear maps and embeddings, whatever operators an exporter wrote them with."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphcompress.graph.expressions import Constants, evaluate, is_constant, leaves
from graphcompress.graph.match import (
    fixed_shape,
    inner_graphs,
    module_path,
    only_reader,
    operand,
    operand_beside,
)
from graphcompress.graph.model import Model, is_weight, number_of_parameters

IsConstant = Callable[[ir.Value | None], bool]
"""Says whether a value is the same in every run."""

_ANONYMOUS = re.compile(r"(val_\d+|onnx::\w+_\d+|_?\d+|.*MatMul_\d+|t_\d+|.*Transpose.*)$")


@dataclass(frozen=True, eq=False)
class Linear:
    """``output = input · weight (+ bias)``, seen alike for MatMul + Add and for Gemm.

    Attributes:
        node: the multiplying node.
        input: activations [..., in].
        weight: the node's weight operand: a stored tensor, or a constant expression over stored tensors.
        bias: [out], or None.
        output: [..., out], after the bias.
        name: what a user calls it: the weight's name, or the module's where an exporter wrote ``val_83``.
        in_features, out_features: sizes.
        transposed: the operand is stored [out, in].
    """

    node: ir.Node
    input: ir.Value
    weight: ir.Value
    bias: ir.Value | None
    output: ir.Value
    name: str
    in_features: int
    out_features: int
    transposed: bool

    @property
    def parameters(self) -> int:
        """Stored parameters of the weight, or of its factors when it is an expression; without the bias."""
        return stored_parameters(self.weight)

    def dense(self) -> np.ndarray:
        """The weight as an array [in, out]."""
        return self.arranged(evaluate(self.weight))

    def arranged(self, array: np.ndarray) -> np.ndarray:
        """An array of the shape of the weight operand as [in, out]."""
        return array.T if self.transposed else array


@dataclass(frozen=True, eq=False)
class Embedding:
    """``output = table[indices]``.

    Attributes:
        node: the Gather node.
        indices: integer value of any shape.
        weight: the table [rows, width], a stored tensor or a constant expression.
        output: indices' shape × [width].
        name: the table's name.
        rows, width: sizes.
    """

    node: ir.Node
    indices: ir.Value
    weight: ir.Value
    output: ir.Value
    name: str
    rows: int
    width: int

    @property
    def parameters(self) -> int:
        """Stored parameters of the table (of its factors, when it is an expression)."""
        return stored_parameters(self.weight)

    def dense(self) -> np.ndarray:
        """The table as an array [rows, width]."""
        return evaluate(self.weight)


def linears(model: Model, layers: str = "*") -> list[Linear]:
    """Linear maps of the main graph in execution order whose name matches the glob ``layers``."""
    constant = Constants()
    found = (linear_at(node, constant) for node in model.graph)
    return [linear for linear in found if linear is not None and fnmatch.fnmatchcase(linear.name, layers)]


def embeddings(model: Model, layers: str = "*") -> list[Embedding]:
    """Embeddings of the main graph in execution order whose name matches the glob ``layers``."""
    return [embedding for embedding in _find_embeddings(model) if fnmatch.fnmatchcase(embedding.name, layers)]


def keep_names(model: Model) -> None:
    """Note on every weight how its linear is called now, so that it is still called so after nodes change."""
    for linear in linears(model):
        linear.weight.metadata_props.setdefault(NAME_KEY, linear.name)


def overridable_weights(model: Model) -> Iterator[ir.Value]:
    """Weights of two or more axes that are inputs, too: a caller may override them, so they stay."""
    for value in model.graph.initializers.values():
        if value.is_graph_input() and _is_matrix(value):
            yield value


def inner_linears(model: Model) -> Iterator[tuple[ir.Node, ir.Node]]:
    """Products with a stored weight inside subgraphs, each after the node of the main graph that holds it."""
    for node in model.graph:
        for graph in inner_graphs(node):
            for inner in graph.all_nodes():
                weights = (
                    value for value in inner.inputs if value is not None and value.const_value is not None
                )
                if inner.op_type in (*_VIEWS, "Gather") and any(map(_is_matrix, weights)):
                    yield node, inner


def _is_matrix(value: ir.Value) -> bool:
    return value.shape is not None and len(value.shape) >= 2 and is_weight(value)


def bias_of(linear: Linear) -> np.ndarray:
    """[out], zeros where the linear has none."""
    if linear.bias is None:
        return np.zeros(linear.out_features)
    return evaluate(linear.bias).astype(np.float64)


def stored_parameters(weight: ir.Value) -> int:
    """Number of parameters stored for a weight: its own, or those of the leaves of its expression."""
    return sum(number_of_parameters(leaf) for leaf in leaves(weight))


def linear_at(node: ir.Node, constant: IsConstant = is_constant) -> Linear | None:
    """The linear map whose product ``node`` is, or None."""
    view = None if node.domain else _VIEWS.get(node.op_type)
    return view(node, constant) if view else None


def _find_embeddings(model: Model) -> Iterator[Embedding]:
    constant = Constants()
    for node in model.graph:
        if node.domain or node.op_type != "Gather" or node.attributes.get_int("axis", 0) != 0:
            continue
        table, indices = node.inputs
        # With constant indices the result is a constant too, such as positions that were stored: nothing is
        # looked up at run time.
        if table is None or indices is None or constant(indices):
            continue
        shape = _constant_shape(table, constant)
        if shape is None or len(shape) != 2 or table.dtype is None or not table.dtype.is_floating_point():
            continue
        yield Embedding(node, indices, table, node.outputs[0], display_name(table, None), *shape)


def _matmul(node: ir.Node, constant: IsConstant) -> Linear | None:
    x, weight = node.inputs
    if x is None or weight is None or constant(x):
        return None
    shape = _constant_shape(weight, constant)
    if shape is None or len(shape) != 2:
        return None
    bias, output = _added_bias(node.outputs[0], shape[1], constant)
    name = display_name(weight, bias, node)
    return Linear(node, x, weight, bias, output, name, shape[0], shape[1], transposed=False)


def _gemm(node: ir.Node, constant: IsConstant) -> Linear | None:
    x, weight = node.inputs[:2]
    bias = operand(node, 2)
    if x is None or weight is None or constant(x) or (bias is not None and not constant(bias)):
        return None
    factors = {node.attributes.get_float(key, 1.0) for key in ("alpha", "beta")}
    # Any other factor belongs into the weight, which the rules that simplify take care of.
    plain = not node.attributes.get_int("transA", 0) and factors == {1.0}
    shape = _constant_shape(weight, constant)
    if shape is None or len(shape) != 2 or not plain:
        return None
    transposed = node.attributes.get_int("transB", 0) == 1
    rows, columns = reversed(shape) if transposed else shape
    name = display_name(weight, bias, node)
    return Linear(node, x, weight, bias, node.outputs[0], name, rows, columns, transposed=transposed)


_VIEWS = {"MatMul": _matmul, "Gemm": _gemm}


def _added_bias(product: ir.Value, width: int, constant: IsConstant) -> tuple[ir.Value | None, ir.Value]:
    """The bias added to ``product`` and the sum, when its only use is that addition."""
    add = only_reader(product, "Add")
    other = operand_beside(add, product)
    # A sum that others read before the bias is added has to stay as a value of its own.
    if add is None or other is None or _constant_shape(other, constant) != (width,):
        return None, product
    return other, add.outputs[0]


def _constant_shape(value: ir.Value, constant: IsConstant) -> tuple[int, ...] | None:
    return fixed_shape(value) if constant(value) else None


def display_name(weight: ir.Value, bias: ir.Value | None, node: ir.Node | None = None) -> str:
    """What a user calls a weight; where an exporter gave it a number, its bias or its module tells."""
    weight_leaves = [leaf for leaf in leaves(weight) if is_weight(leaf)] or [weight]
    name = weight_leaves[0].name or ""
    given = weight.metadata_props.get(NAME_KEY)
    if given:
        return given
    if not _ANONYMOUS.match(name):
        return name
    # Exporters fold the transposition of a weight into an anonymous tensor but leave the bias its name,
    # which tells the layer; one that others read too was merged with theirs, and has the name of any of them.
    alone = bias is not None and len(bias.uses()) == 1
    bias_name = (bias.name if bias is not None and alone else None) or ""
    for suffix in (".bias", "/bias", "_bias"):
        if bias_name.endswith(suffix):
            return bias_name.removesuffix(suffix) + suffix[0] + "weight"
    module = module_path(node)
    return f"{module}.weight" if module else name


NAME_KEY = "graphcompress.name"
"""Metadata of a weight value: the name under which a user knows it, kept when a pass replaces the weight."""
