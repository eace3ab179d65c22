"""tensorrt: the graph that is written, and what is refused."""

import numpy as np
import onnx
import pytest
from graphs_int8 import ROWS, WIDTH, Maker, floats, kronecker, network, saved, smoothed_kronecker
from tensorrt_models import activations, ids, outputs

from graphcompress.data.load import Samples
from graphcompress.errors import UnsupportedModelError
from graphcompress.numerics.metrics import sqnr_db
from graphcompress.plugin.context import Context
from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.targets.nvidia.refusals import refusals
from graphcompress.targets.nvidia.strongly_typed import strongly_typed


def kept_db(source, lowered, samples):
    return sqnr_db(outputs(source, samples), outputs(lowered, samples))


def test_the_graph_is_half_around_symmetric_int8(tmp_path):
    model, samples = network(tmp_path), ids()
    typed = strongly_typed(model, Context(samples), half=True)
    assert typed.model.opset == 19
    assert typed.int8_products == ("n_wide.product", "n_narrow.product")
    kinds = {value.dtype.name for node in typed.model.graph for value in node.outputs if value.dtype}
    assert kinds <= {"FLOAT16", "INT8", "FLOAT"}
    assert [v.dtype.name for v in typed.model.graph.outputs] == ["FLOAT"]
    floats_left = [n.op_type for n in typed.model.graph for v in n.outputs if v.dtype.name == "FLOAT"]
    assert floats_left == ["Cast"]
    assert kept_db(model, typed.model, samples) > 35


def test_an_int8_table_is_read_by_a_dequantize_linear_alone(tmp_path):
    typed = strongly_typed(network(tmp_path), Context(ids()), half=True)
    table = next(v for v in typed.model.graph.initializers.values() if list(v.shape) == [ROWS, WIDTH])
    assert [node.op_type for node in table.consumers()] == ["DequantizeLinear"]


def test_the_model_that_is_lowered_stays_as_it_is(tmp_path):
    model = network(tmp_path)
    before = [(node.op_type, node.name) for node in model.graph]
    strongly_typed(model, Context(ids()), half=True)
    assert [(node.op_type, node.name) for node in model.graph] == before
    assert model.opset == 18


def test_float32_keeps_the_numbers(tmp_path):
    model, samples = network(tmp_path), ids()
    typed = strongly_typed(model, Context(samples), half=False)
    assert kept_db(model, typed.model, samples) > 100


FACTORED = [
    ((16, 16, 16, 32), 1),
    ((16, 32, 32, 16), 1),
    ((128, 1, 1, 128), 16),
    ((2, 8, 64, 64), 1),  # a small factor on the left: pieces of every row
    ((8, 2, 64, 64), 1),
    ((64, 64, 2, 2), 1),  # both exchanged around the large one
    ((64, 1, 2, 128), 16),
    ((128, 32, 1, 4), 2),
    ((128, 1, 1, 128), 4),  # fewer terms than a tensor core multiplies
]


@pytest.mark.parametrize(("sizes", "rank"), FACTORED)
def test_a_kronecker_weight_is_two_int8_products(tmp_path, sizes, rank):
    model = kronecker(tmp_path, sizes, rank)
    samples = activations(sizes[0] * sizes[2])
    typed = strongly_typed(model, Context(samples), half=True)
    assert len(typed.int8_products) == 2
    assert typed.record["kronecker_two_int8_products"] == ["y"]
    assert kept_db(model, typed.model, samples) > 12
    assert "two int8 products each, which keep at least" in typed.notes[0]


@pytest.mark.parametrize(("sizes", "rank", "scalings"), [((16, 16, 16, 16), 1, 2), ((64, 1, 1, 64), 16, 1)])
def test_what_smoothing_moved_is_in_a_factor_or_taken_back(tmp_path, sizes, rank, scalings):
    model = smoothed_kronecker(tmp_path, gain_takes_it=True, sizes=sizes, rank=rank)
    samples = activations(sizes[0] * sizes[2])
    typed = strongly_typed(model, Context(samples), half=True)
    assert typed.record["kronecker_two_int8_products"] == ["y"]
    assert len(typed.int8_products) == 2
    assert sum(node.op_type == "Mul" for node in typed.model.graph) == scalings
    assert kept_db(model, typed.model, samples) > 12


@pytest.mark.parametrize(("sizes", "rank", "scalings"), [((16, 16, 16, 16), 1, 0), ((64, 1, 1, 64), 16, 1)])
def test_a_factor_takes_what_smoothing_moved_wherever_one_can(tmp_path, sizes, rank, scalings):
    model = smoothed_kronecker(tmp_path, gain_takes_it=False, sizes=sizes, rank=rank)
    samples = activations(sizes[0] * sizes[2])
    typed = strongly_typed(model, Context(samples), half=True)
    assert typed.record["kronecker_two_int8_products"] == ["y"]
    assert sum(node.op_type == "Mul" for node in typed.model.graph) == scalings
    assert kept_db(model, typed.model, samples) > 12


