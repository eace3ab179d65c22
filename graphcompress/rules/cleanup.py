"""What the libraries clean up: constants, identities, common subexpressions, dead code."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import onnx_ir as ir
import onnx_ir.passes.common as common

from graphcompress.files.stored import digest_of
from graphcompress.graph.match import fixed_shape, tensor_of
from graphcompress.graph.model import is_weight, number_of_parameters
from graphcompress.rewrite.rewriter import Rewriter

FOLDED_ELEMENTS = 1024
"""Integer tables of more elements than this are left alone."""

_Stored = tuple[ir.Value, ir.TensorProtocol]

SAMPLED = 64
"""So many elements of a tensor are compared before all of it is read."""


def clean_up(rw: Rewriter) -> bool:
    """Run the libraries' passes; whether anything was modified."""
    from graphcompress.rules.folding import Folding  # takes a second to import

    steps: list[Callable[[ir.Model], ir.passes.PassResult]] = [
        # Some exporters write weights as Constant nodes; what merges and names weights reads initializers.
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        Folding(
            shape_inference=False,
            input_size_limit=FOLDED_ELEMENTS,
            output_size_limit=FOLDED_ELEMENTS,
            should_fold=_may_fold,
        ),
        _IdentityElimination(),
        _merge_equal_nodes,
        common.RemoveUnusedNodesPass(),
    ]
    return sum(rw.apply(step) for step in steps) > 0


class _IdentityElimination(common.IdentityEliminationPass):
    """The library's, which lets one value stand for two outputs, and for the output of a branch of an If.

    One of the two names vanished from the model, and the branch had an output that no node of it computes.
    """

    def _try_eliminate_identity_node(self, node: ir.Node) -> bool:
        source = node.inputs[0] if node.op_type == "Identity" else None
        if source is None:
            return False
        shared = source.is_graph_output() or source.graph is not node.graph
        if shared and node.outputs[0].is_graph_output():
            return False
        return super()._try_eliminate_identity_node(node)


def _merge_equal_nodes(model: ir.Model) -> ir.passes.PassResult:
    """The library's elimination of common subexpressions; nodes that give outputs of the graph are unlike.

    Of two equal ones the library makes one and an Identity, again and again.
    """
    outputs = [value.producer() for value in model.graph.outputs]
    givers = [node for node in dict.fromkeys(outputs) if node is not None]
    tagged = givers if len(givers) > 1 else []
    for number, node in enumerate(tagged):
        node.attributes[_TAG] = ir.AttrInt64(_TAG, number)
    try:
        return common.CommonSubexpressionEliminationPass()(model)
    finally:
        for node in tagged:
            node.attributes.pop(_TAG, None)


_TAG = "graphcompress.output"


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
        if number_of_parameters(value) > 1:
            rw.touch(value.name or "", f"is the same as {first.name}")
        rw.replace(value, first)
        merged += 1
    return merged


def _fingerprints(rw: Rewriter) -> Iterator[tuple[tuple[object, ...], ir.Value]]:
    groups: dict[tuple[object, ...], list[_Stored]] = {}
    for value in list(rw.model.graph.initializers.values()):
        tensor = tensor_of(value)
        if tensor is None or value.is_graph_output() or not value.uses():
            continue
        vector = is_weight(value) and tensor.size > 1 and len(tensor.shape) < 2
        if vector or tensor.dtype == ir.DataType.STRING:
            continue
        groups.setdefault((tensor.dtype, tuple(tensor.shape.numpy())), []).append((value, tensor))
    for group, values in groups.items():
        for alike in _alike(values):
            for value, tensor in alike:
                # The digest and not the bytes: keys live until all tensors are read, and would be a second
                # copy of the model.
                yield (*group, digest_of(tensor)), value


def _alike(values: Sequence[_Stored]) -> Iterator[list[_Stored]]:
    """Those of several tensors of one shape that agree in a few elements: only they are read whole."""
    by_sample: dict[bytes, list[_Stored]] = {}
    for value, tensor in values if len(values) > 1 else ():
        elements = tensor.numpy().reshape(-1)
        sample = elements[:: max(1, elements.size // SAMPLED)].tobytes()
        by_sample.setdefault(sample, []).append((value, tensor))
    yield from (alike for alike in by_sample.values() if len(alike) > 1)


def _may_fold(node: ir.Node) -> bool | None:
    """Weights are folded by :func:`graphcompress.rules.linears.fold_weight`, which keeps their names."""
    shape = fixed_shape(node.outputs[0])
    if is_weight(node.outputs[0]) and (shape is None or math.prod(shape) != 1):
        return False
    # Where it is left to decide (None), the library folds a Transpose of any size that is read once.
    stored = filter(None, map(tensor_of, node.inputs))
    return False if any(tensor.size > FOLDED_ELEMENTS for tensor in stored) else None
