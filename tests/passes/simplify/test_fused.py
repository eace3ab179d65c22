"""Operators that ONNX Runtime fuses, written in standard ones: its own kernels are the oracle."""

from __future__ import annotations

import numpy as np
import onnx
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
    model_of,
    random,
    run,
)
from onnx import TensorProto, helper

from graphcompress.analysis.linears import embeddings, linears
from graphcompress.build.unsupported import refuse_unsupported
from graphcompress.coupling.couplings import couplings
from graphcompress.errors import UnsupportedModelError
from graphcompress.graph.model import Model
from graphcompress.passes.simplify.simplify import Simplify
from graphcompress.plugin.context import Context


@pytest.mark.parametrize("opset", [13, 18, 20])
@pytest.mark.parametrize(
    ("op_type", "bias", "attributes"),
    [
        ("Gelu", False, {}),
        ("BiasGelu", True, {}),
        ("FastGelu", False, {}),
        ("FastGelu", True, {}),
        ("QuickGelu", False, {}),
        ("QuickGelu", False, {"alpha": 1.0}),
        ("QuickGelu", False, {"alpha": 2.5}),
    ],
)
def test_activations(op_type, bias, attributes, opset, tmp_path) -> None:
    stored = {"bias": random(HIDDEN)} if bias else {}
    x = {"x": 3 * random(BATCH, LENGTH, HIDDEN)}
    check(
        op_type, tmp_path, x, stored, opset=opset, tolerance=1e-4 if "Fast" in op_type else 1e-5, **attributes
    )


@pytest.mark.parametrize("opset", [13, 17, 18, 23])
@pytest.mark.parametrize("skip", [(BATCH, LENGTH, HIDDEN), (1, LENGTH, HIDDEN), (LENGTH, HIDDEN)])
@pytest.mark.parametrize("bias", [True, False])
def test_skip_layer_normalization(opset, skip, bias, tmp_path) -> None:
    stored = {"gamma": random(HIDDEN), "beta": random(HIDDEN, seed=1)}
    stored |= {"bias": random(HIDDEN, seed=2)} if bias else {}
    check(
        "SkipLayerNormalization",
        tmp_path,
        {"x": random(BATCH, LENGTH, HIDDEN), "skip": random(*skip, seed=3)},
        stored,
        opset=opset,
        outputs=["out", "", "", "sum"],
        epsilon=1e-5,
    )


@pytest.mark.parametrize("opset", [17, 23])
@pytest.mark.parametrize("bias", [True, False])
def test_skip_simplified_layer_normalization(opset, bias, tmp_path) -> None:
    stored = {"gamma": random(HIDDEN)} | ({"bias": random(HIDDEN, seed=2)} if bias else {})
    check(
        "SkipSimplifiedLayerNormalization",
        tmp_path,
        {"x": random(BATCH, LENGTH, HIDDEN), "skip": random(BATCH, LENGTH, HIDDEN, seed=3)},
        stored,
        opset=opset,
        outputs=["out", "", "", "sum"],
        epsilon=1e-6,
    )


@pytest.mark.parametrize("opset", [17, 23])
def test_simplified_layer_normalization_of_the_standard_domain(opset, tmp_path) -> None:
    x, scale = {"x": random(BATCH, LENGTH, HIDDEN)}, {"scale": random(HIDDEN)}
    check("SimplifiedLayerNormalization", tmp_path, x, scale, domain="", opset=opset, axis=-1, epsilon=1e-6)


@pytest.mark.parametrize("bias", [True, False])
def test_layer_normalization_before_its_opset(bias, tmp_path) -> None:
    stored = {"scale": random(HIDDEN)} | ({"bias": random(HIDDEN, seed=1)} if bias else {})
    x = {"x": random(BATCH, LENGTH, HIDDEN)}
    model = check("LayerNormalization", tmp_path, x, stored, domain="", opset=14, axis=-1)
    assert "LayerNormalization" not in {node.op_type for node in model.graph}


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("segments", [True, False])
@pytest.mark.parametrize("positions", [None, 1, BATCH])
def test_embeddings(masked, segments, positions, tmp_path) -> None:
    rng = np.random.default_rng(0)
    inputs = {"ids": rng.integers(0, 20, (BATCH, LENGTH)).astype(np.int32)}
    stored = {"words": random(20, HIDDEN), "places": random(16, HIDDEN, seed=1)}
    stored |= {"gamma": random(HIDDEN), "beta": random(HIDDEN, seed=2)}
    order = ["ids", "", "words", "places", "", "gamma", "beta"]
    if segments:
        inputs["segments"] = rng.integers(0, 2, (BATCH, LENGTH)).astype(np.int32)
        stored["kinds"] = random(2, HIDDEN, seed=3)
        order[1], order[4] = "segments", "kinds"
    if masked:
        inputs["mask"] = MASKS["ones and zeros"]
    order.append("mask" if masked else "")
    if positions is not None:
        inputs["positions"] = rng.integers(0, 16, (positions, LENGTH)).astype(np.int32)
        order.append("positions")
    model = check(
        "EmbedLayerNormalization",
        tmp_path,
        inputs,
        stored,
        order=order,
        outputs=["out", "lengths", "sum"],
        kinds={"lengths": TensorProto.INT32},
    )
    assert len(embeddings(model)) == 2 + segments


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"alpha": 0.25},
        {"transA": 1},
        {"transB": 1, "alpha": 2.0},
        {"transA": 1, "transB": 1},
        {"transBatchA": 1},
        {"transBatchB": 1},
        {"transBatchA": 1, "transBatchB": 1, "transA": 1, "transB": 1, "alpha": 0.5},
    ],
)
def test_fused_matmul(attributes, tmp_path) -> None:
    left, right = [2, 4, 3, 8], [2, 4, 8, 10]
    for shape, swap, batch in ((left, "transA", "transBatchA"), (right, "transB", "transBatchB")):
        if swap in attributes:
            shape[-1], shape[-2] = shape[-2], shape[-1]
        if batch in attributes:
            shape[:] = [shape[2], shape[0], shape[1], shape[3]]
    inputs = {"a": random(*left), "b": random(*right, seed=1)}
    check("FusedMatMul", tmp_path, inputs, **attributes)


