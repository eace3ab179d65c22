"""Attentions of a graph, found by data flow."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import onnx_ir as ir

from graphcompress.analysis.attention import (
    LAYOUT,
    MASKS,
    SCALES,
    Attention,
    ChainStep,
    Operand,
    fixed_part,
    product_of,
)
from graphcompress.analysis.linears import Linear, linears
from graphcompress.graph.expressions import Constants, evaluate
from graphcompress.graph.match import axis_of, fixed_size, rank_of, slice_ranges
from graphcompress.graph.model import Model
from graphcompress.graph.sizes import ONE, size_of

# What a chain may go through besides, before the Softmax, after it, and behind the product with the values.
_PLAIN = frozenset({"Cast", "Identity", "Dropout"})
_CAPS = frozenset({"Tanh", "Clip"})
_GUARDS = frozenset({"Where", "Cast", "Identity", "Dropout", "Mul", "Reshape"})
_SINKS, _NO_SINKS = "Concat", "Slice"
_AFTER = LAYOUT | _PLAIN | {"Mul", "LayerNormalization", "RMSNormalization", "Concat"}


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
        masked = next((step.operand for step in scoring if step.node.op_type in MASKS), node.inputs[0])
        if operands is None or masked is None or masked.shape is None:
            return None
        query, key, _ = operands
        heads = fixed_part(masked.shape[1:-2] if len(masked.shape) > 3 else masked.shape[:-2])
        return Attention(
            node,
            *operands,
            scoring=scoring,
            guard=guard,
            output=values_product.outputs[0],
            num_heads=heads,
            kv_heads=max(heads // key.repeats, 1),
            head_dim=_last(query.value.shape),
            scale=product_of((product_of(step.factor for step in scoring), query.scale, key.scale)),
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
        if node.op_type in MASKS:
            return [ChainStep(node, index) for index in range(len(node.inputs))]
        if node.op_type in SCALES:
            return [self._scale(node)]
        if node.op_type == _SINKS:
            return _beside_sinks(node)
        return [ChainStep(node)] if node.op_type in _PLAIN | LAYOUT | _CAPS else []

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
            if node is None or node.domain or node.op_type not in LAYOUT | _PLAIN | SCALES:
                break
            step = self._scale(node) if node.op_type in SCALES else ChainStep(node)
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


def _last(shape: ir.Shape | None) -> int:
    return shape[-1] if shape is not None and isinstance(shape[-1], int) else 0
