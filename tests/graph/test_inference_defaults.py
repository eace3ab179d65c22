"""Sizes, axes and steps with a default that a caller may override: inference says nothing that it changes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from graphcompress.files.runtime import session_of
from graphcompress.graph.model import Model

WITH_DEFAULT = {
    "axes of a Slice": ("y = Slice (x, start, end, n)", (2, 6), {"n": ([1], [0])}),
    "steps of a Slice": ("y = Slice (x, start, end, axis, n)", (2, 6), {"n": ([1], [2])}),
    "start of a Slice": ("y = Slice (x, n, end, axis)", (2, 6), {"n": ([0], [1])}),
    "axes of a Squeeze": ("y = Squeeze (x, n)", (1, 1, 6), {"n": ([0], [1])}),
    "axes of an Unsqueeze": ("y = Unsqueeze (x, n)", (2, 6), {"n": ([0], [1])}),
    "sizes of a Split": ("y, z = Split <axis = 1> (x, n)", (2, 6), {"n": ([3, 3], [2, 4])}),
    "pads": ("y = Pad (x, n)", (2, 6), {"n": ([0, 0, 0, 0], [0, 1, 0, 2])}),
    "axes of a Pad": ("y = Pad (x, pads, , n)", (2, 6), {"n": ([0, 1], [1, 0])}),
    "axes of a sum": ("y = ReduceSum <keepdims = 0> (x, n)", (2, 6), {"n": ([1], [0])}),
    "axes of a mean": ("y = ReduceMean <keepdims = 0> (x, n)", (2, 6), {"n": ([1], [0])}),
    "shape": ("y = Reshape (x, n)", (2, 6), {"n": ([2, 6], [6, 2])}),
    "shape of an Expand": ("y = Expand (x, n)", (1, 6), {"n": ([2, 6], [3, 6])}),
    "repeats": ("y = Tile (x, n)", (2, 6), {"n": ([1, 1], [1, 2])}),
    "number of a TopK": ("y, z = TopK (x, n)", (2, 6), {"n": ([2], [3])}),
    "sizes of a Resize": ("y = Resize (x, , , n)", (2, 6), {"n": ([2, 6], [2, 3])}),
    "shape of a crop": ("y = CenterCropPad (x, n)", (2, 6), {"n": ([2, 4], [2, 2])}),
}  # fmt: skip
"""A node, the shape of its ``x``, and the default and another value of an input."""


@pytest.mark.parametrize("case", WITH_DEFAULT)
def test_what_a_caller_may_override_decides_no_size(case, tmp_path):
    text, shape, given = WITH_DEFAULT[case]
    ((name, (default, other)),) = given.items()
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 18]>'
        f"g (float[{', '.join(map(str, shape))}] x, int64[{len(default)}] {name}) => (y)"
        f"<int64[{len(default)}] {name} = {{{', '.join(map(str, default))}}}, int64[1] start = {{0}},"
        " int64[1] end = {2}, int64[1] axis = {1}, int64[4] pads = {0, 1, 0, 2}>"
        f"{{ {text} }}"
    )
    onnx.save(proto, tmp_path / "model.onnx")
    model = Model.load(tmp_path / "model.onnx")
    model.infer_shapes()
    inferred = model.graph.outputs[0].shape
    session = session_of(proto.SerializeToString())
    feed = {"x": np.ones(shape, np.float32)}
    for value in (None, np.array(other, np.int64)):
        (answer,) = session.run(["y"], feed if value is None else {**feed, name: value})
        sizes = [None] * answer.ndim if inferred is None else list(inferred)
        assert len(sizes) == answer.ndim
        assert all(
            size == real for size, real in zip(sizes, answer.shape, strict=True) if isinstance(size, int)
        )


def test_a_squeeze_without_axes_says_nothing_of_an_axis_that_may_be_one(tmp_path):
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 18]> g (float[n, 1, 6] x) => (y) { y = Squeeze (x) }'
    )
    onnx.save(proto, tmp_path / "model.onnx")
    model = Model.load(tmp_path / "model.onnx")
    model.infer_shapes()
    assert model.graph.outputs[0].shape is None


OF_UNKNOWN = {
    "Add": ("Add (x, three)", [(4,), (3, 4), (2, 3, 4), (1,), (5, 1, 3, 4)]),
    "Mul": ("Mul (three, x)", [(4,), (3, 4), (2, 3, 4), (1,), (5, 1, 3, 4)]),
    "Max": ("Max (x, three)", [(4,), (3, 4), (2, 3, 4)]),
    "Sum": ("Sum (x, three, x)", [(4,), (3, 4), (2, 3, 4)]),
    "Pow": ("Pow (x, three)", [(4,), (3, 4), (2, 3, 4)]),
    "PRelu": ("PRelu (x, one)", [(4,), (3, 4), (2, 3, 4)]),
    "Greater": ("Greater (x, three)", [(4,), (3, 4), (2, 3, 4)]),
    "Where": ("Where (yes, x, three)", [(4,), (3, 4), (2, 3, 4)]),
    "Expand": ("Expand (x, sizes)", [(4,), (3, 4), (2, 3, 4), (2, 2, 3, 4)]),
    "MatMul on the left": ("MatMul (x, square)", [(4,), (3, 4), (2, 3, 4)]),
    "MatMul on the right": ("MatMul (square, x)", [(4,), (4, 5), (2, 4, 5)]),
    "Gather of it": ("Gather (x, ids)", [(4,), (3, 4), (2, 3, 4)]),
    "Concat": ("Concat <axis = 0> (x, x)", [(4,), (3, 4), (2, 3, 4)]),
    "Softmax": ("Softmax (x)", [(4,), (3, 4), (2, 3, 4)]),
    "ReduceMean": ("ReduceMean <keepdims = 0> (x)", [(4,), (3, 4)]),
    "a mean of the last axis": ("ReduceMean <keepdims = 0> (x, last)", [(4,), (3, 4), (2, 3, 4)]),
    "Unsqueeze": ("Unsqueeze (x, last)", [(4,), (3, 4), (2, 3, 4)]),
    "Flatten": ("Flatten (x)", [(3, 4), (2, 3, 4)]),
    "Reshape with a copied size": ("Reshape (x, copied)", [(3, 4), (2, 6, 2)]),
    "Slice": ("Slice (x, zero, sizes_end, zero)", [(4,), (3, 4), (2, 3, 4)]),
    "Shape": ("Shape (x)", [(4,), (3, 4), (2, 3, 4)]),
    "a shape's product": ("ConstantOfShape (shape)", [(4,), (3, 4), (2, 3, 4)]),
    "LayerNormalization": ("LayerNormalization (x, one)", [(4,), (3, 4), (2, 3, 4)]),
    "Transpose": ("Transpose (x)", [(4,), (3, 4), (2, 3, 4)]),
    "Clip": ("Clip (x)", [(4,), (3, 4)]),
    "Tile": ("Tile (x, two)", [(4,)]),
}
"""An operator on an input of which the file says nothing, and sizes that it takes."""


@pytest.mark.parametrize("case", OF_UNKNOWN)
def test_of_a_value_of_unknown_shape_nothing_is_said_that_does_not_hold(case, tmp_path):
    text, shapes = OF_UNKNOWN[case]
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 18]> g (float[a] x) => (y)'
        "<float[3, 1] three = {1, 2, 3}, float[4] one = {1, 2, 3, 4}, bool[3, 1] yes = {1, 0, 1},"
        " int64[3] sizes = {1, 3, 1}, float[4, 4] square = {1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4},"
        " int64[2] ids = {0, 1}, int64[1] last = {-1}, int64[1] two = {2},"
        " int64[1] zero = {0}, int64[1] sizes_end = {2},"
        f" int64[2] copied = {{0, -1}}> {{ shape = Shape (x) y = {text} }}"
    )
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    onnx.save(proto, tmp_path / "model.onnx")
    model = Model.load(tmp_path / "model.onnx")
    model.infer_shapes()
    inferred = model.graph.outputs[0].shape
    session = session_of(proto.SerializeToString())
    for shape in shapes:
        (answer,) = session.run(["y"], {"x": np.ones(shape, np.float32)})
        sizes = [None] * answer.ndim if inferred is None else list(inferred)
        assert len(sizes) == answer.ndim
        assert all(
            size == real for size, real in zip(sizes, answer.shape, strict=True) if isinstance(size, int)
        )
