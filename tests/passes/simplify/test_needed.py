"""Positions that no output reads are not computed; the answers are those of the whole model."""

from __future__ import annotations

import re

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
COUNTED = "b0 = Shape(x)\n b1 = Gather <axis = 0> (b0, zero)\n rows = Range(zero, b1, one)\n"
"""The numbers of the rows of a batch."""

CLOSE = 1e-4
"""The runtime adds in another order where a product has fewer rows; numbers are around 10."""

BATCH, LENGTH = 3, 7
ROWWISE = WIDTH * WIDTH * 2 + WIDTH * FFN * 2  # q, o and the feed-forward part


def layer(
    tail: str,
    outputs: str = "float[b, 3] y",
    *,
    mask: str = "mask",
    inputs: str = "",
    text: str = LAYER,
    opset: int = 18,
) -> Model:
    """One layer, ``text``, over ``h``; ``tail`` makes ``y`` of what it gives, ``last``."""
    given = f"float[b, s, {WIDTH}] x, float[b, 1, 1, s] mask{inputs}"
    nodes = f"h = Relu(x)\n {text.replace('MASK', mask)} {tail}"
    return model_of(f"g ({given}) => ({outputs}) {{ {nodes} }}", opset, **WEIGHTS)


def feeds(**more: np.ndarray) -> list[dict[str, np.ndarray]]:
    mask = np.zeros((BATCH, 1, 1, LENGTH), np.float32)
    mask[1, ..., 3:] = -1e4
    both = {"x": normal(BATCH, LENGTH, WIDTH, seed=1), "mask": mask}
    alone = {"x": normal(1, 1, WIDTH, seed=2), "mask": np.zeros((1, 1, 1, 1), np.float32)}
    return [{**both, **more}] if more else [both, alone]


def saved(model: Model, *given: dict[str, np.ndarray]) -> int:
    """MACs for one row of LENGTH positions that go, with equal answers."""
    result, _ = simplified(model, *given, tolerance=CLOSE)
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


def test_a_slice_behind_the_end_of_a_short_text_stays_empty() -> None:
    model = layer("t = Slice(last, ones, two, ones)\n y = MatMul(t, head)", "float[b, t, 3] y")
    result, _ = simplified(model, *feeds(), tolerance=CLOSE)
    assert macs(result, length=LENGTH) < macs(model, length=LENGTH)
    with Runner(result) as run:
        assert run(feeds()[1])["y"].shape == (1, 0, 3)


def test_a_slice_of_positions_is_computed_alone() -> None:
    model = layer("t = Slice(last, first, two, ones)\n y = MatMul(t, head)", "float[b, t, 3] y")
    result, record = simplified(model, *feeds(), tolerance=CLOSE)
    assert "positions 0 to 2 alone" in " ".join(record.notes)
    hidden = [node.outputs[0] for node in result.graph if node.op_type == "Relu"][1]
    with Runner(result, [hidden]) as run:
        (found,) = run(feeds()[0]).values()
    assert found.shape == (BATCH, 2, FFN)


@pytest.mark.parametrize(
    ("tail", "at"),
    [
        ("t = Gather <axis = 1> (last, at)\n y = MatMul(t, head)", np.array(-2)),
        (
            "t = MatMul(last, head)\n i = Unsqueeze(at, ones)\n y = GatherND <batch_dims = 1> (t, i)",
            np.array([0, 6, 3]),
        ),
        (
            "COUNTED t = MatMul(last, head)\n i = Unsqueeze(at, ones)\n r = Unsqueeze(rows, ones)\n"
            "pair = Concat <axis = 1> (r, i)\n y = GatherND (t, pair)",
            np.array([0, 6, 3]),
        ),
        (
            "COUNTED l0 = Shape(x)\n l = Gather <axis = 0> (l0, one)\n"
            "t = MatMul(last, head)\n flat = Flatten <axis = 2> (t)\n rest = Mod(at, l)\n"
            "offset = Mul(rows, l)\n i = Add(rest, offset)\n y = Gather <axis = 0> (flat, i)",
            np.array([5, -1, 2]),
        ),
    ],
)
def test_positions_that_are_computed_are_picked_first(tail: str, at: np.ndarray) -> None:
    """One index for all rows, or one for each: in every spelling the layer computes one position of a row."""
    others = LENGTH - 1
    classifier = others * WIDTH * 3 if "MatMul(last" in tail else 0
    model = layer(tail.replace("COUNTED", COUNTED), inputs=f", int64{'[b]' if at.ndim else ''} at")
    assert saved(model, *feeds(at=at)) == others * ROWWISE + 2 * others * LENGTH * WIDTH + classifier


