"""Is a parsed ONNX file whole and well-formed? Every finding is one sentence: what, where, what to do.

A cut protobuf can still parse, as a smaller model, and ``onnx_ir`` repairs some damage silently; so the
message is checked as it was read, before any tensor is touched.
"""

from __future__ import annotations

import graphlib
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx.defs
from google.protobuf.message import Message

from graphcompress.errors import InvalidModelError, UnsupportedModelError
from graphcompress.files.reading.protos import (
    KINDS,
    PACKED_BITS,
    graphs,
    number_of_bytes,
    reads,
    subgraphs,
    tensors,
)

STANDARD_DOMAINS = ("", "ai.onnx")
OPSETS = (13, 25)
"""Lowest and highest version of the standard operators that is read."""

FUSED_OPERATORS = ("SimplifiedLayerNormalization", "LayerNormalization")
"""Operators that ONNX Runtime writes into models whose standard operators do not have them."""

_UNCHECKED = "graphcompress.unchecked"
"""Domain under which an operator that the ONNX checker does not know passes it."""

SMALL_BYTES = 1024
"""Weights of more bytes are not shown to the ONNX checker, which would copy them."""

_FIELDS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")


def check_whole(path: Path, model: onnx.ModelProto) -> None:
    """Check names, operators, shapes and sizes of ``model``, read from ``path``; values are not looked at.

    Raises:
        InvalidModelError: damaged: a name that nothing produces, a cycle, a weight of the wrong size …
        UnsupportedModelError: valid, but too old, too new, or with sparse weights, which would be lost.
    """
    if not model.HasField("graph") or not model.graph.output or not model.graph.node:
        raise InvalidModelError(
            f"{path}: not an ONNX file, or it is truncated (there is no graph in it); copy or export it again"
        )
    _check_texts(path, model)
    _check_versions(path, model)
    for graph in graphs(model):
        _check_tensors(path, graph)
        _check_unique(path, graph)
    _check_names(path, model.graph, frozenset())
    _check_operators(path, model)
    _check_schema(path, model)


# ---- versions


def _check_versions(path: Path, model: onnx.ModelProto) -> None:
    if model.ir_version > onnx.IR_VERSION:
        raise UnsupportedModelError(
            f"{path}: its ONNX IR version {model.ir_version} is newer than {onnx.IR_VERSION}, the newest "
            "that the installed onnx package reads; upgrade onnx or export with an older opset"
        )
    imports: dict[str, int] = {}
    for entry in model.opset_import:
        domain = "" if entry.domain in STANDARD_DOMAINS else entry.domain
        # "" and "ai.onnx" are one domain, which a file may declare under both names.
        if imports.setdefault(domain, entry.version) != entry.version:
            raise InvalidModelError(
                f"{path}: declares two versions of operator set {domain!r}, {imports[domain]} and "
                f"{entry.version}; export it again"
            )
    if "" not in imports:
        raise InvalidModelError(
            f"{path}: declares no version of the standard operators, so it is truncated or damaged; "
            "copy or export it again"
        )
    if not OPSETS[0] <= imports[""] <= OPSETS[1]:
        raise UnsupportedModelError(
            f"{path}: opset {imports['']} is not supported (opsets {OPSETS[0]} to {OPSETS[1]} are); "
            "convert it first, for example with onnx.version_converter.convert_version"
        )


# ---- tensors


def _check_tensors(path: Path, graph: onnx.GraphProto) -> None:
    if graph.sparse_initializer:
        name = graph.sparse_initializer[0].values.name
        raise UnsupportedModelError(
            f"{path}: weight {name!r} is a sparse initializer, which is not supported; store it dense"
        )
    for tensor in tensors(graph):
        _check_tensor(path, tensor)


