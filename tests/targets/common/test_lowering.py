"""Rewrites that targets share: fixed sizes, products of matrices, no Where, no Erf, factors at run time."""

import numpy as np
import onnx
import pytest
from graphs_int8 import smoothed_kronecker
from onnx import TensorProto, helper, numpy_helper

from graphcompress.analysis.linears import embeddings, linears
from graphcompress.errors import UsageError
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner
from graphcompress.passes.kron.kron import Kron
from graphcompress.passes.quantize.int8 import Int8
from graphcompress.passes.simplify.simplify import Simplify
from graphcompress.plugin.capabilities import Capabilities
from graphcompress.plugin.context import Context
from graphcompress.plugin.schemes import UINT8, integer_products
from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.targets.common.fix_sizes import fix_shapes, is_fixed, parse_shape, sizes_of
from graphcompress.targets.common.kronecker_factors import multiply_factors
from graphcompress.targets.mobile.flattened_products import flatten_products
from graphcompress.targets.mobile.nnapi_operators import (
    normalisation_by_means,
    reciprocal_as_division,
    rows_by_int32,
    without_erf,
)
from graphcompress.targets.mobile.where_as_arithmetic import where_as_arithmetic

FEED = {
    "input_ids": np.array([[5, 6, 7, 8, 0, 0]]),
    "attention_mask": np.array([[1, 1, 1, 1, 0, 0]]),
    "token_type_ids": np.zeros((1, 6), np.int64),
}


def answers(model, feed=FEED):
    with Runner(model) as run:
        return run({name: feed[name] for name in (value.name for value in model.graph.inputs)})


def error(before, after):
    return max(np.abs(before[name] - after[name]).max() / np.abs(before[name]).max() for name in before)


def kinds(model):
    return {node.op_type for node in model.graph}


def one_node(tmp_path, op_type, inputs, outputs, **attributes):
    """A model of one node over float inputs [batch, 4]; ``inputs`` that are arrays are stored."""
    stored = [numpy_helper.from_array(a, f"c{i}") for i, a in enumerate(inputs) if isinstance(a, np.ndarray)]
    names = [value if isinstance(value, str) else f"c{i}" for i, value in enumerate(inputs)]
    kind = {"c": TensorProto.BOOL}
    graph = helper.make_graph(
        [helper.make_node(op_type, names, ["y"], **attributes)],
        "one",
        [
            helper.make_tensor_value_info(n, kind.get(n, TensorProto.FLOAT), ["batch", 4])
            for n in names
            if n[0] != "c" or n == "c"
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        stored,
    )
    path = tmp_path / "one.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    return Model.load(path)


# ---- fixed sizes


@pytest.mark.parametrize(
    ("text", "meaning"),
    [("1x128", (1, 128)), ("4", (4, None)), ("batch=1,sequence=7", {"batch": 1, "sequence": 7})],
)
def test_a_shape_is_read(text, meaning):
    assert parse_shape(text) == meaning


@pytest.mark.parametrize("text", ["", "0x3", "axb", "1x2x3", "batch=0"])
def test_what_is_no_shape_is_refused(text):
    with pytest.raises(UsageError, match="expected batch x length"):
        parse_shape(text)


def test_sizes_go_to_the_batch_and_the_length(tiny_bert):
    assert sizes_of(tiny_bert, "2x16") == {"batch": 2, "sequence": 16}
    assert sizes_of(tiny_bert, "batch=3,sequence=5") == {"batch": 3, "sequence": 5}


def test_a_size_that_stays_variable_or_is_unknown_is_refused(tiny_bert):
    with pytest.raises(UsageError, match="sequence would stay variable"):
        sizes_of(tiny_bert, "2")
    with pytest.raises(UsageError, match="did you mean 'batch'"):
        sizes_of(tiny_bert, "bach=1")


def test_a_length_is_refused_where_there_is_none(tmp_path):
    with pytest.raises(UsageError, match="the variable sizes are batch"):
        sizes_of(one_node(tmp_path, "Relu", ["x"], ["y"]), "1x8")


def test_fixed_sizes_leave_no_shape_arithmetic_and_the_same_numbers(tiny_bert):
    before = answers(tiny_bert)
    assert "Shape" in kinds(tiny_bert)
    assert not is_fixed(tiny_bert)
    assert fix_shapes(tiny_bert, {"batch": 1, "sequence": 6}, Context()) == 12
    assert not kinds(tiny_bert) & {"Shape", "Expand", "Slice"}
    assert is_fixed(tiny_bert)
    assert all(value.shape.is_static() for value in tiny_bert.graph.outputs)
    assert error(before, answers(tiny_bert)) < 1e-5


# ---- products of matrices


def test_products_become_those_of_matrices(tiny_bert):
    before = answers(tiny_bert)
    fix_shapes(tiny_bert, {"batch": 1, "sequence": 6}, Context())
    with Rewriter(tiny_bert, Context()) as rw:
        assert flatten_products(rw) > 10
    assert all(len(linear.input.shape) == 2 for linear in linears(tiny_bert))
    assert error(before, answers(tiny_bert)) < 1e-5
    with Rewriter(tiny_bert, Context()) as rw:
        assert flatten_products(rw) == 0
        assert not rw.modified


def test_products_of_variable_size_stay(tiny_bert):
    with Rewriter(tiny_bert, Context()) as rw:
        assert flatten_products(rw) == 0
        assert not rw.modified


# ---- Where


def test_a_mask_needs_no_where(tiny_bert):
    Simplify().run(tiny_bert, Context())
    before = answers(tiny_bert)
    assert "Where" in kinds(tiny_bert)
    with Rewriter(tiny_bert, Context()) as rw:
        assert where_as_arithmetic(rw) == 1
    assert "Where" not in kinds(tiny_bert)
    assert error(before, answers(tiny_bert)) == 0


@pytest.mark.parametrize(("then", "otherwise"), [(2.5, -3e38), (0.0, -3e38), (7.0, 0.0), (0.0, 0.0)], ids=str)
def test_where_of_two_numbers_is_bit_equal(tmp_path, then, otherwise):
    model = one_node(
        tmp_path, "Where", ["c", np.array(then, np.float32), np.array(otherwise, np.float32)], ["y"]
    )
    feed = {"c": np.array([[True, False, True, False]])}
    before = answers(model, feed)
    with Rewriter(model, Context()) as rw:
        assert where_as_arithmetic(rw) == 1
    assert np.array_equal(before["y"], answers(model, feed)["y"])


def test_conditions_that_are_joined_need_no_truth_values(tmp_path):
    graph = helper.make_graph(
        [
            helper.make_node("Not", ["a"], ["not_a"]),
            helper.make_node("And", ["not_a", "b"], ["and"]),
            helper.make_node("Or", ["and", "a"], ["or"]),
            helper.make_node("Where", ["or", "low", "high"], ["y"]),
            helper.make_node("Where", ["not_a", "low", "high"], ["z"]),
        ],
        "joined",
        [helper.make_tensor_value_info(name, TensorProto.BOOL, [4]) for name in "ab"],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "yz"],
        [numpy_helper.from_array(np.array(v, np.float32), n) for n, v in (("low", -3e38), ("high", 2.5))],
    )
    path = tmp_path / "joined.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    model, feed = Model.load(path), {"a": np.array([0, 0, 1, 1], bool), "b": np.array([0, 1, 0, 1], bool)}
    before = answers(model, feed)
    with Rewriter(model, Context()) as rw:
        assert where_as_arithmetic(rw) == 2
    assert not kinds(model) & {"Where", "Not", "And", "Or"}
    after = answers(model, feed)
    assert all(np.array_equal(before[name], after[name]) for name in "yz")


