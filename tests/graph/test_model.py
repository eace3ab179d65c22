"""Model: what comes in comes out again; shapes, weights and files are handled as promised."""

from __future__ import annotations

import gc
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphcompress.errors import InvalidModelError, UnsupportedModelError
from graphcompress.files import scratch, stored
from graphcompress.files.reading import skim
from graphcompress.files.reading.model_file import MOST_NODES
from graphcompress.files.stored import StoredTensor
from graphcompress.graph import model as model_module
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    onnx.save(model, path)
    return path


def copy(model: onnx.ModelProto) -> onnx.ModelProto:
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    return twin


def external_copy(model: onnx.ModelProto, folder: Path) -> Path:
    """The model with all its weights in ``model.onnx.data``."""
    folder.mkdir(exist_ok=True)
    path = folder / "model.onnx"
    onnx.save(copy(model), path, save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    return path


def round_trip(path: Path, folder: Path) -> onnx.ModelProto:
    return onnx.load(Model.load(path).save(folder / "again.onnx"))


# ---- nothing is lost


def test_names_order_metadata_and_documentation_come_back(tiny_bert_proto, tmp_path) -> None:
    model = copy(tiny_bert_proto)
    model.metadata_props.add(key="author", value="somebody")
    model.producer_name, model.producer_version, model.doc_string, model.domain = "p", "1.2", "words", "d"
    model.model_version = 7
    model.graph.doc_string = "a graph"
    model.graph.node[3].doc_string = "a node"
    model.graph.node[3].metadata_props.add(key="source", value="line 3")
    model.graph.input[0].doc_string = "an input"
    model.graph.initializer[0].doc_string = "a weight"
    again = round_trip(saved(model, tmp_path), tmp_path)
    for name in ("ir_version", "producer_name", "producer_version", "doc_string", "domain", "model_version"):
        assert getattr(again, name) == getattr(model, name)
    assert list(again.metadata_props) == list(model.metadata_props)
    assert list(again.opset_import) == list(model.opset_import)
    assert list(again.graph.input) == list(model.graph.input)
    assert list(again.graph.output) == list(model.graph.output)
    assert list(again.graph.node) == list(model.graph.node)
    assert again.graph.doc_string == "a graph"
    assert [t.name for t in again.graph.initializer] == [t.name for t in model.graph.initializer]
    assert list(again.graph.initializer) == list(model.graph.initializer)


def test_notes_of_shape_inference_stay_out_of_the_file_and_the_users_notes_stay_in(
    tiny_bert_proto, tmp_path
) -> None:
    proto = onnx.shape_inference.infer_shapes(copy(tiny_bert_proto))
    for value in proto.graph.value_info:
        value.metadata_props.add(key="source", value=value.name)
    assert proto.graph.value_info
    again = round_trip(saved(proto, tmp_path), tmp_path)
    notes = {(value.name, note.key) for value in again.graph.value_info for note in value.metadata_props}
    assert notes == {(value.name, "source") for value in proto.graph.value_info}


def test_custom_operators_with_their_attributes_and_shapes_come_back(tiny_bert_proto, tmp_path) -> None:
    model = copy(tiny_bert_proto)
    model.opset_import.append(helper.make_opsetid("somebody.else", 3))
    custom = helper.make_node(
        "Frobnicate", ["last_hidden_state"], ["extra"], domain="somebody.else", level=2.5
    )
    model.graph.node.append(custom)
    model.graph.node.append(helper.make_node("Relu", ["extra"], ["final"]))
    model.graph.value_info.append(helper.make_tensor_value_info("extra", TensorProto.FLOAT, ["batch", 7]))
    model.graph.output.append(helper.make_tensor_value_info("final", TensorProto.FLOAT, ["batch", 7]))
    path = saved(model, tmp_path)
    shapes = {value.name: str(value.shape) for node in Model.load(path).graph for value in node.outputs}
    assert shapes["extra"] == shapes["final"] == "[batch,7]"
    again = round_trip(path, tmp_path)
    assert custom in again.graph.node
    assert helper.make_opsetid("somebody.else", 3) in again.opset_import


def test_a_custom_domain_that_is_not_declared_is_read_as_version_1(tiny_bert_proto, tmp_path) -> None:
    model = copy(tiny_bert_proto)
    hidden = model.graph.output[0].name
    model.graph.node.append(helper.make_node("QuickGelu", [hidden], ["final"], domain="com.microsoft"))
    model.graph.output[0].name = "final"
    path = saved(model, tmp_path)
    assert helper.make_opsetid("com.microsoft", 1) in round_trip(path, tmp_path).opset_import


def test_declared_output_shapes_stay(tiny_bert_proto, tmp_path) -> None:
    model = copy(tiny_bert_proto)
    dims = model.graph.output[0].type.tensor_type.shape.dim
    dims[0].dim_param, dims[1].dim_param = "N", "T"
    dims[2].ClearField("dim_value")
    loaded = Model.load(saved(model, tmp_path))
    assert str(loaded.graph.outputs[0].shape) == "[batch,sequence,32]"  # what is implied
    assert str(loaded.declared.of(loaded.clone().graph.outputs[0])) == "[N,T,None]"
    again = onnx.load(loaded.clone().save(tmp_path / "again.onnx"))
    assert again.graph.output == model.graph.output
    assert str(loaded.graph.outputs[0].shape) == "[batch,sequence,32]"


def test_text_empty_and_unused_weights_come_back(tiny_bert_proto, tmp_path) -> None:
    model = copy(tiny_bert_proto)
    extra = [
        helper.make_tensor("words", TensorProto.STRING, [2], [b"a", b"b"]),
        numpy_helper.from_array(np.zeros((0, 4), np.float32), "empty"),
        numpy_helper.from_array(np.float32(2.5), "scalar"),
        helper.make_tensor("floats", TensorProto.FLOAT, [3], [1.0, 2.0, 3.0]),
    ]
    model.graph.initializer.extend(extra)
    again = {tensor.name: tensor for tensor in round_trip(saved(model, tmp_path), tmp_path).graph.initializer}
    for tensor in extra:
        np.testing.assert_array_equal(
            numpy_helper.to_array(again[tensor.name]), numpy_helper.to_array(tensor)
        )


def test_a_weight_that_is_also_an_input_stays_an_input(tiny_bert_proto, tmp_path) -> None:
    model = copy(tiny_bert_proto)
    name = "encoder.layer.0.output.dense.bias"
    model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [32]))
    again = round_trip(saved(model, tmp_path), tmp_path)
    assert name in [value.name for value in again.graph.input]
    assert name in [tensor.name for tensor in again.graph.initializer]


