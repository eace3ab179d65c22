"""Normalisations that are spelled out become one node: the rules of onnxscript, where they hold.

Classes of onnxscript have no types, which mypy is told where they are extended.
"""

from __future__ import annotations

import onnx_ir as ir

from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.rules.opsets.versions import definition


def fuse_normalizations(rw: Rewriter) -> int:
    """Decomposed LayerNormalization (opset 17) and RMSNormalization (23) become one node each; how many."""
    fused = 0
    for rule in _rules(rw.model.opset):
        count = 0

        # The default keeps the rule of this round, where the name alone would mean the last one.
        def step(model: ir.Model, rule: object = rule) -> ir.passes.PassResult:
            nonlocal count
            count = rule.apply_to_model(model)  # type: ignore[attr-defined]
            return ir.passes.PassResult(model, count > 0)

        rw.apply(step)
        fused += count
    return fused


def _rules(opset: int) -> list[object]:
    """The rules of the library for ``opset``, each with a check of what it takes for granted.

    It takes whatever is multiplied or added for a scale or a bias: of ``LayerNorm(x) + x`` the residual path
    became the bias of the norm, which no runtime runs, and a scale [1, 1, width] took away axes.
    """
    from onnxscript.rewriter import pattern
    from onnxscript.rewriter.rules.fusion import _layer_norm, _rms_normalization

    class LayerNorm(_layer_norm.LayerNormFusion):  # type: ignore[misc]
        def check(self, context: object, x: ir.Value, scale: ir.Value, **others: ir.Value) -> object:
            found = super().check(context, x, scale=scale, **others)
            return found if _is_row(scale, x) else found.fail("the scale is no vector over the last axis")

    class Bias(_layer_norm.LayerNormBiasFusion):  # type: ignore[misc]
        def check(
            self, context: object, x: ir.Value, bias: ir.Value, normalized: ir.Value, **others: ir.Value
        ) -> object:
            found = pattern.MatchResult()
            node = normalized.producer()
            whole = node is not None and len(node.inputs) == 2
            return found if whole and _is_row(bias, x) else found.fail("what is added is no bias")

    class Rms(_rms_normalization.RmsNormFusion):  # type: ignore[misc]
        def check(self, op: object, x: ir.Value, scale: ir.Value, **others: ir.Value) -> object:
            found = super().check(op, x, scale, **others)
            return found if _is_row(scale, x) else found.fail("the scale is no vector over the last axis")

    rules: list[object] = []
    if definition("LayerNormalization", opset):
        rules.append(pattern.RewriteRuleSet([LayerNorm.rule(), Bias.rule()]))
    if definition("RMSNormalization", opset):
        orders = [Rms.rule(f"RmsNormFusion{order}", mul_order=order) for order in (True, False)]
        rules.append(pattern.RewriteRuleSet(orders))
    return rules


def _is_row(vector: ir.Value, x: ir.Value) -> bool:
    """Whether ``vector`` has one number for each entry of the last axis of ``x``, and its type.

    The rules of the library take whatever broadcasts: a residual [batch, length, width] became a bias that
    the runtime refuses, and a scale [1, 1, width] lost the axes that it gives to rows [batch, width].
    """
    if vector.shape is None or x.shape is None or not len(x.shape) or vector.dtype != x.dtype:
        return False
    width = x.shape[-1]
    return isinstance(width, int) and list(vector.shape) == [width]
