"""Work on real tokens only: what treats every token alone reads the tokens of a batch without its padding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx_ir as ir

from graphcompress.graph.expressions import is_constant
from graphcompress.graph.model import Model
from graphcompress.plugin.context import Context
from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.targets.common.family import CONTRIB

_ELEMENTWISE = frozenset(
    {"Add", "Sub", "Mul", "Div", "Sum", "Tanh", "Erf", "Relu", "Sigmoid", "Gelu", "BiasGelu", "FastGelu"}
    | {"Cast", "QuantizeLinear", "DequantizeLinear", "Identity"}
)
_PRODUCTS = frozenset({"MatMul", "MatMulIntegerToFloat"})
_MASK_INPUTS = {(CONTRIB, "MultiHeadAttention"): 5, ("", "Attention"): 3}
"""Attention in one operator → which of its inputs is the mask."""

_BY_LAST_AXIS = frozenset({"LayerNormalization", "Split"})


def remove_padding(model: Model, ctx: Context) -> int:
    """Gather the real tokens before token-wise work and spread its results behind it; returns the moves.

    A node works token by token when it multiplies by a constant matrix, normalises or splits the last axis,
    or treats every entry alone, on values of the mask's [batch, tokens]. Such nodes see [1, real tokens, …].
    Attention and everything else read what they read before; at padding they find the numbers of a real
    token, which a mask hides as it hid those of padding. Outputs differ at padding only.

    Left alone: a model without attention in one operator under a mask that comes from an input
    [batch, tokens], dynamic quantisation (its scale is one for all tokens), and nodes without a product
    beside them.
    """
    mask = _mask(model)
    if mask is None or mask.shape is None:
        return 0
    sizes = tuple(mask.shape)
    region = _region(model, sizes)
    entries = dict.fromkeys(
        value for node in region for value in _tokens(node.inputs, sizes) if value.producer() not in region
    )
    exits = [
        value
        for node in region
        for value in _tokens(node.outputs, sizes)
        if value.is_graph_output() or any(user not in region for user, _ in value.uses())
    ]
    if not region or not entries:
        return 0
    with Rewriter(model, ctx) as rw:
        chosen, back = _indices(rw, mask)
        for value in exits:
            _spread(rw, value, region, back)
        for value in entries:
            _gather(rw, value, region, chosen)
        for node in region:  # their sizes are inferred anew
            for value in node.outputs:
                value.shape = None
    return len(entries) + len(exits)


def _mask(model: Model) -> ir.Value | None:
    """The input [batch, tokens] that hides keys from every attention, when there is one."""
    found = ((node, _MASK_INPUTS.get((node.domain, node.op_type))) for node in model.graph)
    heads = [(node, index) for node, index in found if index is not None]
    hidden = [
        _inputs_behind(node.inputs[index] if len(node.inputs) > index else None) for node, index in heads
    ]
    # A token may only be left out where no attention looks at it, so all have to hide the same ones.
    if not hidden or any(found != hidden[0] for found in hidden):
        return None
    masks = [
        value
        for value in model.graph.inputs
        if value in hidden[0] and "mask" in (value.name or "") and value.shape is not None
    ]
    return masks[0] if len(masks) == 1 and len(masks[0].shape or ()) == 2 else None


def _inputs_behind(value: ir.Value | None) -> set[ir.Value]:
    """Inputs of the graph from which ``value`` is computed."""
    found: set[ir.Value] = set()
    pending, seen = [value], set()
    while pending:
        value = pending.pop()
        if value is None or value in seen:
            continue
        seen.add(value)
        if value.is_graph_input():
            found.add(value)
        elif (node := value.producer()) is not None:
            pending.extend(node.inputs)
    return found


def _region(model: Model, sizes: tuple[object, ...]) -> dict[ir.Node, None]:
    """Token-wise nodes that hang together with a product by a constant matrix, in the order of execution."""
    nodes = {node: None for node in model.graph if _is_token_wise(node, sizes)}
    kept: set[ir.Node] = set()
    for start in nodes:
        if start.op_type in _PRODUCTS and start not in kept:
            pending = [start]
            while pending:
                node = pending.pop()
                if node not in kept:
                    kept.add(node)
                    pending.extend(near for near in _neighbours(node) if near in nodes)
    return {node: None for node in nodes if node in kept}


def _neighbours(node: ir.Node) -> Iterator[ir.Node]:
    for value in node.inputs:
        producer = value.producer() if value is not None else None
        if producer is not None:
            yield producer
    for value in node.outputs:
        yield from (user for user, _ in value.uses())


def _is_token_wise(node: ir.Node, sizes: tuple[object, ...]) -> bool:
    operands = [value for value in node.inputs if value is not None]
    varying = [value for value in operands if not is_constant(value)]
    if not varying or any(not _is_token(value, sizes) for value in (*varying, *node.outputs)):
        return False
    constants = [value for value in operands if is_constant(value)]
    if node.op_type in _PRODUCTS:
        # A product of two computed values mixes tokens; a constant matrix on the right treats each alone.
        return varying == operands[:1] and node.domain in ("", CONTRIB)
    if node.op_type in _BY_LAST_AXIS:
        # Normalising or splitting over another axis than the last would mix tokens.
        return not node.domain and varying == operands[:1] and node.attributes.get_int("axis", -1) in (-1, 2)
    # A constant with more axes may hold one entry per position, which the gathered tokens no longer have.
    vectors = all(value.shape is not None and len(value.shape) <= 1 for value in constants)
    quantised_along = node.attributes.get_int("axis", 1) in (-1, 2) or all(
        value.shape is not None and not len(value.shape) for value in constants
    )
    scaled = node.op_type in ("QuantizeLinear", "DequantizeLinear")
    return node.op_type in _ELEMENTWISE and vectors and (quantised_along or not scaled)


def _is_token(value: ir.Value, sizes: tuple[object, ...]) -> bool:
    """Whether ``value`` is [batch, tokens, …] of the mask's sizes."""
    return value.shape is not None and len(value.shape) == 3 and tuple(value.shape)[:2] == sizes


