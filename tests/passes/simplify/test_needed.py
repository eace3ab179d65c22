"""Positions that no output reads are not computed; the answers are those of the whole model."""

from __future__ import annotations

import numpy as np
import pytest
from simplified_models import model_of, normal, simplified

from graphcompress.analysis.cost import macs
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner

WIDTH, HEADS, FFN = 8, 2, 12

LAYER = """
    q0 = MatMul(h, wq)
    q1 = Add(q0, bias)
    q2 = Reshape(q1, heads)
    q = Transpose <perm = [0, 2, 1, 3]> (q2)
    k0 = MatMul(h, wk)
    k1 = Reshape(k0, heads)
    k = Transpose <perm = [0, 2, 3, 1]> (k1)
    v0 = MatMul(h, wv)
    v1 = Reshape(v0, heads)
    v = Transpose <perm = [0, 2, 1, 3]> (v1)
    s0 = MatMul(q, k)
    s1 = Add(s0, MASK)
    p = Softmax <axis = -1> (s1)
    c0 = MatMul(p, v)
    c1 = Transpose <perm = [0, 2, 1, 3]> (c0)
    c2 = Reshape(c1, merged)
    o = MatMul(c2, wo)
    a0 = Add(o, h)
    a = LayerNormalization <axis = -1> (a0, scale, bias)
    f0 = MatMul(a, w1)
    f1 = Relu(f0)
    f2 = MatMul(f1, w2)
    f3 = Add(f2, a)
    last = LayerNormalization <axis = -1> (f3, scale, bias)
"""
WEIGHTS = {
    **{name: normal(WIDTH, WIDTH, seed=index) for index, name in enumerate(("wq", "wk", "wv", "wo"))},
    "w1": normal(WIDTH, FFN, seed=5),
    "w2": normal(FFN, WIDTH, seed=6),
    "bias": normal(WIDTH, seed=7),
    "scale": normal(WIDTH, seed=8),
    "head": normal(WIDTH, 3, seed=9),
    "heads": np.array([0, 0, HEADS, WIDTH // HEADS]),
    "merged": np.array([0, 0, WIDTH]),
    "zero": np.array(0),
    "first": np.array([0]),
    "minus": np.array(-1),
    "ones": np.array([1]),
    "ends": np.array([np.iinfo(np.int64).max]),
    "two": np.array([2]),
    "one": np.array(1),
    "twelve": np.array([0, 0, WIDTH]),
}
BATCH, LENGTH = 3, 7
ROWWISE = WIDTH * WIDTH * 2 + WIDTH * FFN * 2  # q, o and the feed-forward part


def layer(
    tail: str, outputs: str = "float[b, 3] y", mask: str = "mask", inputs: str = "", layer: str = LAYER
) -> Model:
    """One layer over ``h``; ``tail`` makes ``y`` of what it gives, ``last``."""
    masked = layer.replace("MASK", mask)
    return model_of(f"g (float[b, s, {WIDTH}] x, float[b, 1, 1, s] mask{inputs}) => ({outputs}) {{\n h = Relu(x)\n {masked} {tail} }}", **WEIGHTS)  # fmt: skip # noqa: E501


def feeds(**more: np.ndarray) -> list[dict[str, np.ndarray]]:
    mask = np.zeros((BATCH, 1, 1, LENGTH), np.float32)
    mask[1, ..., 3:] = -1e4
    both = {"x": normal(BATCH, LENGTH, WIDTH, seed=1), "mask": mask}
    alone = {"x": normal(1, 1, WIDTH, seed=2), "mask": np.zeros((1, 1, 1, 1), np.float32)}
    return [{**both, **more}] if more else [both, alone]


def saved(model: Model, *given: dict[str, np.ndarray]) -> int:
    """MACs for one row of LENGTH positions that go, with equal answers."""
    result, _ = simplified(model, *given)
    return macs(model, length=LENGTH) - macs(result, length=LENGTH)


@pytest.mark.parametrize(
    ("tail", "left"),
    [
        ("t = Gather <axis = 1> (last, zero)\n y = MatMul(t, head)", 1),
        ("t = Gather <axis = 1> (last, minus)\n y = MatMul(t, head)", 1),
        ("t0 = Slice(last, first, ones, ones)\n t = Squeeze(t0, ones)\n y = MatMul(t, head)", 1),
        ("t0 = MatMul(last, head)\n y = Gather <axis = 1> (t0, zero)", 1),
        (
            "t = Gather <axis = 1> (last, zero)\n u = Gather <axis = 1> (last, minus)\n"
            "w = Add(t, u)\n y = MatMul(w, head)",
            2,
        ),
    ],
)
def test_positions_that_are_read_are_computed_alone(tail: str, left: int) -> None:
    model = layer(tail)
    others = LENGTH - left
    classifier = others * WIDTH * 3 if "MatMul(last" in tail else 0
    attention = 2 * others * LENGTH * WIDTH
    assert saved(model, *feeds()) == others * ROWWISE + attention + classifier


def test_a_slice_of_positions_is_computed_alone() -> None:
    model = layer("t = Slice(last, first, two, ones)\n y = MatMul(t, head)", "float[b, t, 3] y")
    result, record = simplified(model, *feeds())
    assert "positions 0 to 2 alone" in record.notes[-2]
    with Runner(result, outputs=[node.outputs[0].name for node in result.graph if node.op_type == "Relu"][1:]) as run:
        (hidden,) = run(feeds()[0]).values()
    assert hidden.shape == (BATCH, 2, FFN)
