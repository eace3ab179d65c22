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
    progress = kind is not None
    while progress:
        progress = False
        for smaller in _smaller(case):
            if time.perf_counter() > end:
                return case
            if _runs(smaller) and _kind(smaller, oracle) == kind:
                case, progress = smaller, True
                break
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


def _smaller(case: Case) -> Iterator[Case]:
    """Models with less in them, the largest steps first."""
    if len(case.feeds) > 1:
        for feed in case.feeds:
            yield dataclasses.replace(case, feeds=(feed,))
    if len(case.units) > 1:
        for units in case.units:
            yield dataclasses.replace(case, units=(units,))
    outputs = len(case.model.graph.output)
    for index in range(outputs if outputs > 1 else 0):
        yield _edited(case, lambda graph, index=index: graph.output.pop(index))
    for index in reversed(range(len(case.model.graph.node))):
        node = case.model.graph.node[index]
        for operand in node.input if len(node.output) == 1 else ():
            yield _edited(case, lambda graph, i=index, name=operand: _bypass(graph, i, name))
    for index in range(len(case.model.graph.output)):
        yield from _earlier_output(case, index)


def _earlier_output(case: Case, index: int) -> Iterator[Case]:
    """The output is an operand of what makes it."""
    graph = case.model.graph
    wanted = graph.output[index].name
    for node in graph.node:
        for operand in node.input if wanted in node.output else ():
            info = onnx.helper.make_tensor_value_info(operand, onnx.TensorProto.FLOAT, None)
            if operand and not any(tensor.name == operand for tensor in graph.initializer):
                yield _edited(case, lambda g, info=info: g.output[index].CopyFrom(info))


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
