"""The parts of a model that writes as one graph that reads a whole answer at once: teacher forcing.

The encoder's states go straight into the decoder, which has no past: it reads an answer up to its last token,
and gives the scores of the token after each. Weights are those of the parts, so that what is learned in this
graph holds for steps with a cache, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from graphcompress.errors import UnsupportedModelError
from graphcompress.files.parts import Part, links
from graphcompress.graph.expressions import is_constant
from graphcompress.graph.match import is_standard
from graphcompress.graph.model import Model, is_weight


def writer_of(parts: Sequence[Part]) -> Part | None:
    """The part that reads a whole answer: the one for the first tokens; None for an ordinary model."""
    by_role = {part.role: part for part in parts}
    return by_role.get("decoder") or by_role.get("decoder_with_past")


def encoder_of(parts: Sequence[Part]) -> Part | None:
    """The part that encodes; None where there is none."""
    return next((part for part in parts if part.role == "encoder"), None)


def teacher_forced(model: Model) -> Model:
    """A copy of ``model`` that gives the scores of all tokens of an answer, and the encoder's states.

    Its inputs are those of the encoder, and the tokens of the decoder with the mask and the positions over
    them. Names are those in ``model``, of initializers too; weights are shared, not copied. An ordinary model
    is returned as it is.

    Raises:
        UnsupportedModelError: the decoder gives no scores or reads one token at a time; or the steps read
            weights of their own, which nothing would train.
    """
    writer, encoder = writer_of(model.parts), encoder_of(model.parts)
    if writer is None:
        return model
    scores = _scores(writer)
    graph = model.ir.clone().graph
    reads = {value.name or "": value for value in graph.inputs}
    gives = {value.name or "": value for value in graph.outputs}
    _refuse_single_tokens(writer, reads)
    for name, value in _handed(model.parts, writer, {**reads, **gives}):
        ir.convenience.replace_all_uses_with(reads[name], value)
    ids = reads[writer.prefix + (writer.input("ids") or "")]
    for port in writer.reads("past"):
        _read_none(graph, reads[writer.prefix + port.name], ids)
    states = "" if encoder is None else encoder.prefix + (encoder.output("states") or "")
    outputs = [*([gives[states]] if states in gives else []), gives[writer.prefix + scores]]
    graph.sort()
    reached = set(behind(outputs))
    inputs = [value for value in graph.inputs if value in reached]
    _refuse_other_weights(writer, graph, reached)
    _in_one_batch(inputs)
    whole = ir.convenience.extract(graph, inputs, outputs)
    twin = Model(ir.Model(whole, ir_version=model.ir.ir_version))
    twin.kept = {name: dict(axes) for name, axes in model.kept.items()}
    return twin


def _scores(writer: Part) -> str:
    scores = writer.output("logits")
    if scores is None:
        raise UnsupportedModelError(
            f"{writer.path}: gives no scores of tokens (logits), so that there is nothing to learn; "
            "export it with its head"
        )
    return scores


def _refuse_single_tokens(writer: Part, reads: Mapping[str, ir.Value]) -> None:
    shape = reads[writer.prefix + (writer.input("ids") or "")].shape
    if shape is not None and len(shape) == 2 and shape[1] == 1:
        raise UnsupportedModelError(
            f"{writer.path}: reads one token at a time, and learning needs all tokens of a text at once; "
            "export it with a variable length"
        )


def _handed(
    parts: Sequence[Part], writer: Part, values: Mapping[str, ir.Value]
) -> Iterator[tuple[str, ir.Value]]:
    """Inputs of the decoder that the encoder, or what the encoder reads, stands for."""
    for link in links(parts):
        (source, name), (target, read) = link.source, link.target
        if source.role == "encoder" and target is writer:
            yield target.prefix + read, values[source.prefix + name]
    encoder = encoder_of(parts)
    mask = None if encoder is None else encoder.input("mask")
    if encoder is not None and mask is not None:
        for port in writer.reads("encoder_mask"):
            yield writer.prefix + port.name, values[encoder.prefix + mask]


def _in_one_batch(inputs: Sequence[ir.Value]) -> None:
    """What is encoded and what is written are of one batch, though each part has its own name for it."""
    first = inputs[0].shape
    for value in inputs[1:]:
        shape = value.shape
        if first and shape and not isinstance(first[0], int) and not isinstance(shape[0], int):
            value.shape = ir.Shape([first[0], *list(shape)[1:]])


def _read_none(graph: ir.Graph, past: ir.Value, ids: ir.Value) -> None:
    """Let what reads ``past`` read past of no length, of as many sequences as ``ids`` has."""
    sizes = [size if isinstance(size, int) else 0 for size in list(past.shape or ())[1:]]
    rest = ir.node("Constant", [], {"value": ir.tensor(np.array(sizes, np.int64))})
    batch = ir.node("Shape", [ids], {"start": 0, "end": 1})
    shape = ir.node("Concat", [batch.outputs[0], rest.outputs[0]], {"axis": 0})
    zero = ir.tensor(np.zeros(1, (past.dtype or ir.DataType.FLOAT).numpy()))
    made = ir.node("ConstantOfShape", [shape.outputs[0]], {"value": zero})
    for number, node in enumerate((rest, batch, shape, made)):
        node.name = node.outputs[0].name = f"{past.name}.none.{number}"
        graph.insert_before(graph[0], node) if number == 0 else graph.append(node)
    ir.convenience.replace_all_uses_with(past, made.outputs[0])


def behind(values: Sequence[ir.Value]) -> Iterator[ir.Value]:
    """``values``, and all that they are computed from."""
    pending, seen = list(values), set[ir.Value]()
    while pending:
        value = pending.pop()
        if value in seen:
            continue
        seen.add(value)
        yield value
        node = value.producer()
        if node is not None:
            pending.extend(read for read in node.inputs if read is not None)


def _refuse_other_weights(writer: Part, graph: ir.Graph, reached: set[ir.Value]) -> None:
    """The steps would go on with weights as they were, while the others are trained."""
    for value in graph.initializers.values():
        stored = value.const_value
        learned = any(not _rounds(use.node, use.idx) for use in value.uses())
        if value in reached or stored is None or stored.size < 2 or not is_weight(value) or not learned:
            continue
        raise UnsupportedModelError(
            f"{writer.path.parent}: the weight {value.name!r} is read by steps with past alone, not by "
            f"{writer.path.name}, so that the two would learn different things; train in the run that makes "
            "them: a target stores the weights of each part as that part runs fastest"
        )


def _rounds(node: ir.Node, index: int) -> bool:
    """Whether a node reads there how an activation, such as a cache, is rounded: that is no weight."""
    if not is_standard(node, "QuantizeLinear", "DequantizeLinear"):
        return False
    return index == 2 or (index == 1 and not is_constant(node.inputs[0]))
