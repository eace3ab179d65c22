"""simplify: arithmetic on shapes, slices, heads and rows that are flattened."""

from __future__ import annotations

import numpy as np
import pytest
from simplified_models import model_of, normal, ops, simplified, x_feeds


def test_shape_arithmetic_becomes_constant() -> None:
    model = model_of(
        """g (float[b, s, 6] x) => (float[b, 2, s, 3] y) {
            shape = Shape(x)
            batch = Gather(shape, zero)
            length = Gather(shape, one)
            target = Concat <axis = 0> (batch, length, two, minus)
            r = Reshape(x, target)
            y = Transpose <perm = [0, 2, 1, 3]> (r)
        }""",
        zero=np.array([0]),
        one=np.array([1]),
        two=np.array([2]),
        minus=np.array([-1]),
    )
    result, _ = simplified(model, *x_feeds(3, 5, 1))
    assert ops(result) == {"Reshape": 1, "Transpose": 1}


def test_a_target_with_two_open_sizes_stays_computed() -> None:
    model = model_of(
        """g (float[b, s, 6] x) => (float[n, s, 3] y) {
            shape = Shape(x)
            length = Gather(shape, one)
            t = Transpose <perm = [2, 0, 1]> (x)
            target = Concat <axis = 0> (minus, length, three)
            y = Reshape(t, target)
        }""",
        one=np.array([1]),
        three=np.array([3]),
        minus=np.array([-1]),
    )
    result, _ = simplified(model, *x_feeds(3, 5))
    assert "Concat" in ops(result)


@pytest.mark.parametrize(("over", "left"), [(4, False), (2, True), (3, True)])
def test_a_quotient_of_sizes_is_read_from_the_input_that_has_it(over: int, left: bool) -> None:
    model = model_of(
        """g (float[b, 4, 6] x) => (int64[n] y) {
            flat = Reshape(x, rows)
            shape = Shape(flat)
            size = Gather(shape, zero)
            part = Div(size, over)
            y = Range(zero, part, one)
        }""",
        rows=np.array([-1, 6]),
        zero=np.array(0),
        one=np.array(1),
        over=np.array(over),
    )
    result, _ = simplified(model, {"x": normal(2, 4, 6)}, {"x": normal(5, 4, 6)})
    assert ops(result) == {"Shape": 1, "Gather": 1, "Range": 1, **({"Reshape": 1, "Div": 1} if left else {})}


def test_a_constant_end_of_a_slice_may_lie_behind_the_end_of_the_axis() -> None:
    model = model_of(
        """g (float[b, s, 6] x) => (float[b, t, 6, u] y) {
            first = Slice(x, start, end, axis)
            shape = Shape(first)
            whole = Concat <axis = 0> (shape, axis)
            y = Reshape(first, whole)
        }""",
        start=np.array([0]),
        end=np.array([4]),
        axis=np.array([1]),
    )
    simplified(model, *x_feeds(3, 4, 9))


@pytest.mark.parametrize("end", [2**31 - 1, 2**40, 2**62, 2**63 - 1])
def test_an_end_far_behind_the_axis_is_its_end(end: int) -> None:
    model = model_of(
        """g (float[b, s] x, int64[n] ids) => (float[b, t] y, int64[m] z) {
            all = Slice(x, start, end, axis)
            y = Concat <axis = 1> (all, x)
            some = Slice(ids, start, end)
            z = Concat <axis = 0> (some, axis)
        }""",
        start=np.array([0]),
        end=np.array([end]),
        axis=np.array([1]),
    )
    feed = {"x": normal(2, 5), "ids": np.arange(7)}
    result, _ = simplified(model, feed)
    assert ops(result) == {"Concat": 2}


