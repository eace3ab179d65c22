"""Every rule of simplification until none matches: what the pass does, and a target after an edit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import onnx_ir as ir

from graphcompress.ranges.bounds import Bounds
from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.rules import (
    arithmetic,
    cleanup,
    convolutions,
    guards,
    heads,
    linears,
    masks,
    normalisations,
    shapes,
    stacks,
)
from graphcompress.rules.base import Rule

MAX_ROUNDS = 20
"""Rules are applied in at most this many rounds, a guard against two that undo each other."""
FAMILIES = (
    *(heads.RULES, shapes.RULES, arithmetic.RULES),
    *(linears.RULES, convolutions.RULES, masks.RULES, stacks.RULES),
)


def simplify(
    rw: Rewriter, *, largest_input: float | None = None, assume_visible: bool = False
) -> Counter[str]:
    """Apply the rules to the main graph until none matches; what was removed, and how often.

    ``largest_input`` bounds the float inputs of the model, when that is known. With ``assume_visible`` every
    row of attention sees a position.
    """
    removed: Counter[str] = Counter()
    for _ in range(MAX_ROUNDS):
        changed = cleanup.clean_up(rw)
        removed["duplicate initializer"] += (merged := cleanup.merge_duplicates(rw))
        removed["decomposed normalization"] += (fused := normalisations.fuse_normalizations(rw))
        if changed or merged or fused:
            rw.clean()
        found = _sweep(rw, largest_input, assume_visible)
        removed.update(found)
        if not found and not merged and not fused and not changed:
            break
        rw.clean()
    # The plus leaves out what was counted 0 times.
    return +removed


def _sweep(rw: Rewriter, largest_input: float | None, assume_visible: bool) -> Counter[str]:
    """Try every rule once on every node of the main graph; how often each kind matched."""
    bounds = Bounds(largest_input)
    found: Counter[str] = Counter()
    for node in list(rw.model.graph):
        if node.graph is None or node.domain not in ("", "ai.onnx"):
            continue
        rules = _rules(node, bounds, assume_visible)
        # One edit per node and sweep: after it the node may be gone, or be another one than the next rule
        # expects.
        kind = next((kind for rule in rules if (kind := rule(rw, node))), None)
        if kind is not None:
            found[kind] += 1
    return found


def _rules(node: ir.Node, bounds: Bounds, assume_visible: bool) -> Iterator[Rule]:
    yield linears.fold_weight
    for family in FAMILIES:
        yield from family.get(node.op_type, ())
    bounded = [*masks.BOUNDED_RULES.get(node.op_type, ())]
    if node.op_type == "Where":
        bounded.append(guards.drop_guard if assume_visible else guards.row_flag)
    for rule in bounded:
        yield _with(rule, bounds)


def _with(rule: masks.Bounded, bounds: Bounds) -> Rule:
    return lambda rw, node: rule(rw, node, bounds)
