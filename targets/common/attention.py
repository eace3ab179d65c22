"""Attention with heads split and merged by Reshape and Transpose, and as one operator."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graphcompress.analysis.attention import Attention
from graphcompress.analysis.attentions import attentions
from graphcompress.graph.match import fixed_size, is_standard, only_reader, operand_beside, rank_of
from graphcompress.graph.model import Model
from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.rules.opsets.raising import raise_opset
from graphcompress.targets.common.attention_mask import one_mask
from graphcompress.targets.common.family import CONTRIB, Family, Form, Site, disjoint

OPERATOR = "operator"
OPERATOR_OPSET = 23
"""Since this opset attention is an operator of its own; ONNX Runtime has it on CPU since version 1.23."""

_SPLIT = (0, 2, 1, 3)
_TRANSPOSED = (0, 2, 3, 1)


@dataclass(frozen=True, eq=False)
class AttentionSite(Site):
    """``merge(softmax(scale · split(q) · split(k)ᵀ + masks) · split(v))``; all [batch, tokens, width]."""

    q: ir.Value
    k: ir.Value
    v: ir.Value
    masks: tuple[ir.Value, ...]
    heads: int
    scale: float


class FusedAttention(Family[AttentionSite]):
    """Attention of as many key heads as query heads, over whole sequences.

    With ``operator``, the standard operator is a form, too: it raises the model to the opset that has it, so
    only those ask for it who know that the rest of the model can be written in that one.
    """

    name: ClassVar[str] = "attention"
    default: ClassVar[str] = "multi_head"

    def __init__(self, *, operator: bool = False) -> None:
        self._operator = operator

    @property
    def forms(self) -> Mapping[str, Form[AttentionSite]]:
        """``multi_head``: MultiHeadAttention of com.microsoft; ``operator``: Attention of opset 23.

        Both split and merge the heads themselves.
        """
        multi_head: dict[str, Form[AttentionSite]] = {"multi_head": _as_multi_head}
        return multi_head | {OPERATOR: _as_operator} if self._operator else multi_head

    def sites(self, model: Model) -> list[AttentionSite]:
        """Every Softmax between two products whose operands are the heads of one value each."""
        return disjoint(map(_site, attentions(model)))


def _site(attention: Attention) -> AttentionSite | None:
    """The site of an attention without a guard whose heads are split and merged in the usual order."""
    steps, softmax = attention.scoring, attention.node
    if steps is None or attention.guard or softmax.attributes.get_int("axis", -1) not in (-1, 3):
        return None
    factors = list(itertools.takewhile(lambda step: step.scale is not None, steps))
    added = steps[len(factors) :]
    q, k, v = (operand.split for operand in attention.operands)
    merge = attention.merge
    if q is None or k is None or v is None or merge is None or only_reader(softmax.outputs[0]) is None:
        return None
    # The operators split the heads themselves, in this order only, and have no factor on the values.
    if (q.order, k.order, v.order) != (_SPLIT, _TRANSPOSED, _SPLIT) or v.scale != 1.0:
        return None
    masks = tuple(mask for step in added if (mask := operand_beside(step.node, step.operand)) is not None)
    if not all(is_standard(step.node, "Add") for step in added) or not all(map(broadcasts, masks)):
        return None
    # MultiHeadAttention knows no keys that several query heads share.
    if not q.heads == k.heads == v.heads or q.size != k.size:
        return None
    if not is_one_batch((q.source, k.source, v.source), masks):
        return None
    product, context = attention.products
    inner = (step.node for step in steps)
    nodes = dict.fromkeys((*q.nodes, *k.nodes, *v.nodes, product, *inner, softmax, context, *merge))
    scale = math.prod(step.scale or 0.0 for step in reversed(factors)) * (q.scale * k.scale)
    return AttentionSite(tuple(nodes), q.source, k.source, v.source, masks, q.heads, scale)


def broadcasts(mask: ir.Value) -> bool:
    """Whether the operator can take the mask: [batch or 1, heads or 1, queries or 1, keys]."""
    return rank_of(mask) == 4 and fixed_size(mask, 3) != 1


def is_one_batch(operands: tuple[ir.Value, ...], masks: tuple[ir.Value, ...]) -> bool:
    """Whether nothing with a batch of one (queries that are weights) is repeated, which operators do not."""
    single = [fixed_size(value, 0) == 1 for value in operands]
    return not any(single) or (all(single) and all(fixed_size(mask, 0) == 1 for mask in masks))


def _as_multi_head(rw: Rewriter, site: AttentionSite) -> None:
    mask = one_mask(rw, site.masks, site.q, site.nodes[-1])
    masks = [] if mask is None else [None, None, mask]
    value = site.place(rw).op(
        "MultiHeadAttention",
        *(site.q, site.k, site.v, *masks),
        name="",
        domain=CONTRIB,
        num_heads=site.heads,
        scale=site.scale,
    )
    rw.replace(site.output, value, take_name=True)


def _as_operator(rw: Rewriter, site: AttentionSite) -> None:
    raise_opset(rw, OPERATOR_OPSET)
    mask = one_mask(rw, site.masks, site.q, site.nodes[-1], above_lowest=True)
    value = site.place(rw).op(
        "Attention",
        *(site.q, site.k, site.v, *([] if mask is None else [mask])),
        name="",
        q_num_heads=site.heads,
        kv_num_heads=site.heads,
        scale=site.scale,
    )
    rw.replace(site.output, value, take_name=True)
