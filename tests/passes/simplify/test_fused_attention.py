"""Attention that ONNX Runtime fuses, written in standard operators: its own kernels are the oracle."""

from __future__ import annotations

import numpy as np
import pytest
from fused_operators import (
    BATCH,
    HEADS,
    HIDDEN,
    LENGTH,
    MASKS,
    PAST,
    attention_node,
    check,
    load,
    random,
)

from graphcompress.analysis.attentions import attentions
from graphcompress.analysis.linears import linears
from graphcompress.build.unsupported import refuse_unsupported
from graphcompress.errors import UnsupportedModelError
from graphcompress.passes.simplify.simplify import Simplify

SIZE = HIDDEN // HEADS


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("biased", [True, False])
def test_attention(mask, causal, biased, tmp_path) -> None:
    inputs = {"x": random(BATCH, LENGTH, HIDDEN)}
    stored = {"weight": random(HIDDEN, 3 * HIDDEN)} | ({"bias": random(3 * HIDDEN)} if biased else {})
    order = ["x", "weight", "bias" if biased else ""]
    if MASKS[mask] is not None:
        inputs["mask"] = MASKS[mask]
        order.append("mask")
    model = check("Attention", tmp_path, inputs, stored, order=order, num_heads=HEADS, unidirectional=causal)
    (found,) = attentions(model)
    assert (found.num_heads, found.head_dim, found.scale) == (HEADS, SIZE, pytest.approx(SIZE**-0.5))
    assert [linear.bias is not None for linear in linears(model)] == [biased] * 3


def test_attention_with_past(tmp_path) -> None:
    inputs = {
        "x": random(BATCH, LENGTH, HIDDEN),
        "mask": (np.random.default_rng(1).random((BATCH, LENGTH + PAST)) < 0.7).astype(np.int32),
        "past": random(2, BATCH, HEADS, PAST, SIZE),
    }
    stored = {"weight": random(HIDDEN, 3 * HIDDEN), "bias": random(3 * HIDDEN)}
    check(
        "Attention",
        tmp_path,
        inputs,
        stored,
        order=["x", "weight", "bias", "mask", "past"],
        outputs=["out", "present"],
        num_heads=HEADS,
        unidirectional=1,
        scale=0.3,
        mask_filter_value=-5.0,
    )


@pytest.mark.parametrize("shape", [(1, HEADS), (BATCH, 1), (BATCH, HEADS)])
def test_attention_with_a_bias_of_scores(shape, tmp_path) -> None:
    inputs = {"x": random(BATCH, LENGTH, HIDDEN), "scores": random(*shape, LENGTH, LENGTH, seed=4)}
    stored = {"weight": random(HIDDEN, 3 * HIDDEN), "bias": random(3 * HIDDEN)}
    order = ["x", "weight", "bias", "", "", "scores"]
    outputs = ["out", "present"]
    check("Attention", tmp_path, inputs, stored, order=order, outputs=outputs, num_heads=HEADS)


def test_attention_of_unequal_widths(tmp_path) -> None:
    stored = {"weight": random(10, 6 + 6 + 9), "bias": random(6 + 6 + 9)}
    x = {"x": random(BATCH, LENGTH, 10)}
    model = check("Attention", tmp_path, x, stored, num_heads=3, qkv_hidden_sizes=[6, 6, 9])
    assert [linear.out_features for linear in linears(model)] == [6, 6, 9]


@pytest.mark.parametrize("mask", [None, "ones and zeros", "per query", "ends"])
@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("biased", [True, False])
def test_multi_head_attention(mask, causal, biased, tmp_path) -> None:
    inputs = {name: random(BATCH, LENGTH, HIDDEN, seed=i) for i, name in enumerate("qkv")}
    order = ["q", "k", "v", "bias" if biased else ""]
    if mask is not None:
        inputs["mask"] = MASKS[mask]
        order.append("mask")
    stored = {"bias": random(3 * HIDDEN)} if biased else {}
    check("MultiHeadAttention", tmp_path, inputs, stored, order=order, num_heads=HEADS, unidirectional=causal)


def test_multi_head_attention_with_past_and_bias_of_scores(tmp_path) -> None:
    inputs = {name: random(BATCH, LENGTH, HIDDEN, seed=i) for i, name in enumerate("qkv")}
    inputs |= {name: random(BATCH, HEADS, PAST, SIZE, seed=i) for i, name in enumerate(("pk", "pv"), 5)}
    inputs["scores"] = random(BATCH, 1, LENGTH, LENGTH + PAST, seed=9)
    check(
        "MultiHeadAttention",
        tmp_path,
        inputs,
        order=["q", "k", "v", "", "", "scores", "pk", "pv"],
        outputs=["out", "present_k", "present_v"],
        num_heads=HEADS,
        scale=0.4,
    )


def test_cross_attention_over_a_cache(tmp_path) -> None:
    inputs = {"q": random(BATCH, LENGTH, HIDDEN)}
    inputs |= {name: random(BATCH, HEADS, PAST, SIZE, seed=i) for i, name in enumerate("kv")}
    check("MultiHeadAttention", tmp_path, inputs, num_heads=HEADS)


@pytest.mark.parametrize(
    ("mask", "attributes", "words"),
    [
        (np.ones((BATCH, 1, 8, 8), np.int32), {}, "its mask has 4 axes"),
        (np.ones(3 * BATCH + 2, np.int32), {}, "neither the batch nor twice the batch"),
        (MASKS["ends"], {"do_rotary": 1}, "do_rotary"),
        (MASKS["ends"], {"past_present_share_buffer": 1}, "share a buffer"),
    ],
)
def test_weights_that_stay_hidden_are_refused_by_name(mask, attributes, words, tmp_path) -> None:
    inputs = {"x": random(BATCH, LENGTH, HIDDEN), "mask": mask}
    model = load(tmp_path, attention_node(**attributes), inputs, {"weight": random(HIDDEN, 3 * HIDDEN)})
    with pytest.raises(UnsupportedModelError, match=f"'deep' .a Attention.*{words}"):
        refuse_unsupported(model, [Simplify()])
