"""What is done with an exported file before the library sees it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
from onnx import TensorProto, helper, numpy_helper

from matrix.variants import BFLOAT, INPUTS, SAVED, STRIPPED


def stripped(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Without what inference, debugging and readers like: shapes, node names, doc strings."""
    del proto.graph.value_info[:]
    proto.graph.doc_string = proto.doc_string = ""
    for node in proto.graph.node:
        node.name = node.doc_string = ""
        del node.metadata_props[:]
    for tensor in proto.graph.initializer:
        tensor.doc_string = ""
    return proto


def constants(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Weights in Constant nodes."""
    nodes = [helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in _weights(proto)]
    _replace(proto, nodes, [])
    return proto


def stored_as(proto: onnx.ModelProto, kind: int) -> onnx.ModelProto:
    """Matrices in half precision, brought to float32 by a Cast."""
    nodes, tensors = [], []
    for tensor in _weights(proto):
        numbers = numpy_helper.to_array(tensor).reshape(-1).tolist()
        tensors.append(helper.make_tensor(f"{tensor.name}.half", kind, list(tensor.dims), numbers))
        nodes.append(helper.make_node("Cast", [tensors[-1].name], [tensor.name], to=TensorProto.FLOAT))
    _replace(proto, nodes, tensors)
    return proto


def one_sample(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The batch is fixed to 1."""
    del proto.graph.value_info[:]
    for value in (*proto.graph.input, *proto.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in ("batch", "texts"):
                dim.dim_value = 1
    return proto


def weights_as_inputs(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Every initializer may be overridden by the caller."""
    for tensor in proto.graph.initializer:
        info = helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        proto.graph.input.append(info)
    return proto


def all_half(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The graph computes in fp16."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    return convert_float_to_float16(proto, keep_io_types=False, disable_shape_infer=True)


def all_bfloat(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The graph computes in bf16."""
    del proto.graph.value_info[:]
    for tensor in proto.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            numbers = numpy_helper.to_array(tensor).reshape(-1).tolist()
            tensor.CopyFrom(helper.make_tensor(tensor.name, TensorProto.BFLOAT16, list(tensor.dims), numbers))
    for node in proto.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.BFLOAT16
    for value in (*proto.graph.input, *proto.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.BFLOAT16
    return proto


def fused(proto: onnx.ModelProto, kind: str, heads: int, hidden: int) -> onnx.ModelProto:
    """What ONNX Runtime's optimiser for Transformers makes of it."""
    from onnxruntime.transformers.optimizer import optimize_model

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(proto, path)
        made = optimize_model(str(path), model_type=kind, num_heads=heads, hidden_size=hidden, opt_level=0)
    return made.model


def saved(proto: onnx.ModelProto) -> onnx.ModelProto:
    """What a session of ONNX Runtime writes when it is asked for the model as it optimised it."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        path, options = Path(folder) / "model.onnx", onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(path)
        options.log_severity_level = 4
        onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        made = onnx.load(path)
    del made.metadata_props[:]
    made.metadata_props.extend(proto.metadata_props)
    return made


def _weights(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    for tensor in proto.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 1:
            yield tensor


def _replace(proto: onnx.ModelProto, nodes: list[onnx.NodeProto], tensors: list[onnx.TensorProto]) -> None:
    """Let ``nodes`` give the values that are initializers now, from ``tensors``."""
    made = {name for node in nodes for name in node.output}
    kept = [tensor for tensor in proto.graph.initializer if tensor.name not in made]
    later = [*nodes, *proto.graph.node]
    del proto.graph.initializer[:], proto.graph.node[:]
    proto.graph.initializer.extend([*kept, *tensors])
    proto.graph.node.extend(later)


FORMS: dict[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {
    STRIPPED: stripped,
    "weights in fp16": lambda proto: stored_as(proto, TensorProto.FLOAT16),
    "weights in bf16": lambda proto: stored_as(proto, TensorProto.BFLOAT16),
    "weights as Constant nodes": constants,
    "batch fixed to 1": one_sample,
    "all in fp16": all_half,
    BFLOAT: all_bfloat,
    INPUTS: weights_as_inputs,
    SAVED: saved,
}
"""Form → what makes it; that of ONNX Runtime's optimiser for Transformers needs to know the model."""
