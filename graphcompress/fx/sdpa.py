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

from graphcompress.analysis.attention import Attention, ChainStep, Operand
from graphcompress.analysis.attentions import attentions
from graphcompress.fx.builder import FxBuilder
from graphcompress.fx.ops.shape import permuted
from graphcompress.graph.match import operand_beside, producer, rank_of, scalar
from graphcompress.graph.model import Model

Written = tuple[tuple[ir.Node, ...], Callable[[FxBuilder], fx.Node]]


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

    def write(self, builder: FxBuilder) -> fx.Node:
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

    def write(self, builder: FxBuilder) -> fx.Node:
        """The call."""
        query, value = builder.tensor(self.query), builder.tensor(self.value)
        options: dict[str, object] = {}
        if self.masks:
            options["attn_mask"] = self._mask(builder)
        operands = (query, _untransposed(builder, self.key), value)
        return builder.call(functional.scaled_dot_product_attention, *operands, **options, scale=self.scale)

    def _mask(self, builder: FxBuilder) -> fx.Node:
        """The sum of all masks, those that attentions share written once."""
        made = [
            mask.write(builder)
            if factor == 1.0
            else builder.shared(operator.mul, mask.write(builder), factor)
            for mask, factor in reversed(self.masks)
        ]
        return functools.reduce(lambda one, other: builder.shared(operator.add, one, other), made)


def _chain(attention: Attention) -> _Chain | None:
    """The chain of an attention, or None: some step of it is not what the call computes."""
    steps, guard = attention.scoring, _guard(attention)
    if steps is None or guard is None or not _is_over_keys(attention):
        return None
    chain = _Chain(attention.query.value, attention.key.value, attention.values.value)
    # From the Softmax backwards, so that a mask is scaled by what follows it and not by what comes before.
    if not all(_taken(chain, step) for step in reversed(steps)):
        return None
    chain.query, of_query = _unscaled(chain, attention.query)
    chain.key, of_key = _unscaled(chain, attention.key)
    product, last = attention.products
    between = [step.node for step in steps]
    chain.nodes = [*of_query, *of_key, product, *between, attention.node, *guard, last]
    return chain


def _is_over_keys(attention: Attention) -> bool:
    rank = rank_of(attention.query.value)
    return rank is not None and attention.node.attributes.get_int("axis", -1) in (-1, rank - 1)


def _taken(chain: _Chain, step: ChainStep) -> bool:
    """Whether the call can do what ``step`` does to the scores; it goes into the chain.

    What follows a mask towards the Softmax scales the mask, too.
    """
    if step.scale is not None:
        chain.scale *= step.scale
        return True
    mask = _mask(step, chain.scale)
    if mask is not None:
        chain.masks.append((mask, chain.scale))
    return mask is not None


def _mask(step: ChainStep, scale: float) -> _Mask | None:
    if step.node.op_type == "Add":
        mask = operand_beside(step.node, step.operand)
        return None if mask is step.operand else _Mask(mask)  # scores twice are no mask
    # A fill that is scaled afterwards is another number than the one that stands in the graph.
    if step.node.op_type != "Where" or scale != 1.0 or step.index == 0:
        return None
    number = scalar(step.node.inputs[3 - step.index])
    return (
        _Mask(None, step.node.inputs[0], step.index == 1, number) if number and number <= _MASKING else None
    )


_MASKING = -1e30
"""A fill below this makes a score vanish."""


def _guard(attention: Attention) -> list[ir.Node] | None:
    """Nodes from the Softmax to the product with the values: none, or a guard against NaN."""
    if not attention.guard:
        return [] if attention.guard is not None else None
    step, *others = attention.guard
    test = producer(step.node.inputs[0], "IsNaN")
    if others or step.node.op_type != "Where" or step.index != 2 or test is None:
        return None
    return [test, step.node] if scalar(step.node.inputs[1]) == 0.0 else None


def _unscaled(chain: _Chain, operand: Operand) -> tuple[ir.Value, list[ir.Node]]:
    """An operand before it was multiplied by a number, which goes into the scale."""
    nodes: list[ir.Node] = []
    value = operand.value
    for step in reversed(operand.steps):
        # What something else reads has to be computed anyway, so that taking its factor out saves nothing.
        if step.scale is None or step.operand is None or len(value.uses()) != 1:
            break
        chain.scale *= step.scale
        nodes.insert(0, step.node)
        value = step.operand
    return value, nodes


def _untransposed(builder: FxBuilder, value: ir.Value) -> fx.Node:
    """The keys as [..., tokens, size], from [..., size, tokens]."""
    node = producer(value, "Transpose")
    if node is None or value.shape is None:
        return builder.method("transpose", builder.tensor(value), -1, -2)
    perm = list(node.attributes.get_ints("perm", tuple(reversed(range(len(value.shape))))))
    # Two transpositions become one, so that the keys are arranged once.
    perm[-1], perm[-2] = perm[-2], perm[-1]
    return permuted(builder, builder.tensor(node.inputs[0]), perm)
