"""Value ranges hold for what a model really computes, and are unknown where nothing can be proved."""

from __future__ import annotations

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphcompress.data.load import Samples
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner
from graphcompress.ranges.bounds import Bounds
from graphcompress.ranges.interval import FALSE, TRUE


def test_every_value_of_a_model_lies_in_its_range(tiny_bert: Model, tiny_samples: Samples) -> None:
    bounds = Bounds()
    values = [value for node in tiny_bert.graph for value in node.outputs if value.uses()]
    known = {value.name: interval for value in values if (interval := bounds.of(value)) is not None}
    assert len(known) == len(values)
    with Runner(tiny_bert, values, optimize=False) as runner:
        for feed in tiny_samples.batches(8):
            for name, array in runner({key: feed[key] for key in feed}).items():
                assert known[name].low <= array.min(), name
                assert array.max() <= known[name].high, name


UNARY = ["Neg", "Abs", "Relu", "Tanh", "Erf", "Sigmoid", "Sin", "Cos", "Identity"]
BINARY = ["Add", "Sub", "Mul", "Min", "Max"]


@given(
    st.lists(
        st.tuples(st.sampled_from(UNARY + BINARY), st.integers(0, 9), st.integers(0, 9)),
        min_size=1,
        max_size=8,
    ),
    st.integers(0, 2**16),
)
def test_ranges_hold_on_random_graphs(steps: list[tuple[str, int, int]], seed: int) -> None:
    """Every step reads earlier values; the last one is compared."""
    names = ["x", "c"]
    lines = []
    for number, (op, first, second) in enumerate(steps):
        operands = names[first % len(names)] + (f", {names[second % len(names)]}" if op in BINARY else "")
        names.append(f"v{number}")
        lines.append(f"v{number} = {op}({operands})")
    model = Model(
        ir.from_proto(
            onnx.parser.parse_model(
                '<ir_version: 9, opset_import: ["" : 18]> g (float[n] x) => (float[m] y) '
                "<float[2] c = {-1.5, 2.0}> {" + "\n".join([*lines, f"y = Identity({names[-1]})"]) + "}"
            )
        )
    )
    interval = Bounds(largest_input=3.0).of(model.graph.outputs[0])
    assert interval is not None
    feed = {"x": np.random.default_rng(seed).uniform(-3, 3, 2).astype(np.float32)}
    with Runner(model, optimize=False) as runner:
        result = runner(feed)["y"]
    slack = 1e-5 * max(1.0, interval.magnitude)
    assert interval.low - slack <= result.min()
    assert result.max() <= interval.high + slack


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("y = GreaterOrEqual(r, zero)", TRUE),
        ("y = Less(r, zero)", FALSE),
        ("t = Tanh(f)\n y = IsNaN(t)", FALSE),
    ],
)
def test_what_is_always_true_or_false(expression: str, expected: object) -> None:
    model = Model(
        ir.from_proto(
            onnx.parser.parse_model(
                """<ir_version: 9, opset_import: ["" : 18]> g (int64[n] x) => (bool[n] y)
                <int64 zero = {0}, int64 one = {1}> {
                s = Size(x)
                r = Range(zero, s, one)
                f = Cast <to = 1> (x)
                """
                + expression
                + "}"
            )
        )
    )
    assert Bounds().of(model.graph.outputs[0]) == expected


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ("y = Reciprocal(f)", (-0.5, -0.25)),
        ("y = Div(f, f)", (0.5, 2.0)),
        ("i = Cast <to = 7> (f)\n t = Div(i, three)\n y = Cast <to = 1> (t)", (-1.0, 0.0)),
        ("h = Div(f, eight)\n i = Cast <to = 7> (h)\n y = Cast <to = 1> (i)", (0.0, 0.0)),
        ("b = Cast <to = 9> (f)\n y = Cast <to = 1> (b)", (1.0, 1.0)),
    ],
)
def test_fractions_signs_and_casts(steps: str, expected: tuple[float, float]) -> None:
    """What a model computes from [-4, -2] lies in the range, and the range is no wider than rounding asks."""
    model = Model(
        ir.from_proto(
            onnx.parser.parse_model(
                '<ir_version: 9, opset_import: ["" : 18]> g (int64[1] n) => (float[2] y) '
                "<float[2] f = {-4.0, -2.0}, int64 three = {3}, float eight = {8.0}> {" + steps + "}"
            )
        )
    )
    interval = Bounds().of(model.graph.outputs[0])
    assert interval is not None
    with Runner(model, optimize=False) as runner:
        result = runner({"n": np.zeros(1, np.int64)})["y"]
    assert interval.low <= result.min()
    assert result.max() <= interval.high
    assert (interval.low, interval.high) == pytest.approx(expected, rel=0.02)


def test_the_statistics_of_a_layer_norm_are_not_its_result() -> None:
    model = Model(
        ir.from_proto(
            onnx.parser.parse_model(
                '<ir_version: 9, opset_import: ["" : 18]> g (float[n, 4] x) => (float[n, 4] y, float[n, 1] m)'
                " <float[4] s = {1.0, 1.0, 1.0, 1.0}> { y, m = LayerNormalization(x, s) }"
            )
        )
    )
    bounds = Bounds(largest_input=100.0)
    assert bounds.of(model.graph.outputs[0]) is not None
    assert bounds.of(model.graph.outputs[1]) is None


@pytest.mark.parametrize(
    "expression", ["y = Exp(x)", "y = Div(x, x)", "y = Neg(x)", "d = custom.Op(x)\n y = Tanh(d)"]
)
def test_what_may_be_nan_or_infinite_is_unknown(expression: str) -> None:
    header = '<ir_version: 9, opset_import: ["" : 18, "custom" : 1]> g (float[n] x) => (float[n] y) {'
    model = Model(ir.from_proto(onnx.parser.parse_model(header + expression + "}")))
    assert Bounds().of(model.graph.outputs[0]) is None
