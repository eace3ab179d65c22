"""Attention, with the chain of nodes that it is written in."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from graphcompress.analysis.linears import Linear
from graphcompress.analysis.uses import Use
from graphcompress.graph.match import only_reader
from graphcompress.graph.sizes import size_of

_MASK = 3
"""Input of the operator Attention that is added to the scores."""

# Operators by what they do to what goes through them: change its layout, scale it, add to the scores.
LAYOUT = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Expand", "Contiguous"})
SCALES = frozenset({"Mul", "Div"})
MASKS = frozenset({"Add", "Sub", "Where", "Max"})
_UNMOVED = (0, 1, 2, 3)
_SWAPPED = (0, 2, 1, 3)
_ARRANGING = LAYOUT - {"Reshape"}


@dataclass(frozen=True, eq=False)
class ChainStep:
    """A node of a chain: the chain comes in by the input ``index`` and goes on with the first output.

    Attributes:
        scale: the constant number that a Mul or Div multiplies by; None where it is not one, and elsewhere.
    """

    node: ir.Node
    index: int = 0
    scale: float | None = None

    @property
    def operand(self) -> ir.Value | None:
        """What comes in."""
        return self.node.inputs[self.index]

    @property
    def factor(self) -> float | None:
        """What it multiplies by: 1 where it does something else, None where that is not one number."""
        return self.scale if self.node.op_type in SCALES else 1.0

    @property
    def beside(self) -> list[Use]:
        """The other operands; those of a Reshape are sizes."""
        others = range(len(self.node.inputs)) if self.node.op_type != "Reshape" else ()
        return [(self.node, index) for index in others if index != self.index]


@dataclass(frozen=True, eq=False)
class SplitHeads:
    """[batch, tokens, heads, size] of ``source`` [batch, tokens, heads · size], permuted and scaled.

    Attributes:
        order: which of these axes each axis is.
        nodes: the Reshape and what follows it, in the order of execution.
    """

    source: ir.Value
    heads: int
    size: int
    order: tuple[int, ...]
    scale: float
    nodes: tuple[ir.Node, ...]


@dataclass(frozen=True, eq=False)
class Operand:
    """Queries, keys or values: how they become an operand of a product.

    Attributes:
        origin: as they come out of their linear, before heads are split; where more than layout and scale
            lies between (rotary positions, a packed linear, a cache), the result of that.
        value: operand of the product; keys are transposed there.
        steps: layout and scales from ``origin`` to ``value``, in the order of execution.
    """

    origin: ir.Value
    value: ir.Value
    steps: tuple[ChainStep, ...]

    @property
    def scale(self) -> float | None:
        """What its steps multiply by."""
        return product_of(step.factor for step in reversed(self.steps))

    @property
    def split(self) -> SplitHeads | None:
        """How its heads were split off, when only transposing and scaling followed."""
        order: tuple[int, ...] = _UNMOVED
        scale = 1.0
        nodes: list[ir.Node] = []
        for step in reversed(self.steps):
            nodes.insert(0, step.node)
            if step.node.op_type == "Reshape":
                return _split_by(step.node, order, scale, nodes)
            perm = step.node.attributes.get_ints("perm", ())
            if step.scale is not None:
                scale *= step.scale
            # The steps are read backwards, so permutations compose from the outside in.
            elif step.node.op_type == "Transpose" and len(perm) == len(order):
                order = tuple(perm[axis] for axis in order)
            else:
                break
        return None

    @property
    def repeats(self) -> int:
        """How often heads are repeated."""
        return math.prod(_growth(step.node) for step in self.steps if step.node.op_type == "Expand")


@dataclass(frozen=True, eq=False)
class Attention:
    """``output = softmax(scale · q · kᵀ + mask) · v``, whatever operators an exporter wrote it with.

    Attributes:
        node: the Softmax, or the Attention operator of opset 23.
        query, key, values: what the products multiply, and how it is made of queries, keys and values.
        scoring: from the product of queries and keys to the Softmax: scales, masks, soft caps; None inside
            an Attention operator, as the next one.
        guard: from the Softmax to the product with the values.
        output: the product of probabilities and values, before heads are merged.
        num_heads, kv_heads, head_dim: sizes; ``head_dim`` is that of queries and keys, 0 when not fixed.
        scale: factor on q · kᵀ in what Softmax reads, when it is a constant, else None; it may be applied to
            q, to k, before the mask or after it (then ``mask`` above stands for the scaled one).
        producers: linears that produce q, k and v (one, when packed); those found.
        consumers: linears that read the output after the heads were merged; those found.
        products: the nodes that multiply q · kᵀ and probabilities · v, or the one Attention operator.
    """

    node: ir.Node
    query: Operand
    key: Operand
    values: Operand
    scoring: tuple[ChainStep, ...] | None
    guard: tuple[ChainStep, ...] | None
    output: ir.Value
    num_heads: int
    kv_heads: int
    head_dim: int
    scale: float | None
    producers: tuple[Linear, ...]
    consumers: tuple[Linear, ...]
    products: tuple[ir.Node, ...]

    @property
    def operands(self) -> tuple[Operand, Operand, Operand]:
        """Queries, keys and values."""
        return self.query, self.key, self.values

    @property
    def scores(self) -> ir.Value | None:
        """Value before the first mask is added, [..., queries, keys]; None inside an Attention operator."""
        if self.scoring is None:
            return None
        masked = next((step for step in self.scoring if step.node.op_type in MASKS), None)
        return self.node.inputs[0] if masked is None else masked.operand

    @property
    def probabilities(self) -> ir.Value | None:
        """Value that is multiplied with the values, after guards; None inside an Attention operator."""
        return None if self.scoring is None else self.products[1].inputs[0]

    @property
    def merge(self) -> tuple[ir.Node, ir.Node] | None:
        """The Transpose and the Reshape to [batch, tokens, heads · size] that alone read the output."""
        moved = only_reader(self.output, "Transpose")
        merged = None if moved is None else only_reader(moved.outputs[0], "Reshape")
        if moved is None or merged is None:
            return None
        shape, perm = merged.outputs[0].shape, tuple(moved.attributes.get_ints("perm", ()))
        return (moved, merged) if perm == _SWAPPED and shape is not None and len(shape) == 3 else None

    @property
    def terms(self) -> list[Use]:
        """Where something else enters the scores: masks, biases, factors; from the product on.

        None are known where axes are moved in between.
        """
        if self.scoring is None:
            given = len(self.node.inputs) > _MASK and self.node.inputs[_MASK] is not None
            return [(self.node, _MASK)] if given else []
        if any(step.node.op_type in _ARRANGING for step in self.scoring):
            return []
        return [use for step in self.scoring for use in step.beside]


def _split_by(
    reshape: ir.Node, order: tuple[int, ...], scale: float, nodes: list[ir.Node]
) -> SplitHeads | None:
    source, shape = reshape.inputs[0], reshape.outputs[0].shape
    if source is None or source.shape is None or len(source.shape) != 3 or shape is None or len(shape) != 4:
        return None
    heads, size = shape[2], shape[3]
    if not (isinstance(heads, int) and isinstance(size, int)) or heads * size != source.shape[2]:
        return None
    return SplitHeads(source, heads, size, order, scale, tuple(nodes))


def _growth(expand: ir.Node) -> int:
    source, target = expand.inputs[0], expand.outputs[0]
    if source is None or source.shape is None or target.shape is None:
        return 1
    return max(fixed_part(target.shape) // max(fixed_part(source.shape), 1), 1)


def fixed_part(dims: Iterable[int | ir.SymbolicDim]) -> int:
    """Product of the sizes in ``dims`` that are numbers."""
    return math.prod(size_of(dim).number for dim in dims)


def product_of(factors: Iterable[float | None]) -> float | None:
    """Product of ``factors``; None where one is not known."""
    found = list(factors)
    known = [factor for factor in found if factor is not None]
    return math.prod(known) if len(known) == len(found) else None
