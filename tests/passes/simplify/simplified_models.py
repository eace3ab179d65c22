"""Models for the tests of simplify, as text, and simplify held against ONNX Runtime."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
from onnx import numpy_helper

from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner
from graphcompress.passes.simplify.simplify import Simplify
from graphcompress.plugin.context import Context
from graphcompress.plugin.record import Record

TOLERANCE = 1e-6


def model_of(graph: str, opset: int = 18, **weights: np.ndarray) -> Model:
    """A Model from ONNX's text form; ``weights`` become initializers."""
    opsets = f'"" : {opset}, "custom" : 1'
    proto = onnx.parser.parse_model(f"<ir_version: 9, opset_import: [{opsets}]>\n{graph}")
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    return Model(ir.from_proto(proto))


def simplified(
    model: Model, *feeds: dict[str, np.ndarray], tolerance: float = TOLERANCE, **options: bool
) -> tuple[Model, Record]:
    """A simplified copy, checked against ``model`` on ``feeds``, and checked to have nothing left to do."""
    result = model.clone()
    record = Simplify(**options).run(result, Context())
    with Runner(model, optimize=False) as before, Runner(result, optimize=False) as after:
        for feed in feeds:
            for name, expected in before(feed).items():
                np.testing.assert_allclose(after(feed)[name], expected, rtol=tolerance, atol=tolerance)
    text = onnx.printer.to_text(ir.to_proto(result.ir))
    again = Simplify(**options).run(result, Context())
    assert onnx.printer.to_text(ir.to_proto(result.ir)) == text
    assert again.notes == ("nothing to simplify",)
    return result, record


def ops(model: Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def x_feeds(*lengths: int, width: int = 6) -> list[dict[str, np.ndarray]]:
    return [{"x": normal(2, length, width, seed=length)} for length in lengths]


MESH_WEIGHTS = {
    "zero": np.array(0),
    "one": np.array(1),
    "axes123": np.array([1, 2, 3]),
    "axes012": np.array([0, 1, 2]),
    "axes013": np.array([0, 1, 3]),
    "minus": np.array([-1]),
    "hidden": np.float32(-1e9),
}


def mesh_feed(batch: int = 2, length: int = 2) -> dict[str, np.ndarray]:
    mask = np.ones((batch, length), np.int64)
    mask[-1, 1:] = 0
    return {"mask": mask, "scores": normal(batch, 2, length, length)}
