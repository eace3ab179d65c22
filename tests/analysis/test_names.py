"""Names of linears where an exporter lost those of their weights: globs over them must be trustworthy."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from graphcompress.analysis.linears import keep_names, linears
from graphcompress.graph.match import SCOPES_KEY
from graphcompress.graph.model import Model

MODULES = ("encoder.layer.0.query", "encoder.layer.0.key")


def two_linears(*, node_names: bool, scopes: bool) -> Model:
    """Two linears of a fresh model: the weights have no names, and both read one bias of zeros."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.standard_normal((4, 4), dtype=np.float32), f"val_{number}")
        for number in range(2)
    ]
    bias = numpy_helper.from_array(np.zeros(4, np.float32), "embeddings.LayerNorm.bias")
    nodes = []
    for number, module in enumerate(MODULES):
        name = f"/{module.replace('.', '/')}/MatMul" if node_names else f"node_{number}"
        product = helper.make_node("MatMul", ["x", f"val_{number}"], [f"p{number}"], name)
        if scopes:
            told = ["", "encoder", module, f"linear_{number}"]
            product.metadata_props.add(key=SCOPES_KEY, value=str(told))
        nodes += [product, helper.make_node("Add", [f"p{number}", bias.name], [f"y{number}"])]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "fresh",
        [value("x", 1, ["batch", 4])],
        [value(f"y{number}", 1, ["batch", 4]) for number in range(2)],
        [*weights, bias],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    onnx.checker.check_model(proto)
    return Model(ir.from_proto(proto))


@pytest.mark.parametrize(("node_names", "scopes"), [(True, False), (False, True), (True, True)])
def test_a_merged_bias_names_no_linear(node_names: bool, scopes: bool) -> None:
    model = two_linears(node_names=node_names, scopes=scopes)
    assert [linear.name for linear in linears(model)] == [f"{module}.weight" for module in MODULES]


def test_without_a_module_the_name_is_that_of_the_tensor() -> None:
    found = linears(two_linears(node_names=False, scopes=False))
    assert [linear.name for linear in found] == ["val_0", "val_1"]


def test_a_name_stays_when_its_node_changes() -> None:
    model = two_linears(node_names=True, scopes=False)
    keep_names(model)
    for node in model.graph:
        node.name = None
    assert [linear.name for linear in linears(model)] == [f"{module}.weight" for module in MODULES]