def test_a_where_over_what_may_be_infinite_stays_with_the_reason(tmp_path):
    model = one_node(tmp_path, "Where", ["c", "x", np.array(-np.inf, np.float32)], ["y"])
    with Rewriter(model, Context()) as rw:
        assert where_as_arithmetic(rw) == 0
        assert not rw.modified
    assert [item.reason.partition(":")[0] for item in rw.skipped] == ["this Where stays"]


# ---- elementary operators


def test_without_erf_is_gelu(tiny_bert):
    before = answers(tiny_bert)
    with Rewriter(tiny_bert, Context()) as rw:
        assert without_erf(rw) == 2
    assert not kinds(tiny_bert) & {"Erf", "Gelu"}
    assert error(before, answers(tiny_bert)) < 2e-6


def test_without_erf_over_its_whole_range(tmp_path):
    model = one_node(tmp_path, "Gelu", ["x"], ["y"])
    x = np.array([*np.linspace(-12, 12, 4001), -1e4, 1e4, 0.0], np.float32).reshape(-1, 4)
    expected = answers(model, {"x": x})["y"]
    with Rewriter(model, Context()) as rw:
        assert without_erf(rw) == 1
    assert np.abs(expected - answers(model, {"x": x})["y"]).max() < 1e-6


@pytest.mark.parametrize(
    ("op_type", "attributes"), [("Erf", {}), ("Gelu", {"approximate": "tanh"})], ids=["erf", "tanh"]
)
def test_without_erf_what_is_no_exact_gelu_goes_too(tmp_path, op_type, attributes):
    model = one_node(tmp_path, op_type, ["x"], ["y"], **attributes)
    x = np.array([*np.linspace(-12, 12, 4001), -1e4, 1e4, 0.0], np.float32).reshape(-1, 4)
    expected = answers(model, {"x": x})["y"]
    with Rewriter(model, Context()) as rw:
        assert without_erf(rw) == 1
    assert not kinds(model) & {"Erf", "Gelu"}
    assert np.abs(expected - answers(model, {"x": x})["y"]).max() < 1e-6


