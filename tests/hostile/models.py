"""Broken and awkward models: each function changes a good one (or gives other bytes) in one way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WEIGHT = "encoder.layer.0.intermediate.dense.weight_t"
PRODUCT = "encoder.layer.0.intermediate.dense.product"
WIDE = 1 << 62

Change = Callable[[onnx.ModelProto, Path], bytes | None]
"""Changes a model in place, or returns other content for the file; the path is the model's folder."""


def weight(model: onnx.ModelProto, name: str = WEIGHT) -> onnx.TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def node(model: onnx.ModelProto, output: str = PRODUCT) -> onnx.NodeProto:
    return next(item for item in model.graph.node if output in item.output)


def _set_raw(model: onnx.ModelProto, folder: Path) -> None:
    weight(model).raw_data = b"1234"


def _no_raw(model: onnx.ModelProto, folder: Path) -> None:
    weight(model).ClearField("raw_data")


def _few_floats(model: onnx.ModelProto, folder: Path) -> None:
    _no_raw(model, folder)
    weight(model).float_data.extend([1.0, 2.0])


def _negative_shape(model: onnx.ModelProto, folder: Path) -> None:
    weight(model).dims[0] = -32


def _huge_shape(model: onnx.ModelProto, folder: Path) -> None:
    weight(model).dims[:] = [WIDE, WIDE]


def _no_data_type(model: onnx.ModelProto, folder: Path) -> None:
    weight(model).data_type = TensorProto.UNDEFINED


def _unknown_data_type(model: onnx.ModelProto, folder: Path) -> None:
    weight(model).data_type = 99


def _filled(number: float) -> Change:
    def change(model: onnx.ModelProto, folder: Path) -> None:
        array = numpy_helper.to_array(weight(model)).copy()
        array[3, 5] = number
        weight(model).raw_data = array.tobytes()

    return change


def _external(location: str | None = "w.bin", *, size: int = 8192, **entries: object) -> Change:
    def change(model: onnx.ModelProto, folder: Path) -> None:
        tensor = weight(model)
        (folder / "w.bin").write_bytes(tensor.raw_data[:size])
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": location, **entries}.items():
            if value is not None:
                tensor.external_data.add(key=key, value=str(value))

    return change


def _escaping_link(model: onnx.ModelProto, folder: Path) -> None:
    outside = folder.parent / "outside.bin"
    outside.write_bytes(weight(model).raw_data)
    _external("link.bin")(model, folder)
    (folder / "link.bin").symlink_to(outside)


def _twice(model: onnx.ModelProto, folder: Path) -> None:
    model.graph.initializer.append(weight(model))


def _made_twice(model: onnx.ModelProto, folder: Path) -> None:
    node(model).output[0] = "embeddings.sum"


def _cycle(model: onnx.ModelProto, folder: Path) -> None:
    node(model).input[0] = "last_hidden_state"


def _dangling(model: onnx.ModelProto, folder: Path) -> None:
    node(model).input[0] = "nobody"


def _no_producer(model: onnx.ModelProto, folder: Path) -> None:
    model.graph.output[0].name = "nobody"


def _no_outputs(model: onnx.ModelProto, folder: Path) -> None:
    model.graph.ClearField("output")


def _no_nodes(model: onnx.ModelProto, folder: Path) -> None:
    model.graph.ClearField("node")


def _untyped_input(model: onnx.ModelProto, folder: Path) -> None:
    model.graph.input[0].ClearField("type")


def _opset(version: int) -> Change:
    def change(model: onnx.ModelProto, folder: Path) -> None:
        model.opset_import[0].version = version

    return change


def _no_opset(model: onnx.ModelProto, folder: Path) -> None:
    model.ClearField("opset_import")


def _two_opsets(model: onnx.ModelProto, folder: Path) -> None:
    model.opset_import.append(helper.make_opsetid("", 17))


def _new_ir(model: onnx.ModelProto, folder: Path) -> None:
    model.ir_version = 99


def _unknown_operator(model: onnx.ModelProto, folder: Path) -> None:
    node(model).op_type = "Frobnicate"


def _unknown_domain(model: onnx.ModelProto, folder: Path) -> None:
    node(model).domain = "somebody.else"


def _runs_nowhere(model: onnx.ModelProto, folder: Path) -> None:
    _unknown_domain(model, folder)
    model.opset_import.append(helper.make_opsetid("somebody.else", 1))


def _too_few_inputs(model: onnx.ModelProto, folder: Path) -> None:
    del node(model).input[1:]


def _sparse(model: onnx.ModelProto, folder: Path) -> None:
    model.graph.initializer.remove(weight(model))
    values = helper.make_tensor(WEIGHT, TensorProto.FLOAT, [1], [1.0])
    indices = helper.make_tensor("indices", TensorProto.INT64, [1], [5])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [32, 64]))


def _contradicting_shapes(model: onnx.ModelProto, folder: Path) -> None:
    weight(model).dims[:] = [64, 32]


def _quantised(model: onnx.ModelProto, folder: Path) -> None:
    quantise = helper.make_node("DynamicQuantizeLinear", ["zero_float"], ["q", "s", "z"], name="quantise")
    model.graph.node.insert(0, quantise)
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(4, np.float32), "zero_float"))


