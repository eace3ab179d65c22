"""Gradients with respect to inputs, against differences."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest
from conftest import random_samples
from onnx import TensorProto, helper

torch = pytest.importorskip("torch")

from graphcompress.graph.model import Model  # noqa: E402
from graphcompress.training.gradients import input_gradients  # noqa: E402


def classifier() -> Model:
    """Logits [1, 3] = the mean over tokens of one-hot ids · weight [5, 3], the weight an input."""
    inputs = [
        helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "length"]),
        helper.make_tensor_value_info("weight", TensorProto.FLOAT, [5, 3]),
    ]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])]
    nodes = [
        helper.make_node("Gather", ["weight", "ids"], ["rows"]),
        helper.make_node("ReduceMean", ["rows"], ["logits"], axes=[1], keepdims=0),
    ]
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return Model(ir.from_proto(proto))


def test_labels_give_the_gradient_of_their_cross_entropy() -> None:
    samples = random_samples(4)
    feeds = [{"ids": np.array([0, 1, 1], np.int64)}, {"ids": np.array([4], np.int64)}]
    samples = dataclasses.replace(samples, feeds=feeds, columns={"label": [2, 0]}, pad={})
    weight = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    first, second = (
        found["weight"] for found in input_gradients(classifier(), {"weight": weight}, samples, 0)
    )
    for found, ids, label in ((first, [0, 1, 1], 2), (second, [4], 0)):
        logits = weight[ids].mean(axis=0)
        slope = np.exp(logits) / np.exp(logits).sum() - np.eye(3)[label]
        expected = np.zeros((5, 3))
        for index in ids:
            expected[index] += slope / len(ids)
        np.testing.assert_allclose(found, expected, atol=1e-6)