def test_key_transposed_through_flattened_heads_is_one_transpose() -> None:
    model = model_of(
        """g (float[b, s, 6] x) => (float[b, 2, 3, s] y) {
            r = Reshape(x, split)
            k = Transpose <perm = [0, 2, 1, 3]> (r)
            shape = Shape(k)
            lead = Slice(shape, zero, two)
            length = Slice(shape, two, three)
            width = Slice(shape, three, four)
            flat = Concat <axis = 0> (minus, length, width)
            f = Reshape(k, flat)
            t = Transpose <perm = [0, 2, 1]> (f)
            back = Concat <axis = 0> (lead, width, length)
            y = Reshape(t, back)
        }""",
        split=np.array([0, 0, 2, 3]),
        zero=np.array([0]),
        two=np.array([2]),
        three=np.array([3]),
        four=np.array([4]),
        minus=np.array([-1]),
    )
    result, _ = simplified(model, *x_feeds(3, 5))
    assert ops(result) == {"Reshape": 1, "Transpose": 1}


def test_batched_products_over_flattened_heads_are_unflattened() -> None:
    model = model_of(
        """g (float[b, 4, s, 5] q, float[b, 4, s, 5] k) => (float[b, 4, s, s] y) {
            n = Shape <start = 2, end = 3> (q)
            flat = Concat <axis = 0> (minus, n, five)
            qf = Reshape(q, flat)
            kf = Reshape(k, flat)
            kt = Transpose <perm = [0, 2, 1]> (kf)
            ks = Div(kt, two)
            p = MatMul(qf, ks)
            back = Concat <axis = 0> (minus, four, n, n)
            y = Reshape(p, back)
        }""",
        five=np.array([5]),
        four=np.array([4]),
        minus=np.array([-1]),
        two=np.float32(2),
    )
    feed = {"q": normal(2, 4, 3, 5), "k": normal(2, 4, 3, 5, seed=1)}
    result, _ = simplified(model, feed)
    assert ops(result) == {"Transpose": 1, "Div": 1, "MatMul": 1}


def test_slices_along_two_axes_become_one_and_a_pad_by_nothing_goes() -> None:
    model = model_of(
        """g (float[b, s, 6] x) => (float[b, m, n] y, float[b, m, n] z) {
            p = Pad(x, none)
            a = Slice(p, zero, end, one, two)
            y = Slice(a, one, five, two, two)
            z = Slice(a, zero, five, two, two)
        }""",
        none=np.zeros(6, np.int64),
        zero=np.array([0]),
        one=np.array([1]),
        two=np.array([2]),
        five=np.array([5]),
        end=np.array([np.iinfo(np.int64).max]),
    )
    result, _ = simplified(model, *x_feeds(3, 6))
    assert ops(result) == {"Slice": 2}


def test_slices_of_the_same_axis_stay_two() -> None:
    model = model_of(
        """g (float[b, s, 6] x) => (float[b, s, n] y) {
            a = Slice(x, one, five, two, one)
            y = Slice(a, one, two, two, one)
        }""",
        one=np.array([1]),
        two=np.array([2]),
        five=np.array([5]),
    )
    result, _ = simplified(model, *x_feeds(3))
    assert ops(result) == {"Slice": 2}


def test_a_mask_of_ones_is_no_mask() -> None:
    model = model_of(
        """g (float[b, 2, 3, 4] x) => (float[b, 2, 3, 4] y) {
            n = Shape(x)
            sizes = Slice(n, zero, one)
            target = Concat <axis = 0> (sizes, ones)
            mask = Expand(always, target)
            y = Attention(x, x, x, mask)
        }""",
        opset=23,
        zero=np.array([0]),
        one=np.array([1]),
        ones=np.array([1, 3, 3]),
        always=np.ones((1, 1, 3, 3), bool),
    )
    result, _ = simplified(model, {"x": normal(2, 2, 3, 4)})
    assert ops(result) == {"Attention": 1}


FLAT_ROWS = """g (float[b, s, 6] x) => (float[b, s, 2, 4] y) {{
    n = Shape <start = 0, end = 2> (x)
    f = Reshape(x, rows)
    p = Gemm(f, w, c)
    all = Concat <axis = 0> (n, eight)
    u = Reshape({read}, all)
    v = Relu(u)
    split = Concat <axis = 0> (n, two, four)
    y = Reshape(v, split)
}}"""


