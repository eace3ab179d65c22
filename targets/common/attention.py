"""Attention with heads split and merged by Reshape and Transpose, and as one operator."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graphcompress.analysis.attention import Attention, attentions
from graphcompress.graph.match import is_standard, only_reader, operand_beside
from graphcompress.graph.model import Model
from graphcompress.rewrite.rewriter import Rewriter, put_in_place
from graphcompress.rules.opsets.raising import raise_opset
from graphcompress.targets.common.attention_mask import above_lowest, sum_of_masks, with_rows
from graphcompress.targets.common.family import CONTRIB, Family, Rewrite, Site, disjoint

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


class FusedAttention(Family):
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
        return disjoint(site for found in attentions(model) if (site := _site(found)) is not None)


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
    if (q.order, k.order, v.order) != (_SPLIT, _TRANSPOSED, _SPLIT) or v.scale != 1.0:
        return None
    masks = tuple(mask for step in added if (mask := operand_beside(step.node, step.operand)) is not None)
    if not all(is_standard(step.node, "Add") for step in added) or not all(map(_broadcasts, masks)):
        return None
    if not q.heads == k.heads == v.heads or q.size != k.size:
        return None
    if not _is_one_batch((q.source, k.source, v.source), masks):
        return None
    product, context = attention.products
    inner = (step.node for step in steps)
    nodes = dict.fromkeys((*q.nodes, *k.nodes, *v.nodes, product, *inner, softmax, context, *merge))
    scale = math.prod(step.scale or 0.0 for step in reversed(factors)) * (q.scale * k.scale)
    return AttentionSite(tuple(nodes), q.source, k.source, v.source, masks, q.heads, scale)


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
