"""simplify: which weights are folded, and Gemm as MatMul and Add."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from simplified_models import model_of, normal, ops, simplified, x_feeds

from graphcompress.analysis.experts import all_experts
from graphcompress.analysis.linears import linears
from graphcompress.graph.model import Model
from graphcompress.rules.guards import LARGEST_SCORE

SWAP = "Transpose <perm = [0, 2, 1]>"


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


@pytest.mark.parametrize(
    ("attributes", "x", "left"),
    [
        ("alpha = 0.5", "float[b, 6]", {"MatMul": 1, "Add": 1}),
        ("beta = 2.0", "float[b, 6]", {"MatMul": 1, "Add": 1}),
        ("alpha = 3.0, beta = 2.0, transA = 1", "float[6, b]", {"Transpose": 1, "MatMul": 1, "Add": 1}),
        # The smallest weights would lose digits, so the product is scaled.
        ("alpha = 1e-37", "float[b, 6]", {"MatMul": 1, "Mul": 1, "Add": 1}),
    ],
)
def test_gemm_with_factors_becomes_matmul_and_add(attributes: str, x: str, left: dict[str, int]) -> None:
    model = model_of(
        f"g ({x} x) => (float[b, 4] y) {{ y = Gemm <{attributes}> (x, w, c) }}", w=normal(6, 4), c=normal(4)
    )
    feed = normal(3, 6) if x == "float[b, 6]" else normal(6, 3)
    result, _ = simplified(model, {"x": feed})
    assert ops(result) == left
    (linear,) = linears(result)
    assert linear.name == "w"
    assert (linear.bias is None) == ("Mul" in left)


def test_gemm_adds_what_was_computed() -> None:
    model = model_of(
        "g (float[b, 6] x, float[b, 4] r) => (float[b, 4] y) { y = Gemm <beta = 0.5> (x, w, r) }",
        w=normal(6, 4),
    )
    result, _ = simplified(model, {"x": normal(3, 6), "r": normal(3, 4)})
    assert ops(result) == {"MatMul": 1, "Mul": 1, "Add": 1}
    assert len(linears(result)) == 1


@pytest.mark.parametrize(
    ("graph", "left"),
    [
        (
            "u = Unsqueeze(x, last) p = MatMul(w, u) y = Squeeze(p, last)",
            {"Reshape": 2, "MatMul": 1},
        ),
        (
            "t = Transpose <perm = [0, 2, 1]> (x) p = MatMul(w, t) y = Transpose <perm = [0, 2, 1]> (p)",
            {"MatMul": 1},
        ),
        ("t = Transpose <perm = [0, 2, 1]> (x) y = MatMul(w, t)", {"MatMul": 1, "Transpose": 1}),
    ],
)
def test_a_weight_on_the_left_moves_to_the_right(graph: str, left: dict[str, int]) -> None:
    sizes = "float[b, s, 4] y" if graph.endswith(("last)", "(p)")) else "float[b, 4, s] y"
    model = model_of(f"g (float[b, s, 6] x) => ({sizes}) {{ {graph} }}", w=normal(4, 6), last=np.array([-1]))
    result, _ = simplified(model, *x_feeds(3, 5))
    assert ops(result) == left
    assert [(linear.name, linear.in_features, linear.out_features) for linear in linears(result)] == [
        ("w", 6, 4)
    ]


def test_a_weight_on_the_left_stays_where_nothing_is_transposed() -> None:
    model = model_of("g (float[b, 6, s] x) => (float[b, 4, s] y) { y = MatMul(w, x) }", w=normal(4, 6))
    result, _ = simplified(model, {"x": normal(2, 6, 3)})
    assert ops(result) == {"MatMul": 1}
    assert not linears(result)


def test_a_stack_of_one_weight_is_a_weight() -> None:
    model = model_of("g (float[b, s, 6] x) => (float[b, s, 4] y) { y = MatMul(x, w) }", w=normal(1, 6, 4))
    result, _ = simplified(model, *x_feeds(3, 5))
    assert [linear.name for linear in linears(result)] == ["w"]


def looked_up(forms: str, left: bool, **weights: np.ndarray) -> Model:
    """Every row of x [n, 6] times the matrix of its own expert: a stack of them on either side."""
    product = "MatMul(m, u) r = Squeeze(p, last)" if left else "MatMul(u, m) r = Squeeze(p, middle)"
    return model_of(
        f"""g (float[n, 6] x, int64[n] i) => (float[n, 4] y) {{
            {forms}
            u = Unsqueeze(x, {"last" if left else "middle"})
            p = {product}
            y = Identity(r)
        }}""",
        last=np.array([-1]),
        middle=np.array([1]),
        **weights,
    )


@pytest.mark.parametrize(
    ("forms", "left", "shape"),
    [
        ("m = Gather(w, i)", False, (3, 6, 4)),
        ("m = Gather(w, i)", True, (3, 4, 6)),
        ("j = Unsqueeze(i, last) m = GatherND(w, j)", True, (3, 4, 6)),
        (f"g = Gather(w, i) m = {SWAP} (g)", False, (3, 4, 6)),
    ],
)
def test_experts_that_are_looked_up_have_one_form(forms: str, left: bool, shape: tuple[int, ...]) -> None:
    model = looked_up(forms, left, w=normal(*shape))
    result, _ = simplified(model, {"x": normal(5, 6), "i": np.array([0, 2, 1, 2, -3])})
    (experts,) = all_experts(result)
    assert (experts.name, experts.experts, experts.in_features, experts.width) == ("w", 3, 6, 4)
    assert experts.lookup is not None
    assert not ops(result).keys() & {"GatherND", "Transpose"}


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
