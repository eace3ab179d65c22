"""Attention of a model that writes: keys and values that come from a cache, as one operator."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphcompress.analysis.attention import Attention, ChainStep, Operand
from graphcompress.analysis.attentions import attentions
from graphcompress.graph.expressions import evaluate, is_constant
from graphcompress.graph.match import (
    axis_of,
    fixed_size,
    is_standard,
    operand,
    operand_beside,
    producer,
    rank_of,
)
from graphcompress.graph.model import Model
from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.rules.opsets.raising import raise_opset
from graphcompress.targets.common.attention import OPERATOR, OPERATOR_OPSET, broadcasts, is_one_batch
from graphcompress.targets.common.attention_mask import one_mask
from graphcompress.targets.common.family import Family, Form, Site, disjoint

_SPLIT = (0, 2, 1, 3)
_TRANSPOSED = (0, 1, 3, 2)


@dataclass(frozen=True, eq=False)
class CachedSite(Site):
    """``softmax(scale · q · kᵀ + masks) · v``, and what a cache adds to it.

    Attributes:
        reads: q, k and v: [batch, heads, tokens, size], or, where the operator splits the heads itself,
            [batch, tokens, width].
        past: keys and values that come before k and v; empty where there are none.
        results: the context, and with ``past`` keys and values up to here.
        heads: of queries, and of keys and values.
    """

    reads: tuple[ir.Value, ir.Value, ir.Value]
    past: tuple[ir.Value, ...]
    masks: tuple[ir.Value, ...]
    results: tuple[ir.Value, ...]
    heads: tuple[int, int]
    scale: float


class CachedAttention(Family[CachedSite]):
    """Attention over keys and values that lie in heads already, as those of a cache do, or behind a guard.

    The guard is what PyTorch writes for a query that may look at nothing: its answer is zeros, as that of the
    operator is. A step of one token has as many operators as a long text, so that each of them counts.
    """

    name: ClassVar[str] = "attention with a cache"
    default: ClassVar[str] = OPERATOR
    came_later: ClassVar[bool] = True

    @property
    def forms(self) -> Mapping[str, Form[CachedSite]]:
        """``operator``: Attention of opset 23, which appends to the cache and splits heads where it can."""
        return {OPERATOR: _as_operator}

    def sites(self, model: Model) -> list[CachedSite]:
        """Every Softmax between two products of heads, unless :class:`FusedAttention` has a form for it."""
        return disjoint(map(_site, attentions(model)))


@dataclass(frozen=True, eq=False)
class _Core:
    """From the operands in heads to the context: [batch, heads, tokens, size]."""

    q: ir.Value
    k: ir.Value
    v: ir.Value
    nodes: tuple[ir.Node, ...]
    scale: float


def _site(attention: Attention) -> CachedSite | None:
    steps, softmax = attention.scoring, attention.node
    if steps is None or softmax.attributes.get_int("axis", -1) not in (-1, 3):
        return None
    guard = _guard(attention)
    core = _core(attention, guard or ())
    factors = list(itertools.takewhile(lambda step: step.scale is not None, steps))
    added = steps[len(factors) :]
    masks = tuple(mask for step in added if (mask := operand_beside(step.node, step.operand)) is not None)
    if guard is None or core is None or not all(is_standard(step.node, "Add") for step in added):
        return None
    heads = (fixed_size(core.q, 1), fixed_size(core.k, 1))
    if not heads[0] or not heads[1] or heads[0] % heads[1] or fixed_size(core.v, 1) != heads[1]:
        return None
    if not all(map(broadcasts, masks)) or not is_one_batch((core.q, core.k, core.v), masks):
        return None
    sizes = (heads[0], heads[1])
    scale = core.scale * math.prod(step.scale or 0.0 for step in factors)
    whole = _with_heads_split(attention, core, masks, sizes, scale)
    if whole is not None:
        return whole if whole.past or guard else None
    return CachedSite(core.nodes, (core.q, core.k, core.v), (), masks, (attention.output,), sizes, scale)


def _guard(attention: Attention) -> tuple[ir.Node, ...] | None:
    """The nodes that put zeros in place of NaN; empty without any, None for another guard."""
    if not attention.guard:
        return ()
    node, softmax = attention.guard[0].node, attention.node.outputs[0]
    test = producer(operand(node, 0), "IsNaN") if is_standard(node, "Where") else None
    if len(attention.guard) > 1 or test is None or operand(test, 0) is not softmax:
        return None
    return (test, node) if operand(node, 2) is softmax and _is_among(operand(node, 1), 0) else None


def _core(attention: Attention, guard: tuple[ir.Node, ...]) -> _Core | None:
    q, q_nodes, q_scale = _unscaled(attention.query.value, attention.query.steps)
    k, k_nodes, k_scale = _unscaled(attention.key.value, attention.key.steps)
    turn = producer(k, "Transpose")
    key = None if turn is None else operand(turn, 0)
    if turn is None or tuple(turn.attributes.get_ints("perm", ())) != _TRANSPOSED or key is None:
        return None
    v = attention.values.value
    if not rank_of(q) == rank_of(key) == rank_of(v) == 4 or attention.scoring is None:
        return None
    product, context = attention.products
    inner = (step.node for step in attention.scoring)
    own = (*q_nodes, turn, *k_nodes, product, *inner, attention.node, *guard, context)
    (k, k_repeats), (v, v_repeats) = _unrepeated(key), _unrepeated(v)
    nodes = dict.fromkeys((*k_repeats, *v_repeats, *own))
    return _Core(q, k, v, tuple(nodes), q_scale * k_scale)


def _unscaled(value: ir.Value, steps: tuple[ChainStep, ...]) -> tuple[ir.Value, tuple[ir.Node, ...], float]:
    """What ``value`` is before the numbers that it is multiplied with last; their nodes and their product."""
    scale = 1.0
    nodes: list[ir.Node] = []
    for step in reversed(steps):
        if step.scale is None or step.operand is None:
            break
        value, scale = step.operand, scale * step.scale
        nodes.insert(0, step.node)
    return value, tuple(nodes), scale


def _unrepeated(value: ir.Value) -> tuple[ir.Value, tuple[ir.Node, ...]]:
    """Heads that several query heads share, before each is repeated for them; the nodes that repeat."""
    merge = producer(value, "Reshape")
    repeat = producer(operand(merge, 0), "Expand")
    lifted = producer(operand(repeat, 0), "Unsqueeze")
    source = operand(lifted, 0)
    if merge is None or repeat is None or lifted is None or source is None or rank_of(source) != 4:
        return value, ()
    heads, repeated = fixed_size(source, 1), repeat.outputs[0]
    times = fixed_size(repeated, 2)
    in_a_row = (
        rank_of(repeated) == 5 and fixed_size(repeated, 1) == heads and fixed_size(lifted.outputs[0], 2) == 1
    )
    if not heads or not times or not in_a_row or fixed_size(value, 1) != heads * times:
        return value, ()
    return source, (lifted, repeat, merge)


def _with_heads_split(
    attention: Attention, core: _Core, masks: tuple[ir.Value, ...], heads: tuple[int, int], scale: float
) -> CachedSite | None:
    """The site from before the heads are split to where they are merged; None where more lies between."""
    q, merge = attention.query.split, attention.merge
    appended = [_appended(core.k), _appended(core.v)]
    new = [_heads_of(core.k if found is None else found[1]) for found in appended]
    if (
        q is None
        or q.order != _SPLIT
        or merge is None
        or None in new
        or (None in appended) != (appended == [None, None])
    ):
        return None
    parts = [part for part in new if part is not None]
    appends = [found for found in appended if found is not None]
    nodes = dict.fromkeys(
        (
            *q.nodes,
            *(node for part in parts for node in part[1]),
            *(found[2] for found in appends),
            *core.nodes,
            *merge,
        )
    )
    present = tuple(found[2].outputs[0] for found in appends)
    # The operator stands where the heads are merged, so nothing outside may read the cache before that.
    if any(user not in nodes for value in present for user in value.consumers()):
        return None
    return CachedSite(
        tuple(nodes),
        (q.source, parts[0][0], parts[1][0]),
        tuple(found[0] for found in appends),
        masks,
        (merge[1].outputs[0], *present),
        heads,
        scale,
    )


def _appended(value: ir.Value) -> tuple[ir.Value, ir.Value, ir.Node] | None:
    """Past, new ones, and the Concat that puts the new ones behind the past."""
    node = producer(value, "Concat")
    if node is None or len(node.inputs) != 2 or axis_of(node, 4, 0) != 2:
        return None
    past, new = node.inputs
    return None if past is None or new is None else (past, new, node)


def _heads_of(value: ir.Value) -> tuple[ir.Value, tuple[ir.Node, ...]] | None:
    """[batch, tokens, width] of which ``value`` is the heads, and the nodes that split it."""
    turn = producer(value, "Transpose")
    split = producer(operand(turn, 0), "Reshape")
    if turn is None or split is None:
        return None
    found = Operand(value, value, (ChainStep(split), ChainStep(turn))).split
    return None if found is None or found.order != _SPLIT else (found.source, found.nodes)


def _as_operator(rw: Rewriter, site: CachedSite) -> None:
    raise_opset(rw, OPERATOR_OPSET)
    in_heads = rank_of(site.reads[0]) == 4
    # A row of -inf gives zeros, in the operator and by the guard; one of the lowest number is another thing.
    infinite = all(map(_is_infinite, site.masks))
    mask = one_mask(
        rw, site.masks, site.reads[0], site.nodes[-1], above_lowest=not infinite, tokens=2 if in_heads else 1
    )
    given = [*site.reads, mask, *site.past]
    while given[-1] is None:
        given.pop()
    made = site.place(rw).node("Attention", *given, name="", outputs=len(site.results), scale=site.scale)
    if not in_heads:
        rw.set_attribute(made, "q_num_heads", site.heads[0])
        rw.set_attribute(made, "kv_num_heads", site.heads[1])
    for old, new in zip(site.results, made.outputs, strict=True):
        rw.replace(old, new, take_name=True)


def _is_infinite(mask: ir.Value) -> bool:
    """Whether the mask is a choice between 0 and -inf."""
    choice = producer(mask, "Where")
    return choice is not None and all(_is_among(value, 0, -np.inf) for value in choice.inputs[1:])


def _is_among(value: ir.Value | None, *numbers: float) -> bool:
    """Whether ``value`` is a constant of these numbers alone."""
    return value is not None and is_constant(value) and bool(np.isin(evaluate(value), numbers).all())
