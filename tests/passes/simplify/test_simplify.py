"""simplify as a whole: what changes nothing goes, the rest stays."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
from simplified_models import MESH_WEIGHTS, mesh_feed, model_of, normal, ops, simplified, x_feeds

from graphcompress.analysis.linears import linears
from graphcompress.graph.model import Model
from graphcompress.passes.simplify.simplify import Simplify
from graphcompress.plugin.context import Context


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ("y = Identity(x)", {"Identity": 1}),  # an input cannot take the name of an output
        ("a = Identity(x)\n y = Neg(a)", {"Neg": 1}),
        ("a = Cast <to = 1> (x)\n y = Neg(a)", {"Neg": 1}),
        ("a = Dropout(x)\n y = Neg(a)", {"Neg": 1}),
        ("a = Reshape(x, same)\n y = Neg(a)", {"Neg": 1}),
        ("a = Add(x, zero)\n y = Neg(a)", {"Neg": 1}),
        ("a = Mul(one, x)\n y = Neg(a)", {"Neg": 1}),
        ("a = Sub(zero, x)\n y = Neg(a)", {"Sub": 1, "Neg": 1}),
        ("a = Neg(x)\n b = Neg(x)\n y = Add(a, b)", {"Neg": 1, "Add": 1}),
        ("a = Neg(x)\n y = Exp(x)", {"Exp": 1}),
        ("a = Slice(x, start, end, start, step)\n y = Neg(a)", {"Slice": 1, "Neg": 1}),
        (
            "a = Transpose <perm = [2, 0, 1]> (x)\n c = Transpose <perm = [1, 2, 0]> (a)\n y = Neg(c)",
            {"Neg": 1},
        ),
        ("a = Cast <to = 10> (x)\n c = Cast <to = 1> (a)\n y = Neg(c)", {"Cast": 2, "Neg": 1}),
    ],
)
def test_what_changes_nothing_is_removed(nodes: str, expected: dict[str, int]) -> None:
    model = model_of(
        f"g (float[b, s, 6] x) => (float[b, s, 6] y) {{ {nodes} }}",
        same=np.array([0, 0, 6]),
        zero=np.float32(0),
        one=np.float32(1),
        start=np.array([-1]),
        end=np.array([-1000]),
        step=np.array([-1]),
    )
    result, _ = simplified(model, *x_feeds(3, 5))
    assert ops(result) == expected


def test_equal_matrices_are_merged_and_equal_vectors_are_not() -> None:
    matrix = normal(6, 6)
    model = model_of(
        """g (float[b, s, 6] x) => (float[b, s, 6] y) {
            a = MatMul(x, w1)
            c = Add(a, b1)
            d = MatMul(c, w2)
            y = Add(d, b2)
        }""",
        w1=matrix,
        w2=matrix.copy(),
        b1=np.zeros(6, np.float32),
        b2=np.zeros(6, np.float32),
    )
    result, _ = simplified(model, *x_feeds(3))
    assert sorted(result.graph.initializers) == ["b1", "b2", "w1"]


def test_a_causal_mask_is_not_always_true() -> None:
    model = model_of(
        """g (int64[b, s] mask, float[b, 2, s, s] scores) => (float[b, 2, s, s] y) {
            n = Shape <start = 1, end = 2> (mask)
            n0 = Squeeze(n)
            r = Range(zero, n0, one)
            column = Unsqueeze(r, last)
            causal = LessOrEqual(r, column)
            y = Where(causal, scores, hidden)
        }""",
        **MESH_WEIGHTS,
        last=np.array([1]),
    )
    result, _ = simplified(model, mesh_feed())
    assert ops(result)["LessOrEqual"] == 1


def test_a_decomposed_layer_norm_is_fused() -> None:
    graph = """g (float[b, s, 6] x) => (float[b, s, 6] y) {
        mean = ReduceMean <keepdims = 1> (x, last)
        d = Sub(x, mean)
        sq = Pow(d, two)
        var = ReduceMean <keepdims = 1> (sq, last)
        ve = Add(var, eps)
        std = Sqrt(ve)
        n = Div(d, std)
        g = Mul(n, gain)
        y = Add(g, shift)
    }"""
    weights = {
        "last": np.array([-1]),
        "two": np.float32(2),
        "eps": np.float32(1e-5),
        "gain": normal(6),
        "shift": normal(6, seed=1),
    }
    result, _ = simplified(model_of(graph, 18, **weights), *x_feeds(3))
    assert ops(result) == {"LayerNormalization": 1}


def test_custom_operators_and_subgraphs_stay_and_are_passed_around() -> None:
    model = model_of(
        """g (float[b, s, 6] x, bool flag) => (float[b, s, 6] y, float[b, s, 6] z) {
            i = Identity(x)
            c = custom.Op(i)
            y = Identity(c)
            z = If (flag) <
                then_branch = t () => (float[b, s, 6] p) { n = Neg(i)
 p = Neg(n) },
                else_branch = e () => (float[b, s, 6] q) { q = Exp(i) }
            >
        }"""
    )
    Simplify().run(model, Context())
    assert ops(model) == {"Op": 1, "If": 1}
    (branch,) = [node for node in model.graph if node.op_type == "If"]
    assert [node.op_type for node in branch.attributes["then_branch"].as_graph()] == ["Neg", "Neg"]
    assert [value.name for value in model.graph.outputs] == ["y", "z"]
    onnx.checker.check_model(onnx.load_from_string(model.in_place().proto))


def bert_feed(batch: int, length: int, model: Model) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(length)
    mask = np.ones((batch, length), np.int64)
    mask[-1, 1:] = 0
    feed = {
        "input_ids": rng.integers(1, 100, (batch, length)),
        "attention_mask": mask,
        "token_type_ids": np.zeros((batch, length), np.int64),
    }
    return {value.name or "": feed[value.name or ""] for value in model.graph.inputs}


def test_tiny_bert_answers_the_same_at_every_size(tiny_bert: Model) -> None:
    before = len(tiny_bert.graph)
    feeds = [bert_feed(batch, length, tiny_bert) for batch, length in ((1, 1), (2, 7), (3, 16))]
    result, _ = simplified(tiny_bert, *feeds)
    assert len(result.graph) < before
    kept = {linear.name for linear in linears(tiny_bert)}
    assert {linear.name for linear in linears(result)} == kept
    assert [str(value) for value in result.graph.inputs] == [str(value) for value in tiny_bert.graph.inputs]
