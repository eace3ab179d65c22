"""A small BERT written operator by operator, in the form of torch's ONNX exporter; no torch is needed."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

BATCH, SEQUENCE = "batch", "sequence"


@dataclass
class Bert:
    """Sizes of the model, and the graph while it is being written."""

    layers: int = 2
    hidden: int = 32
    heads: int = 4
    ffn: int = 64
    vocabulary: int = 100
    positions: int = 64
    opset: int = 18
    seed: int = 0
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    tensors: dict[str, onnx.TensorProto] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)

    # ---- pieces

    def node(self, op_type: str, inputs: list[str], output: str, **attributes: object) -> str:
        self.nodes.append(
            helper.make_node(op_type, inputs, [output], name=f"node_{output}", **attributes)  # type: ignore[arg-type]
        )
        return output

    def constant(self, name: str, array: np.ndarray | float | list[int]) -> str:
        if name not in self.tensors:
            array = np.asarray(array, np.float32 if isinstance(array, float) else None)
            self.tensors[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def random(self, name: str, *shape: int, scale: float = 0.2, mean: float = 0.0) -> str:
        return self.constant(name, (mean + scale * self.rng.standard_normal(shape)).astype(np.float32))

    def linear(self, x: str, module: str, inputs: int, outputs: int) -> str:
        weight = self.random(f"{module}.weight_t", inputs, outputs)
        product = self.node("MatMul", [x, weight], f"{module}.product")
        bias = self.random(f"{module}.bias", outputs, scale=0.1)
        return self.node("Add", [product, bias], module)

    def layer_norm(self, x: str, module: str) -> str:
        gain = self.random(f"{module}.weight", self.hidden, scale=0.1, mean=1.0)
        shift = self.random(f"{module}.bias", self.hidden, scale=0.1)
        return self.node("LayerNormalization", [x, gain, shift], module, axis=-1, epsilon=1e-12)

    def size(self, axis: int) -> str:
        name = f"size_{axis}"
        return self.node("Shape", ["input_ids"], name, start=axis, end=axis + 1)

    # ---- parts

    def embeddings(self) -> str:
        rows = {
            "word": (self.vocabulary, "input_ids"),
            "token_type": (2, "token_type_ids"),
            "position": (self.positions, "position_slice"),
        }
        positions = self.constant("position_ids", np.arange(self.positions, dtype=np.int64)[None])
        zero, one = self.constant("zero", [0]), self.constant("one", [1])
        self.node("Slice", [positions, zero, "size_1", one, one], "position_slice")
        parts = []
        for kind, (count, indices) in rows.items():
            table = self.random(f"embeddings.{kind}_embeddings.weight", count, self.hidden, scale=0.5)
            parts.append(self.node("Gather", [table, indices], f"embeddings.{kind}", axis=0))
        total = self.node("Add", parts[:2], "embeddings.sum_1")
        total = self.node("Add", [total, parts[2]], "embeddings.sum")
        return self.layer_norm(total, "embeddings.LayerNorm")

    def mask(self) -> str:
        """[batch, 1, 1, sequence]: 0 for a token, the most negative float for padding."""
        self.node("Cast", ["attention_mask"], "mask.bool", to=TensorProto.BOOL)
        self.node("Unsqueeze", ["mask.bool", self.constant("axes_1_2", [1, 2])], "mask.4d")
        lowest = float(np.finfo(np.float32).min)
        choices = [self.constant("float_zero", 0.0), self.constant("float_lowest", lowest)]
        return self.node("Where", ["mask.4d", *choices], "mask.bias")

    def attention(self, x: str, module: str) -> str:
        width = self.hidden // self.heads
        minus_one = self.constant("minus_one", [-1])
        if "heads.shape" not in {node.output[0] for node in self.nodes}:
            self.node(
                "Concat",
                ["size_0", "size_1", minus_one, self.constant("width", [width])],
                "heads.shape",
                axis=0,
            )
            self.node("Concat", ["size_0", "size_1", minus_one], "joined.shape", axis=0)
        parts = []
        for part, perm in (("query", (0, 2, 1, 3)), ("key", (0, 2, 3, 1)), ("value", (0, 2, 1, 3))):
            name = f"{module}.self.{part}"
            made = self.linear(x, name, self.hidden, self.hidden)
            made = self.node("Reshape", [made, "heads.shape"], f"{name}.heads", allowzero=1)
            parts.append(self.node("Transpose", [made], f"{name}.transposed", perm=perm))
        scale = self.constant("root_scale", float(width**-0.25))
        query = self.node("Mul", [parts[0], scale], f"{module}.query_scaled")
        key = self.node("Mul", [parts[1], scale], f"{module}.key_scaled")
        scores = self.node("MatMul", [query, key], f"{module}.scores")
        masked = self.node("Add", [scores, "mask.bias"], f"{module}.scores_masked")
        soft = self.node("Softmax", [masked], f"{module}.softmax", axis=-1)
        nan = self.node("IsNaN", [soft], f"{module}.is_nan")
        safe = self.node("Where", [nan, "float_zero", soft], f"{module}.probabilities")
        context = self.node("MatMul", [safe, parts[2]], f"{module}.context")
        context = self.node("Transpose", [context], f"{module}.context_transposed", perm=(0, 2, 1, 3))
        joined = self.node("Reshape", [context, "joined.shape"], f"{module}.joined", allowzero=1)
        return self.linear(joined, f"{module}.output.dense", self.hidden, self.hidden)

    def gelu(self, x: str, module: str) -> str:
        scaled = self.node("Div", [x, self.constant("root_two", float(np.sqrt(2.0)))], f"{module}.scaled")
        erf = self.node("Erf", [scaled], f"{module}.erf")
        shifted = self.node("Add", [erf, self.constant("float_one", 1.0)], f"{module}.shifted")
        halved = self.node("Mul", [self.constant("float_half", 0.5), shifted], f"{module}.halved")
        return self.node("Mul", [x, halved], f"{module}.gelu")

    def layer(self, x: str, module: str) -> str:
        attended = self.attention(x, f"{module}.attention")
        summed = self.node("Add", [attended, x], f"{module}.attention.residual")
        normed = self.layer_norm(summed, f"{module}.attention.output.LayerNorm")
        inner = self.linear(normed, f"{module}.intermediate.dense", self.hidden, self.ffn)
        inner = self.gelu(inner, f"{module}.intermediate")
        outer = self.linear(inner, f"{module}.output.dense", self.ffn, self.hidden)
        summed = self.node("Add", [outer, normed], f"{module}.residual")
        return self.layer_norm(summed, f"{module}.output.LayerNorm")

    def model(self) -> onnx.ModelProto:
        for axis in (0, 1):
            self.size(axis)
        self.mask()
        x = self.embeddings()
        for index in range(self.layers):
            x = self.layer(x, f"encoder.layer.{index}")
        self.nodes[-1].output[0] = "last_hidden_state"
        inputs = [
            helper.make_tensor_value_info(name, TensorProto.INT64, [BATCH, SEQUENCE])
            for name in ("input_ids", "attention_mask", "token_type_ids")
        ]
        shape = [BATCH, SEQUENCE, self.hidden]
        outputs = [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, shape)]
        graph = helper.make_graph(self.nodes, "tiny_bert", inputs, outputs, list(self.tensors.values()))
        opsets = [helper.make_opsetid("", self.opset)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10, producer_name="tests")