def _check_tensor(path: Path, tensor: onnx.TensorProto) -> None:
    where = f"{path}: weight {tensor.name!r}"
    if tensor.data_type == onnx.TensorProto.UNDEFINED or tensor.data_type not in KINDS:
        raise InvalidModelError(
            f"{where} has the unknown data type {tensor.data_type}; the file is damaged, export it again"
        )
    shape = list(tensor.dims)
    if any(size < 0 for size in shape):
        raise InvalidModelError(
            f"{where} has the shape {shape} with a negative size; the file is damaged, export it again"
        )
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return
    wanted, seen, unit = _size(tensor)
    if wanted != seen:
        raise InvalidModelError(
            f"{where} has {seen:,} {unit}, its shape {shape} needs {wanted:,}; "
            "the file is damaged, export it again"
        )


def _size(tensor: onnx.TensorProto) -> tuple[int, int, str]:
    """Wanted and seen size of an inline tensor, and what was counted."""
    kind, elements = KINDS[tensor.data_type], math.prod(int(size) for size in tensor.dims)
    if tensor.HasField("raw_data") and kind != "STRING":
        return number_of_bytes(tensor), len(tensor.raw_data), "bytes"
    seen = sum(len(getattr(tensor, field)) for field in _FIELDS)
    if kind in PACKED_BITS:
        return math.ceil(elements * PACKED_BITS[kind] / 8), seen, "packed elements"
    # A complex element is two numbers in its field.
    return elements * (2 if kind.startswith("COMPLEX") else 1), seen, "elements"


# ---- names


def _check_unique(path: Path, graph: onnx.GraphProto) -> None:
    for values, noun in ((graph.initializer, "weights"), (graph.input, "inputs"), (graph.output, "outputs")):
        name, count = max(
            Counter(value.name for value in values).items(), key=lambda item: item[1], default=("", 0)
        )
        if count > 1:
            raise InvalidModelError(
                f"{path}: {count} {noun} are called {name!r}; the file is damaged, export it again"
            )


def _check_names(path: Path, graph: onnx.GraphProto, outer: frozenset[str]) -> None:
    """Every name that is read is produced, once, here or in a graph around this one."""
    producers: set[str] = set()
    for value in graph.input:
        if not value.type.WhichOneof("value") and not outer:
            raise InvalidModelError(f"{path}: input {value.name!r} has no type; export the model again")
    given = {value.name for value in (*graph.input, *graph.initializer)}
    for node in graph.node:
        for name in filter(None, node.output):
            if name in producers or name in given:
                raise InvalidModelError(
                    f"{path}: the name {name!r} is produced twice (again by node {_label(node)}); "
                    "the file is damaged, export it again"
                )
            producers.add(name)
    # Names are collected before they are looked up: the order of the nodes is not checked here, since ONNX
    # Runtime runs unsorted graphs.
    known = outer | given | producers
    for node in graph.node:
        for name in filter(None, node.input):
            if name not in known:
                raise InvalidModelError(
                    f"{path}: node {_label(node)} reads {name!r}, which nothing produces; "
                    "the file is truncated or damaged, copy or export it again"
                )
    for value in graph.output:
        if value.name not in known:
            raise InvalidModelError(
                f"{path}: nothing produces the output {value.name!r}; "
                "the file is truncated or damaged, copy or export it again"
            )
    for inner in subgraphs(graph.node):
        _check_names(path, inner, known)