def test_a_transposed_weight_inside_a_product_is_a_linear(tmp_path) -> None:
    inputs, stored = {"x": random(BATCH, LENGTH, 8)}, {"weight": random(10, 8, seed=1)}
    model = check("FusedMatMul", tmp_path, inputs, stored, transB=1)
    Simplify().run(model, Context())
    assert [(linear.in_features, linear.out_features) for linear in linears(model)] == [(8, 10)]


@pytest.mark.parametrize("activation", ["Relu", "Tanh", "Sigmoid", "LeakyRelu"])
def test_fused_gemm(activation, tmp_path) -> None:
    stored = {"weight": random(10, 8), "bias": random(10)}
    numbers = {"activation_alpha": 0.3} if activation == "LeakyRelu" else {}
    check(
        "FusedGemm",
        tmp_path,
        {"x": random(BATCH, 8)},
        stored,
        activation=activation,
        transB=1,
        alpha=0.5,
        **numbers,
    )


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("activation", ["Relu", "LeakyRelu"])
def test_fused_conv(activation, residual, tmp_path) -> None:
    inputs = {"x": random(2, 4, 8, 8)} | ({"rest": random(2, 6, 8, 8, seed=2)} if residual else {})
    stored = {"weight": random(6, 4, 3, 3), "bias": random(6)}
    order = ["x", "weight", "bias", *(["rest"] if residual else [])]
    numbers = {"activation_params": [0.2]} if activation == "LeakyRelu" else {}
    check(
        "FusedConv",
        tmp_path,
        inputs,
        stored,
        order=order,
        activation=activation,
        pads=[1, 1, 1, 1],
        **numbers,
    )


@pytest.mark.parametrize("rank", [3, 4])
@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("offset", [True, False])
@pytest.mark.parametrize("part", [0, 4])
def test_rotary_embedding(rank, interleaved, offset, part, tmp_path) -> None:
    heads, size = 2, 8
    shape = (BATCH, LENGTH, heads * size) if rank == 3 else (BATCH, heads, LENGTH, size)
    positions = np.array([3]) if offset else np.random.default_rng(0).integers(0, 16, (BATCH, LENGTH))
    half = (part or size) // 2
    stored = {"cos": random(16, half), "sin": random(16, half, seed=1)}
    more = {"rotary_embedding_dim": part, "num_heads": heads} if part else {}
    inputs = {"x": random(*shape), "positions": positions}
    check("RotaryEmbedding", tmp_path, inputs, stored, interleaved=interleaved, **more)


@pytest.mark.parametrize(
    "op_type", ["BiasSplitGelu", "PackedAttention", "PackedMultiHeadAttention", "BiasAdd"]
)
def test_operators_that_only_a_gpu_runs_are_refused_by_name(op_type, tmp_path) -> None:
    node = helper.make_node(op_type, ["x", "bias"], ["out"], name="on_gpu", domain="com.microsoft")
    inputs = {"x": random(BATCH, LENGTH, 2 * HIDDEN)}
    model = load(tmp_path, node, inputs, {"bias": random(2 * HIDDEN)})
    with pytest.raises(UnsupportedModelError, match=f"'on_gpu' is a {op_type}, which does not run on a CPU"):
        refuse_unsupported(model, [Simplify()])


