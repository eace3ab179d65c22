"""Makes a model that fails smaller while it still fails in the same way."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator

import onnx

from fuzz.models import Case
from fuzz.oracles import Oracle, OracleError, Original

LIMIT_S = 60.0
"""Time for one failure."""


def reduced(case: Case, oracle: Oracle, limit_s: float = LIMIT_S) -> Case:
    """The smallest model found that fails as ``case`` does; ``case`` itself where nothing can go."""
    kind = _kind(case, oracle)
    end = time.perf_counter() + limit_s

    def fails(smaller: Case) -> bool:
        return time.perf_counter() < end and _runs(smaller) and _kind(smaller, oracle) == kind

    if kind is None:
        return case
    for step in (_one_feed, _one_block, _one_output):
        case = next(filter(fails, step(case)), case)
    case = _begun(case, fails)
    before = len(case.model.graph.node) + 1
    while len(case.model.graph.node) < before:
        before = len(case.model.graph.node)
        case = _thinned(case, fails)
    return case


def _one_feed(case: Case) -> Iterator[Case]:
    for feed in case.feeds:
        yield dataclasses.replace(case, feeds=(feed,))


def _one_block(case: Case) -> Iterator[Case]:
    for units in case.units:
        yield dataclasses.replace(case, units=(units,))


def _one_output(case: Case) -> Iterator[Case]:
    for value in case.model.graph.output:
        yield _ending(case, value)


def _begun(case: Case, fails: Callable[[Case], bool]) -> Case:
    """The shortest beginning of the graph that fails, found by halving."""
    values = [node.output[0] for node in case.model.graph.node if node.output[0]]
    low, high, best = 0, len(values), case
    while low < high:
        middle = (low + high) // 2
        info = onnx.helper.make_tensor_value_info(values[middle], onnx.TensorProto.FLOAT, None)
        shorter = _ending(case, info)
        if fails(shorter):
            best, high = shorter, middle
        else:
            low = middle + 1
    return best


def _ending(case: Case, value: onnx.ValueInfoProto) -> Case:
    """The case with ``value`` as its only output."""

    def edit(graph: onnx.GraphProto) -> None:
        kept = onnx.ValueInfoProto()
        kept.CopyFrom(value)
        del graph.output[:]
        graph.output.append(kept)

    return _edited(case, edit)


def _thinned(case: Case, fails: Callable[[Case], bool]) -> Case:
    """The case without the nodes that can be passed by, from the end to the beginning."""
    index = len(case.model.graph.node) - 1
    while index >= 0:
        node = case.model.graph.node[index]
        operands = list(node.input) if len(node.output) == 1 and node.op_type != "Identity" else []
        shorter = (
            _edited(case, lambda graph, i=index, name=name: _bypass(graph, i, name)) for name in operands
        )
        case = next(filter(fails, shorter), case)
        index = min(index, len(case.model.graph.node)) - 1
    return case


def _kind(case: Case, oracle: Oracle) -> str | None:
    """The kind of failure, without its figures."""
    try:
        oracle(case)
    except OracleError as failure:
        words = str(failure).split()
        return " ".join(words[:2]) if words[0] in ("error:", "refused:") else words[0]
    return None


def _runs(case: Case) -> bool:
    """Whether the runtime takes the model."""
    try:
        original = Original(case.model.SerializeToString())
        for feed in case.feeds:
            original(feed)
    except Exception:  # the runtime's exceptions share no base class
        return False
    return bool(case.feeds)


def _bypass(graph: onnx.GraphProto, index: int, name: str) -> None:
    """Let ``name`` stand for the output of a node."""
    old = graph.node[index].output[0]
    if any(value.name == old for value in graph.output):
        graph.node[index].CopyFrom(onnx.helper.make_node("Identity", [name], [old]))
        return
    del graph.node[index]
    for node in graph.node:
        for position, operand in enumerate(node.input):
            if operand == old:
                node.input[position] = name


def _edited(case: Case, edit: Callable[[onnx.GraphProto], object]) -> Case:
    """The case after ``edit``, without what nothing reads."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    edit(model.graph)
    _drop_unread(model.graph)
    inputs = {value.name for value in model.graph.input}
    feeds = tuple({name: array for name, array in feed.items() if name in inputs} for feed in case.feeds)
    left = {tensor.name for tensor in model.graph.initializer}
    units = tuple(
        item for item in case.units if all(part.name in left for part in (*item.producers, *item.readers))
    )
    return dataclasses.replace(case, model=model, feeds=feeds, units=units)


def _drop_unread(graph: onnx.GraphProto) -> None:
    read = {value.name for value in graph.output}
    for index in reversed(range(len(graph.node))):
        node = graph.node[index]
        if read.isdisjoint(node.output):
            del graph.node[index]
            continue
        read.update(node.input)
        for attribute in node.attribute:
            read.update(name for inner in attribute.g.node for name in inner.input)
            read.update(value.name for value in attribute.g.output)
    for values in (graph.initializer, graph.input):
        for index in reversed(range(len(values))):
            if values[index].name not in read:
                del values[index]
