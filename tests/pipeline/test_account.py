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
    unfolds = passes.startswith("int8") and "only" not in passes
    assert "kernel" in touched if unfolds else "convolution" in reasons["kernel"]
    assert "on the left" in reasons["left"]
    assert "subgraph" in reasons["inner"]
    assert "an input" in reasons["given"]
    assert {name for name, reason in reasons.items() if reason == UNNAMED} == unnamed


GEMMS = {
    "alpha": "y = Gemm <alpha = 0.5> (x, w, c)",
    "beta": "y = Gemm <beta = 2.0> (x, w, c)",
    "both, transposed": "y = Gemm <alpha = 0.5, beta = 2.0, transB = 1> (x, w, c)",
    "a transposed input": "t = Transpose (x) y = Gemm <transA = 1> (t, w, c)",
    "on the left": "t = Transpose (x) z = Gemm (w, t) y = Transpose (z)",
    "a product on the left": "t = Transpose (x) z = MatMul (w, t) s = Relu (z) y = Transpose (s)",
}


@pytest.mark.parametrize("form", GEMMS)
@pytest.mark.parametrize(
    "passes", ["int8", "kron{max_error=1}", "simplify,int8", "simplify,kron{max_error=1}"]
)
def test_a_product_in_another_form_is_counted_and_touched_or_told_why(form: str, passes: str) -> None:
    text = f"""<ir_version: 9, opset_import: ["" : 18]>
        g (float[b, 32] x) => (float[b, 32] y) {{ {GEMMS[form]} }}"""
    proto, rng = onnx.parser.parse_model(text), np.random.default_rng(0)
    stored = {"w": (32, 32)} | ({"c": (32,)} if ", c)" in text else {})
    for name, shape in stored.items():
        array = (rng.normal(size=shape) / 6).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    total, left = sum(map(np.prod, stored.values())), form.endswith("on the left")
    pipeline = Pipeline.parse(passes)
    last = pipeline.passes[-1].name
    record = pipeline.run(Model(ir.from_proto(proto)), Context(), allow=[last])[-1]
    touched, reasons = ({item.name for item in record.touched}, {i.name: i.reason for i in record.skipped})
    if passes.startswith("simplify") and not left:
        assert touched == {"w"}
        assert record.coverage == 32 * 32 / total
    else:
        assert touched == set()
        assert record.coverage == 0
        why = "it stands on the left in its " if left else "its Gemm has a factor, a transposed input"
        assert reasons["w"].startswith(f"no linear: {why}")
    named = {name.removesuffix(".folded") for name in touched | set(reasons)}
    assert set(stored) <= named


def test_inspect_tells_all_of_them(every_kind: Model) -> None:
    found = inspect(every_kind, passes=())
    counted = sum(weight.parameters for weight in found.weights) + sum(
        each.parameters for each in found.others
    )
    assert counted == found.parameters