def test_a_few_huge_tokens_do_not_speak_for_the_others(tmp_path):
    model = kronecker(tmp_path, (128, 1, 1, 128), 16)
    rows = np.random.default_rng(1).standard_normal((6, 9, 128)).astype(np.float32)
    rows[:, 0] *= 300
    with Rewriter(model, Context()) as rw:
        rw.overwrite(model.graph.initializers["x.scale"], np.array(10, np.float32))
    typed = strongly_typed(model, Context(Samples([{"x": sample} for sample in rows])), half=True)
    assert typed.record["kronecker_two_int8_products"] == []
    assert "two products would keep" in typed.record["kronecker_expanded"]["y"]


def test_the_first_of_two_products_rounds_as_the_one_did(tmp_path):
    model = kronecker(tmp_path, (128, 1, 1, 128), 16)
    with Rewriter(model, Context()) as rw:
        rw.overwrite(model.graph.initializers["x.scale"], np.array(0.04321, np.float32))
    typed = strongly_typed(model, Context(activations(128)), half=False)
    rounded = next(node for node in typed.model.graph if node.op_type == "QuantizeLinear")
    assert typed.record["kronecker_two_int8_products"] == ["y"]
    assert rounded.inputs[1].const_value.numpy() == np.float32(0.04321)


@pytest.mark.parametrize(
    ("sizes", "rank", "reason"),
    [((8, 1, 1, 64), 4, "below 16"), ((32, 1, 1, 32), 32, "as many operations")],
)
def test_other_kronecker_weights_are_expanded_and_say_why(tmp_path, sizes, rank, reason):
    model = kronecker(tmp_path, sizes, rank)
    samples = activations(sizes[0] * sizes[2])
    typed = strongly_typed(model, Context(samples), half=True)
    assert len(typed.int8_products) == 1
    assert reason in typed.record["kronecker_expanded"]["y"]
    assert kept_db(model, typed.model, samples) > 35


@pytest.mark.parametrize("wide", [0, 1])
def test_products_of_one_activation_stay_int8_when_one_is_beyond_float16(tmp_path, wide):
    make = Maker()
    x = make.rounded("x")
    outs = [make.linear(x, WIDTH, WIDTH, f"linear{index}") for index in range(2)]
    large = f"{outs[wide]}.s"
    place = next(index for index, it in enumerate(make.constants) if it.name == large)
    make.constants[place] = onnx.numpy_helper.from_array(np.full(WIDTH, 60.0, np.float32), large)
    model = saved(make.model([floats("x", WIDTH)], [floats(it, WIDTH) for it in outs]), tmp_path)
    typed = strongly_typed(model, Context(), half=True)
    assert typed.record["values_beyond_float16"]
    assert len(typed.int8_products) == 2


def test_what_tensorrt_accepts_is_not_refused(tmp_path):
    assert not list(refusals(strongly_typed(network(tmp_path), Context(ids()), half=True).model))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"zero": 3}, "its zero point is not zero"),
        ({"dtype": np.uint8}, "UINT8 is not supported"),
        ({"axis": 0}, "axis 0, which is summed over"),
    ],
)
def test_refusals_name_the_node_and_what_to_do(tmp_path, change, reason):
    with pytest.raises(UnsupportedModelError, match="TensorRT refuses node 'n_") as caught:
        strongly_typed(network(tmp_path, **change), Context(ids()), half=True)
    assert reason in str(caught.value)


@pytest.mark.parametrize(("transposed", "axis", "refused"), [(1, 0, 0), (1, 1, 1), (0, 1, 0), (0, 0, 1)])
def test_a_gemm_has_its_scales_on_the_axis_of_its_outputs(tmp_path, transposed, axis, refused):
    make = Maker()
    weight = make.constant("w", make.rng.integers(-127, 128, (32, 32)).astype(np.int8))
    scale = make.constant("s", np.full(32, 0.01, np.float32))
    zero = make.constant("z", np.zeros(32, np.int8))
    dequantised = make.node("DequantizeLinear", weight, scale, zero, out="dq", axis=axis)
    make.node("Gemm", make.rounded("x"), dequantised, out="y", transB=transposed)
    matrix = onnx.helper.make_tensor_value_info
    x, y = (matrix(name, onnx.TensorProto.FLOAT, ["batch", 32]) for name in "xy")
    assert len(list(refusals(saved(make.model([x], [y]), tmp_path)))) == refused


def test_a_product_that_is_no_int8_gemm_is_named(tmp_path):
    make = Maker()
    make.linear(make.rounded("x"), WIDTH, WIDTH, "first")
    make.linear("first", WIDTH, WIDTH, "y")
    model = saved(make.model([floats("x", WIDTH)], [floats("y", WIDTH)]), tmp_path)
    typed = strongly_typed(model, Context(activations(WIDTH)), half=True)
    assert typed.int8_products == ("n_first.product",)
    assert typed.record["products_left_in_float"] == ["n_y.product"]
    assert "computed in float" in typed.notes[0]


def test_an_operator_for_dynamic_scales_is_refused(tmp_path):
    make = Maker()
    weight = make.constant("w", make.rng.integers(-9, 9, (32, 32)).astype(np.int8))
    make.nodes.append(onnx.helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], name="dynamic"))
    make.node("MatMulInteger", "q", weight, "z", out="i")
    make.node("Cast", "i", out="f", to=1)
    make.node("Mul", "f", "s", out="y")
    model = saved(make.model([floats("x", 32)], [floats("y", 32)]), tmp_path)
    assert [it.node for it in refusals(model)] == ["dynamic", "n_i"]
    assert "scheme=static" in str(next(refusals(model)))
