"""What the libraries clean up: constants, identities, common subexpressions, dead code, normalisations."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence

import onnx_ir as ir
import onnx_ir.passes.common as common

from graphcompress.graph.match import fixed_shape
from graphcompress.graph.model import is_weight
from graphcompress.rewrite.rewriter import Rewriter

FOLDED_ELEMENTS = 1024
"""Integer tables above this size are left alone."""

SAMPLED = 64
"""Elements of a tensor that are compared before all of it is read."""


def clean_up(rw: Rewriter) -> bool:
    """Run the libraries' passes; whether anything was modified."""
    from onnxscript.optimizer._constant_folding import FoldConstantsPass  # takes a second to import

    steps = [
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        FoldConstantsPass(
            shape_inference=False,
            input_size_limit=FOLDED_ELEMENTS,
            output_size_limit=FOLDED_ELEMENTS,
            should_fold=_may_fold,
        ),
        common.IdentityEliminationPass(),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
    ]
    return sum(rw.apply(step) for step in steps) > 0


def fuse_normalizations(rw: Rewriter) -> int:
    """Decomposed LayerNormalization (opset 17) and RMSNormalization (23) become one node each; how many."""
    from onnxscript.rewriter.rules.fusion import _layer_norm, _rms_normalization

    rules = []
    if rw.model.opset >= 17:
        rules.append(_layer_norm.layer_normalization_ruleset)
    if rw.model.opset >= 23:
        rules.append(_rms_normalization.rms_normalization_ruleset)
    fused = 0
    for ruleset in rules:
        count = 0

        def step(model: ir.Model, ruleset: object = ruleset) -> ir.passes.PassResult:
            nonlocal count
            count = ruleset.apply_to_model(model)  # type: ignore[attr-defined]
            return ir.passes.PassResult(model, count > 0)

        rw.apply(step)
        fused += count
    return fused


def merge_duplicates(rw: Rewriter) -> int:
    """Initializers of equal type, shape and bytes become one; how many went.

    Vectors of floats are kept apart: equal biases and scales of a fresh model are equal by chance, are small,
    and would be tied from then on.
    """
    kept: dict[tuple[object, ...], ir.Value] = {}
    merged = 0
    for key, value in _fingerprints(rw):
        first = kept.setdefault(key, value)
        if first is value:
            continue
        if is_weight(value) and value.const_value is not None and value.const_value.size > 1:
            rw.touch(value.name or "", f"is the same as {first.name}")
        rw.replace(value, first)
        merged += 1
    return merged


def _fingerprints(rw: Rewriter) -> Iterator[tuple[tuple[object, ...], ir.Value]]:
    groups: dict[tuple[object, ...], list[ir.Value]] = {}
    for value in list(rw.model.graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or value.is_graph_input() or value.is_graph_output() or not value.uses():
            continue
        vector = is_weight(value) and tensor.size > 1 and len(tensor.shape) < 2
        if vector or tensor.dtype == ir.DataType.STRING:
            continue
        groups.setdefault((tensor.dtype, tuple(tensor.shape.numpy())), []).append(value)
    for group, values in groups.items():
        for alike in _alike(values):
            for value, tensor in alike:
                yield (*group, hashlib.sha256(tensor.tobytes()).digest()), value


def _alike(values: Sequence[ir.Value]) -> Iterator[list[tuple[ir.Value, ir.TensorProtocol]]]:
    """Those of several tensors of one shape that agree in a few elements: only they are read whole."""
    by_sample: dict[bytes, list[tuple[ir.Value, ir.TensorProtocol]]] = {}
    for value in values if len(values) > 1 else ():
        tensor = value.const_value
        if tensor is not None:
            elements = tensor.numpy().reshape(-1)
            sample = elements[:: max(1, elements.size // SAMPLED)].tobytes()
            by_sample.setdefault(sample, []).append((value, tensor))
    yield from (alike for alike in by_sample.values() if len(alike) > 1)


def _may_fold(node: ir.Node) -> bool | None:
    """Weights are folded by :func:`graphcompress.rules.linears.fold_weight`, which keeps their names."""
    if is_weight(node.outputs[0]) and not _is_single(node.outputs[0]):
        return False
    stored = [value.const_value for value in node.inputs if value is not None]
    large = any(tensor is not None and tensor.size > FOLDED_ELEMENTS for tensor in stored)
    return False if large else None


def _is_single(value: ir.Value) -> bool:
    shape = fixed_shape(value)
    return shape is not None and math.prod(shape) == 1
