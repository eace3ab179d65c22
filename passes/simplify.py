"""simplify: the same function with fewer nodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graphcompress.analysis.bounds import Bounds
from graphcompress.base import Context, Contract, Exact, Pass
from graphcompress.expressions import is_constant
from graphcompress.model import Model
from graphcompress.rewrite import Rewriter
from graphcompress.rules import cleanup, linears, masks, shapes
from graphcompress.rules.base import Rule

MAX_ROUNDS = 20


@dataclass(frozen=True)
class Simplify(Pass):
    """Remove what an exporter left behind; outputs do not change.

    Folds constants and weight transposes, brings every linear to one form (MatMul with a weight [in, out], then Add
    with a bias [out]), turns shape arithmetic into constants, merges duplicates, and removes what never acts: no-op
    Cast, Identity and Dropout, Reshape and Transpose chains, mask arithmetic that is always true, and the guard against
    NaN after Softmax where the ranges of all values prove that there is none.

    Left alone: weights that are smaller as an expression than folded (Kronecker factors), tied weights, guards that
    may act, initializers that are also inputs, custom operators, subgraphs, GELU.
    """

    name: ClassVar[str] = "simplify"
    contract: ClassVar[Contract] = Exact()

    def run(self, model: Model, ctx: Context) -> None:
        """Apply every rule until none matches; report what was removed and what stays."""
        before = len(model.graph)
        with Rewriter(model, ctx) as rw:
            removed = _simplify(rw)
        for kind, count in sorted(removed.items(), key=lambda item: (-item[1], item[0])):
            rw.note(f"{count} × {kind}")
        rw.note(f"{before} nodes became {len(model.graph)}" if rw.modified else "nothing to simplify")
        _report_what_stays(rw)


def _simplify(rw: Rewriter) -> Counter[str]:
    removed: Counter[str] = Counter()
    for _ in range(MAX_ROUNDS):
        changed = cleanup.clean_up(rw)
        removed["duplicate initializer"] += (merged := cleanup.merge_duplicates(rw))
        removed["decomposed normalization"] += (fused := cleanup.fuse_normalizations(rw))
        if changed or merged or fused:
            rw.clean()
        found = _sweep(rw)
        removed.update(found)
        if not found and not merged and not fused and not changed:
            break
        rw.clean()
    return +removed


def _sweep(rw: Rewriter) -> Counter[str]:
    """Try every rule once on every node of the main graph; how often each kind matched."""
    bounds = Bounds()
    found: Counter[str] = Counter()
    for node in list(rw.model.graph):
        if node.graph is None or node.domain not in ("", "ai.onnx"):
            continue
        kind = next((kind for rule in _rules(node, bounds) if (kind := rule(rw, node))), None)
        if kind is not None:
            found[kind] += 1
    return found


def _rules(node: ir.Node, bounds: Bounds) -> list[Rule]:
    rules: list[Rule] = [linears.fold_weight]
    for family in (shapes.RULES, linears.RULES, masks.RULES):
        rules.extend(family.get(node.op_type, ()))
    rules.extend(_with(bounds, rule) for rule in masks.BOUNDED_RULES.get(node.op_type, ()))
    return rules


def _with(bounds: Bounds, rule: masks.Bounded) -> Callable[[Rewriter, ir.Node], str | None]:
    return lambda rw, node: rule(rw, node, bounds)


def _report_what_stays(rw: Rewriter) -> None:
    """Tell which weight expressions and which guards were kept, and why."""
    for node in rw.model.graph:
        value = node.outputs[0]
        if not is_constant(value) or all(is_constant(use.node.outputs[0]) for use in value.uses()):
            continue
        reason = linears.why_not_fold(value)
        if reason is not None and value.const_value is None:
            rw.skip(linears.weight_name(value), reason)
    guards = [node for node in rw.model.graph if node.op_type == "IsNaN" and not node.domain]
    for node in guards:
        rw.skip(node.outputs[0].name or "", "a guard against NaN: its input is not provably finite")
