"""Parts side by side in one graph, and apart again.

Values, nodes and sizes of a part carry its prefix in the joined graph, so that ``step/logits`` is what the
part with past calls ``logits``. A weight that several parts store is stored once. A merged decoder, an If
with a branch for each kind of step, is two parts of one file.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from graphcompress.errors import UnsupportedModelError
from graphcompress.files.declared import Dim, is_legible
from graphcompress.files.parts import Named, Part, alone, part_of, read_parts
from graphcompress.files.reading.model_file import read_model
from graphcompress.files.stored import digest_of

PREFIXES: Mapping[str, str] = {"encoder": "encoder/", "decoder": "prefill/", "decoder_with_past": "step/"}
"""Role of a part → what its names begin with in the joined graph."""

BRANCHES = ("decoder", "decoder_with_past")
"""The two parts that a merged decoder is: its else branch and its then branch."""

_SIZE = re.compile(r"[A-Za-z_]\w*(?!\w*\()", re.ASCII)
"""The name of a size, by itself or in arithmetic with others; a function is none."""


def read_model_or_parts(path: Path) -> tuple[ir.Model, tuple[Path, ...], tuple[Part, ...]]:
    """The graph of a file, or of the files of a folder joined; all files that were read; the parts.

    Raises:
        InvalidModelError: as :func:`read_model` and :func:`graphcompress.files.parts.read_parts`.
        UnsupportedModelError: as :func:`read_model`; a merged decoder that is not one If; different opsets.
    """
    if not path.is_dir():
        model, files = read_model(path)
        return model, files, alone(part_of_model(path, model))
    parts = read_parts(path)
    if not parts:  # the folder of an ordinary model, which is named by its file
        return (*read_model(path), ())
    read = {part.path: read_model(part.path) for part in parts}
    files = tuple(dict.fromkeys(file for part in parts for file in read[part.path][1]))
    pieces = [piece for part in parts for piece in _pieces(part, read[part.path][0])]
    if len(pieces) == 1:
        return pieces[0][1], files, (pieces[0][0],)
    _check_opsets(pieces)
    named = [(replace(part, prefix=PREFIXES[part.role]), model) for part, model in pieces]
    return _joined(named), files, tuple(part for part, _ in named)


def prefixes(part: Part) -> tuple[str, ...]:
    """What the names of the file's part, or of both its branches, begin with beside those of other files."""
    roles = BRANCHES if part.role == "decoder_merged" else (part.role,)
    return tuple(PREFIXES[role] for role in roles)


def part_of_model(path: Path, model: ir.Model) -> Part:
    """What ``model``, in the file ``path``, does in a model that writes."""
    graph = model.graph
    given = [value for value in graph.inputs if value.name not in graph.initializers]
    return part_of(path, [_named(value) for value in given], [_named(value) for value in graph.outputs])


def _named(value: ir.Value) -> Named:
    dims = tuple(dim if isinstance(dim, int) else dim.value or "" for dim in value.shape or ())
    dtype = value.dtype.numpy() if value.dtype else np.dtype(np.float32)
    return value.name or "", dtype, dims


def _check_opsets(pieces: Sequence[tuple[Part, ir.Model]]) -> None:
    first = pieces[0]
    for part, model in pieces[1:]:
        for domain, version in model.graph.opset_imports.items():
            other = first[1].graph.opset_imports.get(domain, version)
            if other != version:
                raise UnsupportedModelError(
                    f"{part.path}: written in opset {version}, {first[0].path.name} in {other}; "
                    "export all parts in one"
                )


# ---- a merged decoder


def _pieces(part: Part, model: ir.Model) -> list[tuple[Part, ir.Model]]:
    """The part itself; of a merged decoder its two branches, each as a part of its own."""
    if part.role != "decoder_merged":
        return [(part, model)]
    nodes = list(model.graph)
    switch = nodes[0] if len(nodes) == 1 and nodes[0].op_type == "If" else None
    if switch is None or switch.inputs[0] is None or switch.inputs[0].name != part.input("switch"):
        raise UnsupportedModelError(
            f"{part.path}: a merged decoder that is not one If over {part.input('switch')!r}; "
            "export the decoders as separate files"
        )
    names = [value.name or "" for value in model.graph.outputs]
    places = [next(i for i, made in enumerate(switch.outputs) if made.name == name) for name in names]
    made = []
    for attribute in ("else_branch", "then_branch"):
        branch = switch.attributes[attribute].as_graph()
        made.append(_branch(part, model, branch, dict(zip(names, places, strict=True))))
    return made


