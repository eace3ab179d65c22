"""Writes the parts of a model to their files: merged decoders merged again, equal weights stored once."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import onnx_ir as ir

from graphcompress.files.parts import SUBFOLDER, Part, PartValue
from graphcompress.files.stored import digest_of, write_bytes
from graphcompress.files.streaming import write_model

SHARED_FILE = "shared.onnx_data"
"""External data that several parts read."""

SWITCH = "use_cache_branch"
"""Input of a merged decoder that says which branch runs."""

INLINE_LIMIT_BYTES = 1_500_000_000
"""A file of more bytes has its weights beside it: protobuf refuses messages above 2 GiB."""

_LEAST_BYTES = 256
"""Smaller weights lie in every file that reads them: to say where one lies takes some 80 bytes in each."""

_ALIGNED_BYTES, _PAGE_BYTES, _LARGE_BYTES = 64, 4096, 1 << 20
"""Weights begin at a multiple of 64 bytes, those above 1 MiB at a page, so that they can be mapped."""


def part_place(part: Part) -> Path:
    """Where the file of ``part`` goes within the folder of its model, which may have a subfolder ``onnx``."""
    folder = Path(SUBFOLDER) if part.path.parent.name == SUBFOLDER else Path()
    return folder / part.path.name


def save_parts(parts: Sequence[tuple[Part, ir.Model]], folder: Path) -> list[Path]:
    """Write every part to the file name that it came from, below ``folder``; the files, in their order.

    What several files hold alike is stored once, as external data beside them. transformers.js finds external
    data by the name of one file alone, so that in its layout every file holds its own. The other weights lie
    in their files, of a large one in ``<file>_data`` beside it.
    """
    models = dict(_files(parts))
    shared = {place: model for place, model in models.items() if place.parent == Path()}
    files = []
    for place in models:
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
    with (folder / SHARED_FILE).open("wb") as data:
        _share(list(shared.values()), data, folder)
        used = data.tell()
    if not used:
        (folder / SHARED_FILE).unlink()
    for place, model in models.items():
        _write(model, folder / place)
        files.append(folder / place)
    return files


def merged_part(path: Path, prefill: Part, step: Part) -> Part:
    """The decoder at ``path`` that is ``prefill`` and ``step`` in one, with a switch between them."""
    reads = {value.name: value for part in (prefill, step) for value in part.inputs}
    switch = PartValue(SWITCH, "switch", np.dtype(bool), (1,))
    longer = {value.name: value for value in step.outputs}
    outputs = tuple(longer.get(value.name, value) for value in prefill.outputs)
    return Part(path, "decoder_merged", (*reads.values(), switch), outputs, step.past)


def _write(model: ir.Model, path: Path) -> None:
    """Write one file; what is not in shared data lies in it, or beside it when it is large."""
    if sum(tensor.nbytes for tensor in _own_tensors(model)) > INLINE_LIMIT_BYTES:
        ir.save(model, path, external_data=f"{path.name}_data", size_threshold_bytes=_LEAST_BYTES)
    else:
        write_model(model, path)


def _own_tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None and not isinstance(value.const_value, ir.ExternalTensor):
                yield value.const_value


def _files(parts: Sequence[tuple[Part, ir.Model]]) -> Iterator[tuple[Path, ir.Model]]:
    """The model of every file: a merged decoder has two parts."""
    together: dict[Path, list[tuple[Part, ir.Model]]] = defaultdict(list)
    for part, model in parts:
        together[part_place(part)].append((part, model))
    for place, found in together.items():
        if len(found) == 1:
            yield place, found[0][1]
            continue
        by_role = {part.role: model for part, model in found}
        whole = found[0][0].whole
        if whole is not None:
            yield place, _merged(whole, by_role["decoder"], by_role["decoder_with_past"])


# ---- weights that several files hold


def _share(models: Sequence[ir.Model], data: IO[bytes], folder: Path) -> None:
    """Write the weights of several of ``models`` to ``data``, and let all refer to them there."""
    if len(models) == 1:
        return
    found = [[(value, _key(value)) for value in _weights(model)] for model in models]
    holders = Counter(key for weights in found for key in {key for _, key in weights})
    written: dict[tuple[object, ...], ir.ExternalTensor] = {}
    for value, key in itertools.chain.from_iterable(found):
        tensor = value.const_value
        if tensor is None or holders[key] == 1:
            continue
        if key not in written:
            step = _PAGE_BYTES if tensor.nbytes >= _LARGE_BYTES else _ALIGNED_BYTES
            data.write(bytes(-data.tell() % step))
            start = data.tell()
            write_bytes(tensor, data)
            written[key] = ir.ExternalTensor(
                SHARED_FILE,
                start,
                tensor.nbytes,
                tensor.dtype,
                shape=ir.Shape(tensor.shape.numpy()),
                name=value.name or "",
                base_dir=folder,
            )
        value.const_value = written[key]


def _weights(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is not None and tensor.nbytes >= _LEAST_BYTES and tensor.dtype != ir.DataType.STRING:
                yield value


def _key(value: ir.Value) -> tuple[object, ...]:
    tensor = value.const_value
    if tensor is None:
        return (value,)
    return (tensor.dtype, tuple(tensor.shape.numpy()), digest_of(tensor))


# ---- a merged decoder


def _merged(whole: Part, prefill: ir.Model, step: ir.Model) -> ir.Model:
    """One decoder with an If over the switch of ``whole``: then ``step``, else ``prefill``."""
    outer = {value.name: value for value in _inputs(whole, prefill, step)}
    stored: dict[tuple[object, ...], ir.Value] = {}
    names = {*outer, *(value.name for value in whole.outputs)}
    branches = {}
    for name, model in (("else_branch", prefill), ("then_branch", step)):
        branches[name] = _branch(name, model, whole, outer, stored, names, prefill)
    switch = outer[whole.input("switch")]
    node = ir.Node(
        "",
        "If",
        [switch],
        [ir.AttrGraph(name, branch) for name, branch in branches.items()],
        num_outputs=len(whole.outputs),
        name="switch",
    )
    returned = {value.name: value for value in prefill.graph.outputs}
    for made, output in zip(node.outputs, whole.outputs, strict=True):
        made.name, made.type = output.name, returned[output.name].type
        made.shape = _shape(output.shape, returned[output.name].shape)
    graph = ir.Graph(
        list(outer.values()),
        list(node.outputs),
        nodes=[node],
        initializers=list(stored.values()),
        opset_imports={**prefill.graph.opset_imports, **step.graph.opset_imports},
        name="merged",
    )
    about = {**prefill.metadata_props, **step.metadata_props}
    return ir.Model(graph, ir_version=max(prefill.ir_version, step.ir_version), metadata_props=about)


def _inputs(whole: Part, *branches: ir.Model) -> Iterator[ir.Value]:
    """Inputs of the merged decoder in the order of its file, in the sizes that the branches have."""
    known: dict[str | None, ir.Value] = {}
    for model in branches:
        known.update({value.name: value for value in model.graph.inputs})
    for read in whole.inputs:
        value = known.get(read.name)
        kind = ir.TensorType(ir.DataType.from_numpy(read.dtype)) if value is None else value.type
        shape = _shape(read.shape, None if value is None else value.shape)
        yield ir.Value(name=read.name, shape=shape, type=kind)


def _shape(said: Sequence[int | str], found: ir.Shape | None) -> ir.Shape:
    """The sizes of a file; its numbers as they are now."""
    dims = list(found) if found is not None and len(found) == len(said) else list(said)
    return ir.Shape(
        [
            new if isinstance(old, int) and isinstance(new, int) else old or None
            for old, new in zip(said, dims, strict=True)
        ]
    )


def _branch(
    name: str,
    model: ir.Model,
    whole: Part,
    outer: Mapping[str | None, ir.Value],
    stored: dict[tuple[object, ...], ir.Value],
    names: set[str | None],
    prefill: ir.Model,
) -> ir.Graph:
    """``model`` as a branch: it captures inputs and weights of the graph around it."""
    graph = model.clone().graph
    for value in graph.inputs:
        ir.convenience.replace_all_uses_with(value, outer[value.name])
    graph.inputs.clear()
    own = list(graph.initializers.values())
    graph.initializers.clear()
    for value in own:
        key = _key(value)
        if key not in stored:
            while value.name in names:
                value.name = f"{value.name}_"
            names.add(value.name)
            stored[key] = value
        elif stored[key] is not value:
            ir.convenience.replace_all_uses_with(value, stored[key], replace_graph_outputs=True)
    returned = {value.name: value for value in graph.outputs}
    whole_of = {value.name: value for value in prefill.graph.outputs}
    graph.outputs.clear()
    for output in whole.outputs:
        if output.name not in returned:
            graph.append(_stand_in(whole_of[output.name]))
        graph.outputs.append(returned.get(output.name) or graph[-1].outputs[0])
    suffix = name.partition("_")[0]
    for node in ir.traversal.RecursiveGraphIterator(graph):
        for made in node.outputs:
            # A name of the graph around the branch may not be given twice.
            if made.name in names:
                made.name = f"{made.name}.{suffix}"
    graph.name = name
    return graph


def _stand_in(value: ir.Value) -> ir.Node:
    """An empty array of the type and rank of ``value``, where a step has nothing to return."""
    shape = [dim if isinstance(dim, int) else 1 for dim in value.shape or ()]
    dtype = value.dtype or ir.DataType.FLOAT
    empty = np.zeros([0, *shape[1:]], dtype.numpy())
    node = ir.Node("", "Constant", [], [ir.AttrTensor("value", ir.tensor(empty))], num_outputs=1)
    node.outputs[0].name = value.name
    return node
