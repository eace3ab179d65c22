"""Attention, found by data flow."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphcompress.analysis.linears import Linear, linears
from graphcompress.analysis.sizes import ONE, size_of
from graphcompress.graph.expressions import evaluate, is_constant
from graphcompress.graph.model import Model

_LAYOUT = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Expand", "Contiguous"})
_PLAIN = frozenset({"Cast", "Identity", "Dropout"})
_SCALES = frozenset({"Mul", "Div"})
_MASKS = frozenset({"Add", "Sub", "Where", "Max"})
_CAPS = frozenset({"Tanh", "Clip"})
_GUARDS = frozenset({"Where", "Cast", "Identity", "Dropout", "Mul", "Reshape"})
_AFTER = _LAYOUT | _PLAIN | {"Mul", "LayerNormalization", "RMSNormalization", "Concat"}


@dataclass(frozen=True, eq=False)
class Attention:
    """``output = softmax(scale · q · kᵀ + mask) · v``, whatever operators an exporter wrote it with.

    Attributes:
        node: the Softmax, or the Attention operator of opset 23.
        scores: value before the mask is added, [..., queries, keys]; None inside an Attention operator.
        probabilities: value that is multiplied with ``v``, after guards; None inside an Attention operator.
        q, k, v: operands of the products as they come out of their linears, before heads are split; where
            more than layout and scale lies between (rotary positions, a packed linear), the result of that.
        output: the product of probabilities and values, before heads are merged.
        num_heads, kv_heads, head_dim: sizes; ``head_dim`` is that of queries and keys, 0 when not fixed.
        scale: factor on q · kᵀ in what Softmax reads, when it is a constant, else None; it may be applied to
            q, to k, before the mask or after it (then ``mask`` above stands for the scaled one).
        producers: linears that produce q, k and v (one, when packed); those found.
        consumers: linears that read the output after the heads were merged; those found.
        products: the nodes that multiply q · kᵀ and probabilities · v, or the one Attention operator.
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
    products: tuple[ir.Node, ...]


def attentions(model: Model) -> list[Attention]:
    """Attentions of the main graph in execution order: a Softmax between two products of computed values."""
    found = linears(model)
    by_output = {value: linear for linear in found for value in (linear.output, linear.node.outputs[0])}
    by_node = {linear.node: linear for linear in found}
    return [
        attention
        for node in model.graph
        if (attention := _attention_at(node, by_output, by_node)) is not None
    ]


def _attention_at(
    node: ir.Node, by_output: Mapping[ir.Value, Linear], by_node: Mapping[ir.Node, Linear]
) -> Attention | None:
    if node.domain:
        return None
    if node.op_type == "Attention":
        return _operator(node, by_output, by_node)
    return _softmax(node, by_output, by_node) if node.op_type == "Softmax" else None


