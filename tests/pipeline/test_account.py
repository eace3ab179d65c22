"""Every float parameter of a file is touched by a lossy pass, or has a reason."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from graphcompress.analysis.parameters import all_parameters
from graphcompress.graph.model import Model, number_of_parameters
from graphcompress.pipeline.account import UNNAMED
from graphcompress.pipeline.inspection import inspect
from graphcompress.pipeline.pipeline import Pipeline
from graphcompress.plugin.context import Context

SIZES = {
    "table": (200, 32),
    "fc": (32, 32),
    "fc_bias": (32,),
    "left": (5, 5),
    "kernel": (32, 32, 3),
    "experts": (4, 32, 32),
    "scale": (32,),
    "inner": (32, 32),
    "given": (32, 32),
}

GRAPH = """<ir_version: 9, opset_import: ["" : 18]>
g (int64[b, 5] ids, bool flag, float[32, 32] given) => (float[b, 5, 32] y) {
    e = Gather(table, ids)
    p = MatMul(e, fc)
    h = Add(p, fc_bias)
    l = MatMul(left, h)
    n = LayerNormalization(l, scale)
    t = Transpose <perm = [0, 2, 1]> (n)
    c = Conv <pads = [1, 1]> (t, kernel)
    u = Transpose <perm = [0, 2, 1]> (c)
    q = Unsqueeze(u, one)
    m = MatMul(q, experts)
    r = ReduceMean <keepdims = 0> (m, one)
    i = If (flag) <
        then_branch = th () => (float[b, 5, 32] a) { a = MatMul(r, inner) },
        else_branch = el () => (float[b, 5, 32] z) { z = Identity(r) }
    >
    y = MatMul(i, given)
}"""


@pytest.fixture
def every_kind() -> Model:
    """A model with a weight of every kind."""
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(GRAPH)
    for name, shape in SIZES.items():
        array = (rng.normal(size=shape) / 6).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    proto.graph.initializer.append(numpy_helper.from_array(np.array([1]), "one"))
    return Model(ir.from_proto(proto))


def test_all_parameters_are_those_of_the_model(every_kind: Model) -> None:
    found = {each.name: each for each in all_parameters(every_kind)}
    assert set(found) == set(SIZES)
    assert {name: each.count for name, each in found.items()} == {
        value.name: number_of_parameters(value) for value in every_kind.initializers() if value.name != "one"
    }
    assert {name for name, each in found.items() if not each.reason} == {"table", "fc", "experts"}


@pytest.mark.parametrize(
    ("passes", "unnamed"),
    [
        *((passes, set()) for passes in ("int8", "kron", "prune", "prune{ffn=0.25}")),
        ("int8{only=fc}", {"table", "experts"}),
        ("int8{embeddings=false}", {"table"}),
    ],
)
def test_each_is_touched_or_has_a_reason(every_kind: Model, passes: str, unnamed: set[str]) -> None:
    pipeline = Pipeline.parse(passes)
    before = {each.name: each.count for each in all_parameters(every_kind)}
    (record,) = pipeline.run(every_kind, Context(), allow=[step.name for step in pipeline.passes])
    touched, skipped = ({item.name for item in items} for items in (record.touched, record.skipped))
    assert set(before) <= touched | skipped
    assert record.coverage == sum(before[name] for name in touched) / sum(before.values())
    reasons = {item.name: item.reason for item in record.skipped}
    assert "convolution" in reasons["kernel"]
    assert "on the left" in reasons["left"]
    assert "subgraph" in reasons["inner"]
    assert "an input" in reasons["given"]
    assert {name for name, reason in reasons.items() if reason == UNNAMED} == unnamed


def test_inspect_tells_all_of_them(every_kind: Model) -> None:
    found = inspect(every_kind, passes=())
    counted = sum(weight.parameters for weight in found.weights) + sum(
        each.parameters for each in found.others
    )
    assert counted == found.parameters
