"""A convolution over a few positions of a sequence is a linear over what its window holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from texts import model_of

from graphcompress import optimize
from graphcompress.analysis.linears import linears
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner
from graphcompress.plugin.context import Context
from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.rules.convolutions import unfold

CONV = """
g (float[batch, 24, time] x) => (float[batch, 32, after] y)
<float[32, 24, {size}] weight, float[32] bias>
{{ y = Conv <kernel_shape = [{size}] {more}> (x, weight, bias) }}
"""


def answers(model: Model, *lengths: int) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    with Runner(model) as run:
        return [run({"x": rng.standard_normal((2, 24, n)).astype(np.float32)})["y"] for n in lengths]


@pytest.mark.parametrize(
    ("size", "more"),
    [
        (3, ", pads = [1, 1]"),
        (3, ", pads = [1, 1], strides = [2]"),
        (5, ", pads = [4, 0]"),
        (4, ", strides = [3], dilations = [2]"),
        (8, ""),
    ],
)
def test_answers_are_equal_at_any_length(size: int, more: str) -> None:
    model = model_of(CONV.format(size=size, more=more))
    before = answers(model, 9, 16, 23)
    with Rewriter(model, Context()) as rw:
        unfold(rw, "*")
    assert [(linear.name, linear.in_features, linear.out_features) for linear in linears(model)] == [
        ("weight", 24 * size, 32)
    ]
    for a, b in zip(before, answers(model, 9, 16, 23), strict=True):
        assert np.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "more", "reason"),
    [
        (9, "", "its window is wider than 8 positions"),
        (3, ', auto_pad = "SAME_UPPER"', "it pads by itself"),
    ],
)
def test_others_stay_and_it_says_why(size: int, more: str, reason: str) -> None:
    model = model_of(CONV.format(size=size, more=more))
    with Rewriter(model, Context()) as rw:
        unfold(rw, "*")
    assert [node.op_type for node in model.graph] == ["Conv"]
    assert [(skipped.name, skipped.reason) for skipped in rw.record.skipped] == [
        ("weight", f"a convolution: {reason}")
    ]


def test_int8_multiplies_integers_in_it(tmp_path: Path) -> None:
    conv = CONV.format(size=3, more=", pads = [1, 1], strides = [2]").replace("float[32] bias", BESIDE)
    model = model_of(conv.replace("y = Conv", "z = Conv").replace("bias) }", AFTER))
    rng = np.random.default_rng(2)
    np.savez(tmp_path / "data.npz", x=rng.standard_normal((40, 24, 16)).astype(np.float32))
    build = optimize(
        model, "int8", target="cpu{measure=false}", data=tmp_path / "data.npz", output=tmp_path / "out"
    )
    (record,) = [record for record in build.records if record.text == "int8"]
    assert sorted(touched.name for touched in record.touched) == ["square", "weight"]


BESIDE = "float[32] bias, float[32, 32] square"
AFTER = (
    "bias) m = Transpose <perm = [0, 2, 1]> (z) n = MatMul(m, square) y = Transpose <perm = [0, 2, 1]> (n) }"
)
