"""Layers: the transformer blocks along the residual stream."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from graphcompress.analysis.attention import Attention
from graphcompress.analysis.linears import Linear
from graphcompress.analysis.residual import Branch, branches, picked_from
from graphcompress.coupling.couplings import FFN, HEAD, Group, couplings
from graphcompress.graph.expressions import Constants
from graphcompress.graph.model import Model

_LONGEST_NORMALISATION = 24
"""Nodes that a normalisation written out in elementary operators may have."""
_SHAPED = frozenset({"Reshape", "Expand"})
"""Operators whose second operand is a shape."""


@dataclass(frozen=True, eq=False)
class Layer:
    """A transformer block: removing it means that ``entry`` takes the place of ``exit``.

    Attributes:
        name: common prefix of its linears' names, or ``layer.<n>`` where they have none.
        entry: residual value that goes in.
        exit: residual value that comes out, same shape as ``entry``.
        attentions: attentions inside.
        groups: ffn and head groups inside.
        linears: linears inside, in execution order.
    """

    name: str
    entry: ir.Value
    exit: ir.Value
    attentions: tuple[Attention, ...]
    groups: tuple[Group, ...]
    linears: tuple[Linear, ...]


def layers(model: Model, groups: Sequence[Group] | None = None) -> list[Layer]:
    """Transformer blocks in execution order; ``groups`` are those of :func:`couplings`, if at hand.

    A block is a run of additions to a residual stream that starts with an attention and goes on to the next
    attention that follows a feed-forward part; before or after the normalisation, serial or parallel.
    """
    groups = couplings(model) if groups is None else groups
    found: list[Layer] = []
    for stream in _streams(branches(model)):
        for run, following in _runs(stream):
            layer = _layer(run, following, stream, groups, len(found))
            if layer is not None:
                found.append(layer)
    return _with_distinct_names(found)


def _with_distinct_names(found: Sequence[Layer]) -> list[Layer]:
    """Blocks that share their weights share a name too: tell them apart by a number."""
    seen: Counter[str] = Counter()
    named = []
    for layer in found:
        seen[layer.name] += 1
        number = seen[layer.name]
        named.append(layer if number == 1 else replace(layer, name=f"{layer.name}.{number}"))
    return named


# ---- streams of branches, and runs of them


def _streams(branches: Sequence[Branch]) -> list[list[Branch]]:
    """Branches that follow each other, with nothing but a normalisation between."""
    outputs, constant = {branch.output: branch for branch in branches}, Constants()
    streams: dict[Branch, list[Branch]] = {}
    for branch in branches:
        before = _stream_before(branch.entry, outputs, constant)
        stream = [] if before is None or streams[before][-1] is not before else streams[before]
        stream.append(branch)
        streams[branch] = stream
    return list({id(stream): stream for stream in streams.values()}.values())


def _stream_before(entry: ir.Value, outputs: Mapping[ir.Value, Branch], constant: Constants) -> Branch | None:
    """The branch whose output alone ``entry`` depends on through a few nodes."""
    pending, found = [entry], dict[ir.Value, Branch]()
    seen = set[ir.Value]()
    while pending and len(seen) < _LONGEST_NORMALISATION:
        value = pending.pop()
        if value in outputs:
            found[value] = outputs[value]
            continue
        if value in seen or constant(value):
            continue
        seen.add(value)
        node = value.producer()
        if node is None:
            return None
        operands = node.inputs[:1] if node.op_type in _SHAPED else node.inputs
        pending.extend(operand for operand in operands if operand is not None)
    return next(iter(found.values())) if len(found) == 1 and not pending else None


def _runs(stream: Sequence[Branch]) -> Iterator[tuple[list[Branch], Branch | None]]:
    """Runs of branches that make a block, each with the branch that follows."""
    forward = any(branch.feeds_forward for branch in stream)
    run: list[Branch] = []
    for branch in stream:
        if run and branch.attentions and (not forward or any(item.feeds_forward for item in run)):
            yield run, branch
            run = []
        run.append(branch)
    if run:
        yield run, None


# ---- layers


def _layer(
    run: Sequence[Branch],
    following: Branch | None,
    stream: Sequence[Branch],
    groups: Sequence[Group],
    number: int,
) -> Layer | None:
    entry = run[0].entry
    leave = _last_exit(run[-1], stream) if following is None else following.entry
    if following is not None and following.entry.shape != entry.shape:
        leave = picked_from(following.entry)
    found = tuple(attention for branch in run for attention in branch.attentions)
    if leave is None or not found or entry.shape is None or entry.shape != leave.shape:
        return None
    inside = tuple(linear for branch in run for linear in branch.linears)
    return Layer(
        name=_common_name(inside) or f"layer.{number}",
        entry=entry,
        exit=leave,
        attentions=found,
        groups=tuple(group for group in groups if _is_inside(group, inside)),
        linears=inside,
    )


def _last_exit(last: Branch, stream: Sequence[Branch]) -> ir.Value | None:
    """Where the last block ends: as far behind its addition as the others go on to the next branch."""
    if len(stream) == 1:
        return last.output
    value = last.output
    for op_type, index in _steps(stream[-2].output, stream[-1].entry):
        uses = [use.node for use in value.uses() if (use.node.op_type, use.idx) == (op_type, index)]
        if len(uses) != 1:
            return None
        value = uses[0].outputs[0]
    return value


def _steps(start: ir.Value, end: ir.Value) -> list[tuple[str, int]]:
    """Operators on the way from ``start`` to ``end`` (a normalisation, or none) and their operand on it."""
    pending: list[tuple[ir.Value, tuple[tuple[str, int], ...]]] = [(end, ())]
    seen, constant = set[ir.Value](), Constants()
    while pending:
        value, steps = pending.pop(0)
        if value is start:
            return list(steps)
        node = value.producer()
        if node is None or value in seen:
            continue
        seen.add(value)
        for index, operand in enumerate(node.inputs):
            if operand is not None and not constant(operand):
                pending.append((operand, ((node.op_type, index), *steps)))
    return []


def _is_inside(group: Group, inside: Sequence[Linear]) -> bool:
    nodes = {linear.node for linear in inside}
    return group.kind in (FFN, HEAD) and all(
        linear.node in nodes for linear in (*group.producers, *group.consumers)
    )


def _common_name(inside: Sequence[Linear]) -> str:
    names = [re.split(r"[./]", linear.name) for linear in inside]
    shared = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*names, strict=False))
    return ".".join(parts[0] for parts in shared)