def _fused(model: onnx.ModelProto, folder: Path) -> None:
    node(model).op_type, node(model).domain = "GemmFastGelu", "com.microsoft"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def _no_linears(model: onnx.ModelProto, folder: Path) -> None:
    del model.graph.node[:]
    del model.graph.initializer[:]
    model.graph.node.append(
        helper.make_node("Cast", ["input_ids"], ["last_hidden_state"], to=TensorProto.FLOAT)
    )
    model.graph.output[0].type.tensor_type.shape.dim.pop()


def _bytes(content: bytes) -> Change:
    return lambda model, folder: content


def _cut(share: float) -> Change:
    def change(model: onnx.ModelProto, folder: Path) -> bytes:
        content = model.SerializeToString()
        return content[: int(len(content) * share)]

    return change


INVALID, UNSUPPORTED = 5, 4

REFUSED: dict[str, tuple[Change, int, str]] = {
    "empty": (_bytes(b""), INVALID, "not an ONNX file"),
    "text": (_bytes(b"hello, this is no model at all\n" * 9), INVALID, "not an ONNX file"),
    "web page": (_bytes(b"<!DOCTYPE html><html><body>404</body></html>"), INVALID, "web page"),
    "lfs pointer": (_bytes(b"version https://git-lfs.github.com/spec/v1\n"), INVALID, "git lfs pull"),
    "torch checkpoint": (_bytes(b"PK\x03\x04" + bytes(99)), INVALID, "zip archive"),
    "half": (_cut(0.5), INVALID, "truncated"),
    "almost whole": (_cut(0.999), INVALID, "truncated"),
    "weight cut short": (_set_raw, INVALID, f"weight '{WEIGHT}' has 4 bytes"),
    "weight empty": (_no_raw, INVALID, "has 0 elements"),
    "weight of few floats": (_few_floats, INVALID, "has 2 elements"),
    "negative shape": (_negative_shape, INVALID, "negative size"),
    "huge shape": (_huge_shape, INVALID, "has 8,192 bytes"),
    "no data type": (_no_data_type, INVALID, "unknown data type 0"),
    "unknown data type": (_unknown_data_type, INVALID, "unknown data type 99"),
    "NaN": (_filled(float("nan")), INVALID, f"weight '{WEIGHT}' holds NaN"),
    "infinity": (_filled(float("inf")), INVALID, f"weight '{WEIGHT}' holds infinity"),
    "external missing": (_external("nowhere.bin"), INVALID, "is missing"),
    "external cut": (_external(size=8000), INVALID, "is cut short"),
    "external offset": (_external(offset=4), INVALID, "8,196 are needed"),
    "external negative offset": (_external(offset=-4), INVALID, "offset '-4'"),
    "external huge offset": (_external(offset=1 << 70), INVALID, "is cut short"),
    "external length": (_external(length=10), INVALID, "has 10 bytes"),
    "external negative length": (_external(length=-1), INVALID, "length '-1'"),
    "external no number": (_external(offset="x"), INVALID, "offset 'x'"),
    "external no file": (_external(None), INVALID, "names no file"),
    "external folder": (_external("."), INVALID, "is missing"),
    "external parent": (_external("../w.bin"), INVALID, "outside the model's folder"),
    "external absolute": (_external("/etc/hostname"), INVALID, "outside the model's folder"),
    "external link": (_escaping_link, INVALID, "a link that leads out"),
    "two weights of a name": (_twice, INVALID, f"2 weights are called '{WEIGHT}'"),
    "two values of a name": (_made_twice, INVALID, "'embeddings.sum' is produced twice"),
    "cycle": (_cycle, INVALID, "part of a cycle"),
    "dangling input": (_dangling, INVALID, "reads 'nobody', which nothing produces"),
    "output of nothing": (_no_producer, INVALID, "nothing produces the output 'nobody'"),
    "no outputs": (_no_outputs, INVALID, "no graph"),
    "no nodes": (_no_nodes, INVALID, "no graph"),
    "input without type": (_untyped_input, INVALID, "input 'input_ids' has no type"),
    "opset 12": (_opset(12), UNSUPPORTED, "opset 12 is not supported"),
    "opset 26": (_opset(26), UNSUPPORTED, "opset 26 is not supported"),
    "no opset": (_no_opset, INVALID, "no version of the standard operators"),
    "two opsets": (_two_opsets, INVALID, "two versions"),
    "new IR": (_new_ir, UNSUPPORTED, "IR version 99"),
    "unknown operator": (_unknown_operator, INVALID, "no operator of opset 18"),
    "undeclared domain": (_unknown_domain, UNSUPPORTED, "ONNX Runtime refuses"),
    "custom operator that runs nowhere": (_runs_nowhere, UNSUPPORTED, "ONNX Runtime refuses"),
    "too few inputs": (_too_few_inputs, INVALID, "ONNX checker"),
    "sparse weight": (_sparse, UNSUPPORTED, "sparse"),
    "contradicting shapes": (_contradicting_shapes, INVALID, "contradict"),
    "quantised": (_quantised, UNSUPPORTED, "quantised already"),
    "fused": (_fused, UNSUPPORTED, "fused by ONNX Runtime"),
    "no linears": (_no_linears, UNSUPPORTED, "nothing to compress"),
}
"""Name → change, exit code, words of the message."""
