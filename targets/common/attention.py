"""Attention with heads split and merged by Reshape and Transpose, and as one operator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graphcompress.analysis.arguments import is_standard, only_reader, scaled
from graphcompress.graph.model import Model
from graphcompress.rewrite.rewriter import Rewriter, put_in_place
from graphcompress.rules.opset import raise_opset
from graphcompress.targets.common.attention_mask import above_lowest, sum_of_masks, with_rows
from graphcompress.targets.common.family import CONTRIB, Family, Rewrite, Site, disjoint

OPERATOR = "operator"
OPERATOR_OPSET = 23
"""Since this opset attention is an operator of its own; ONNX Runtime has it on CPU since version 1.23."""

_SPLIT = (0, 2, 1, 3)
_IDENTITY = (0, 1, 2, 3)


@dataclass(frozen=True, eq=False)
class AttentionSite(Site):
    """``merge(softmax(scale · split(q) · split(k)ᵀ + masks) · split(v))``; all [batch, tokens, width]."""

    q: ir.Value
    k: ir.Value
    v: ir.Value
    masks: tuple[ir.Value, ...]
    heads: int
    scale: float


class Attention(Family):
    """Attention of as many key heads as query heads, over whole sequences.

    With ``operator``, the standard operator is a form, too: it raises the model to the opset that has it, so
    only those ask for it who know that the rest of the model can be written in that one.
    """

    name: ClassVar[str] = "attention"
    default: ClassVar[str] = "multi_head"

    def __init__(self, *, operator: bool = False) -> None:
        self._operator = operator

    @property
    def forms(self) -> Mapping[str, Rewrite]:
        """``multi_head``: MultiHeadAttention of com.microsoft; ``operator``: Attention of opset 23.

        Both split and merge the heads themselves.
        """
        multi_head: dict[str, Rewrite] = {"multi_head": _as_multi_head}
        return multi_head | {OPERATOR: _as_operator} if self._operator else multi_head

    def sites(self, model: Model) -> list[Site]:
        """Every Softmax between two products whose operands are the heads of one value each."""
        return disjoint(site for node in model.graph if (site := _at(node)) is not None)


@dataclass(frozen=True)
class _Heads:
    """[batch, tokens, heads, size] of ``source``, its axes permuted by ``order``, times ``scale``."""

    source: ir.Value
    heads: int
    size: int
    order: tuple[int, ...]
    scale: float
    nodes: tuple[ir.Node, ...]


def _at(softmax: ir.Node) -> AttentionSite | None:
    if not is_standard(softmax, "Softmax") or softmax.attributes.get_int("axis", -1) not in (-1, 3):
        return None
    before, after = _scores(softmax.inputs[0]), _context(softmax.outputs[0])
    if before is None or after is None:
        return None
    (product, scale, masks, inner), (context, outer) = before, after
    q, k, v = _heads(product.inputs[0]), _heads(product.inputs[1]), _heads(context.inputs[1])
    if q is None or k is None or v is None:
        return None
    transposed = (0, 2, 3, 1)
    if (q.order, k.order, v.order) != (_SPLIT, transposed, _SPLIT) or v.scale != 1.0:
        return None
    if not q.heads == k.heads == v.heads or q.size != k.size or not all(map(_broadcasts, masks)):
        return None
    if not _is_one_batch((q.source, k.source, v.source), masks):
        return None
    nodes = dict.fromkeys((*q.nodes, *k.nodes, *v.nodes, product, *inner, softmax, context, *outer))
    scale *= q.scale * k.scale
    return AttentionSite(tuple(nodes), q.source, k.source, v.source, masks, q.heads, scale)


_Scores = tuple[ir.Node, float, tuple[ir.Value, ...], tuple[ir.Node, ...]]
"""The product, its scale, what is added to it, and the nodes behind the product."""


def _scores(value: ir.Value | None) -> _Scores | None:
    """The product of queries and keys behind the Softmax; a scale, a bias of positions, a mask in between."""
    step = _scaled_product(value)
    if step is not None:
        product, scale, inner = step
        return product, scale, (), inner
    node = value.producer() if value is not None else None
    if node is None or not is_standard(node, "Add"):
        return None
    for side, other in (node.inputs, node.inputs[::-1]):
        found = _scores(side) if other is not None else None
        if found is not None and other is not None:
            product, scale, masks, nodes = found
            return product, scale, (*masks, other), (*nodes, node)
    return None


def _scaled_product(value: ir.Value | None) -> tuple[ir.Node, float, tuple[ir.Node, ...]] | None:
    scale = 1.0
    nodes: list[ir.Node] = []
    node = value.producer() if value is not None else None
    while node is not None and (factor := scaled(node)) is not None:
        nodes.insert(0, node)
        scale *= factor[1]
        node = factor[0].producer()
    if node is None or not is_standard(node, "MatMul"):
        return None
    return node, scale, tuple(nodes)


def _heads(value: ir.Value | None) -> _Heads | None:
    """Follow transposes and scales back to the Reshape that splits a value into heads."""
    order, scale = _IDENTITY, 1.0
    nodes: list[ir.Node] = []
    while value is not None and (node := value.producer()) is not None and not node.domain:
        factor = scaled(node)
        if factor is not None:
            scale, following = scale * factor[1], factor[0]
        elif node.op_type == "Transpose" and len(perm := node.attributes.get_ints("perm", ())) == 4:
            order, following = tuple(perm[axis] for axis in order), node.inputs[0]  # type: ignore[assignment]
        else:
            break
        nodes.insert(0, node)
        value = following
    node = value.producer() if value is not None else None
    if node is None or not is_standard(node, "Reshape") or value is None:
        return None
    source, shape = node.inputs[0], value.shape
    if source is None or source.shape is None or len(source.shape) != 3 or shape is None or len(shape) != 4:
        return None
    heads, size, width = shape[2], shape[3], source.shape[2]
    if not (isinstance(heads, int) and isinstance(size, int)) or heads * size != width:
        return None
    return _Heads(source, heads, size, order, scale, (node, *nodes))


def _context(value: ir.Value) -> tuple[ir.Node, tuple[ir.Node, ...]] | None:
    """The product of probabilities and values, and the Transpose and Reshape that merge the heads."""
    product = only_reader(value)
    if product is None or not is_standard(product, "MatMul") or product.inputs[0] is not value:
        return None
    moved = only_reader(product.outputs[0])
    if moved is None or not is_standard(moved, "Transpose"):
        return None
    merged = only_reader(moved.outputs[0])
    if merged is None or not is_standard(merged, "Reshape"):
        return None
    shape = merged.outputs[0].shape
    if tuple(moved.attributes.get_ints("perm", ())) != _SPLIT or shape is None or len(shape) != 3:
        return None
    return product, (moved, merged)


def _broadcasts(mask: ir.Value) -> bool:
    """Whether the operator can take the mask: [batch or 1, heads or 1, queries or 1, keys]."""
    return mask.shape is not None and len(mask.shape) == 4 and mask.shape[3] != 1


def _is_one_batch(operands: tuple[ir.Value, ...], masks: tuple[ir.Value, ...]) -> bool:
    """Whether nothing with a batch of one (queries that are weights) is repeated, which operators do not."""
    single = [value.shape is not None and value.shape[0] == 1 for value in operands]
    if any(single):
        return all(single) and all(mask.shape is not None and mask.shape[0] == 1 for mask in masks)
    return True


def _as_multi_head(rw: Rewriter, site: Site) -> None:
    if not isinstance(site, AttentionSite):
        return
    last = site.nodes[-1]
    mask = sum_of_masks(rw, site.masks, last)
    mask = None if mask is None else with_rows(rw, mask, site.q, last)
    operands = (site.q, site.k, site.v, None, None, mask)
    value = rw.node(
        "MultiHeadAttention",
        *(operands if mask is not None else operands[:3]),
        before=last,
        name=site.name,
        domain=CONTRIB,
        num_heads=site.heads,
        scale=site.scale,
    )
    put_in_place(rw, last.outputs[0], value)


def _as_operator(rw: Rewriter, site: Site) -> None:
    if not isinstance(site, AttentionSite):
        return
    raise_opset(rw, OPERATOR_OPSET)
    last = site.nodes[-1]
    mask = sum_of_masks(rw, site.masks, last)
    masks = () if mask is None else (with_rows(rw, above_lowest(rw, mask, last), site.q, last),)
    value = rw.node(
        "Attention",
        *(site.q, site.k, site.v, *masks),
        before=last,
        name=site.name,
        q_num_heads=site.heads,
        kv_num_heads=site.heads,
        scale=site.scale,
    )
    put_in_place(rw, last.outputs[0], value)