def _branch(
    part: Part, whole: ir.Model, branch: ir.Graph, places: Mapping[str, int]
) -> tuple[Part, ir.Model]:
    """One branch as a model: it reads what it captures; outputs that are empty stand-ins are left out."""
    branch = branch.clone(allow_outer_scope_values=True)
    outer = {value: _twin(value) for value in whole.graph.inputs}
    initializers: dict[str, ir.Value] = {}
    read: set[ir.Value] = set()
    for node in ir.traversal.RecursiveGraphIterator(branch):
        for index, value in enumerate(node.inputs):
            if value in outer:
                read.add(value)
                node.replace_input_with(index, outer[value])
            elif value is not None and value.is_initializer() and value.graph is whole.graph:
                initializers.setdefault(value.name or "", _stored_twin(value))
                node.replace_input_with(index, initializers[value.name or ""])
    outputs = {name: branch.outputs[place] for name, place in places.items()}
    kept = {name: value for name, value in outputs.items() if not _is_stand_in(value)}
    declared = {value.name: value for value in whole.graph.outputs}
    nodes = list(branch)
    branch.outputs.clear()
    branch.remove(nodes)
    inner = list(branch.initializers.values())
    branch.initializers.clear()
    for name, value in kept.items():
        value.name = name
        value.shape = declared[name].shape if value.shape is None else value.shape
        value.type = value.type or declared[name].type
    graph = ir.Graph(
        [outer[value] for value in whole.graph.inputs if value in read],
        list(kept.values()),
        nodes=nodes,
        initializers=[*initializers.values(), *inner],
        opset_imports=dict(whole.graph.opset_imports),
        name=branch.name,
    )
    model = ir.Model(graph, ir_version=whole.ir_version, metadata_props=dict(whole.metadata_props))
    return replace(part_of_model(part.path, model), whole=part), model


def _twin(value: ir.Value) -> ir.Value:
    return ir.Value(name=value.name, shape=value.shape, type=value.type, doc_string=value.doc_string)


def _stored_twin(value: ir.Value) -> ir.Value:
    return ir.Value(name=value.name, shape=value.shape, type=value.type, const_value=value.const_value)


def _is_stand_in(value: ir.Value) -> bool:
    """Whether a branch returns a constant where it has nothing to return."""
    node = value.producer()
    return value.is_initializer() or (node is not None and not [v for v in node.inputs if v is not None])


# ---- joined


def _joined(pieces: Sequence[tuple[Part, ir.Model]]) -> ir.Model:
    """All parts in one graph."""
    stored = _Stored()
    inputs: list[ir.Value] = []
    outputs: list[ir.Value] = []
    nodes: list[ir.Node] = []
    opsets: dict[str, int] = {}
    about: dict[str, str] = {}
    for part, model in pieces:
        graph = model.graph
        _rename(model, part.prefix.__add__, _prefixed_size(part.prefix))
        stored.take_in(part.prefix, graph)
        opsets.update(graph.opset_imports)
        about.update({part.prefix + key: text for key, text in model.metadata_props.items()})
        inputs.extend(graph.inputs)
        outputs.extend(graph.outputs)
        graph.inputs.clear()
        graph.outputs.clear()
        members = list(graph)
        graph.remove(members)
        nodes.extend(members)
    first = pieces[0][1]
    whole = ir.Graph(
        inputs,
        outputs,
        nodes=nodes,
        initializers=list(stored.values.values()),
        opset_imports=opsets,
        name=first.graph.name,
    )
    return ir.Model(
        whole,
        ir_version=max(model.ir_version for _, model in pieces),
        producer_name=first.producer_name,
        producer_version=first.producer_version,
        metadata_props=about,
    )


