"""An older model in a newer opset: the same numbers, or a reason."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner
from graphcompress.plugin.context import Context
from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.rules.opsets.raising import raise_opset, why_not_raised

NEWEST = 23


def model_of(text, opset):
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> {text}')
    return Model(ir.from_proto(proto))


def outputs(model, feed):
    with Runner(model) as runner:
        return runner(feed)


@pytest.mark.parametrize("opset", [13, 15, 17])
def test_what_is_raised_gives_the_same_numbers(opset):
    model = model_of(
        """
        g (float[b,s,8] x, bool c) => (float[b,s,4] first, float[b,s,4] second, float[b,s,1] most) {
          first, second = Split <axis = 2> (x)
          most = If (c) <
            then_branch = a () => (float[b,s,1] y) { y = ReduceMax <axes = [-1]> (x) },
            else_branch = o () => (float[b,s,1] z) { z = ReduceMean <axes = [-1], keepdims = 1> (x) }
          >
        }
        """,
        opset,
    )
    twin = model.clone()
    with Rewriter(twin, Context()) as rw:
        assert raise_opset(rw, NEWEST) is None
    assert twin.opset == NEWEST
    onnx.checker.check_model(ir.to_proto(twin.ir))
    x = np.random.default_rng(0).standard_normal((2, 3, 8)).astype(np.float32)
    for c in (True, False):
        feed = {"x": x, "c": np.array(c)}
        before, after = outputs(model, feed), outputs(twin, feed)
        assert all(np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("node", "opset"),
    [
        ("RoiAlign <output_height = 2, output_width = 2> (x, rois, places)", 13),
        ("GroupNormalization <num_groups = 2> (x, scale, scale)", 18),
        ("GridSample (x, grid)", 16),
    ],
)
def test_what_means_something_else_is_refused_by_name(node, opset):
    text = f"""
    g (float[1,4,6,6] x, float[2,4] rois, int64[2] places, float[2] scale, float[1,2,2,2] grid)
      => (float[n,4,h,w] out) {{ out = {node} }}
    """
    reason = why_not_raised(model_of(text, opset), NEWEST)
    assert reason is not None
    assert reason.startswith(node.split()[0])
    assert why_not_raised(model_of(text, opset), opset) is None


def test_an_operator_that_has_been_as_it_is_since_is_raised():
    text = """
    g (float[1,4,6,6] x, float[2,4] rois, int64[2] places) => (float[2,4,2,2] out) {
      out = RoiAlign <output_height = 2, output_width = 2> (x, rois, places)
    }
    """
    assert why_not_raised(model_of(text, 16), NEWEST) is None


def test_a_batch_normalisation_that_only_normalises_is_raised():
    text = """
    g (float[n,2,l] x, float[2] scale, float[2] shift, float[2] mean, float[2] spread) => (float[n,2,l] out) {
      out = BatchNormalization (x, scale, shift, mean, spread)
    }
    """
    model = model_of(text, 13)
    twin = model.clone()
    with Rewriter(twin, Context()) as rw:
        assert raise_opset(rw, NEWEST) is None
    rng = np.random.default_rng(0)
    feed = {name: rng.random(2).astype(np.float32) for name in ("scale", "shift", "mean", "spread")}
    feed["x"] = rng.standard_normal((3, 2, 5)).astype(np.float32)
    np.testing.assert_array_equal(outputs(model, feed)["out"], outputs(twin, feed)["out"])