def execution_order(path: Path, graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Nodes of ``graph`` so that each comes after those that it reads.

    Raises:
        InvalidModelError: a node needs its own output.
    """
    nodes = list(graph.node)
    producers = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    sources = {
        index: {producers[name] for name in reads(node) if name in producers}
        for index, node in enumerate(nodes)
    }
    try:
        return [nodes[index] for index in graphlib.TopologicalSorter(sources).static_order()]
    except graphlib.CycleError as error:
        stuck = nodes[error.args[1][0]]
        raise InvalidModelError(
            f"{path}: node {_label(stuck)} is part of a cycle, so it can never run; export the model again"
        ) from error


# ---- texts


def _check_texts(path: Path, model: onnx.ModelProto) -> None:
    """Names and descriptions are text: of a damaged file the parser gives bytes, which nothing can write."""
    for field, value in _texts(model):
        if isinstance(value, bytes):
            raise InvalidModelError(
                f"{path}: {field} {value!r} is no text in UTF-8; the file is damaged, copy or export it again"
            )


def _texts(message: Message) -> Iterator[tuple[str, str | bytes]]:
    """Name of the field and value of every text in ``message``, and in the messages within it."""
    for field, value in message.ListFields():
        if field.type not in (field.TYPE_STRING, field.TYPE_MESSAGE):
            continue
        for each in [value] if isinstance(value, (str, bytes, Message)) else value:
            if field.type == field.TYPE_MESSAGE:
                yield from _texts(each)
            else:
                yield field.name, each


# ---- operators


def _check_operators(path: Path, model: onnx.ModelProto) -> None:
    imports = {entry.domain: entry.version for entry in model.opset_import}
    opset = next(imports[domain] for domain in STANDARD_DOMAINS if domain in imports)
    functions = {(function.domain, function.name) for function in model.functions}
    for graph in graphs(model):
        for node in graph.node:
            if (node.domain, node.op_type) in functions:
                continue
            standard = node.domain in STANDARD_DOMAINS and node.op_type not in FUSED_OPERATORS
            if standard and not onnx.defs.has(node.op_type, opset, ""):
                raise InvalidModelError(
                    f"{path}: node {_label(node)} is no operator of opset {opset}; "
                    "the file is damaged, export it again"
                )


def _check_schema(path: Path, model: onnx.ModelProto) -> None:
    """What the ONNX checker says about the graph without its large weights."""
    if any(
        entry.version > onnx.defs.onnx_opset_version() for entry in model.opset_import if not entry.domain
    ):
        return
    # Before version 4 an initializer had to be an input as well, which this copy does not follow.
    copy = onnx.ModelProto(ir_version=max(model.ir_version, 4))
    copy.opset_import.extend(model.opset_import)
    copy.opset_import.append(onnx.helper.make_opsetid(_UNCHECKED, 1))
    copy.functions.extend(model.functions)
    graph, source = copy.graph, model.graph
    graph.name = source.name or "graph"
    # The checker asks for sorted nodes, whereas ONNX Runtime does not.
    graph.node.extend(execution_order(path, source))
    opset = next(entry.version for entry in model.opset_import if not entry.domain)
    for node in graph.node:
        if not (node.domain or onnx.defs.has(node.op_type, opset, "")):
            # Operators that ONNX Runtime writes into the standard domain are unknown to the checker, but
            # are run.
            node.domain = _UNCHECKED
    graph.input.extend(map(with_shape, source.input))
    graph.output.extend(map(with_shape, source.output))
    inputs = {value.name for value in source.input}
    for tensor in source.initializer:
        # A large weight becomes an input of its type and shape, so that it is not copied.
        inline = tensor.data_location != onnx.TensorProto.EXTERNAL
        if inline and tensor.ByteSize() <= SMALL_BYTES:
            graph.initializer.append(tensor)
        elif tensor.name not in inputs:
            graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
    try:
        onnx.checker.check_model(copy)
    except onnx.checker.ValidationError as error:
        first = str(error).strip().splitlines()[0]
        raise InvalidModelError(f"{path}: the ONNX checker refuses it ({first}); export it again") from error


def with_shape(value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    """``value``, or a scalar float of its name: the checker asks for a type and a shape, runtimes do not."""
    if value.type.WhichOneof("value") not in (None, "tensor_type") or value.type.tensor_type.HasField(
        "shape"
    ):
        return value
    kind = value.type.tensor_type.elem_type or onnx.TensorProto.FLOAT
    return onnx.helper.make_tensor_value_info(value.name, kind, [])


def _label(node: onnx.NodeProto) -> str:
    return f"{(node.name or next(iter(node.output), ''))!r} ({node.op_type})"