class _Stored:
    """Initializers of the joined graph, each stored once."""

    def __init__(self) -> None:
        self.values: dict[str, ir.Value] = {}
        self._known: dict[tuple[object, ...], list[ir.Value]] = defaultdict(list)

    def take_in(self, prefix: str, graph: ir.Graph) -> None:
        """Move the initializers of ``graph`` here; readers of one that is known read the known one."""
        own = list(graph.initializers.values())
        graph.initializers.clear()
        seen: dict[tuple[object, ...], int] = defaultdict(int)
        fresh: list[tuple[tuple[object, ...], ir.Value]] = []
        for value in own:
            key = _key(value, prefix)
            # The third equal weight of one part is the third of another: what a file stores twice stays so.
            known = self._known[key]
            if seen[key] < len(known):
                ir.convenience.replace_all_uses_with(value, known[seen[key]], replace_graph_outputs=True)
            else:
                fresh.append((key, value))
            seen[key] += 1
        for key, value in fresh:
            if value.name in self.values:
                value.name = f"{prefix}{value.name}"
            self.values[value.name or ""] = value
            self._known[key].append(value)


def _key(value: ir.Value, prefix: str) -> tuple[object, ...]:
    """What two values have in common that are one weight; nodes of the part begin with ``prefix``."""
    tensor = value.const_value
    if tensor is None:
        return (value.name,)
    shape = tuple(tensor.shape.numpy())
    # Equal zeros say nothing: biases of two linears that are not yet trained are one by their name alone.
    says_nothing = tensor.size == 0 or len(np.unique(tensor.numpy())) == 1
    return (tensor.dtype, shape, digest_of(tensor), _told(value, prefix) if says_nothing else "")


def _told(value: ir.Value, prefix: str) -> object:
    """The name of a value; where the exporter made one up (``onnx::Add_603``), what it is read by."""
    if "::" not in (value.name or ""):
        return value.name
    return tuple(((use.node.name or "").removeprefix(prefix), use.idx) for use in value.uses())[:1]


# ---- apart


def separated(model: ir.Model, part: Part) -> ir.Model:
    """One part of a joined model by itself, with the names and sizes of its own file; ``model`` stays."""
    prefix = part.prefix
    inputs = [value for value in model.graph.inputs if (value.name or "").startswith(prefix)]
    outputs = [value for value in model.graph.outputs if (value.name or "").startswith(prefix)]
    graph = ir.convenience.extract(model.graph, inputs, outputs)
    about = {
        key.removeprefix(prefix): text for key, text in model.metadata_props.items() if key.startswith(prefix)
    }
    made = ir.Model(
        graph,
        ir_version=model.ir_version,
        producer_name=model.producer_name,
        producer_version=model.producer_version,
        metadata_props=about,
    )
    if prefix:
        taken = {value.name for value in _values(made) if not (value.name or "").startswith(prefix)}

        def own_name(name: str) -> str:
            own = name.removeprefix(prefix)
            return name if own != name and own in taken else own

        _rename(made, own_name, _own_size(prefix), stored=True)
    return made


def _prefixed_size(prefix: str) -> Callable[[Dim], Dim]:
    tag = prefix.replace("/", "_")

    def prefixed(name: str) -> str:
        return _SIZE.sub(lambda found: tag + found[0], name) if is_legible(name) else tag + name

    return lambda dim: _named_anew(dim, prefixed)


def _own_size(prefix: str) -> Callable[[Dim], Dim]:
    tag = prefix.replace("/", "_")

    def own(name: str) -> str:
        if not is_legible(name):
            return name.removeprefix(tag)
        return _SIZE.sub(lambda found: found[0].removeprefix(tag), name)

    return lambda dim: _named_anew(dim, own)


def _named_anew(dim: Dim, name_of: Callable[[str], str]) -> Dim:
    return dim if isinstance(dim, int) or dim.value is None else ir.SymbolicDim(name_of(dim.value))


def _rename(
    model: ir.Model, name_of: Callable[[str], str], size_of: Callable[[Dim], Dim], *, stored: bool = False
) -> None:
    """Give every value but the initializers, every node and every size the name that these functions say."""
    for value in list(_values(model)):  # a new name moves an initializer within its graph
        if value.name and (stored or not value.is_initializer()):
            value.name = name_of(value.name)
        if value.shape is not None and not value.is_initializer():
            value.shape = ir.Shape([size_of(dim) for dim in value.shape])
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.name:
            node.name = name_of(node.name)


def _values(model: ir.Model) -> Iterator[ir.Value]:
    """All values of the model and of its subgraphs."""
    for graph in model.graphs():
        yield from graph.inputs
        yield from (value for value in graph.initializers.values() if not value.is_graph_input())
        for node in graph:
            yield from node.outputs
