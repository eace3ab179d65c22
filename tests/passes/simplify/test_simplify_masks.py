"""simplify: guards against NaN, masks, and what picks elements of them."""

from __future__ import annotations

import numpy as np
import pytest
from simplified_models import MESH_WEIGHTS, mesh_feed, model_of, normal, ops, simplified

from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner

LOWEST = float(np.finfo(np.float32).min)


ATTENTION = """g (int64[b, s] ids, {mask_input}) => (float[b, s, 8] y) {{
    e = Gather(table, ids)
    x = LayerNormalization <axis = -1> (e, gain)
    xq = MatMul(x, wq)
    q4 = Reshape(xq, split)
    q = Transpose <perm = [0, 2, 1, 3]> (q4)
    xk = MatMul(x, wk)
    k4 = Reshape(xk, split)
    k = Transpose <perm = [0, 2, 3, 1]> (k4)
    v4 = Reshape(x, split)
    v = Transpose <perm = [0, 2, 1, 3]> (v4)
    qs = Mul(q, scale)
    ks = Mul(k, scale)
    scores = MatMul(qs, ks)
    {mask}
    masked = Add(scores, bias)
    probs = Softmax <axis = -1> (masked)
    nan = IsNaN(probs)
    safe = Where(nan, zero, probs)
    o = MatMul(safe, v)
    o4 = Transpose <perm = [0, 2, 1, 3]> (o)
    y = Reshape(o4, join)
}}"""


PADDING = """seen = Cast <to = 9> (mask)
    seen4 = Unsqueeze(seen, axes)
    bias = Where(seen4, zero, hidden)"""


HIDDEN = """unseen = Not(seen)
    seen4 = Unsqueeze(unseen, axes)
    bias = Where(seen4, hidden, zero)"""


def attention(
    hidden: float,
    mask: str = PADDING,
    mask_input: str = "int64[b, s] mask",
    opset: int = 18,
    gain: float = 1.0,
) -> Model:
    return model_of(
        ATTENTION.format(mask=mask, mask_input=mask_input),
        opset,
        table=normal(20, 8),
        gain=np.full(8, gain, np.float32),
        wq=normal(8, 8, seed=1),
        wk=normal(8, 8, seed=2),
        split=np.array([0, 0, 2, 4]),
        join=np.array([0, 0, 8]),
        axes=np.array([1, 2]),
        zero=np.float32(0),
        hidden=np.float32(hidden),
        scale=np.float32(0.7),
    )


def masked_feed(length: int = 5) -> dict[str, np.ndarray]:
    """Three samples: whole, padded, and one whose every position is padding."""
    mask = np.ones((3, length), np.int64)
    mask[1, 2:] = 0
    mask[2] = 0
    return {"ids": np.arange(3 * length).reshape(3, length) % 20, "mask": mask}


def test_the_guard_goes_where_scores_are_provably_finite() -> None:
    result, record = simplified(attention(LOWEST), masked_feed(), masked_feed(3))
    assert not ops(result)["IsNaN"]
    assert ops(result)["Mul"] == 1  # one scale instead of two
    assert "1 × guard against NaN" in record.notes


@pytest.mark.parametrize("opset", [17, 18])
@pytest.mark.parametrize("mask", [PADDING, PADDING.split("\n")[0] + "\n" + HIDDEN])
def test_a_mask_of_infinity_becomes_a_flag_and_empty_rows_still_give_zero(mask: str, opset: int) -> None:
    model = attention(-np.inf, mask, opset=opset)
    result, _ = simplified(model, masked_feed(), masked_feed(3))
    assert not ops(result)["IsNaN"]
    assert ops(result)["ReduceMax"] == 1
    with Runner(result) as runner:
        assert not runner(masked_feed())["y"][2].any()


def test_assume_visible_drops_the_flag_too() -> None:
    model = attention(-np.inf)
    feed = masked_feed()
    feed["mask"][2, 0] = 1
    result, _ = simplified(model, feed, assume_visible=True)
    assert not ops(result)["IsNaN"] + ops(result)["ReduceMax"]