def test_an_index_into_flattened_rows_that_may_lie_in_another_row_is_left() -> None:
    tail = (
        f"{COUNTED} l0 = Shape(x)\n l = Gather <axis = 0> (l0, one)\n t = MatMul(last, head)\n"
        "flat = Flatten <axis = 2> (t)\n offset = Mul(rows, l)\n i = Add(at, offset)\n"
        "y = Gather <axis = 0> (flat, i)"
    )
    assert saved(layer(tail, inputs=", int64[b] at"), *feeds(at=np.array([-1, LENGTH, 2]))) == 0


def test_the_likeliest_position_of_each_row_is_picked_from_flattened_rows() -> None:
    tail = (
        f"{COUNTED} l0 = Shape(x)\n l = Gather <axis = 0> (l0, one)\n t = MatMul(last, head)\n"
        "at = ArgMax <axis = 1, keepdims = 0> (rated)\n"
        "flat = Flatten <axis = 2> (t)\n offset = Mul(rows, l)\n i = Add(at, offset)\n"
        "y = Gather <axis = 0> (flat, i)"
    )
    model = layer(tail, inputs=", float[b, s] rated")
    assert saved(model, *feeds(rated=normal(BATCH, LENGTH, seed=3))) > 0


def test_masks_and_biases_of_queries_are_picked_too() -> None:
    model = layer(
        "t = Gather <axis = 1> (last, minus)\n y = MatMul(t, head)",
        mask="both",
        inputs=", float[b, 1, s, s] seen, float[1, 2, s, s] near",
        text=f"both0 = Add(seen, near)\n both = Add(both0, mask)\n {LAYER}",
    )
    seen = np.where(np.tri(LENGTH, dtype=bool), np.float32(0), np.float32(-1e4))
    more = {
        "seen": np.broadcast_to(seen, (BATCH, 1, LENGTH, LENGTH)),
        "near": normal(1, HEADS, LENGTH, LENGTH, seed=3),
    }
    others = LENGTH - 1
    assert saved(model, *feeds(**more)) == others * ROWWISE + 2 * others * LENGTH * WIDTH


FIRST = "t = Gather <axis = 1> (last, zero)\n y = MatMul(t, head)"


@pytest.mark.parametrize(
    ("tail", "outputs", "reason"),
    [
        (FIRST, f"float[b, 3] y, float[b, s, {WIDTH}] last", ["it is an output of the model"]),
        (f"{FIRST}\n z = ReduceMean(last, ones)", f"float[b, 3] y, float[b, 1, {WIDTH}] z", []),
        (
            "c = CumSum(last, one)\n t = Gather <axis = 1> (c, zero)\n y = MatMul(t, head)",
            "float[b, 3] y",
            ["CumSum may mix them"],
        ),
    ],
)
def test_what_others_read_is_computed_whole(tail: str, outputs: str, reason: list[str]) -> None:
    model = layer(tail, outputs)
    result, record = simplified(model, *feeds(), tolerance=CLOSE)
    assert macs(model, length=LENGTH) == macs(result, length=LENGTH)
    assert [item.reason.partition(", but ")[2] for item in record.skipped] == reason


def test_of_two_layers_the_last_is_narrowed() -> None:
    """Keys and values of all positions read the whole layer before."""
    made = "|".join(re.findall(r"(?m)^    (\w+) = ", LAYER))
    second = re.sub(r"\bh\b", "last", re.sub(rf"\b({made})\b", r"\1_", LAYER)).replace("MASK", "mask")
    model = layer(f"{second} {FIRST.replace('last', 'last_')}")
    others = LENGTH - 1
    assert saved(model, *feeds()) == others * ROWWISE + 2 * others * LENGTH * WIDTH


@pytest.mark.parametrize("causal", [0, 1])
def test_an_attention_operator_that_knows_places_stays_whole(causal: int) -> None:
    before, after = LAYER[: LAYER.index("    s0 =")], LAYER[LAYER.index("    c1 =") :]
    keys = before.replace("k = Transpose <perm = [0, 2, 3, 1]>", "k = Transpose <perm = [0, 2, 1, 3]>")
    model = layer(FIRST, text=f"{keys} c0 = Attention <is_causal = {causal}> (q, k, v)\n{after}", opset=23)
    result, record = simplified(model, *feeds(), tolerance=CLOSE)
    others = LENGTH - 1
    attention = 0 if causal else others * WIDTH * WIDTH + 2 * others * LENGTH * WIDTH
    saved = macs(model, length=LENGTH) - macs(result, length=LENGTH)
    assert saved == others * (ROWWISE - WIDTH * WIDTH) + attention
    reasons = [item.reason.partition(", but ")[2] for item in record.skipped]
    assert reasons == ["Attention knows by the place of a query what it may see"] * causal


def test_distillation_compares_the_positions_that_are_left() -> None:
    result, _ = simplified(layer(FIRST), *feeds(), tolerance=CLOSE)
    assert list(result.kept["f3"][1]) == [0]
