"""Attention, found by data flow, with the chain of nodes that it is written in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphcompress.analysis.linears import Linear, linears
from graphcompress.analysis.uses import Use
from graphcompress.graph.expressions import Constants, evaluate
from graphcompress.graph.match import axis_of, fixed_size, only_reader, rank_of, slice_ranges
from graphcompress.graph.model import Model
from graphcompress.graph.sizes import ONE, size_of

_MASK = 3
"""Input of the operator Attention that is added to the scores."""

_LAYOUT = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Expand", "Contiguous"})
_PLAIN = frozenset({"Cast", "Identity", "Dropout"})
_SCALES = frozenset({"Mul", "Div"})
_MASKS = frozenset({"Add", "Sub", "Where", "Max"})
_CAPS = frozenset({"Tanh", "Clip"})
_GUARDS = frozenset({"Where", "Cast", "Identity", "Dropout", "Mul", "Reshape"})
_SINKS, _NO_SINKS = "Concat", "Slice"
_AFTER = _LAYOUT | _PLAIN | {"Mul", "LayerNormalization", "RMSNormalization", "Concat"}
_UNMOVED = (0, 1, 2, 3)
_SWAPPED = (0, 2, 1, 3)
_ARRANGING = _LAYOUT - {"Reshape"}


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
        return self.scale if self.node.op_type in _SCALES else 1.0

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
        return _product(step.factor for step in reversed(self.steps))

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
        masked = next((step for step in self.scoring if step.node.op_type in _MASKS), None)
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


def attentions(model: Model) -> list[Attention]:
    """Attentions of the main graph in execution order: a Softmax between two products of computed values."""
    return _Search(model).found


class _Search:
    """Looks for attentions in a graph that is not edited meanwhile."""

    def __init__(self, model: Model) -> None:
        found = linears(model)
        self._by_output = {
            value: linear for linear in found for value in (linear.output, linear.node.outputs[0])
        }
        self._by_node = {linear.node: linear for linear in found}
        self._is_constant = Constants()
        at = {"Softmax": self._softmax, "Attention": self._operator}
        nodes = (node for node in model.graph if not node.domain and node.op_type in at)
        self.found = [attention for node in nodes if (attention := at[node.op_type](node)) is not None]

    def _softmax(self, node: ir.Node) -> Attention | None:
        before, after = self._scoring(node.inputs[0]), self._guard(node.outputs[0])
        if before is None or after is None:
            return None
        (product, scoring), (values_product, guard) = before, after
        operands = self._operands((*product.inputs, values_product.inputs[1]))
        masked = next((step.operand for step in scoring if step.node.op_type in _MASKS), node.inputs[0])
        if operands is None or masked is None or masked.shape is None:
            return None
        query, key, _ = operands
        heads = _fixed_part(masked.shape[1:-2] if len(masked.shape) > 3 else masked.shape[:-2])
        return Attention(
            node,
            *operands,
            scoring=scoring,
            guard=guard,
            output=values_product.outputs[0],
            num_heads=heads,
            kv_heads=max(heads // key.repeats, 1),
            head_dim=_last(query.value.shape),
            scale=_product((_product(step.factor for step in scoring), query.scale, key.scale)),
            producers=self._producers(operands),
            consumers=self._consumers(values_product.outputs[0]),
            products=(product, values_product),
        )

    def _operator(self, node: ir.Node) -> Attention | None:
        operands = self._operands(node.inputs[:3])
        heads, kv_heads = operator_heads(node, 0), operator_heads(node, 1)
        if operands is None or heads is None or kv_heads is None:
            return None
        query, key, _ = operands
        rank = len(query.value.shape or ())
        # With three axes the heads are still merged into the last one.
        size = _last(query.value.shape) // (1 if rank == 4 else heads)
        return Attention(
            node,
            *operands,
            scoring=None,
            guard=None,
            output=node.outputs[0],
            num_heads=heads,
            kv_heads=max(kv_heads // key.repeats, 1),
            head_dim=size,
            scale=node.attributes.get_float("scale", 1 / math.sqrt(size) if size else 1.0),
            producers=self._producers(operands),
            consumers=self._consumers(node.outputs[0]),
            products=(node,),
        )

    # ---- from the Softmax to both products

    def _scoring(self, value: ir.Value | None) -> tuple[ir.Node, tuple[ChainStep, ...]] | None:
        """The product of queries and keys before a Softmax, and the steps from there."""
        pending: list[tuple[ir.Value | None, _Path]] = [(value, None)]
        seen: set[ir.Value] = set()
        while pending:
            value, path = pending.pop()
            node = None if value is None or value in seen else value.producer()
            if value is None or node is None or node.domain:
                continue
            seen.add(value)
            # A product with a weight is a linear, such as one that computes a bias; queries times keys are
            # both computed.
            if node.op_type == "MatMul" and not any(map(self._is_constant, node.inputs)):
                return node, tuple(_steps(path))
            # A mask may be added from either side, so both operands are ways back; the first one is looked
            # at first.
            pending.extend((step.operand, (step, path)) for step in reversed(self._ways_back(node)))
        return None

    def _ways_back(self, node: ir.Node) -> list[ChainStep]:
        """Steps by which scores may have come to what ``node`` computes."""
        if node.op_type in _MASKS:
            return [ChainStep(node, index) for index in range(len(node.inputs))]
        if node.op_type in _SCALES:
            return [self._scale(node)]
        if node.op_type == _SINKS:
            return _beside_sinks(node)
        return [ChainStep(node)] if node.op_type in _PLAIN | _LAYOUT | _CAPS else []

    def _scale(self, node: ir.Node) -> ChainStep:
        """The step through a Mul or Div: by the operand that is computed."""
        left, right = node.inputs
        if self._is_constant(right):
            number = _number(right)
            # A division by zero is no scale; it is left as a step whose factor is not known.
            return ChainStep(node, 0, number if node.op_type == "Mul" else 1 / number if number else None)
        # A constant divided by a value is no scaling of it.
        if self._is_constant(left) and node.op_type == "Mul":
            return ChainStep(node, 1, _number(left))
        return ChainStep(node, 0, None)

    def _guard(self, value: ir.Value) -> tuple[ir.Node, tuple[ChainStep, ...]] | None:
        """The product of probabilities and values after a Softmax, and the steps to it."""
        pending: list[tuple[ir.Value, _Path]] = [(value, None)]
        seen: set[ir.Node] = set()
        while pending:
            value, path = pending.pop()
            for node, index in value.uses():
                if node in seen or node.domain:
                    continue
                seen.add(node)
                # Probabilities stand on the left of the product with the values; on the right they would be
                # the values.
                if node.op_type == "MatMul" and index == 0 and not self._is_constant(node.inputs[1]):
                    return node, tuple(_steps(path))[::-1]
                if node.op_type in _GUARDS or _drops_sinks(node, index):
                    pending.append((node.outputs[0], (ChainStep(node, index), path)))
        return None

    # ---- from the products to the linears

    def _operands(self, values: Sequence[ir.Value | None]) -> tuple[Operand, Operand, Operand] | None:
        query, key, value = values
        if query is None or key is None or value is None:
            return None
        return self._operand(query), self._operand(key), self._operand(value)

    def _operand(self, value: ir.Value) -> Operand:
        """Follow ``value`` back through layout and scale."""
        steps: list[ChainStep] = []
        origin: ir.Value | None = value
        while origin is not None:
            node, found = origin.producer(), origin
            if node is None or node.domain or node.op_type not in _LAYOUT | _PLAIN | _SCALES:
                break
            step = self._scale(node) if node.op_type in _SCALES else ChainStep(node)
            # What multiplies by more than one number is no layout, so the operand begins behind it.
            if step.factor is None:
                break
            steps.append(step)
            origin = step.operand
        return Operand(found, value, tuple(steps[::-1]))

    def _producers(self, operands: Iterable[Operand]) -> tuple[Linear, ...]:
        """The nearest linears behind ``operands``."""
        pending, seen, found = [operand.origin for operand in operands][::-1], set(), {}
        while pending:
            value = pending.pop()
            if value in seen or self._is_constant(value):
                continue
            seen.add(value)
            node = value.producer()
            if value in self._by_output:
                found[self._by_output[value].node] = self._by_output[value]
            elif node is not None:
                pending.extend(operand for operand in reversed(node.inputs) if operand is not None)
        return tuple(found.values())

    def _consumers(self, value: ir.Value) -> tuple[Linear, ...]:
        """The nearest linears that read ``value``."""
        pending, seen, found = [value], set(), {}
        while pending:
            for node in pending.pop().consumers():
                if node in seen:
                    continue
                seen.add(node)
                if node in self._by_node:
                    found[node] = self._by_node[node]
                elif not node.domain and node.op_type in _AFTER:
                    pending.append(node.outputs[0])
        return tuple(found.values())


def operator_heads(node: ir.Node, index: int) -> int | None:
    """Heads in the queries, keys or values of an Attention operator; None where they are not known."""
    rank = rank_of(node.inputs[index])
    if rank == 3:
        return node.attributes.get_int("kv_num_heads" if index else "q_num_heads", 0) or None
    return fixed_size(node.inputs[index], 1) if rank == 4 else None


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


def _beside_sinks(node: ir.Node) -> list[ChainStep]:
    """The scores in a Concat that gives every query one more column: a sink (arXiv:2309.17453)."""
    value = node.outputs[0]
    rank = 0 if value.shape is None else len(value.shape)
    if not rank or axis_of(node, rank, 0) != rank - 1:
        return []
    scores = [index for index, part in enumerate(node.inputs) if fixed_size(part, -1) != 1]
    return [ChainStep(node, scores[0])] if len(scores) == 1 else []


def _drops_sinks(node: ir.Node, index: int) -> bool:
    """Whether ``node`` takes columns off its first operand, and nothing else."""
    if node.op_type != _NO_SINKS or index or node.outputs[0].shape is None:
        return False
    return set(slice_ranges(node) or ()) == {len(node.outputs[0].shape) - 1}


_Path = tuple[ChainStep, "_Path"] | None
"""Steps that were gone, the last one first; ways that begin alike share what they have in common."""


def _steps(path: _Path) -> Iterator[ChainStep]:
    while path is not None:
        step, path = path
        yield step


def _number(value: ir.Value | None) -> float | None:
    """The one number that a constant holds."""
    if value is None or value.shape is None or any(size_of(dim) != ONE for dim in value.shape):
        return None
    return float(evaluate(value).reshape(-1)[0])


def _growth(expand: ir.Node) -> int:
    source, target = expand.inputs[0], expand.outputs[0]
    if source is None or source.shape is None or target.shape is None:
        return 1
    return max(_fixed_part(target.shape) // max(_fixed_part(source.shape), 1), 1)


def _fixed_part(dims: Iterable[int | ir.SymbolicDim]) -> int:
    return math.prod(size_of(dim).number for dim in dims)


def _last(shape: ir.Shape | None) -> int:
    return shape[-1] if shape is not None and isinstance(shape[-1], int) else 0


def _product(factors: Iterable[float | None]) -> float | None:
    found = list(factors)
    known = [factor for factor in found if factor is not None]
    return math.prod(known) if len(known) == len(found) else None
