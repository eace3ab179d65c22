"""The vocabulary for looking at a graph: one function for each question, and patterns for what is a tree.

Every function takes None for a node or a value that is not there, and answers None or False for it. So
questions can be chained, ``operand(producer(value, "Reshape"), 0)``, with one test at the end.
"""

from __future__ import annotations

import abc
import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import permutations
from typing import NamedTuple, TypeGuard

import numpy as np
import onnx
import onnx_ir as ir

from graphcompress.graph.expressions import is_constant

NEAR = 1e-4
"""Relative distance up to which a stored number is the one that is looked for: some exporters write ½ √2 as
0.7071, which is off by 1e-5."""

# ---- nodes


def is_standard(node: ir.Node | None, *op_types: str) -> TypeGuard[ir.Node]:
    """Whether ``node`` is one of the operators ``op_types`` of the standard domain."""
    return node is not None and not node.domain and node.op_type in op_types


def producer(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """The node that computes ``value``; with ``op_types``, when it is one of these standard operators."""
    node = None if value is None else value.producer()
    return node if not op_types or is_standard(node, *op_types) else None


def only_reader(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """The node that reads ``value``, once, when nothing else does, the caller of the model included.

    With ``op_types``, when it is one of these standard operators.
    """
    if value is None or value.is_graph_output() or len(uses := value.uses()) != 1:
        return None
    node = next(iter(uses)).node
    return node if not op_types or is_standard(node, *op_types) else None


def operand(node: ir.Node | None, place: int | str) -> ir.Value | None:
    """An input of ``node``, by its number or by the name that the standard gives it; None where absent."""
    if node is None:
        return None
    index = place if isinstance(place, int) else input_names(node.op_type).index(place)
    return node.inputs[index] if index < len(node.inputs) else None


def operand_beside(node: ir.Node | None, value: ir.Value | None) -> ir.Value | None:
    """The other operand of a node with two, one of which is ``value``."""
    if node is None or value not in node.inputs:
        return None
    return operand(node, 1 if node.inputs[0] is value else 0)


def node_name(node: ir.Node) -> str:
    """What to call a node: its name, or that of its output."""
    return node.name or node.outputs[0].name or node.op_type


def inner_graphs(node: ir.Node) -> Iterator[ir.Graph]:
    """The subgraphs of a node, such as the branches of an If."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


@functools.cache
def input_names(op_type: str) -> tuple[str, ...]:
    """Names of the inputs of a standard operator, as in its last definition."""
    return tuple(item.name for item in onnx.defs.get_schema(op_type).inputs)


# ---- numbers


def tensor_of(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The stored tensor of a ``value`` that the caller of the model cannot override."""
    # Of a Constant node the library knows the tensor by its attribute alone.
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None or not is_constant(value) else tensor


def array_of(value: ir.Value | None) -> np.ndarray | None:
    """The array of :func:`tensor_of`; it is read from the disk."""
    tensor = tensor_of(value)
    return None if tensor is None else tensor.numpy()


def integers_of(value: ir.Value | None) -> list[int] | None:
    """The numbers of a stored tensor of integers, such as axes, sizes or indices."""
    array = array_of(value)
    return None if array is None or array.dtype.kind not in "iu" else [int(n) for n in array.reshape(-1)]


def scalar(value: ir.Value | None) -> float | None:
    """The number of a stored tensor of one element."""
    tensor = tensor_of(value)
    return None if tensor is None or tensor.size != 1 else float(tensor.numpy().reshape(()))


def is_number(value: ir.Value | None, wanted: float) -> bool:
    """Whether ``value`` is stored and, up to rounding, the number ``wanted``."""
    number = scalar(value)
    return number is not None and abs(number - wanted) <= NEAR * abs(wanted)


def slice_ranges(node: ir.Node) -> dict[int, tuple[int, int | None, int]] | None:
    """Axis → (start, stop, step) of a Slice with constant bounds (stop None: to the end), or None."""
    operands = [integers_of(operand(node, index)) for index in range(1, 5)]
    starts, stops, axes, steps = operands
    if any(operand(node, index) and operands[index - 1] is None for index in range(1, 5)):
        return None
    if starts is None or stops is None or node.inputs[0] is None or node.inputs[0].shape is None:
        return None
    rank = len(node.inputs[0].shape)
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    last = np.iinfo(np.int32).max
    return {
        axis % rank: (start, None if stop >= last else stop, step)
        for axis, start, stop, step in zip(axes, starts, stops, steps, strict=True)
    }


def axis_of(node: ir.Node, rank: int, default: int) -> int:
    """The attribute ``axis``, counted from the front."""
    return node.attributes.get_int("axis", default) % rank


class Scaled(NamedTuple):
    """A product with a stored number: ``node`` computes ``factor · value``."""

    node: ir.Node
    value: ir.Value
    factor: float


def scaled(value: ir.Value | None) -> Scaled | None:
    """The Mul or Div that computes ``value`` from another by a stored number, or None."""
    node = producer(value, "Mul", "Div")
    if node is None:
        return None
    left, right = node.inputs
    number = scalar(right)
    if left is not None and number:
        return Scaled(node, left, number if node.op_type == "Mul" else 1.0 / number)
    number = scalar(left) if node.op_type == "Mul" else None
    return Scaled(node, right, number) if right is not None and number is not None else None


# ---- shapes and types


def shape_of(value: ir.Value | None) -> ir.Shape | None:
    """Sizes of ``value``, numbers and symbols, where the number of axes is known."""
    return None if value is None else value.shape


def rank_of(value: ir.Value | None) -> int | None:
    """Number of axes, where it is known."""
    shape = shape_of(value)
    return None if shape is None else len(shape)


def fixed_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """Sizes of ``value`` when all are numbers."""
    shape = shape_of(value)
    return tuple(shape.numpy()) if shape is not None and shape.is_static() else None


def fixed_size(value: ir.Value | None, axis: int) -> int | None:
    """Size along ``axis`` when there is such an axis and its size is a number."""
    shape = shape_of(value)
    if shape is None or not -len(shape) <= axis < len(shape):
        return None
    size = shape[axis]
    return size if isinstance(size, int) else None


def dtype_of(value: ir.Value | None) -> ir.DataType:
    """The type of the elements of ``value``; float32 where the file does not say."""
    return ir.DataType.FLOAT if value is None or value.dtype is None else value.dtype


# ---- trees

_COMMUTATIVE = frozenset({"Add", "And", "Equal", "Mul", "Or", "Xor"})


@dataclass(frozen=True)
class Match:
    """Where a pattern was found.

    Attributes:
        values: name of a :class:`Some` or :class:`Constant` → the value there.
        nodes: the nodes of the tree, operands before what reads them.
    """

    values: Mapping[str, ir.Value] = field(default_factory=dict)
    nodes: tuple[ir.Node, ...] = ()

    def __getitem__(self, name: str) -> ir.Value:
        return self.values[name]


class Pattern(abc.ABC):
    """A tree of operators, written as it is drawn: ``Op("Mul", Some("x"), Op("Sigmoid", Some("x")))``.

    For trees alone. What is a chain of unknown length or joins again, such as attention, is followed with the
    functions above. onnxscript's patterns are not used: they match a whole model at once, know no value that
    others may read, too, and need a rule for every order of operands.

    Attributes:
        shared: others may read the value, too; its node is then no part of the match where they do.
    """

    shared = False

    @abc.abstractmethod
    def ways(self, value: ir.Value | None, found: Match) -> Iterator[Match]:
        """Every way in which ``value`` fits, beside what was ``found`` in the tree so far."""


def find(pattern: Pattern, value: ir.Value | None) -> Match | None:
    """The first way in which the tree that computes ``value`` fits ``pattern``, or None."""
    return next(pattern.ways(value, Match()), None)


@dataclass(frozen=True)
class Some(Pattern):
    """Any value; the same one at every place of this name."""

    name: str

    def ways(self, value: ir.Value | None, found: Match) -> Iterator[Match]:
        """One way, when nothing else has the name."""
        if value is not None and found.values.get(self.name, value) is value:
            yield Match({**found.values, self.name: value}, found.nodes)


@dataclass(frozen=True)
class Constant(Some):
    """A value that is the same in every run."""

    def ways(self, value: ir.Value | None, found: Match) -> Iterator[Match]:
        """One way, when nothing else has the name."""
        if is_constant(value):
            yield from super().ways(value, found)


@dataclass(frozen=True)
class Number(Pattern):
    """A stored number, up to rounding."""

    wanted: float

    def ways(self, value: ir.Value | None, found: Match) -> Iterator[Match]:
        """One way, when it is the number."""
        if is_number(value, self.wanted):
            yield found


class OneOf(Pattern):
    """Any of several patterns, tried in this order."""

    def __init__(self, *patterns: Pattern) -> None:
        self.patterns = patterns
        self.shared = any(pattern.shared for pattern in patterns)

    def ways(self, value: ir.Value | None, found: Match) -> Iterator[Match]:
        """The ways of each."""
        for pattern in self.patterns:
            yield from pattern.ways(value, found)


class Op(Pattern):
    """A standard operator of these operands; of Add, Mul and their like, in either order.

    What an operator inside a tree computes must be read there alone, since the whole tree will be replaced.
    ``shared`` permits other readers: the node is then no part of the match where there are some.
    """

    def __init__(self, op_type: str, *operands: Pattern, shared: bool = False) -> None:
        self.op_type = op_type
        self.operands = operands
        self.shared = shared

    def ways(self, value: ir.Value | None, found: Match) -> Iterator[Match]:
        """The ways of the operands, in each order that computes the same."""
        node = producer(value, self.op_type)
        if node is None or len(node.inputs) != len(self.operands):
            return
        orders = permutations(node.inputs) if self.op_type in _COMMUTATIVE else (tuple(node.inputs),)
        for order in orders:
            for match in self._operands(order, found):
                yield Match(match.values, (*match.nodes, node))

    def _operands(self, values: tuple[ir.Value | None, ...], found: Match) -> Iterator[Match]:
        """The ways of all operands, one after the other."""
        partial = [found]
        for pattern, value in zip(self.operands, values, strict=True):
            partial = [way for match in partial for way in _inside(pattern, value, match)]
        yield from partial


def _inside(pattern: Pattern, value: ir.Value | None, found: Match) -> Iterator[Match]:
    """The ways of an operand, of which nothing outside the tree may read what is no leaf."""
    alone = only_reader(value) is not None
    for match in pattern.ways(value, found):
        if alone or len(match.nodes) == len(found.nodes):
            yield match
        elif pattern.shared:
            yield Match(match.values, found.nodes)


def module_path(node: ir.Node | None) -> str:
    """The PyTorch module that ``node`` was exported from, by the exporter's notes or the node's name.

    The exporter of torch.export notes the modules that a node lies in, the one of TorchScript calls a node
    ``/encoder/layer.0/output/dense/MatMul``. Empty where neither did.
    """
    if node is None:
        return ""
    scopes = _SCOPE.findall(node.metadata_props.get(SCOPES_KEY, ""))
    modules = [scope for scope in scopes[:-1] if scope]
    if modules:
        return str(modules[-1])
    parts = (node.name or "").split("/")
    return ".".join(parts[1:-1]) if len(parts) > 2 and not parts[0] else ""


SCOPES_KEY = "pkg.torch.onnx.name_scopes"
"""Metadata of a node: a list of the modules that it lies in, the outermost first, and its own name."""

_SCOPE = re.compile(r"'([^']*)'")
