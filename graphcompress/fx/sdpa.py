"""Attention as one call of scaled_dot_product_attention."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import onnx_ir as ir
import torch
from torch import fx
from torch.nn import functional

from graphcompress.analysis.arguments import scalar
from graphcompress.analysis.attention import Attention, attentions
from graphcompress.fx.builder import Builder
from graphcompress.fx.ops.shape import permuted
from graphcompress.model import Model

Written = tuple[tuple[ir.Node, ...], Callable[[Builder], fx.Node]]


def attention_fusions(model: Model) -> Iterator[Written]:
    """Every attention whose way from the products to the result is a chain that the call can express."""
    for attention in attentions(model):
        chain = _chain(attention)
        if chain is not None:
            yield tuple(chain.nodes), chain.write


@dataclass
class _Chain:
    """What lies between the operands of an attention and its result.

    Attributes:
        nodes: in execution order, the product with the values last.
        query, key, value: operands; ``key`` is transposed already, [..., size, tokens].
        mask: what is added to the scores, or None; ``condition`` says where scores stay, else ``fill``.
        scale: factor on the scores.
    """

    query: ir.Value
    key: ir.Value
    value: ir.Value
    nodes: list[ir.Node] = field(default_factory=list)
    mask: ir.Value | None = None
    condition: ir.Value | None = None
    kept: bool = True
    fill: float = -math.inf
    scale: float = 1.0

    def write(self, builder: Builder) -> fx.Node:
        """The call."""
        query, value = builder.tensor(self.query), builder.tensor(self.value)
        options: dict[str, object] = {}
        mask = self._mask(builder)
        if mask is not None:
            options["attn_mask"] = mask
        return builder.call(
            functional.scaled_dot_product_attention,
            query,
            _untransposed(builder, self.key),
            value,
            **options,
            scale=self.scale,
        )

    def _mask(self, builder: Builder) -> fx.Node | None:
        if self.condition is None:
            return None if self.mask is None else builder.tensor(self.mask)
        then, otherwise = (0.0, self.fill) if self.kept else (self.fill, 0.0)
        return builder.shared(torch.where, builder.tensor(self.condition), then, otherwise)


def _chain(attention: Attention) -> _Chain | None:
    if len(attention.products) != 2 or attention.node.op_type != "Softmax":
        return None
    product, last = attention.products
    (query, key), value = product.inputs, last.inputs[1]
    if query is None or key is None or value is None or query.shape is None:
        return None
    axis = attention.node.attributes.get_int("axis", -1)
    if axis not in (-1, len(query.shape) - 1):
        return None
    chain = _Chain(query, key, value)
    before = _before(chain, attention.node.inputs[0], product)
    after = _after(attention.node, last)
    if before is None or after is None:
        return None
    chain.query, of_query = _unscaled(chain, query)
    chain.key, of_key = _unscaled(chain, key)
    chain.nodes = [*of_query, *of_key, product, *before, attention.node, *after, last]
    return chain


def _before(chain: _Chain, value: ir.Value | None, product: ir.Node) -> list[ir.Node] | None:
    """Nodes from the product to the Softmax; what they do goes into the chain."""
    nodes: list[ir.Node] = []
    while value is not None and (node := value.producer()) is not None and node is not product:
        following = _scaled(chain, node) or _masked(chain, node)
        if following is None:
            return None
        nodes.insert(0, node)
        value = following
    return nodes if value is product.outputs[0] else None


def _scaled(chain: _Chain, node: ir.Node) -> ir.Value | None:
    """The operand that ``node`` scales, when it does only that, before any mask is added."""
    found = _factor(node)
    if found is None:
        return None
    chain.scale *= found[1]
    if found[1] != 1.0 and (chain.mask is not None):
        return found[0]
    return found[0]


def _factor(node: ir.Node) -> tuple[ir.Value, float] | None:
    if node.domain or node.op_type not in ("Mul", "Div"):
        return None
    left, right = node.inputs
    number = scalar(right)
    if left is not None and number:
        return left, number if node.op_type == "Mul" else 1.0 / number
    number = scalar(left) if node.op_type == "Mul" else None
    return (right, number) if right is not None and number is not None else None


def _masked(chain: _Chain, node: ir.Node) -> ir.Value | None:
    """The scores that ``node`` masks; a second mask, or a scale after one, cannot be expressed."""
    if node.domain or chain.mask is not None or chain.condition is not None or chain.scale != 1.0:
        return None
    if node.op_type == "Add":
        left, right = node.inputs
        scores, chain.mask = (left, right) if _is_scores(left) else (right, left)
        return scores
    if node.op_type != "Where":
        return None
    condition, then, otherwise = node.inputs
    number = scalar(otherwise)
    chain.kept = number is not None
    number = scalar(then) if number is None else number
    if number is None or number > _MASKING:
        return None
    chain.condition, chain.fill = condition, number
    return then if chain.kept else otherwise


_MASKING = -1e30
"""A fill below this makes a score vanish."""


def _is_scores(value: ir.Value | None) -> bool:
    node = None if value is None else value.producer()
    while node is not None and _factor(node) is not None:
        node = _factor(node)[0].producer()  # type: ignore[index]
    return node is not None and node.op_type == "MatMul"


def _after(softmax: ir.Node, last: ir.Node) -> list[ir.Node] | None:
    """Nodes from the Softmax to the product with the values: none, or a guard against NaN."""
    probabilities = softmax.outputs[0]
    if last.inputs[0] is probabilities:
        return []
    guard = None if last.inputs[0] is None else last.inputs[0].producer()
    if guard is None or guard.op_type != "Where" or guard.inputs[2] is not probabilities:
        return None
    test = None if guard.inputs[0] is None else guard.inputs[0].producer()
    if test is None or test.op_type != "IsNaN" or scalar(guard.inputs[1]) != 0.0:
        return None
    return [test, guard]


def _unscaled(chain: _Chain, value: ir.Value) -> tuple[ir.Value, list[ir.Node]]:
    """An operand before it was multiplied by a number, which goes into the scale."""
    nodes: list[ir.Node] = []
    while (node := value.producer()) is not None and len(value.uses()) == 1 and (found := _factor(node)):
        chain.scale *= found[1]
        nodes.insert(0, node)
        value = found[0]
    return value, nodes


def _untransposed(builder: Builder, value: ir.Value) -> fx.Node:
    """The keys as [..., tokens, size], from [..., size, tokens]."""
    node = value.producer()
    if node is None or node.domain or node.op_type != "Transpose" or value.shape is None:
        return builder.method("transpose", builder.tensor(value), -1, -2)
    perm = list(node.attributes.get_ints("perm", tuple(reversed(range(len(value.shape))))))
    perm[-1], perm[-2] = perm[-2], perm[-1]
    return permuted(builder, builder.tensor(node.inputs[0]), perm)
