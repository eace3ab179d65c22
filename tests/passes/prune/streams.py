"""Small models with a residual stream, in every spelling of its normalisation."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from graphcompress.coupling.couplings import HIDDEN, couplings
from graphcompress.coupling.stream import Stream, stream_of
from graphcompress.data.load import Samples
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner

WIDTH, INNER, TOKENS = 32, 48, 60
NORMS = ("LayerNormalization", "RMSNormalization", "spelt")


class _Written:
    def __init__(self, norm: str, seed: int, rank: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.norm_kind = norm
        self.within = np.linalg.qr(self.rng.standard_normal((WIDTH, rank)))[0]
        self.nodes: list[object] = []
        self.tensors: dict[str, np.ndarray] = {}

    def op(self, op_type: str, inputs: str, output: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(op_type, inputs.split(), [output], name=output, **attributes))
        return output

    def stored(self, name: str, array: np.ndarray) -> str:
        self.tensors[name] = array.astype(np.float32)
        return name

    def into(self, name: str, rows: int) -> str:
        """What is written into the stream, inside of a subspace of it."""
        return self.stored(name, self.rng.standard_normal((rows, self.within.shape[1])) @ self.within.T * 0.5)

    def norm(self, x: str, name: str) -> str:
        gain = self.stored(f"{name}.gain", 1 + 0.3 * self.rng.standard_normal(WIDTH))
        if self.norm_kind == "LayerNormalization":
            shift = self.stored(f"{name}.shift", 0.3 * self.rng.standard_normal(WIDTH))
            return self.op(self.norm_kind, f"{x} {gain} {shift}", name, axis=-1, epsilon=1e-3)
        if self.norm_kind == "RMSNormalization":
            return self.op(self.norm_kind, f"{x} {gain}", name, axis=-1, epsilon=1e-3)
        self.stored("two", np.float32(2))
        self.stored("epsilon", np.float32(1e-3))
        self.tensors["last"] = np.array([-1])
        square = self.op("Pow", f"{x} two", f"{name}.square")
        mean = self.op("ReduceMean", f"{square} last", f"{name}.mean")
        root = self.op("Sqrt", self.op("Add", f"{mean} epsilon", f"{name}.sum"), f"{name}.root")
        inverse = self.op("Reciprocal", root, f"{name}.inverse")
        return self.op("Mul", f"{gain} {self.op('Mul', f'{x} {inverse}', f'{name}.plain')}", name)


def streamed(
    norm: str,
    *,
    post: bool = False,
    tied: bool = False,
    rank: int = WIDTH,
    seed: int = 0,
    out: bool = False,
    transform: bool = False,
) -> Model:
    """Tokens, two blocks before (or behind) whose FFN there is a norm, and a head; ``rank`` of the stream.

    With ``transform`` a linear and a norm are before the head, as in masked language models.
    """
    w = _Written(norm, seed, rank)
    x = w.op("Gather", f"{w.into('table', TOKENS)} ids", "embedded", axis=0)
    for block in ("0", "1"):
        entry = x if post else w.norm(x, f"{block}.norm")
        up = w.stored(f"{block}.up", 0.4 * w.rng.standard_normal((WIDTH, INNER)))
        bias = w.stored(f"{block}.bias", 0.2 * w.rng.standard_normal(INNER))
        inner = w.op("Add", f"{w.op('MatMul', f'{entry} {up}', f'{block}.p')} {bias}", f"{block}.inner")
        given = w.op(
            "MatMul", f"{w.op('Relu', inner, f'{block}.r')} {w.into(f'{block}.down', INNER)}", f"{block}.q"
        )
        x = w.op("Add", f"{x} {given}", f"{block}.added")
        x = w.norm(x, f"{block}.norm") if post else x
    x = x if post else w.norm(x, "end.norm")
    if transform:
        turn = w.stored("transform", w.rng.standard_normal((WIDTH, WIDTH)))
        x = w.norm(w.op("Relu", w.op("MatMul", f"{x} {turn}", "turned"), "turned.r"), "turned.norm")
    head = (
        w.op("Transpose", "table", "table.t", perm=[1, 0])
        if tied
        else w.stored("head", w.rng.standard_normal((WIDTH, 5)))
    )
    w.op("MatMul", f"{x} {head}", "logits")
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "length"])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("logits", x)[: 1 + out]]
    graph = helper.make_graph(
        w.nodes, "g", [ids], ends, [numpy_helper.from_array(a, name) for name, a in w.tensors.items()]
    )
    opset = [helper.make_opsetid("", 23)]
    return Model(ir.from_proto(helper.make_model(graph, opset_imports=opset, ir_version=10)))


def sentences(count: int = 40, seed: int = 0) -> Samples:
    """Token ids of several lengths."""
    rng = np.random.default_rng(seed)
    return Samples([{"ids": rng.integers(0, TOKENS, rng.integers(4, 12))} for _ in range(count)])


def stream(model: Model) -> Stream:
    """The residual stream of a model."""
    return stream_of(next(group for group in couplings(model) if group.kind == HIDDEN))


def logits(model: Model) -> np.ndarray:
    """Of tokens that no sample holds in this order."""
    with Runner(model) as runner:
        return runner({"ids": np.arange(TOKENS).reshape(4, 15)})["logits"]


def distance(one: Model, other: Model) -> float:
    """Largest difference of the answers, as a share of their range."""
    a, b = logits(one), logits(other)
    return float(np.abs(a - b).max() / np.abs(a).max())
