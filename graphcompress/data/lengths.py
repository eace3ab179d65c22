"""How long a sample a model can take, and how its lengths hang together."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import onnx_ir as ir

from graphcompress.files.declared import Dim
from graphcompress.files.parts import is_past
from graphcompress.graph.agreements import agreed_length
from graphcompress.graph.expressions import evaluate, is_constant
from graphcompress.graph.match import (
    fixed_shape,
    fixed_size,
    is_standard,
    operand,
    producer,
    rank_of,
    shape_of,
)
from graphcompress.graph.model import Model

_SAME_COUNT = frozenset(
    {"Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Expand", "Slice", "Tile", "Add", "Sub", "Mul"}
)
"""Operators through which position numbers reach a table, by their first input; of ``_EITHER`` by either."""

_EITHER = ("Add", "Mul")

_BOUNDING = frozenset({"Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Min", "Max", "Clip"})
"""Operators that compare sizes and positions with constants."""

_BROADCASTING = frozenset({"Add", "And", "Div", "Equal", "Max", "Min", "Mul", "Or", "Sub", "Where"})
"""Operators through which masks reach scores."""

_FEW = 16
"""A constant of more numbers than this is a table and no bound."""


def longest_sample(model: Model) -> int | None:
    """Largest number of tokens for which ``model`` has positions; None without a table of positions.

    Positions are numbers that the graph makes itself (by Range, a slice of a stored list, the sum of a mask
    so far, or the length of the past that one token comes after), or is given as positions, perhaps with a
    constant added: rows of the table below the first position are not for tokens. A table read by anything
    else, such as buckets of relative positions, sets no limit. Quantised tables count like others. Nor are
    there more than were promised to be given.
    """
    limits = [limit for node in model.graph if (limit := _limit(node)) is not None]
    agreed = agreed_length(model)
    limits += [] if agreed is None else [agreed]
    return min(limits, default=None)


def total_length(model: Model) -> ir.SymbolicDim | None:
    """The length of past and new tokens together, where the graph joins an input (past keys) with new ones.

    None without such an input, where inputs of different lengths are joined, or where one of the two has a
    length that is a number: then it is no past, but the token of a class in front of the others, or a list of
    sizes that a caller may override.
    """
    found = {}
    for node in model.graph:
        parts = [_dim(value, axis) for value, axis in _joined(node)]
        if len(parts) > 1 and all(part and not part.isdigit() for part in parts):
            total = ir.SymbolicDim(" + ".join(f"({part})" for part in parts)).simplify()
            found[str(total)] = total
    return next(iter(found.values())) if len(found) == 1 else None


def _joined(node: ir.Node) -> list[tuple[ir.Value | None, int]]:
    """Values that ``node`` puts one behind another, each with the axis, where an input is among them."""
    if is_standard(node, "Concat"):
        axis = node.attributes.get_int("axis", 0)
        parts = [(value, axis) for value in node.inputs]
    elif is_standard(node, "Attention"):
        past = operand(node, "past_key")
        parts = [] if past is None else [(past, -2), (operand(node, "K"), -2)]
    else:
        return []
    return parts if any(value and value.is_graph_input() for value, _ in parts) else []


def mask_lengths(model: Model) -> dict[str, ir.SymbolicDim]:
    """Symbol of a length that one mask has and no other input → what that length has to be.

    That is what it meets in the graph, as where a mask is added to scores; where it meets nothing that is
    made of other inputs, the length of past and new tokens. A mask whose length neither says is left out.
    """
    found, total = {}, total_length(model)
    for symbol in _lengths_of_one_mask(model):
        met = _met(model, symbol)
        if len(met) == 1:
            found[symbol] = next(iter(met.values()))
        elif not met and total is not None:
            found[symbol] = total
    return found


def _met(model: Model, symbol: str) -> dict[str, ir.SymbolicDim]:
    """The sizes, made of those of other inputs, that ``symbol`` must be equal to where operands broadcast."""
    dims = [
        dim for value in model.graph.inputs for dim in value.shape or () if isinstance(dim, ir.SymbolicDim)
    ]
    others = frozenset(str(name) for dim in dims for name in dim.free_symbols()) - {symbol}
    found = {}
    for node in model.graph:
        for this, other in _pairs(node):
            if symbol not in map(str, this.free_symbols()):
                continue
            # Of L + 1 and S + 1 the lengths are equal as well.
            size = (other - this + ir.SymbolicDim(symbol)).simplify()
            if size.free_symbols() and others.issuperset(map(str, size.free_symbols())):
                found[str(size)] = size
    return found


def _pairs(node: ir.Node) -> Iterator[tuple[ir.SymbolicDim, ir.SymbolicDim]]:
    """Variable sizes that are equal where ``node`` runs, if neither is 1, in both orders."""
    rows: list[Sequence[Dim]] = []
    if is_standard(node, *_BROADCASTING):
        rows = [tuple(reversed(shape)) for value in node.inputs if (shape := shape_of(value)) is not None]
    elif is_standard(node, "Attention") and operand(node, "past_key") is None:
        mask, keys = shape_of(operand(node, "attn_mask")), shape_of(operand(node, "K"))
        rows = [] if mask is None or keys is None else [mask[-1:], keys[-2:-1]]
    for one, other in itertools.permutations(rows, 2):
        for left, right in zip(one, other, strict=False):
            if isinstance(left, ir.SymbolicDim) and isinstance(right, ir.SymbolicDim) and left != right:
                yield left, right


def _lengths_of_one_mask(model: Model) -> list[str]:
    """Symbols of lengths that one mask has and no other input: the name an exporter gave to past and new.

    A mask over an encoder's states is over neither, whatever the exporter called the length of their keys.
    """
    found: dict[str, list[str]] = {}
    for value in model.graph.inputs:
        for dim in value.shape or ():
            if isinstance(dim, ir.SymbolicDim) and dim.value is not None:
                found.setdefault(str(dim), []).append((value.name or "").lower())
    alone = {symbol: names[0] for symbol, names in found.items() if len(names) == 1}
    return [symbol for symbol, name in alone.items() if "mask" in name and "encoder" not in name]


def largest_bound(model: Model, limit: int) -> int:
    """Largest whole number up to ``limit`` with which the graph compares or cuts something of variable size.

    Such are the end of a slice, the width of a window, the last bucket of relative positions: above it the
    model may behave in another way. 0 where there is none.
    """
    found = [0]
    for graph in model.ir.graphs():
        for node in graph:
            if is_standard(node, "Slice"):
                found += _ends(node)
            elif is_standard(node, *_BOUNDING):
                found += [number for value in node.inputs for number in _few_numbers(value)]
    return max(number for number in found if number <= limit)


def _ends(node: ir.Node) -> list[int]:
    """Where a Slice cuts axes of variable size."""
    starts, ends = _few_numbers(node.inputs[1]), _few_numbers(node.inputs[2])
    axes = _few_numbers(node.inputs[3]) if len(node.inputs) > 3 else list(range(len(ends)))
    shape = shape_of(node.inputs[0])
    if shape is None:
        return starts + ends
    return [
        number
        for numbers in (starts, ends)
        for number, axis in zip(numbers, axes, strict=False)
        if not isinstance(shape[axis], int)
    ]


def _few_numbers(value: ir.Value | None) -> list[int]:
    """What a small constant of whole numbers holds."""
    shape = fixed_shape(value)
    if value is None or value.dtype is None or not value.dtype.is_integer() or not is_constant(value):
        return []
    if shape is None or math.prod(shape) > _FEW:
        return []
    return [int(number) for number in evaluate(value).flat]


def _dim(value: ir.Value | None, axis: int) -> str | None:
    """The size along an axis as text, or None when it is not known."""
    shape = shape_of(value)
    if shape is None:
        return None
    dim = shape[axis]
    return str(dim) if isinstance(dim, int) or dim.value is not None else None


def _limit(lookup: ir.Node) -> int | None:
    """How many positions there are when ``lookup`` reads a table of positions."""
    axis: int = lookup.attributes.get_int("axis", 0)
    if not is_standard(lookup, "Gather") or axis != 0 or not is_constant(lookup.inputs[0]):
        return None
    table, value = lookup.inputs
    rows = fixed_size(table, 0)
    if rows is None or rank_of(table) != 2:
        return None
    while node := producer(value, *_SAME_COUNT):
        value, first = _counted(node)
        rows -= first
        listed = fixed_shape(value)
        if listed and is_constant(value):
            return min(rows, listed[-1])
    begin = _first(value)
    return None if begin is None else rows - begin


def _first(value: ir.Value | None) -> int | None:
    """The number that ``value`` gives to the first token; None where it does not number tokens."""
    if value is not None and value.is_graph_input() and "position" in (value.name or "").lower():
        return 0
    if (counted := producer(value, "Range")) is not None:
        # A start that is computed, such as the length of the past, may be 0.
        return _number(operand(counted, "start")) or 0
    if producer(value, "CumSum") is not None:
        return 1
    size = _size(value)
    # One token comes after a past of this length; the number of the last token is the length of all.
    return None if size is None else 0 if size in _past_sizes(value) else 1


def _size(value: ir.Value | None) -> str | None:
    """Which size of a shape ``value`` is, where it is one that varies."""
    gather = producer(value, "Gather")
    shape = producer(value if gather is None else operand(gather, 0), "Shape")
    if shape is None:
        return None
    start: int = shape.attributes.get_int("start", 0)
    within = 0 if gather is None else _number(operand(gather, 1)) or 0
    return _dim(shape.inputs[0], start + within)


def _past_sizes(value: ir.Value | None) -> set[str]:
    """The sizes of past keys and values that the graph of ``value`` is given."""
    graph = None if value is None else value.graph
    inputs = [] if graph is None else [given for given in graph.inputs if is_past(given.name or "")]
    return {str(dim) for given in inputs for dim in given.shape or () if isinstance(dim, ir.SymbolicDim)}


def _is_sum(value: ir.Value | None) -> bool:
    """Whether ``value`` is a sum of a mask so far, perhaps with something added."""
    if producer(value, "CumSum") is not None:
        return True
    node = producer(value, *_SAME_COUNT)
    return node is not None and any(map(_is_sum, node.inputs[: 2 if node.op_type in _EITHER else 1]))


def _counted(node: ir.Node) -> tuple[ir.Value | None, int]:
    """The input that carries the positions, and the number that ``node`` adds to them."""
    if node.op_type not in ("Add", "Sub", "Mul"):
        return node.inputs[0], 0
    left, right = node.inputs
    if node.op_type == "Mul":
        # With a mask, which leaves the numbers of padding out; with anything else they are no positions.
        return next((value for value in (left, right) if _is_sum(value)), None), 0
    if (added := _number(right)) is not None:
        return left, added if node.op_type == "Add" else -added
    if node.op_type == "Add" and (added := _number(left)) is not None:
        return right, added
    return left, 0


def _number(value: ir.Value | None) -> int | None:
    """The one number that a constant holds."""
    if value is None or not is_constant(value):
        return None
    array = evaluate(value)
    return int(array.item()) if array.size == 1 else None