def test_the_standard_domain_may_be_spelt_out(tiny_bert_proto, tmp_path) -> None:
    model = copy(tiny_bert_proto)
    model.opset_import[0].domain = model.graph.node[5].domain = "ai.onnx"
    assert Model.load(saved(model, tmp_path)).opset == 18


def test_nodes_out_of_order_are_sorted(tiny_bert_proto, tmp_path, tiny_samples) -> None:
    model = copy(tiny_bert_proto)
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(nodes))
    loaded = Model.load(saved(model, tmp_path))
    seen: set[ir.Value] = set()
    for node in loaded.graph:
        assert all(value is None or value.producer() is None or value in seen for value in node.inputs)
        seen.update(node.outputs)


def test_functions_are_inlined(tmp_path) -> None:
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("mine", 1)]
    body = [helper.make_node("MatMul", ["a", "b"], ["c"]), helper.make_node("Relu", ["c"], ["d"])]
    function = helper.make_function("mine", "Layer", ["a", "b"], ["d"], body, opsets[:1])
    graph = helper.make_graph(
        [helper.make_node("Layer", ["x", "w"], ["y"], domain="mine")],
        "main",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")],
    )
    proto = helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=10)
    loaded = Model.load(saved(proto, tmp_path))
    assert [node.op_type for node in loaded.graph] == ["MatMul", "Relu"]
    assert not loaded.ir.functions


def calling_twice(depth: int) -> onnx.ModelProto:
    """Functions that each call the one before them twice, ``depth`` of them."""
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    body = [helper.make_node("Neg", ["a"], ["b"])]
    functions = [helper.make_function("own", "f0", ["a"], ["b"], body, opsets)]
    for number in range(1, depth + 1):
        pairs = (("a", "m"), ("m", "b"))
        calls = [helper.make_node(f"f{number - 1}", [a], [b], domain="own") for a, b in pairs]
        functions.append(helper.make_function("own", f"f{number}", ["a"], ["b"], calls, opsets))
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in "xy")
    graph = helper.make_graph([helper.make_node(f"f{depth}", ["x"], ["y"], domain="own")], "g", [x], [y])
    return helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=functions)


def test_functions_are_inlined_up_to_a_number_of_nodes(tmp_path) -> None:
    """Inlining itself knows no limit: 24 functions that call each other twice never came to an end."""
    deepest = int(np.log2(MOST_NODES))
    for depth in (3, 11):
        model = Model.load(saved(calling_twice(depth), tmp_path))
        assert Counter(node.op_type for node in model.graph) == {"Neg": 2**depth}
        x = np.arange(8, dtype=np.float32).reshape(2, 4)
        with Runner(model) as run:
            np.testing.assert_array_equal(run({"x": x})["y"], x)
    for depth in (deepest + 1, 24, 99):
        with pytest.raises(UnsupportedModelError, match=f"written out are {2**depth:,} nodes, more than"):
            Model.load(saved(calling_twice(depth), tmp_path))