FLAT_SIZES = {
    "rows": np.array([-1, 6]),
    "eight": np.array([8]),
    "two": np.array([2]),
    "four": np.array([4]),
    "w": normal(6, 8),
    "c": normal(8),
}


def test_a_linear_over_flattened_rows_takes_them_as_they_are() -> None:
    result, record = simplified(model_of(FLAT_ROWS.format(read="p"), **FLAT_SIZES), *x_feeds(3, 5))
    assert ops(result) == {"MatMul": 1, "Add": 1, "Relu": 1, "Reshape": 1}
    assert "1 × Reshape around a linear" in record.notes


def test_flattened_rows_stay_where_something_else_comes_before_the_reshape() -> None:
    text = FLAT_ROWS.format(read="q").replace("all =", "q = Softmax <axis = 0> (p)\n    all =")
    result, _ = simplified(model_of(text, **FLAT_SIZES), *x_feeds(3, 5))
    assert ops(result)["Reshape"] == 3


def test_flattened_products_with_another_reader_are_not_computed_twice() -> None:
    model = model_of(
        """g (float[b, 4, s, 5] q) => (float[b, 4, s, 5] y, float[n, s, 5] z) {
            n = Shape <start = 2, end = 3> (q)
            flat = Concat <axis = 0> (minus, n, five)
            qf = Reshape(q, flat)
            p = MatMul(qf, w)
            back = Concat <axis = 0> (minus, four, n, five)
            y = Reshape(p, back)
            z = Neg(p)
        }""",
        five=np.array([5]),
        four=np.array([4]),
        minus=np.array([-1]),
        w=normal(5, 5),
    )
    result, _ = simplified(model, {"q": normal(2, 4, 3, 5)})
    assert ops(result)["MatMul"] == 1


def test_flattened_heads_of_another_grouping_stay() -> None:
    model = model_of(
        """g (float[b, 4, s, 4] q) => (float[b, 2, t, 4] y) {
            qf = Reshape(q, flat)
            t = Transpose <perm = [0, 1, 2]> (qf)
            d = Div(qf, two)
            y = Reshape(d, back)
        }""",
        flat=np.array([-1, 8, 4]),
        back=np.array([-1, 2, 16, 4]),
        two=np.float32(2),
    )
    result, _ = simplified(model, {"q": normal(2, 4, 8, 4)})
    assert ops(result)["Reshape"] == 2


def test_an_expand_to_the_size_of_another_operand_is_left_to_broadcasting() -> None:
    model = model_of(
        """g (float[b, s, 6] x, float[1, s, 1] m) => (float[b, s, 6] y) {
            shape = Shape(x)
            e = Expand(m, shape)
            y = Mul(x, e)
        }"""
    )
    result, _ = simplified(model, {"x": normal(2, 3, 6), "m": normal(1, 3, 1)})
    assert ops(result) == {"Mul": 1}


def test_an_expand_whose_size_is_needed_stays() -> None:
    model = model_of(
        """g (float[b, s, 6] x, float[1, s, 1] m) => (float[b, s, 6] y) {
            shape = Shape(x)
            e = Expand(m, shape)
            n = Neg(e)
            y = Softmax <axis = 0> (n)
        }"""
    )
    result, _ = simplified(model, {"x": normal(2, 3, 6), "m": normal(1, 3, 1)})
    assert "Expand" in ops(result)


def test_the_expand_of_grouped_heads_gets_a_constant_target() -> None:
    model = model_of(
        """g (float[b, 2, s, 3] x) => (float[b, 4, s, 3] y) {
            u = Unsqueeze(x, two)
            n = Shape <start = 0, end = 1> (x)
            l = Shape <start = 2, end = 3> (x)
            target = Concat <axis = 0> (n, two, two, l, three)
            e = Expand(u, target)
            y = Reshape(e, out)
        }""",
        two=np.array([2]),
        three=np.array([3]),
        out=np.array([0, 4, -1, 3]),
    )
    result, _ = simplified(model, {"x": normal(2, 2, 5, 3)})
    assert ops(result) == {"Unsqueeze": 1, "Expand": 1, "Reshape": 1}
