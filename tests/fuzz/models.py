"""Random valid models: one for every seed, with feeds of sizes that nothing in the file gives away."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fuzz.attending import attention
from fuzz.blocks import control, convolution, elementwise, experts, feed_forward, norm, shapes
from fuzz.graph import Dim, Graph, Units

Feed = dict[str, np.ndarray]

VOCABULARY, POSITIONS = 23, 96

SIZES = ((2, 5), (1, 1), (3, 1), (1, 9), (2, 70))
"""Batch and length of the feeds of a model whose sizes vary: 1, and more than the constants in the graph."""

FIXED = (2, 7)


@dataclass(frozen=True)
class Case:
    """One model.

    Attributes:
        seed: that it was made from.
        model: the file.
        feeds: inputs to run it on.
        units: its heads and FFN nodes, as the generator knows them.
    """

    seed: int
    model: onnx.ModelProto
    feeds: tuple[Feed, ...]
    units: tuple[Units, ...]


def case(seed: int) -> Case:
    """The model of ``seed``: the same in every run."""
    rng = np.random.default_rng(seed)
    g = Graph(rng, int(rng.integers(13, 26)))
    names = _sizes(g)
    x, width, mask = _entry(g, names)
    x = _body(g, x, width, mask)
    outputs = _exit(g, x, width, names)
    return Case(seed, _model(g, outputs), tuple(_feeds(g, names)), tuple(g.units))


def _sizes(g: Graph) -> tuple[Dim, Dim]:
    """What the file says about batch and length."""
    batch: Dim = g.pick(("batch", "N", "batch size", "x:0", None, "N", "batch", FIXED[0]))
    length: Dim = g.pick(("sequence", "S", "2*S", "S", None, "sequence", FIXED[1]))
    return batch, length


def _entry(g: Graph, names: tuple[Dim, Dim]) -> tuple[str, int, str | None]:
    """Inputs and what they become: tokens [N, S, width], and an additive mask or none."""
    width = int(g.pick((12, 16, 16, 24, 15, 22)))
    if g.chance(0.5):
        x = g.input("x", [*names, width])
        x = g.op("Tanh", x) if g.chance(0.3) else x
    else:
        ids = g.input("input_ids", names, TensorProto.INT64)
        x = g.op("Gather", g.weight(VOCABULARY, width, stem="embedding", gain=5.0), ids)
        if g.chance(0.6):
            x = g.op("Add", x, _positions(g, ids, width))
    if g.chance(0.5):
        x = norm(g, x, width)
    return x, width, _mask(g, names) if g.chance(0.4) else None


def _positions(g: Graph, ids: str, width: int) -> str:
    """The embedding of positions, looked up, sliced, or of a stored list of positions."""
    table = g.weight(POSITIONS, width, stem="positions", gain=3.0)
    form = g.pick(("slice", "range", "buffer"))
    length = g.size(ids, 1)
    if form == "slice":
        return g.op("Unsqueeze", g.op("Slice", table, g.ints(0), length, g.ints(0)), g.ints(0))
    if form == "range":
        end = g.op("Squeeze", length, g.ints(0))
        zero, one = g.stored(np.array(0, np.int64)), g.stored(np.array(1, np.int64))
        return g.op("Gather", table, g.op("Range", zero, end, one))
    buffer = g.stored(np.arange(POSITIONS, dtype=np.int64)[None], "position_ids")
    return g.op("Gather", table, g.op("Slice", buffer, g.ints(0), length, g.ints(1)))


def _mask(g: Graph, names: tuple[Dim, Dim]) -> str:
    """A mask of padding that is added to scores: [N, 1, 1, S]."""
    mask = g.input("attention_mask", names, TensorProto.INT64)
    floor = float(g.pick((-1e4, -1e9, -3e38)))
    if g.chance(0.5):
        wide = g.op("Unsqueeze", g.op("Unsqueeze", mask, g.ints(1)), g.ints(2))
        inverse = g.op("Sub", g.number(1.0), g.op("Cast", wide, to=1))
        return g.op("Mul", inverse, g.number(floor))
    seen = g.op("Cast", g.op("Unsqueeze", mask, g.ints(1, 2)), to=9)
    return g.op("Where", seen, g.bound(0.0), g.bound(floor))


def _body(g: Graph, x: str, width: int, mask: str | None) -> str:
    """Blocks on a residual stream, and things in between."""
    style = g.pick(("pre", "post", "none", "after"))
    for _ in range(int(g.rng.integers(1, 4))):
        kind = g.pick(("attention", "attention", "ffn", "ffn", "experts", "convolution", "repeat"))
        read = norm(g, x, width) if style == "pre" else x
        if kind == "attention":
            y = attention(g, read, width, mask)
        elif kind == "ffn":
            y = feed_forward(g, read, width)
        elif kind == "experts":
            y = experts(g, read, width)
        elif kind == "convolution":
            y = convolution(g, read, width)
        else:
            y = _repeat(g, read, width)
        y = norm(g, y, width) if style == "after" else y
        x = g.add(x, y) if g.chance(0.9) else y
        x = norm(g, x, width) if style == "post" else x
        if g.chance(0.3):
            x = _between(g, x, width, shorter=mask is None)
        if g.chance(0.15):
            g.inner.append(x)
    return x


def _between(g: Graph, x: str, width: int, *, shorter: bool) -> str:
    """What is no block of a Transformer."""
    form = g.pick(("shapes", "elementwise", "control"))
    if form == "shapes":
        return shapes(g, x, width, shorter=shorter)
    return elementwise(g, x) if form == "elementwise" else control(g, x, width)


def _repeat(g: Graph, x: str, width: int) -> str:
    """The same weights twice, as ALBERT has them."""
    weight, shift = g.weight(width, width), g.vector(width)
    for _ in range(2):
        x = g.op("Tanh", g.op("Add", g.op("MatMul", x, weight), shift))
    return x


def _exit(g: Graph, x: str, width: int, names: tuple[Dim, Dim]) -> list[onnx.ValueInfoProto]:
    """The outputs: an answer of some kind, and what else the model shows."""
    form = g.pick(("tokens", "tokens", "mean", "first", "tied", "argmax", "time", "rank", "selected"))
    shape: list[Dim] = [*names, width]
    kind = TensorProto.FLOAT
    if form == "mean":
        x, shape = g.reduce("ReduceMean", x, 1, keepdims=0), [names[0], width]
    elif form == "first":
        x = g.op("Gather", x, g.stored(np.array(0, np.int64)), axis=1)
        x, _, _ = _pooled(g, x, width)
        shape = [names[0], 4]
    elif form == "tied":
        table = next((name for name in g.weights if name.startswith("embedding")), None)
        rows = VOCABULARY if table else 7
        x = g.op("MatMul", x, g.op("Transpose", table or g.weight(rows, width), perm=[1, 0]))
        shape = [*names, rows]
    elif form == "argmax":
        g.inner.append(x)
        x, kind, shape = g.op("ArgMax", g.op("Round", x), axis=-1, keepdims=0), TensorProto.INT64, [*names]
    elif form == "time":
        x, shape = g.op("Transpose", x, perm=[1, 0, 2]), [names[1], names[0], width]
    elif form == "rank":
        x, shape = g.op("Unsqueeze", x, g.ints(0)), [1, *names, width]
    elif form == "selected":
        x, shape = _selected(g, x), [width]
    final = g.op("Identity", x) if g.chance(0.3) else x
    outputs = [helper.make_tensor_value_info(final, kind, _declared(g, shape, form))]
    for value in dict.fromkeys(g.inner):
        if g.chance(0.6) and value != final:
            outputs.append(helper.make_tensor_value_info(value, TensorProto.FLOAT, None))
    if g.chance(0.15):
        twins = [g.op("Tanh", outputs[0].name) for _ in range(2)] if kind == TensorProto.FLOAT else []
        outputs += [helper.make_tensor_value_info(twin, TensorProto.FLOAT, None) for twin in twins]
    return outputs


def _pooled(g: Graph, x: str, width: int) -> tuple[str, str, str]:
    """A classifier on rows [N, width]."""
    weight, shift = g.weight(4, width), g.vector(4)
    return g.op("Gemm", x, weight, shift, transB=1), weight, shift


def _selected(g: Graph, x: str) -> str:
    """The mean of the first tokens among those whose number is positive; how many depends on the data."""
    score = g.reduce("ReduceSum", x, -1, keepdims=0)
    chosen = g.op("Transpose", g.op("NonZero", g.op("Greater", score, g.bound(0.0))), perm=[1, 0])
    rows = g.slice(g.op("GatherND", x, chosen), 0, 0, int(g.pick((2, 4))))
    count = g.op("Cast", g.op("Gather", g.op("Shape", rows), g.stored(np.array(0, np.int64))), to=1)
    safe = g.op("Add", count, g.bound(1.0))
    return g.op("Div", g.reduce("ReduceSum", rows, 0, keepdims=0), safe)


def _declared(g: Graph, shape: list[Dim], form: str) -> list[Dim] | None:
    """What the file says about an output: all, names of its own, or nothing."""
    how = g.pick(("nothing", "names", "right"))
    if how == "nothing" or (how == "right" and form == "selected"):
        return None
    if how == "names":
        return [g.name("size") if not isinstance(size, int) else size for size in shape[:-1]] + [shape[-1]]
    return [size if isinstance(size, int) or g.chance(0.9) else None for size in shape[:-1]] + [shape[-1]]


def _model(g: Graph, outputs: list[onnx.ValueInfoProto]) -> onnx.ModelProto:
    """The file; some weights may be overridden by the caller, since they are inputs, too."""
    overridable = [name for name in g.weights if g.chance(0.03)] if g.chance(0.3) else []
    for name in overridable:
        array = g.weights[name]
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        g.inputs.append(helper.make_tensor_value_info(name, kind, array.shape))
    tensors = [numpy_helper.from_array(array, name) for name, array in g.weights.items()]
    graph = helper.make_graph(g.nodes, "fuzz", g.inputs, outputs, tensors)
    opsets = [helper.make_opsetid("", g.opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10 if g.opset < 23 else 11)


def _feeds(g: Graph, names: tuple[Dim, Dim]) -> list[Feed]:
    """One feed for every pair of sizes that the model takes; masks have padding, defaults are overridden."""
    wanted = [
        tuple(
            size if isinstance(name, int) else free
            for name, size, free in zip(names, FIXED, sizes, strict=True)
        )
        for sizes in SIZES
    ]
    return [_feed(g, batch, length) for batch, length in dict.fromkeys(wanted)]


def _feed(g: Graph, batch: int, length: int) -> Feed:
    feed: Feed = {}
    for value in g.inputs:
        if value.name == "x":
            width = value.type.tensor_type.shape.dim[2].dim_value
            feed["x"] = g.rng.standard_normal((batch, length, width)).astype(np.float32)
        elif value.name == "input_ids":
            feed["input_ids"] = g.rng.integers(0, VOCABULARY, (batch, length))
        elif value.name == "attention_mask":
            ends = g.rng.integers(1, length + 1, batch)
            feed["attention_mask"] = (np.arange(length) < ends[:, None]).astype(np.int64)
        elif g.weights[value.name].dtype == np.float32 and g.chance(0.5):
            # Half of a mask's lowest number stays finite, one and a half of it would not.
            feed[value.name] = np.asarray(g.weights[value.name] * np.float32(0.5))
    return feed