def test_subgraphs_and_their_weights_come_back(tmp_path) -> None:
    def branch(name: str, number: float) -> onnx.GraphProto:
        weight = numpy_helper.from_array(np.full((4, 4), number, np.float32), f"w_{name}")
        out = helper.make_tensor_value_info(f"y_{name}", TensorProto.FLOAT, None)
        node = helper.make_node("MatMul", ["x", weight.name], [out.name])
        return helper.make_graph([node], name, [], [out], [weight])

    graph = helper.make_graph(
        [helper.make_node("If", ["c"], ["y"], then_branch=branch("a", 1.0), else_branch=branch("b", 2.0))],
        "main",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4]),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    loaded = Model.load(saved(proto, tmp_path))
    assert loaded.parameters == 32
    feed = {"x": np.ones((1, 4), np.float32), "c": np.array(False)}
    with Runner(loaded) as runner:
        np.testing.assert_array_equal(runner(feed)["y"], np.full((1, 4), 8.0))


# ---- weights


@pytest.fixture
def on_disk(monkeypatch) -> None:
    """Weights of any size stay on disk."""
    monkeypatch.setattr(stored, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(skim, "LARGE_BYTES", 1)


def test_weights_inside_the_file_are_read_late(tiny_bert_proto, tmp_path, on_disk) -> None:
    loaded = Model.load(saved(tiny_bert_proto, tmp_path))
    raw = {tensor.name: tensor for tensor in tiny_bert_proto.graph.initializer if tensor.raw_data}
    late = [v for v in loaded.initializers() if isinstance(v.const_value, StoredTensor)]
    assert {value.name for value in late} == set(raw)
    for value in late:
        np.testing.assert_array_equal(value.const_value.numpy(), onnx.numpy_helper.to_array(raw[value.name]))
    assert loaded.files == (tmp_path / loaded.path.name,)


def test_a_model_can_be_saved_over_itself(tiny_bert_proto, tmp_path, on_disk) -> None:
    path = saved(tiny_bert_proto, tmp_path)
    loaded = Model.load(path)
    before = {value.name: value.const_value.numpy().copy() for value in loaded.initializers()}
    loaded.graph.initializers.pop(
        next(iter(loaded.graph.initializers))
    )  # every offset in the new file differs
    loaded.save(path)
    for value in loaded.initializers():
        np.testing.assert_array_equal(value.const_value.numpy(), before[value.name])


@pytest.mark.parametrize("link", ["symlink_to", "hardlink_to"])
def test_a_file_under_another_name_is_read(link, tiny_bert_proto, tmp_path, on_disk) -> None:
    path = saved(tiny_bert_proto, tmp_path)
    other = tmp_path / "elsewhere" / "linked.onnx"
    other.parent.mkdir()
    getattr(other, link)(path)
    for value, original in zip(
        Model.load(other).initializers(), Model.load(path).initializers(), strict=True
    ):
        np.testing.assert_array_equal(value.const_value.numpy(), original.const_value.numpy())


def test_external_data_are_read_late_and_saved_inside(tiny_bert_proto, tmp_path, on_disk) -> None:
    source = tmp_path / "source"
    path = external_copy(tiny_bert_proto, source)
    loaded = Model.load(path)
    assert any(isinstance(value.const_value, StoredTensor) for value in loaded.initializers())
    again = loaded.save(tmp_path / "one.onnx")
    for file in source.iterdir():
        file.unlink()
    whole = onnx.load(again)
    for tensor, original in zip(whole.graph.initializer, tiny_bert_proto.graph.initializer, strict=True):
        np.testing.assert_array_equal(numpy_helper.to_array(tensor), numpy_helper.to_array(original))


def test_a_model_with_external_data_can_be_saved_over_itself(
    tiny_bert_proto, tmp_path, monkeypatch, on_disk
) -> None:
    monkeypatch.setattr(model_module, "EXTERNAL_DATA_LIMIT_BYTES", 1000)
    path = external_copy(tiny_bert_proto, tmp_path)
    loaded = Model.load(path)
    before = {value.name: value.const_value.numpy().copy() for value in loaded.initializers()}
    first = next(iter(loaded.graph.initializers))
    loaded.graph.initializers.pop(first)  # every offset in the new file differs
    loaded.save(path)
    for value in loaded.initializers():
        np.testing.assert_array_equal(value.const_value.numpy(), before[value.name])


@pytest.mark.parametrize("array", [np.float32(2.5), np.zeros((0, 3), np.float32), np.arange(40_000.0)])
def test_stored_arrays_keep_their_shape(array, tiny_bert) -> None:
    tensor = tiny_bert.store(np.asarray(array))
    assert tuple(tensor.shape.numpy()) == np.shape(array)
    np.testing.assert_array_equal(tensor.numpy(), array)


def test_a_transposed_array_is_stored_as_it_reads(tiny_bert) -> None:
    array = np.arange(60_000, dtype=np.float32).reshape(200, 300).T
    np.testing.assert_array_equal(tiny_bert.store(array).numpy(), array)


def test_a_copy_outlives_the_model_whose_scratch_it_shares(tiny_bert_path) -> None:
    model = Model.load(tiny_bert_path)
    array = np.arange(100_000, dtype=np.float32)
    value = ir.Value(name="big", type=ir.TensorType(ir.DataType.FLOAT), const_value=model.store(array))
    value.const_value.name = "big"
    model.graph.register_initializer(value)
    folder = value.const_value.file.parent
    twin = model.clone()
    del model, value
    gc.collect()
    np.testing.assert_array_equal(twin.graph.initializers["big"].const_value.numpy(), array)
    del twin
    gc.collect()
    assert not folder.exists()


@pytest.mark.parametrize(("fill", "fine"), [(-np.inf, True), (np.inf, True), (np.nan, False)])
def test_a_mask_may_hold_infinities_but_not_nan(fill, fine, tiny_bert_proto, tmp_path) -> None:
    model = copy(tiny_bert_proto)
    mask = np.triu(np.full((8, 8), fill, np.float32), 1)
    mask[np.tril_indices(8)] = 0.0
    model.graph.initializer.append(numpy_helper.from_array(mask, "causal"))
    loaded = Model.load(saved(model, tmp_path))
    if fine:
        assert loaded.check_weights_are_finite() is None
    else:
        with pytest.raises(InvalidModelError, match="'causal' holds NaN"):
            loaded.check_weights_are_finite()


# ---- files


def test_a_failed_save_leaves_the_earlier_file(tiny_bert, tmp_path, monkeypatch) -> None:
    path = tiny_bert.save(tmp_path / "model.onnx")
    before = path.read_bytes()

    def fail(*arguments: object, **options: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("onnx_ir.save", fail)
    with pytest.raises(OSError, match="disk full"):
        tiny_bert.save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_a_large_model_is_saved_with_its_weights_beside_it(
    tiny_bert, tmp_path, monkeypatch, tiny_samples
) -> None:
    monkeypatch.setattr(model_module, "EXTERNAL_DATA_LIMIT_BYTES", 1000)
    tiny_bert.save(tmp_path / "large.onnx")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["large.onnx", "large.onnx.data"]
    feed = tiny_samples.batch([0, 1])
    with Runner(tiny_bert) as one, Runner(Model.load(tmp_path / "large.onnx")) as other:
        np.testing.assert_array_equal(one(feed)["last_hidden_state"], other(feed)["last_hidden_state"])


def test_sessions_read_large_weights_where_they_lie(tiny_bert, tmp_path, monkeypatch, tiny_samples) -> None:
    monkeypatch.setattr(model_module, "IN_MEMORY_BYTES", 256)
    monkeypatch.setattr(stored, "IN_MEMORY_BYTES", 256)
    monkeypatch.setattr(scratch, "IN_MEMORY_BYTES", 256)
    feed = tiny_samples.batch([0, 1])
    with Runner(tiny_bert) as runner:
        expected = runner(feed)["last_hidden_state"]
    loaded = Model.load(tiny_bert.save(tmp_path / "model.onnx"))
    changed = next(value for value in loaded.initializers() if value.name and value.name.endswith("weight"))
    changed.const_value = ir.tensor(changed.const_value.numpy().copy(), name=changed.name)  # in memory
    written = loaded.in_place()
    assert len(written.proto) < written.bytes_on_disk < tiny_bert.weight_bytes + len(written.proto) + 1
    assert isinstance(changed.const_value, StoredTensor)
    with Runner(loaded) as runner:
        np.testing.assert_array_equal(runner(feed)["last_hidden_state"], expected)


def test_saving_twice_gives_the_same_bytes(tiny_bert, tmp_path) -> None:
    one, other = tiny_bert.save(tmp_path / "a.onnx"), tiny_bert.save(tmp_path / "b.onnx")
    assert one.read_bytes() == other.read_bytes()


def test_a_tensor_filled_to_a_measured_shape_has_that_shape() -> None:
    text = """
<ir_version: 10, opset_import: ["" : 18]>
g (float[batch, 4, size] x) => (float[batch, 4, size] y)
{
  shape = Shape(x)
  filled = ConstantOfShape(shape)
  y = Max(x, filled)
}
"""
    model = Model(ir.from_proto(onnx.parser.parse_model(text)))
    filled = next(node for node in model.graph if node.op_type == "ConstantOfShape").outputs[0]
    assert str(filled.shape) == "[batch,4,size]"
    assert filled.dtype == ir.DataType.FLOAT
