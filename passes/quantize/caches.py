"""Keys and values that parts of a model hand to the next step: where they are, and how they become int8."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import networkx as nx
import numpy as np
import onnx_ir as ir

from graphcompress.files.parts import handed_on, is_past
from graphcompress.graph.match import axis_of, fixed_size, operand, producer, rank_of
from graphcompress.graph.model import Model
from graphcompress.graph.teacher_forced import behind
from graphcompress.rewrite.rewriter import Rewriter


@dataclass(frozen=True, eq=False)
class Cache:
    """The keys, or the values, of one attention, in all parts that read or return them.

    Attributes:
        past: inputs with those of earlier tokens, or of the encoder's states.
        present: outputs with those for the next step.
    """

    past: tuple[ir.Value, ...]
    present: tuple[ir.Value, ...]

    @property
    def name(self) -> str:
        """Of the first input that reads it."""
        return self.past[0].name or ""

    @property
    def axis(self) -> int | None:
        """The axis of heads: the first one of fixed size behind the batch; None where no size is fixed."""
        axes = range(1, rank_of(self.past[0]) or 1)
        return next((axis for axis in axes if fixed_size(self.past[0], axis) is not None), None)

    @property
    def grows(self) -> bool:
        """Whether every step appends to it."""
        return any(_joined(value, self.past) for value in self.present)

    @property
    def entries(self) -> int:
        """Numbers that it holds for each token."""
        sizes = (fixed_size(self.past[0], axis) for axis in range(1, rank_of(self.past[0]) or 1))
        return int(np.prod([size for size in sizes if size is not None]))

    def reason(self) -> str | None:
        """Why it has to stay as it is, or None."""
        kinds = {str(value.dtype) for value in (*self.past, *self.present)}
        if kinds != {"FLOAT"}:
            return f"it is stored in {' and '.join(sorted(kinds)).lower()}, and float32 is what is rounded"
        for value in self.present:
            if _joined(value, self.past) or _passed_on(value, self.past):
                continue
            if not set(self.past).isdisjoint(behind([value])):
                return "it is a state that every step computes anew: nothing is appended to what was there"
        return None


def caches(model: Model) -> list[Cache]:
    """What the parts of ``model`` hand to the next step, in the order in which the inputs stand."""
    pairs = [pair for pair in handed_on(model.parts) if is_past(pair[1])]
    together = list(nx.connected_components(nx.Graph(pairs)))
    members = {name: number for number, names in enumerate(together) for name in names}
    past: dict[int, list[ir.Value]] = {}
    present: dict[int, list[ir.Value]] = {}
    for values, found in ((model.graph.inputs, past), (model.graph.outputs, present)):
        for value in values:
            if value.name in members:
                found.setdefault(members[value.name], []).append(value)
    return [Cache(tuple(inputs), tuple(present[number])) for number, inputs in past.items()]


def write_int8(rw: Rewriter, cache: Cache, scale: np.ndarray) -> None:
    """Store ``cache`` in int8, with ``scale`` [heads], or [] for all heads.

    The part that makes new keys and values rounds them as it returns them. A step reads its own in the same
    form as those of earlier ones; a first pass without past reads what it has before it is rounded.
    """
    parameters = (
        rw.constant(scale.astype(np.float32), f"{cache.name}.scale"),
        rw.constant(np.zeros(scale.shape, np.int8), f"{cache.name}.zero_point"),
    )
    axis = cache.axis or 1  # one scale for all has no axis, whatever is said
    stored = [*cache.past]
    for value in cache.present:
        name, join = value.name or "", _joined(value, cache.past)
        if join is not None:
            new = rw.at(join, name).op("QuantizeLinear", join.inputs[1], *parameters, name="new", axis=axis)
            rw.set_input(join, 1, new)
        elif not _passed_on(value, cache.past):
            rounded = rw.at(None, name).op("QuantizeLinear", value, *parameters, name="rounded", axis=axis)
            readers = [use for use in value.uses() if use.node is not rounded.producer()]
            rw.replace(value, rounded)
            for node, index in readers:
                rw.set_input(node, index, value)
            value = rounded
        stored.append(value)
    for value in stored:
        value.type = ir.TensorType(ir.DataType.INT8)  # a copy of the model has the old type object, too
        computed = list(_readers(value, cache))
        if computed:
            floats = rw.at(None, value.name).op(
                "DequantizeLinear", value, *parameters, name="floats", axis=axis
            )
            for node, index in computed:
                rw.set_input(node, index, floats)


def _readers(value: ir.Value, cache: Cache) -> Iterator[tuple[ir.Node, int]]:
    """What computes with ``value``; to ask for its sizes, and to hand it on, is none of that."""
    for node, index in tuple(value.uses()):
        hands_on = any(output.is_graph_output() for output in node.outputs) and value in cache.past
        if node.op_type != "Shape" and not (hands_on and node.op_type in ("Concat", "Identity")):
            yield node, index


def _joined(value: ir.Value, past: tuple[ir.Value, ...]) -> ir.Node | None:
    """The Concat that appends new tokens to ``past``, along an axis of variable size."""
    node = producer(value, "Concat")
    if node is None or len(node.inputs) != 2 or node.inputs[0] not in past:
        return None
    rank = rank_of(value)
    return node if rank and fixed_size(node.inputs[0], axis_of(node, rank, 0)) is None else None


def _passed_on(value: ir.Value, past: tuple[ir.Value, ...]) -> bool:
    return value in past or operand(producer(value, "Identity"), 0) in past