def test_a_reciprocal_as_division_is_bit_equal(tmp_path):
    model = one_node(tmp_path, "Reciprocal", ["x"], ["y"])
    feed = {"x": np.array([[3.0, -7.0, 1e-20, 0.0]], np.float32)}
    before = answers(model, feed)
    with Rewriter(model, Context()) as rw:
        assert reciprocal_as_division(rw) == 1
    assert kinds(model) == {"Div"}
    assert np.array_equal(before["y"], answers(model, feed)["y"])


def test_rows_are_looked_up_by_int32(tiny_bert):
    before = answers(tiny_bert)
    with Rewriter(tiny_bert, Context()) as rw:
        assert rows_by_int32(rw) >= 2
    asked = [node.inputs[1] for node in tiny_bert.graph if node.op_type == "Gather"]
    assert {value.dtype.name for value in asked if value.const_value is None} == {"INT32"}
    assert error(before, answers(tiny_bert)) == 0
    with Rewriter(tiny_bert, Context()) as rw:
        assert rows_by_int32(rw) == 0
        assert not rw.modified


def test_a_last_axis_needs_no_known_shape(tiny_bert):
    for node in tiny_bert.graph:
        if node.op_type == "LayerNormalization":
            node.inputs[0].shape = None
    with Rewriter(tiny_bert, Context()) as rw:
        assert normalisation_by_means(rw) == 5


def test_normalisation_by_means(tiny_bert):
    before = answers(tiny_bert)
    with Rewriter(tiny_bert, Context()) as rw:
        assert normalisation_by_means(rw) == 5
    assert "LayerNormalization" not in kinds(tiny_bert)
    assert error(before, answers(tiny_bert)) < 1e-5


# ---- factors


def stored(model):
    return sum(value.const_value.nbytes for value in model.initializers())


def test_products_with_factors_are_the_same_and_store_no_more(tiny_bert):
    Simplify().run(tiny_bert, Context())
    Kron(ratio=0.5).run(tiny_bert, Context())
    before, size = answers(tiny_bert), stored(tiny_bert)
    with Rewriter(tiny_bert, Context()) as rw:
        done = multiply_factors(rw)
    assert (done.linears, done.tables) == (12, 3)
    assert done.expanded == ()
    assert stored(tiny_bert) < size * 1.05
    assert error(before, answers(tiny_bert)) < 1e-5


def test_expanded_weights_are_named(tiny_bert):
    Simplify().run(tiny_bert, Context())
    Kron(ratio=0.5).run(tiny_bert, Context())
    before, size = answers(tiny_bert), stored(tiny_bert)
    with Rewriter(tiny_bert, Context()) as rw:
        done = multiply_factors(rw, expand=True)
    assert len(done.expanded) > 5
    assert done.linears == 0
    assert stored(tiny_bert) > size
    assert error(before, answers(tiny_bert)) < 1e-5


@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_quantised_factors_multiply_in_float(tiny_bert, tiny_samples, mode):
    Simplify().run(tiny_bert, Context())
    Kron(ratio=0.5).run(tiny_bert, Context())
    Int8(scheme=mode).run(
        tiny_bert,
        Context(
            samples=tiny_samples,
            capabilities=Capabilities(integer_products(UINT8, dynamic=True, weight_bits=7)),
        ),
    )
    before = answers(tiny_bert)
    with Rewriter(tiny_bert, Context()) as rw:
        assert multiply_factors(rw).linears > 5
    assert error(before, answers(tiny_bert)) < 0.1  # what int8 had rounded is not rounded any more


@pytest.mark.parametrize("gain_takes_it", [True, False])
def test_what_smoothing_moved_into_factors_goes_back(tmp_path, gain_takes_it):
    model = smoothed_kronecker(tmp_path, gain_takes_it)
    feed = {"x": np.random.default_rng(2).standard_normal((2, 5, 64)).astype(np.float32)}
    with Runner(model, optimize=False) as run:  # int8 products of this machine may saturate
        before = run(feed)
    with Rewriter(model, Context()) as rw:
        done = multiply_factors(rw)
    assert (done.linears, done.expanded) == (1, ())
    assert not kinds(model) & {"QuantizeLinear", "DequantizeLinear"}
    assert sum(node.op_type == "Mul" for node in model.graph) == (2 if gain_takes_it else 0)
    assert error(before, answers(model, feed)) < 0.1  # what int8 had rounded is not rounded any more


def test_a_table_in_int8_blocks_is_looked_up_row_by_row(tiny_bert):
    Simplify().run(tiny_bert, Context())
    Kron(shape="100x16,1x2", only="*word*").run(tiny_bert, Context())
    Int8(scheme="dynamic").run(tiny_bert, Context())
    before = answers(tiny_bert)
    with Rewriter(tiny_bert, Context()) as rw:
        assert multiply_factors(rw).tables == 1
    assert error(before, answers(tiny_bert)) < 1e-5
    assert all(table.weight.const_value is not None for table in embeddings(tiny_bert))