def test_grouped_query_attention_is_passed_around(tmp_path) -> None:
    """Linears around it are found and cut, its heads are not; outputs stay."""
    batch, heads, groups, size = 1, 4, 2, 8
    inputs = {
        "x": random(batch, LENGTH, HIDDEN),
        **{f"past_{kind}": random(batch, groups, PAST, size, seed=i) for i, kind in enumerate(("k", "v"))},
        "seqlens": np.full(batch, LENGTH + PAST - 1, np.int32),
        "total": np.array(LENGTH + PAST, np.int32),
    }
    stored = {
        "q_proj": random(HIDDEN, heads * size),
        "k_proj": random(HIDDEN, groups * size),
        "v_proj": random(HIDDEN, groups * size, seed=1),
        "o_proj": random(heads * size, HIDDEN),
        "up": random(HIDDEN, 24),
        "down": random(24, HIDDEN),
    }
    operands = ["q", "k", "v", "past_k", "past_v", "seqlens", "total"]
    attention = helper.make_node(
        *("GroupQueryAttention", operands, ["context", "present_k", "present_v"]),
        name="gqa",
        domain="com.microsoft",
        num_heads=heads,
        kv_num_heads=groups,
    )
    proto = model_of(attention, inputs, stored)
    others = [("MatMul", ["x", f"{name}_proj"], name) for name in "qkv"]
    others += [("MatMul", ["context", "o_proj"], "o"), ("Add", ["x", "o"], "r"), ("MatMul", ["r", "up"], "a")]
    others += [("Relu", ["a"], "b"), ("MatMul", ["b", "down"], "c"), ("Add", ["r", "c"], "out")]
    made = [helper.make_node(op_type, names, [output]) for op_type, names, output in others]
    del proto.graph.node[:]
    proto.graph.node.extend([*made[:3], attention, *made[3:]])
    proto.graph.output[0].name = "out"
    onnx.save(proto, tmp_path / "model.onnx")
    model = Model.load(tmp_path / "model.onnx")
    refuse_unsupported(model, [Simplify()])
    record = Simplify().run(model, Context())
    assert [item.reason for item in record.skipped] == [
        "GroupQueryAttention of ONNX Runtime is kept: its cache has texts of unequal lengths, "
        "so its heads are not cut"
    ]
    assert len(linears(model)) == 6
    assert [(group.kind, group.size) for group in couplings(model)] == [("ffn", 24)]
    for got, want in zip(
        run(onnx.load(model.save(tmp_path / "out.onnx")), inputs), run(proto, inputs), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_an_operator_without_weights_is_kept_with_the_reason(tmp_path) -> None:
    inputs = {name: random(BATCH, LENGTH, HIDDEN, seed=i) for i, name in enumerate("qkv")}
    node = helper.make_node(
        "MultiHeadAttention",
        [*inputs],
        ["out", "", "", "qk"],
        name="m",
        domain="com.microsoft",
        num_heads=HEADS,
    )
    model = load(tmp_path, node, inputs, {})
    record = Simplify().run(model, Context())
    assert [node.op_type for node in model.graph] == ["MultiHeadAttention"]
    assert [(item.name, item.reason) for item in record.skipped] == [
        ("m", "MultiHeadAttention of ONNX Runtime is kept: its scores are read (output qk)")
    ]


def test_shared_weights_stay_shared(tmp_path) -> None:
    """Two layers that use the same weights, as ALBERT does."""
    stored = {"weight": random(HIDDEN, 3 * HIDDEN), "bias": random(3 * HIDDEN)}
    nodes = [
        helper.make_node(
            "Attention", [x, "weight", "bias"], [y], name=y, domain="com.microsoft", num_heads=HEADS
        )
        for x, y in (("x", "y"), ("y", "out"))
    ]
    proto = model_of(nodes[1], {"x": random(BATCH, LENGTH, HIDDEN)}, stored)
    proto.graph.node.insert(0, nodes[0])
    onnx.save(proto, tmp_path / "model.onnx")
    model = Model.load(tmp_path / "model.onnx")
    Simplify().run(model, Context())
    first, second = linears(model)[:3], linears(model)[3:]
    assert [a.weight is b.weight for a, b in zip(first, second, strict=True)] == [True] * 3


def test_heads_can_be_found_and_cut(tmp_path) -> None:
    inputs = {"x": random(BATCH, LENGTH, HIDDEN), "mask": MASKS["ones and zeros"]}
    stored = {"weight": random(HIDDEN, 3 * HIDDEN), "dense": random(HIDDEN, HIDDEN)}
    proto = model_of(attention_node(), inputs, stored)
    proto.graph.node.append(helper.make_node("MatMul", ["out", "dense"], ["y"]))
    proto.graph.output[0].name = "y"
    onnx.save(proto, tmp_path / "model.onnx")
    model = Model.load(tmp_path / "model.onnx")
    refuse_unsupported(model, [Simplify()])
    Simplify().run(model, Context())
    assert [(group.kind, group.size) for group in couplings(model) if group.kind == "head"] == [
        ("head", HEADS)
    ]
