"""Reads an ONNX file and refuses it in one sentence when it is not whole."""

from __future__ import annotations

import graphlib
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
import onnx.inliner
import onnx_ir as ir
import onnx_ir.passes.common as common
from google.protobuf.message import DecodeError

from graphcompress.errors import InvalidModelError, UnsupportedModelError
from graphcompress.files.reading.protos import graphs, is_sorted, nodes, number_of_bytes, subgraphs, tensors
from graphcompress.files.reading.skim import skim
from graphcompress.files.reading.wholeness import STANDARD_DOMAINS, check_whole
from graphcompress.files.runtime import is_runtime_operator
from graphcompress.files.stored import stored

_IR_OF_FREE_INITIALIZERS = 4
"""Since this version an initializer need not be an input; one that is may be overridden."""

RUNTIME_DOMAINS = frozenset(
    {"", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc"}
)
"""Domains in which ONNX Runtime has operators of its own."""

MOST_NODES = 200_000
"""Nodes of a graph whose functions are written out; the largest models in use have some ten thousand."""

_MANY_CALLS = 200
"""Calls of one function up to which names are found by trying."""

_log = logging.getLogger(__name__)

_NOT_MODELS = {
    b"version https://git-lfs": "is a Git LFS pointer, not the model; fetch the model with git lfs pull",
    b"<": "is a web page or XML, not an ONNX file; download the model again",
    b"PK\x03\x04": "is a zip archive (a PyTorch checkpoint?), not an ONNX file; export it to ONNX first",
    b"{": "is JSON, not an ONNX file; give the model's .onnx file",
}


def read_model(path: Path) -> tuple[ir.Model, tuple[Path, ...]]:
    """The ``onnx_ir`` model in ``path``, functions inlined, and the files that it lies in, ``path`` first.

    Large weights are checked but not read.

    Raises:
        InvalidModelError: no such file, not ONNX, truncated, damaged, or external data missing, cut short or
            outside its folder.
        UnsupportedModelError: a construct that is not supported, such as sparse weights.
    """
    proto = parse(path)
    # The order matters: what follows looks operators up by the domain that is written here.
    _normalise_domains(proto)
    _free_initializers(proto)
    _forget_negative_sizes(proto)
    _drop_shadowed_functions(proto)
    # The message is checked before onnx_ir sees it, which repairs some damage silently.
    check_whole(path, proto)
    # Before inlining, which would never end on functions that call each other.
    calls = _check_calls(path, proto)
    files = {path.name: path}
    for graph in graphs(proto):
        for tensor in tensors(graph):
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                location, file = _check_external(path, tensor)
                files[location] = file
    try:
        # The inlining of onnx_ir keeps more notes, but tries names until one is free: with a function that is
        # called 4,000 times it took minutes.
        if calls > _MANY_CALLS:
            proto = onnx.inliner.inline_local_functions(proto)
        model = ir.from_proto(proto)
        # A graph that is in order stays exactly as the file has it.
        if not is_sorted(proto.graph):
            common.TopologicalSortPass()(model)
        if model.functions:
            common.InlinePass()(model)
        common.LiftConstantsToInitializersPass()(model)  # a weight may stand in a Constant node
    except (ir.serde.SerdeError, ir.passes.PassError, ValueError, TypeError, KeyError) as error:
        raise InvalidModelError(
            f"{path}: cannot be read ({_first_line(_root(error))}); the file is damaged, export it again"
        ) from error
    if proto.training_info:
        _log.warning("%s: its training graphs (training_info) are not read and will not be written", path)
    ir.external_data.set_base_dir(model.graph, path.parent)
    for part in model.graphs():
        for value in part.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = stored(value.const_value)
    return model, tuple(files.values())


def parse(path: Path) -> onnx.ModelProto:
    """The message in ``path``; its large weights are not read (see :mod:`graphcompress.files.reading.skim`).

    Raises:
        InvalidModelError: no such file, not ONNX, or truncated.
    """
    if not path.exists():
        raise InvalidModelError(f"{path}: no such file; check the path")
    if not path.is_file():
        raise InvalidModelError(f"{path}: not a file; give the model's .onnx file")
    try:
        begin = _begin(path)
        kind = next((kind for start, kind in _NOT_MODELS.items() if begin.startswith(start)), None)
        model = skim(path) if kind is None else None
    except OSError as error:
        raise InvalidModelError(
            f"{path}: cannot be read ({error.strerror}); check its permissions"
        ) from error
    except (DecodeError, ValueError) as error:
        raise InvalidModelError(
            f"{path}: not an ONNX file, or it is truncated (its {path.stat().st_size:,} bytes cannot be "
            "decoded); copy or export it again"
        ) from error
    if model is None:
        raise InvalidModelError(f"{path} {kind}")
    return model


def _begin(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(max(map(len, _NOT_MODELS)))


def _normalise_domains(model: onnx.ModelProto) -> None:
    """Write the standard domain as ``""`` (``ai.onnx`` means the same), and declare every domain in use.

    ONNX Runtime's transformer optimizer uses ``com.microsoft`` without saying so, and its sessions take the
    newest version then; its operators have had version 1 alone.
    """
    for entry in model.opset_import:
        entry.domain = "" if entry.domain in STANDARD_DOMAINS else entry.domain
    declared = {entry.domain for entry in model.opset_import}
    functions = {function.domain for function in model.functions}
    for node in nodes(model):
        node.domain = "" if node.domain in STANDARD_DOMAINS else node.domain
        if node.domain and node.domain not in declared | functions:
            model.opset_import.append(onnx.helper.make_opsetid(node.domain, 1))
            declared.add(node.domain)


def _free_initializers(model: onnx.ModelProto) -> None:
    """Before IR version 4 every initializer had to be an input as well and was constant all the same."""
    if model.ir_version >= _IR_OF_FREE_INITIALIZERS:
        return
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in stored]
    if len(inputs) < len(model.graph.input):
        del model.graph.input[:]
        model.graph.input.extend(inputs)
        model.ir_version = _IR_OF_FREE_INITIALIZERS


def _forget_negative_sizes(model: onnx.ModelProto) -> None:
    """A size below zero is how some exporters write one that is not known."""
    for graph in graphs(model):
        for value in (*graph.input, *graph.output, *graph.value_info):
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_value < 0:
                    dim.ClearField("dim_value")


def _drop_shadowed_functions(model: onnx.ModelProto) -> None:
    """Remove functions whose name ONNX Runtime implements itself: it runs its operator, not the function."""
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    kept = []
    for function in model.functions:
        domain = "" if function.domain in STANDARD_DOMAINS else function.domain
        if domain not in RUNTIME_DOMAINS or not is_runtime_operator(
            domain, function.name, opsets.get(domain, 1)
        ):
            kept.append(function)
    del model.functions[:]
    model.functions.extend(kept)


def _check_calls(path: Path, model: onnx.ModelProto) -> int:
    """How often a function is called at most, when all are written out.

    Refuses functions that call themselves, and such as become more nodes than anything can hold.

    Inlining knows no limit: 24 functions that each call the one before twice never came to an end.
    """
    functions = {(item.domain, item.name): list(_nodes_of(item.node)) for item in model.functions}
    calls = {
        key: {(node.domain, node.op_type) for node in body} & functions.keys()
        for key, body in functions.items()
    }
    try:
        order = list(graphlib.TopologicalSorter(calls).static_order())
    except graphlib.CycleError as error:
        name = error.args[1][0][1]
        raise InvalidModelError(
            f"{path}: function {name!r} calls itself, which ONNX forbids; export the model again"
        ) from error
    sizes: dict[tuple[str, str], int] = {}

    def size(body: Iterable[onnx.NodeProto]) -> int:
        return sum(sizes.get((node.domain, node.op_type), 1) for node in body)

    for key in order:
        sizes[key] = size(functions[key])
    whole = size(_nodes_of(model.graph.node))
    if model.functions and whole > MOST_NODES:
        raise UnsupportedModelError(
            f"{path}: its functions written out are {whole:,} nodes, more than {MOST_NODES:,}; "
            "store the model without them"
        )
    called = Counter((node.domain, node.op_type) for node in _nodes_of(model.graph.node))
    for key in reversed(order):
        for node in functions[key]:
            called[node.domain, node.op_type] += called[key]
    return max((called[key] for key in functions), default=0)


def _nodes_of(members: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """``members`` and the nodes of their subgraphs."""
    pending = list(members)
    while pending:
        node = pending.pop()
        yield node
        pending.extend(inner for graph in subgraphs([node]) for inner in graph.node)


def _check_external(path: Path, tensor: onnx.TensorProto) -> tuple[str, Path]:
    """The file that a weight is in: as the model says it, and where that is."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    where = f"{path}: external data of weight {tensor.name!r}"
    if not entries.get("location"):
        raise InvalidModelError(f"{where} names no file; the model is damaged, export it again")
    location = Path(entries["location"])
    offset, length = (_number(where, key, entries.get(key)) for key in ("offset", "length"))
    # A large weight inside the model's own file is described like external data; it may even be a link
    # elsewhere.
    file = path if location == Path(path.name) else _contained(where, path.parent, location)
    wanted, seen = number_of_bytes(tensor), file.stat().st_size
    if length is not None and length != wanted:
        raise InvalidModelError(
            f"{where} has {length:,} bytes, its shape {list(tensor.dims)} needs {wanted:,}; "
            "export the model again"
        )
    if seen < (offset or 0) + wanted:
        raise InvalidModelError(
            f"{where} is cut short: {location} has {seen:,} bytes, {(offset or 0) + wanted:,} are needed; "
            "copy it again"
        )
    return location.as_posix(), file


def _contained(where: str, parent: Path, location: Path) -> Path:
    folder = parent.resolve()
    file = folder / location
    if location.is_absolute() or ".." in location.parts:
        raise InvalidModelError(
            f"{where} lies outside the model's folder ({location}); "
            "put the file beside the model and export again"
        )
    # Said before the next check, because a link to nothing resolves to a path that may lie anywhere.
    if file.is_symlink() and not file.exists():
        raise InvalidModelError(f"{where} is missing: {location} is a link to nothing; copy the file there")
    # A location without ".." may still lead out of the folder through a link.
    if not file.resolve().is_relative_to(folder):
        raise InvalidModelError(
            f"{where} lies outside the model's folder ({location} is a link that leads out of it); "
            "put a copy of the file beside the model"
        )
    if not file.is_file():
        raise InvalidModelError(
            f"{where} is missing: there is no file {location} beside the model; copy it there"
        )
    return file


def _number(where: str, key: str, text: str | None) -> int | None:
    if not text:
        return None
    # int() would take signs, spaces, underscores and digits of other scripts.
    if not (text.isascii() and text.isdigit()):
        raise InvalidModelError(
            f"{where} has the {key} {text!r}, which is no size; the model is damaged, export it again"
        )
    return int(text)


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
