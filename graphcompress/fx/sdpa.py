"""Attention as one call of scaled_dot_product_attention."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import onnx_ir as ir
import torch
from torch import fx
from torch.nn import functional

from graphcompress.analysis.arguments import scalar, scaled
from graphcompress.analysis.attention import Attention, attentions
from graphcompress.fx.builder import Builder
from graphcompress.fx.ops.shape import permuted
from graphcompress.graph.expressions import is_constant
from graphcompress.graph.model import Model

Written = tuple[tuple[ir.Node, ...], Callable[[Builder], fx.Node]]


def attention_fusions(model: Model) -> Iterator[Written]:
    """Every attention whose way from the products to the result is a chain that the call can express."""
    for attention in attentions(model):
        chain = _chain(attention)
        if chain is not None:
            yield tuple(chain.nodes), chain.write


@dataclass(frozen=True)
class _Mask:
    """What is added to the scores: ``value``, or where ``condition`` says so a number that makes them vanish.

    ``kept``: scores stay where the condition holds, else where it does not.
    """

    value: ir.Value | None = None
    condition: ir.Value | None = None
    kept: bool = True
    fill: float = -math.inf

    def write(self, builder: Builder) -> fx.Node:
        """The mask as a tensor of floats."""
        if self.condition is None:
            return builder.tensor(self.value)
        then, otherwise = (0.0, self.fill) if self.kept else (self.fill, 0.0)
        return builder.shared(torch.where, builder.tensor(self.condition), then, otherwise)


@dataclass
class _Chain:
    """What lies between the operands of an attention and its result.

    Attributes:
        nodes: in execution order, the product with the values last.
        query, key, value: operands; ``key`` is transposed already, [..., size, tokens].
        masks: what is added to the scores, and before which factor: the last one first.
        scale: factor on the scores.
    """

    query: ir.Value
    key: ir.Value
    value: ir.Value
    nodes: list[ir.Node] = field(default_factory=list)
    masks: list[tuple[_Mask, float]] = field(default_factory=list)
    scale: float = 1.0

    def write(self, builder: Builder) -> fx.Node:
        """The call."""
        query, value = builder.tensor(self.query), builder.tensor(self.value)
        options: dict[str, object] = {}
        if self.masks:
            options["attn_mask"] = self._mask(builder)
        return builder.call(
            functional.scaled_dot_product_attention,
            query,
            _untransposed(builder, self.key),
            value,
            **options,
            scale=self.scale,
        )

    def _mask(self, builder: Builder) -> fx.Node:
        """The sum of all masks, those that attentions share written once."""
        made = [
            mask.write(builder)
            if factor == 1.0
            else builder.shared(operator.mul, mask.write(builder), factor)
            for mask, factor in reversed(self.masks)
        ]
        return functools.reduce(lambda one, other: builder.shared(operator.add, one, other), made)


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
    """The operand that ``node`` only scales."""
    found = scaled(node)
    if found is None:
        return None
    chain.scale *= found[1]
    return found[0]


def _masked(chain: _Chain, node: ir.Node) -> ir.Value | None:
    """The scores that ``node`` masks; what follows towards the Softmax scales the mask, too."""
    if node.domain:
        return None
    if node.op_type == "Add":
        left, right = node.inputs
        scores, mask = (left, right) if _is_scores(left) else (right, left)
        chain.masks.append((_Mask(mask), chain.scale))
        return scores
    if node.op_type != "Where" or chain.scale != 1.0:
        return None
    condition, then, otherwise = node.inputs
    number = scalar(otherwise)
    kept = number is not None
    number = scalar(then) if number is None else number
    if number is None or number > _MASKING:
        return None
    chain.masks.append((_Mask(None, condition, kept, number), 1.0))
    return then if kept else otherwise


_MASKING = -1e30
"""A fill below this makes a score vanish."""


def _is_scores(value: ir.Value | None) -> bool:
    """Whether ``value`` is a product of two computed values, scaled or with something added to it."""
    node = None if value is None else value.producer()
    if node is None or node.domain:
        return False
    if node.op_type == "MatMul":
        return not any(is_constant(operand) for operand in node.inputs)
    found = scaled(node)
    return (
        _is_scores(found[0])
        if found is not None
        else node.op_type == "Add" and any(map(_is_scores, node.inputs))
    )


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
    while (node := value.producer()) is not None and len(value.uses()) == 1 and (found := scaled(node)):
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
