"""simplify: which weights are folded, and Gemm as MatMul and Add."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from simplified_models import model_of, normal, ops, simplified, x_feeds

from graphcompress.analysis.linears import linears
from graphcompress.graph.model import Model
from graphcompress.rules.guards import LARGEST_SCORE


def test_a_transposed_weight_is_folded_and_keeps_its_name() -> None:
    model = model_of(
        """g (float[b, s, 6] x) => (float[b, s, 4] y) {
            t = Transpose <perm = [1, 0]> (fc_weight)
            y = MatMul(x, t)
        }""",
        **{"fc_weight": normal(4, 6)},
    )
    result, record = simplified(model, *x_feeds(3, 5))
    assert ops(result) == {"MatMul": 1}
    assert [linear.name for linear in linears(result)] == ["fc_weight"]
    assert [touched.name for touched in record.touched] == ["fc_weight"]


def test_a_tied_weight_is_not_folded_because_it_would_be_stored_twice() -> None:
    model = model_of(
        """g (int64[b, s] ids) => (float[b, s, 50] y) {
            e = Gather(table, ids)
            t = Transpose <perm = [1, 0]> (table)
            y = MatMul(e, t)
        }""",
        table=normal(50, 40),
    )
    result, record = simplified(model, {"ids": np.array([[1, 2, 3]])})
    assert ops(result) == {"Gather": 1, "Transpose": 1, "MatMul": 1}
    assert "tied" in record.skipped[0].reason


def test_kronecker_factors_stay_factors() -> None:
    model = model_of(
        """g (float[b, s, 64] x) => (float[b, s, 64] y) {
            p = MatMul(a, c)
            q = Reshape(p, four)
            r = Transpose <perm = [0, 2, 1, 3]> (q)
            w = Reshape(r, two)
            y = MatMul(x, w)
        }""",
        a=normal(64, 1),
        c=normal(1, 64),
        four=np.array([8, 8, 8, 8]),
        two=np.array([64, 64]),
    )
    result, record = simplified(model, *x_feeds(3, width=64))
    assert result.parameters == 128
    assert record.skipped[0].reason == "the expression is smaller than its result"


def test_low_bit_storage_stays_low_bit() -> None:
    model = model_of(
        """g (float[b, s, 64] x) => (float[b, s, 64] y) {
            f = Cast <to = 1> (q)
            w = Mul(f, scale)
            y = MatMul(x, w)
        }""",
        q=np.arange(64 * 64, dtype=np.int32).astype(np.int8).reshape(64, 64),
        scale=np.float32(0.01).reshape(1),
    )
    result, _ = simplified(model, *x_feeds(3, width=64))
    assert result.weight_bytes < 64 * 64 * 2


def test_a_dequantized_bias_stays_quantised_though_it_is_no_smaller() -> None:
    model = model_of(
        """g (float[b, s, 6] x) => (float[b, s, 90] y) {
            p = MatMul(x, w)
            c = DequantizeLinear(q, scale)
            y = Add(p, c)
        }""",
        w=normal(6, 90),
        q=np.arange(90, dtype=np.int32),
        scale=np.float32(0.01),
    )
    result, record = simplified(model, *x_feeds(3))
    assert ops(result)["DequantizeLinear"] == 1
    assert "quantised" in record.skipped[0].reason


def test_gather_of_kept_rows_is_folded_because_it_is_smaller() -> None:
    model = model_of(
        """g (float[b, s, 6] x) => (float[b, s, 90] y) {
            w = Gather <axis = 1> (fc, kept)
            y = MatMul(x, w)
        }""",
        fc=normal(6, 400),
        kept=np.arange(90),
    )
    result, _ = simplified(model, *x_feeds(3))
    assert ops(result) == {"MatMul": 1}
    assert result.parameters == 6 * 90


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("bias_shape", [(4,), (1, 4), (1,), None])
def test_gemm_becomes_matmul_and_add(transposed: int, bias_shape: tuple[int, ...] | None) -> None:
    weights = {"fc_weight": normal(4, 6) if transposed else normal(6, 4)}
    bias = ""
    if bias_shape is not None:
        weights["fc_bias"], bias = normal(*bias_shape), ", fc_bias"
    model = model_of(
        f"g (float[b, 6] x) => (float[b, 4] y) {{ y = Gemm <transB = {transposed}> (x, fc_weight{bias}) }}",
        **weights,
    )
    result, _ = simplified(model, {"x": normal(3, 6)})
    assert ops(result) == ({"MatMul": 1, "Add": 1} if bias_shape else {"MatMul": 1})
    (linear,) = linears(result)
    assert linear.name == "fc_weight"
    assert (linear.bias is None) == (bias_shape is None)


def test_gemm_with_one_output_and_a_scalar_bias() -> None:
    model = model_of(
        "g (float[b, 6] x) => (float[b, 1] y) { y = Gemm (x, w, c) }",
        w=normal(6, 1),
        c=np.array(0.5, np.float32),
    )
    result, _ = simplified(model, {"x": normal(3, 6)})
    assert ops(result) == {"MatMul": 1, "Add": 1}


@pytest.mark.parametrize("dtype", list(LARGEST_SCORE))
def test_the_lowest_number_stays_finite_with_a_score_added(dtype: ir.DataType) -> None:
    kind = dtype.numpy()
    lowest = np.array(np.finfo(kind).min, kind)
    masked = lowest + np.array([-LARGEST_SCORE[dtype], LARGEST_SCORE[dtype]], kind)
    assert np.isfinite(masked).all()
    assert not np.exp(masked).any()


@pytest.mark.parametrize("attribute", ["alpha = 0.5", "beta = 2.0"])
def test_gemm_with_a_factor_is_left_alone(attribute: str) -> None:
    model = model_of(
        f"g (float[b, 6] x) => (float[b, 4] y) {{ y = Gemm <{attribute}> (x, w, c) }}",
        w=normal(6, 4),
        c=normal(4),
    )
    result, _ = simplified(model, {"x": normal(3, 6)})
    assert ops(result) == {"Gemm": 1}


def test_a_bias_comes_after_its_product() -> None:
    model = model_of(
        "g (float[b, s, 6] x) => (float[b, s, 4] y) { p = MatMul(x, w)\n y = Add(c, p) }",
        w=normal(6, 4),
        c=normal(1, 1, 4),
    )
    result, _ = simplified(model, *x_feeds(3))
    (linear,) = linears(result)
    assert linear.bias is not None
    assert list(linear.bias.shape or ()) == [4]


def test_half_precision_weights_stay_half() -> None:
    model = model_of(
        """g (float16[b, s, 6] x) => (float16[b, s, 4] y) {
            t = Transpose <perm = [1, 0]> (w)
            y = MatMul(x, t)
        }""",
        w=normal(4, 6).astype(np.float16),
    )
    result, _ = simplified(model, {"x": normal(2, 3, 6).astype(np.float16)})
    assert ops(result) == {"MatMul": 1}
    assert {value.dtype for value in result.initializers()} == {ir.DataType.FLOAT16}


def test_an_initializer_that_is_also_an_input_is_not_folded() -> None:
    proto = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 18]>
        g (float[b, 6] x, float[4, 6] w = {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24})
            => (float[b, 4] y) {
            t = Transpose <perm = [1, 0]> (w)
            y = MatMul(x, t)
        }"""
    )
    model = Model(ir.from_proto(proto))
    result, _ = simplified(model, {"x": normal(3, 6)}, {"x": normal(3, 6), "w": normal(4, 6)})
    assert ops(result) == {"Transpose": 1, "MatMul": 1}