def _softmax(
    node: ir.Node, by_output: Mapping[ir.Value, Linear], by_node: Mapping[ir.Node, Linear]
) -> Attention | None:
    before, after = _path_to_product(node.inputs[0]), _path_to_values(node.outputs[0])
    if before is None or after is None:
        return None
    product, scores, factor = before
    values_product, probabilities = after
    query, key = product.inputs
    values = values_product.inputs[1]
    if query is None or key is None or values is None or scores.shape is None:
        return None
    (q, q_factor, _), (k, k_factor, repeats), (v, _, _) = _origin(query), _origin(key), _origin(values)
    heads = _fixed_part(scores.shape[1:-2] if len(scores.shape) > 3 else scores.shape[:-2])
    return Attention(
        node=node,
        scores=scores,
        probabilities=probabilities,
        q=q,
        k=k,
        v=v,
        output=values_product.outputs[0],
        num_heads=heads,
        kv_heads=max(heads // repeats, 1),
        head_dim=_last(query.shape),
        scale=_product((factor, q_factor, k_factor)),
        producers=_producers((q, k, v), by_output),
        consumers=_consumers(values_product.outputs[0], by_node),
        products=(product, values_product),
    )


def _operator(
    node: ir.Node, by_output: Mapping[ir.Value, Linear], by_node: Mapping[ir.Node, Linear]
) -> Attention | None:
    query, key, values = node.inputs[:3]
    if query is None or key is None or values is None or query.shape is None or key.shape is None:
        return None
    heads, kv_heads = (
        _fixed_part(value.shape[1:2]) if len(value.shape) == 4 else node.attributes.get_int(name, 1)
        for value, name in ((query, "q_num_heads"), (key, "kv_num_heads"))
        if value.shape is not None
    )
    size = _last(query.shape) if len(query.shape) == 4 else _last(query.shape) // heads
    (q, _, _), (k, _, repeats), (v, _, _) = _origin(query), _origin(key), _origin(values)
    return Attention(
        node=node,
        scores=None,
        probabilities=None,
        q=q,
        k=k,
        v=v,
        output=node.outputs[0],
        num_heads=heads,
        kv_heads=max(kv_heads // repeats, 1),
        head_dim=size,
        scale=node.attributes.get_float("scale", 1 / math.sqrt(size) if size else 1.0),
        producers=_producers((q, k, v), by_output),
        consumers=_consumers(node.outputs[0], by_node),
        products=(node,),
    )


# ---- from the Softmax to both products


def _path_to_product(value: ir.Value | None) -> tuple[ir.Node, ir.Value, float | None] | None:
    """The product of queries and keys before a Softmax, the scores before the mask, the factor on it."""
    pending: list[tuple[ir.Value | None, ir.Value | None, float | None]] = [(value, value, 1.0)]
    while pending:
        current, scores, factor = pending.pop()
        node = None if current is None else current.producer()
        if node is None or node.domain or scores is None:
            continue
        if node.op_type == "MatMul" and not any(is_constant(operand) for operand in node.inputs):
            return node, scores, factor
        if node.op_type in _MASKS:
            pending.extend(
                (operand, operand, factor) for operand in reversed(node.inputs) if operand is not None
            )
        elif node.op_type in _SCALES:
            pending.extend(_scaled(node, scores, factor))
        elif node.op_type in _PLAIN | _LAYOUT | _CAPS:
            pending.append((node.inputs[0], scores, factor))
    return None


def _scaled(
    node: ir.Node, scores: ir.Value, factor: float | None
) -> Iterator[tuple[ir.Value | None, ir.Value | None, float | None]]:
    for operand, scale in _scaled_operands(node):
        yield operand, scores, _product((factor, scale))


def _scaled_operands(node: ir.Node) -> Iterator[tuple[ir.Value, float | None]]:
    """Computed operands of a Mul or Div with the constant that scales them (None: not a constant)."""
    left, right = node.inputs
    if left is None or right is None:
        return
    if is_constant(right):
        number = _number(right)
        yield left, number if number is None or node.op_type == "Mul" else 1 / number
    elif is_constant(left) and node.op_type == "Mul":
        yield right, _number(left)
    else:
        yield left, None


def _number(value: ir.Value) -> float | None:
    """The one number that a constant holds."""
    if value.shape is None or any(size_of(dim) != ONE for dim in value.shape):
        return None
    return float(evaluate(value).reshape(-1)[0])


def _path_to_values(value: ir.Value) -> tuple[ir.Node, ir.Value] | None:
    """The product of probabilities and values after a Softmax, and its first operand."""
    pending, seen = [value], set()
    while pending:
        current = pending.pop()
        for node in current.consumers():
            if node in seen or node.domain:
                continue
            seen.add(node)
            if node.op_type == "MatMul" and node.inputs[0] is current and not is_constant(node.inputs[1]):
                return node, current
            if node.op_type in _GUARDS:
                pending.append(node.outputs[0])
    return None


# ---- from the products to the linears


def _origin(value: ir.Value) -> tuple[ir.Value, float | None, int]:
    """Follow ``value`` back through layout and scale: the origin, the scale, and how often heads repeat."""
    factor: float | None = 1.0
    repeats = 1
    while (node := value.producer()) is not None and not node.domain:
        if node.op_type in _LAYOUT | _PLAIN and node.inputs[0] is not None:
            if node.op_type == "Expand":
                repeats *= _growth(node)
            value = node.inputs[0]
            continue
        step = next(_scaled_operands(node), None) if node.op_type in _SCALES else None
        if step is None or step[1] is None:
            break
        value, factor = step[0], _product((factor, step[1]))
    return value, factor, repeats


def _growth(node: ir.Node) -> int:
    source, target = node.inputs[0], node.outputs[0]
    if source is None or source.shape is None or target.shape is None:
        return 1
    return max(_fixed_part(target.shape) // max(_fixed_part(source.shape), 1), 1)


def _producers(values: Iterable[ir.Value], by_output: Mapping[ir.Value, Linear]) -> tuple[Linear, ...]:
    """The nearest linears behind ``values``."""
    pending, seen, found = list(values)[::-1], set(), {}
    while pending:
        value = pending.pop()
        if value in seen or is_constant(value):
            continue
        seen.add(value)
        node = value.producer()
        if value in by_output:
            found[by_output[value].node] = by_output[value]
        elif node is not None:
            pending.extend(operand for operand in reversed(node.inputs) if operand is not None)
    return tuple(found.values())


def _consumers(value: ir.Value, by_node: Mapping[ir.Node, Linear]) -> tuple[Linear, ...]:
    """The nearest linears that read ``value``."""
    pending, seen, found = [value], set(), {}
    while pending:
        for node in pending.pop().consumers():
            if node in seen:
                continue
            seen.add(node)
            if node in by_node:
                found[node] = by_node[node]
            elif not node.domain and node.op_type in _AFTER:
                pending.append(node.outputs[0])
    return tuple(found.values())


def _fixed_part(dims: Iterable[int | ir.SymbolicDim]) -> int:
    return math.prod(size_of(dim).number for dim in dims)


def _last(shape: ir.Shape | None) -> int:
    return shape[-1] if shape is not None and isinstance(shape[-1], int) else 0


def _product(factors: Sequence[float | None]) -> float | None:
    known = [factor for factor in factors if factor is not None]
    return math.prod(known) if len(known) == len(factors) else None