def _tokens(values: Iterable[ir.Value | None], sizes: tuple[object, ...]) -> list[ir.Value]:
    return [value for value in values if value is not None and _is_token(value, sizes)]


def _indices(rw: Rewriter, mask: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Positions of real tokens in the flat batch [real], and for every place [batch, tokens] which it reads.

    The first place always counts as real, so that there is one.
    """
    b = rw.at(next(iter(rw.model.graph)), mask.name)
    flat = b.op("Reshape", mask, b.constant([-1], "flat_shape"), name="flat")
    bits = b.op("Cast", flat, name="bits", to=ir.DataType.BOOL)
    ones = b.op("Cast", bits, name="ones", to=ir.DataType.INT64)
    # A batch without a single real token would leave nothing to gather.
    first, one = b.constant([0], "first"), b.constant([1], "one")
    real = b.op("ScatterElements", ones, first, one, name="real", axis=0)
    found = b.op("NonZero", real, name="found")
    chosen = b.op("Reshape", found, b.constant([-1], "real_shape"), name="tokens")
    # Real tokens counted up to a place are the number of the last of them: padding reads a real token, too.
    counted = b.op("CumSum", real, b.constant(0, "axis"), name="counted")
    place = b.op("Sub", counted, b.constant([1], "one_less"), name="place")
    return chosen, b.op("Reshape", place, b.op("Shape", mask, name="sizes"), name="places")


def _gather(rw: Rewriter, value: ir.Value, region: dict[ir.Node, None], chosen: ir.Value) -> None:
    """Let the region read [1, real, width] of ``value``."""
    readers = [(node, index) for node, index in value.uses() if node in region]
    width = value.shape[2] if value.shape is not None and isinstance(value.shape[2], int) else -1
    # The gathered value has to stand before the first of its readers.
    before = min((node for node, _ in readers), key=list(rw.model.graph).index)
    b = rw.at(before, value.name)
    flat = b.op("Reshape", value, b.constant([-1, width], "flat_shape"), name="flat")
    real = b.op("Gather", flat, chosen, name="gathered", axis=0)
    packed = b.op("Unsqueeze", real, b.constant([0], "batch_axis"), name="real")
    for node, index in readers:
        rw.set_input(node, index, packed)


def _spread(rw: Rewriter, value: ir.Value, region: dict[ir.Node, None], back: ir.Value) -> None:
    """Let all but the region read ``value`` at its places [batch, tokens, width]."""
    producer = value.producer()
    graph = list(rw.model.graph)
    behind = graph.index(producer) + 1 if producer is not None else 0
    before = graph[behind] if behind < len(graph) else None
    b = rw.at(before, value.name)
    tokens = b.op("Squeeze", value, b.constant([0], "one_batch"), name="tokens")
    spread = b.op("Gather", tokens, back, name="spread", axis=0)
    spread.type, spread.shape = value.type, value.shape
    # Replacing redirects every reader, so those inside are remembered and put back.
    kept = [(node, index) for node, index in value.uses() if node in region]
    squeeze = tokens.producer()
    rw.replace(value, spread)
    for node, index in kept:
        rw.set_input(node, index, value)
    # The node that makes the new value was redirected as well, and would read what it leads to.
    if squeeze is not None:
        rw.set_input(squeeze, 0, value)
