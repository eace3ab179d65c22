"""A model that does not agree with itself is named before any pass; its file is the reference."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from texts import model_of

import graphcompress
from graphcompress.errors import UnsupportedModelError
from graphcompress.files.reading import model_file
from graphcompress.files.runtime import is_runtime_operator
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner
from graphcompress.measure.reference import check_repeats, random_nodes
from graphcompress.passes.simplify.simplify import Simplify
from graphcompress.pipeline.pipeline import Pipeline
from graphcompress.plugin.context import Context

DROPOUT = """
g (float[n, 16] x) => (float[n, 16] y)
<float[16, 16] w>
{
  rate = Constant <value = float {0.3}> ()
  mode = Constant <value = bool {MODE}> ()
  h = MatMul (x, w)
  y = Dropout (h, rate, mode)
}
"""
NOISE = """
g (float[n, 16] x) => (float[n, 16] y)
<float[16, 16] w> { h = MatMul (x, w) r = RandomNormalLike (h) y = Add (h, r) }
"""


def dropout(mode: int) -> Model:
    return model_of(DROPOUT.replace("MODE", str(mode)))


def checked(model: Model) -> None:
    feed = {"x": np.random.default_rng(0).standard_normal((4, 16)).astype(np.float32)}
    with Runner(model) as run:
        check_repeats(model, run, feed, run(feed))


def test_a_dropout_in_training_mode_is_named() -> None:
    with pytest.raises(UnsupportedModelError, match=r"differently .*\(Dropout in training mode\)"):
        checked(dropout(1))


def test_a_dropout_for_inference_is_fine() -> None:
    assert random_nodes(dropout(0)) == []
    checked(dropout(0))


def test_a_random_operator_is_named_before_any_pass() -> None:
    model = model_of(NOISE)
    with pytest.raises(UnsupportedModelError, match=r"\(RandomNormalLike\).*model\.eval\(\)"):
        Pipeline([Simplify()]).run(model, Context())


def test_random_numbers_that_reach_no_output_do_no_harm() -> None:
    checked(model_of(NOISE.replace("y = Add (h, r)", "y = Relu (h)")))


# ---- the file itself


def with_function(domain: str, name: str) -> onnx.ModelProto:
    """y = name(x · w), of a function that negates, in a domain where the runtime may have an operator."""
    negate = helper.make_node("Neg", ["a"], ["b"])
    function = helper.make_function(domain, name, ["a"], ["b"], [negate], [helper.make_opsetid("", 18)])
    weight = np.random.default_rng(0).standard_normal((16, 16)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node(name, ["h"], ["y"], domain=domain),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, ["n", 16])],
        [value("y", TensorProto.FLOAT, ["n", 16])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    imports = [helper.make_opsetid("", 18), helper.make_opsetid(domain, 1)]
    return helper.make_model(graph, functions=[function], opset_imports=imports, ir_version=9)


@pytest.mark.parametrize(
    ("domain", "name", "own"),
    [("com.microsoft", "Gelu", True), ("com.microsoft", "Mine", False), ("mine", "Gelu", False)],
)
def test_a_function_that_the_runtime_does_not_run_is_not_inlined(domain, name, own, tmp_path) -> None:
    onnx.save(with_function(domain, name), tmp_path / "m.onnx")
    assert is_runtime_operator(domain, name, 1) == own
    model = Model.load(tmp_path / "m.onnx")
    feed = {"x": np.random.default_rng(1).standard_normal((3, 16)).astype(np.float32)}
    with Runner(tmp_path / "m.onnx") as file, Runner(model) as read:
        np.testing.assert_allclose(read(feed)["y"], file(feed)["y"], rtol=1e-6)
    assert {node.op_type for node in model.graph} == {"MatMul", name if own else "Neg"}


def test_a_build_is_compared_with_the_file(tmp_path, monkeypatch) -> None:
    """What reading gets wrong is found: here a function is inlined that the runtime does not run."""
    onnx.save(with_function("com.microsoft", "Gelu"), tmp_path / "m.onnx")
    monkeypatch.setattr(model_file, "RUNTIME_DOMAINS", frozenset())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(graphcompress.errors.ContractError, match="simplify broke its contract"):
        graphcompress.optimize(tmp_path / "m.onnx", "simplify", target="cpu{measure=false}", output="out")
    assert not (tmp_path / "out").exists()


def test_a_size_below_zero_is_not_known(tmp_path, tiny_bert_proto) -> None:
    proto = onnx.ModelProto()
    proto.CopyFrom(tiny_bert_proto)
    for value in (*proto.graph.input, *proto.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_value = -1
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(graphcompress.errors.ContractError, match=r"SQNR .* on 8 "):
        Pipeline.parse("prune{ffn=1 heads=1}").run(Model.load(tmp_path / "m.onnx"), Context())