def test_the_guard_stays_for_a_mask_that_the_caller_computes() -> None:
    model = attention(LOWEST, "bias = Identity(mask)", "float[b, 1, 1, s] mask")
    feed = {**masked_feed(), "mask": np.full((3, 1, 1, 5), -np.inf, np.float32)}
    result, record = simplified(model, feed)
    assert ops(result)["IsNaN"] == 1
    assert "not provably finite" in record.skipped[0].reason


def test_finite_inputs_is_a_promise_that_drops_that_guard() -> None:
    model = attention(LOWEST, "bias = Identity(mask)", "float[b, 1, 1, s] mask")
    feed = {**masked_feed(), "mask": np.full((3, 1, 1, 5), -1e4, np.float32)}
    result, _ = simplified(model, feed, finite_inputs=True)
    assert not ops(result)["IsNaN"]


@pytest.mark.parametrize("hidden", [LOWEST, -np.inf])
def test_the_guard_stays_where_scores_may_overflow(hidden: float) -> None:
    result, _ = simplified(attention(hidden, gain=1e19), masked_feed())
    assert ops(result)["IsNaN"] == 1


MESH = """g (int64[b, s] mask, float[b, 2, s, s] scores) => (float[b, 2, s, s] y) {{
    seen = Cast <to = 9> (mask)
    nb = Shape <start = 0, end = 1> (mask)
    ns = Shape <start = 1, end = 2> (mask)
    b0 = Squeeze(nb)
    s0 = Squeeze(ns)
    rb = Range({start}, b0, one)
    rs = Range({start}, s0, one)
    ib = Unsqueeze(rb, axes123)
    is = Unsqueeze(rs, axes012)
    iq = Unsqueeze(rs, axes013)
    both = Max(ib, is)
    shape = Shape(both)
    eb = Expand(ib, shape)
    es = Expand(is, shape)
    ub = Unsqueeze(eb, minus)
    us = Unsqueeze(es, minus)
    mesh = Concat <axis = -1> ({order})
    picked = GatherND(seen, mesh)
    ge = GreaterOrEqual(iq, zero)
    all = And(ge, picked)
    y = Where(all, scores, hidden)
}}"""


def test_the_padding_mask_picked_by_a_mesh_is_the_mask() -> None:
    model = model_of(MESH.format(start="zero", order="ub, us"), **MESH_WEIGHTS)
    result, _ = simplified(model, mesh_feed(), mesh_feed(3, 5), mesh_feed(1, 7))
    assert ops(result) == {"Cast": 1, "Unsqueeze": 1, "Where": 1}


@pytest.mark.parametrize(("start", "order"), [("zero", "us, ub"), ("minus0", "ub, us")])
def test_a_mesh_that_moves_elements_stays(start: str, order: str) -> None:
    """Swapped axes, or indices that begin at -1."""
    weights = {**MESH_WEIGHTS, "minus0": np.array(-1)}
    model = model_of(MESH.format(start=start, order=order), **weights)
    feeds = [mesh_feed()] if start == "zero" else []
    result, _ = simplified(model, *feeds)
    assert ops(result)["GatherND"] == 1


@pytest.mark.parametrize(("order", "left"), [("kept", 0), ("turned", 1)])
def test_a_stored_table_of_all_places_in_order_picks_nothing(order: str, left: int) -> None:
    places = np.indices((2, 3)).reshape(2, 6).T
    table = places if order == "kept" else places[::-1]
    model = model_of(
        "g (float[2, 3] x) => (float[1, 6, 1] y) { y = GatherND(x, table) }",
        table=np.ascontiguousarray(table.reshape(1, 6, 1, 2)),
    )
    result, _ = simplified(model, {"x": normal(2, 3)})
    assert ops(result)["GatherND"] == left
    assert ops(result)["Reshape"] == 1 - left
