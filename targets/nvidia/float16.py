"""float16 written into a graph, with what does not fit into it left in float32."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from graphcompress.graph.match import is_standard
from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.targets.common.family import CONTRIB
from graphcompress.targets.nvidia.float16_range import LARGEST, critical_nodes, overflows_half

STAND_IN = 30000.0
"""Takes the place of a finite constant that float16 does not hold: -30000 in front of a Softmax is as good a
mask as the lowest float32, and scores can be added to it without an overflow."""

_FLOAT, _HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
_ARITHMETIC = frozenset({"Add", "Mul", "Sub", "Where"})
_MOVES = frozenset(
    {
        "Concat",
        "Expand",
        "Gather",
        "Identity",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    }
)
_CONTRIB_HALF = frozenset({"MultiHeadAttention", "SkipLayerNormalization", "Gelu", "FastGelu"})


@dataclass(frozen=True)
class Halved:
    """What became of the floating-point nodes of a graph.

    Attributes:
        half: nodes that compute in float16.
        kept: names of those that stay in float32.
        casts: Cast nodes between the two.
    """

    half: int
    kept: tuple[str, ...]
    casts: int


def clip_constants(rw: Rewriter) -> int:
    """Finite constants beyond float16 (masks) become ±30000 where all that reads them is arithmetic.

    Returns how many. To be called before ranges are observed: a mask is no activation.
    """
    done = 0
    for value in list(rw.model.graph.initializers.values()):
        stored = value.const_value
        if stored is None or value.dtype != _FLOAT:
            continue
        array = stored.numpy()
        if not overflows_half(array):
            continue
        # Infinity is a number of float16, too, and stays.
        beyond = np.isfinite(array) & (np.abs(array) > LARGEST)
        # In a Clip or a comparison another number would mean something else.
        if _read_by_arithmetic(value):
            rw.overwrite(value, np.where(beyond, np.sign(array) * np.float32(STAND_IN), array))
            done += 1
    return done


def _read_by_arithmetic(value: ir.Value) -> bool:
    """Whether nothing but arithmetic reads ``value``, also where it is moved or looked up first."""
    pending, seen = [value], set()
    while pending:
        value = pending.pop()
        if value in seen:
            continue
        seen.add(value)
        for node in value.consumers():
            if _moves(node):
                pending.extend(node.outputs)
            elif node.domain or node.op_type not in _ARITHMETIC:
                return False
    return True


def _moves(node: ir.Node) -> bool:
    """Whether the outputs of ``node`` are entries of its inputs."""
    return not node.domain and node.op_type in _MOVES


def to_half(rw: Rewriter, wide: Collection[ir.Value] = ()) -> Halved:
    """Let float32 nodes of the main graph compute in float16; its inputs and outputs keep their types.

    Left in float32, with casts around them: reductions and what is computed from them elementwise (a mean of
    squares overflows, an epsilon vanishes), powers, exponentials, the angles behind Sin and Cos, constants
    that float16 cannot hold, nodes that read or make one of the ``wide`` values (observed to come near the
    largest float16), operators without float16, and nodes with subgraphs. LayerNormalization and Softmax
    read and write float16: their definition (``stash_type``) and every runtime compute inside in float32.
    """
    kept = critical_nodes(rw.model.graph, wide) | {
        node for node in rw.model.graph if _touches_float(node) and not _has_half(node, rw.model.opset)
    }
    _follow_consumers(rw, kept)
    _same_scales(rw, kept)
    return _Halver(rw, kept).run()


def _touches_float(node: ir.Node) -> bool:
    return any(value is not None and value.dtype == _FLOAT for value in (*node.inputs, *node.outputs))


def _has_half(node: ir.Node, opset: int) -> bool:
    """Whether ``node`` may read and write float16 wherever it reads and writes float32 now."""
    if {held.type for held in node.attributes.values()} & {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS}:
        return False
    # A subgraph reads its values in the type that it was written for.
    if any(use.node.graph is not node.graph for value in node.outputs for use in value.uses()):
        return False
    if node.domain:
        return node.domain == CONTRIB and node.op_type in _CONTRIB_HALF
    if node.op_type == "Cast":
        return True
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        return False
    allowed = {kind.type_param_str: kind.allowed_type_strs for kind in schema.type_constraints}
    for values, formals in ((node.inputs, schema.inputs), (node.outputs, schema.outputs)):
        for index, value in enumerate(values):
            # The last operand of a schema may stand for any number of them.
            formal = formals[min(index, len(formals) - 1)] if formals else None
            if value is None or value.dtype != _FLOAT or formal is None:
                continue
            if "tensor(float16)" not in allowed.get(formal.type_str, ()):
                return False
    # What makes a tensor of an attribute has its type there.
    return bool(node.inputs) and node.op_type != "ConstantOfShape"


def _follow_consumers(rw: Rewriter, kept: set[ir.Node]) -> None:
    """A DequantizeLinear that only nodes in float32 read stays in float32."""
    for node in rw.model.graph:
        if is_standard(node, "DequantizeLinear"):
            readers = node.outputs[0].consumers()
            if readers and all(reader in kept for reader in readers):
                kept.add(node)


def _same_scales(rw: Rewriter, kept: set[ir.Node]) -> None:
    """A product of two dequantised values stays in float32 as a whole when a part of it does.

    Compilers of integer products want both scales in one type. A dequantised value that several products
    read keeps all of them, whichever comes first: a Cast behind it would end the int8 product.
    """
    products = []
    for node in rw.model.graph:
        if not is_standard(node, "MatMul") and not is_standard(node, "Gemm"):
            continue
        made = [v.producer() for v in node.inputs[:2] if v is not None]
        sides = [side for side in made if side is not None and is_standard(side, "DequantizeLinear")]
        if len(sides) == 2:
            products.append({node, *sides})
    # Products that share an operand keep one another, so this goes on until nothing is added.
    while spreading := [whole for whole in products if not kept.isdisjoint(whole) and not whole <= kept]:
        kept.update(*spreading)


class _Halver:
    """Carries out which nodes stay in float32."""

    def __init__(self, rw: Rewriter, kept: set[ir.Node]) -> None:
        self._rw = rw
        self._kept = kept
        self._halves: dict[ir.Value, ir.Value] = {}
        self._casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def run(self) -> Halved:
        graph = self._rw.model.graph
        nodes = [node for node in graph if _touches_float(node)]
        half = [node for node in nodes if node not in self._kept]
        # Types are changed at the end: until then they tell what was float32.
        made = {value for node in half for value in node.outputs if value.dtype == _FLOAT}
        for node in half:
            for index, value in enumerate(node.inputs):
                if value is not None and value.dtype == _FLOAT and not is_standard(node, "Cast"):
                    if value.const_value is not None and not value.is_graph_input():
                        self._rw.set_input(node, index, self._constant(value))
                    elif value not in made:
                        self._rw.set_input(node, index, self._cast(value, _HALF, before=node))
        for node in nodes:
            if node in self._kept:
                for index, value in enumerate(node.inputs):
                    if value in made and value is not None:
                        self._rw.set_input(node, index, self._cast(value, _FLOAT, before=node))
        for value in made:
            value.type = ir.TensorType(_HALF)
            maker = value.producer()
            if maker is not None and is_standard(maker, "Cast"):
                self._rw.set_attribute(maker, "to", int(_HALF))
        for value in dict.fromkeys(output for output in graph.outputs if output in made):
            self._output(value, frozenset(half))
        self._rw.modified = True
        names = tuple(node.name or "" for node in nodes if node in self._kept)
        return Halved(len(half), names, len(self._casts))

    def _constant(self, value: ir.Value) -> ir.Value:
        if value not in self._halves:
            stored = value.const_value
            array = stored.numpy() if stored is not None else np.zeros(0, np.float32)
            new = self._rw.constant(array.astype(np.float16), f"{value.name}.half")
            new.metadata_props.update(value.metadata_props)
            self._halves[value] = new
        return self._halves[value]

    def _cast(self, value: ir.Value, dtype: ir.DataType, before: ir.Node) -> ir.Value:
        """One Cast of ``value``, right behind what makes it, for all that read it."""
        key = (value, dtype)
        if key not in self._casts:
            b = self._rw.at(before, value.name)
            new = b.op("Cast", value, name=dtype.name.lower(), to=int(dtype))
            new.type = ir.TensorType(dtype)
            new.shape = None if value.shape is None else value.shape.copy()
            self._casts[key] = new
        return self._casts[key]

    def _output(self, value: ir.Value, half: Collection[ir.Node]) -> None:
        """Give an output of the graph in float32; what reads it inside goes on in its own precision."""
        inside = [(use.node, use.idx) for use in value.uses() if use.node in half]
        new = self._casts.get((value, _FLOAT))
        if new is None:
            new = self._rw.at(None, value.name).op("Cast", value, name="float", to=int(_FLOAT))
            self._casts[value, _FLOAT] = new
        self._rw.replace(value, new)
        new.type = ir.TensorType(_FLOAT)
        for node, index in inside:
            self._rw.set_input(node, index, value)
