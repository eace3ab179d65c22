"""Whole builds, each verified, of models whose sizes, outputs or operators are unlike those of most."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import texts

import graphcompress
from graphcompress.coupling.couplings import couplings
from graphcompress.files.runtime import runner_of, session_of
from graphcompress.passes.simplify.simplify import Simplify

EXACT_DB = 80.0
"""What a build without loss keeps: the order of additions changes the last digits alone."""

ODD_NAMES = ("batch size", "?", "x:0", "a*b", "", "é 批", "N-1", "12", "((")

POST_NORM = """
g (float[batch, sequence, 16] x) => (float[batch, sequence, 16] y)
<float[16, 24] up, float[24] up_bias, float[24, 16] down, float[16] down_bias,
 float[16] scale, float[16] shift>
{
  a = MatMul (x, up)
  b = Add (a, up_bias)
  c = Gelu (b)
  d = MatMul (c, down)
  e = Add (d, down_bias)
  n = LayerNormalization (e, scale, shift)
  y = Add (n, x)
}
"""

RANK_IN_FRONT = texts.MLP.replace("float[batch, sequence, 16] y", "float[1, batch, sequence, 16] y").replace(
    "y = Add(x, e)", "s = Add(x, e) y = Unsqueeze(s, front)"
)
RANK_IN_FRONT = RANK_IN_FRONT.replace("float[16] down_bias", "float[16] down_bias, int64[1] front = {0}")
BATCH_BEHIND = texts.MLP.replace("float[batch, sequence, 16] y", "float[1, sequence, batch, 16] y").replace(
    "y = Add(x, e)", "s = Add(x, e) t = Transpose <perm = [1, 0, 2]> (s) y = Unsqueeze(t, front)"
)
BATCH_BEHIND = BATCH_BEHIND.replace("float[16] down_bias", "float[16] down_bias, int64[1] front = {0}")
TIME_MAJOR = texts.MLP.replace("[batch, sequence, 16]", "[sequence, batch, 16]")
TIME_MAJOR_OUTPUT = texts.MLP.replace("float[batch, sequence, 16] y", "float[sequence, batch, 16] y").replace(
    "y = Add(x, e)", "s = Add(x, e) y = Transpose <perm = [1, 0, 2]> (s)"
)
EQUAL_TWICE = texts.MLP.replace(" y)", " y, float[batch, sequence, 16] z)").replace(
    "y = Add(x, e)", "y = Add(x, e) z = Add(x, e)"
)
OUTER_VALUE = texts.MLP.replace(
    "y = Add(x, e)",
    """s = Add(x, e)
  yes = Constant <value = bool {1}> ()
  y = If (yes) <then_branch = a () => (p) {p = Identity (s)}, else_branch = b () => (q) {q = Neg (s)}>""",
)
UNDERFLOW = texts.MLP.replace(
    "d = MatMul(c, down)",
    "c1 = Mul(c, tiny) c2 = Mul(c1, tiny) c3 = Div(c2, tiny) c4 = Div(c3, tiny) d = MatMul(c4, down)",
)
UNDERFLOW = UNDERFLOW.replace("float[16] down_bias", "float[16] down_bias, float tiny = {1.0e-15}")
FORMS = {
    "a norm behind, written as LN(f(x)) + x": POST_NORM,
    "an axis of one in front of the batch": RANK_IN_FRONT,
    "one, time, batch": BATCH_BEHIND,
    "time first": TIME_MAJOR,
    "time first in the output": TIME_MAJOR_OUTPUT,
    "an output twice": EQUAL_TWICE,
    "a branch that returns a value from outside": OUTER_VALUE,
    "scales whose product underflows": UNDERFLOW,
    "ALiBi": texts.ALIBI,
    "sinks": texts.SINKS,
}
UNITS = {
    "a norm behind, written as LN(f(x)) + x": {("ffn", 24)},
    "ALiBi": {("head", 4)},
    "sinks": {("head", 4)},
}
"""Groups that are found beside those of an MLP, whose 24 nodes the others have."""


def saved(text: str, folder: Path) -> Path:
    """The file of a model's text."""
    return texts.model_of(text, opset=20).save(folder / "model.onnx")


def built(path: Path, passes: str = "simplify,prune") -> graphcompress.Build:
    """A whole build of ``path`` beside it, verified against it."""
    build = graphcompress.optimize(
        path, passes, target="cpu{measure=false}", output=path.parent / "out", bench=False
    )
    found = graphcompress.verify(path, path.parent / "out")
    assert found.difference.sqnr_db > EXACT_DB
    return build


@pytest.mark.parametrize("form", FORMS)
def test_a_whole_build_is_exact_and_finds_the_units(form: str, tmp_path: Path) -> None:
    path = saved(FORMS[form], tmp_path)
    built(path, "simplify")
    model = graphcompress.load(str(path))
    Simplify().run(model, graphcompress.Context())
    groups = {(group.kind, group.size) for group in couplings(model)}
    assert UNITS.get(form, {("ffn", 24)}) <= groups


@pytest.mark.parametrize("name", ODD_NAMES)
def test_any_name_of_a_size_builds_and_comes_back(name: str, tmp_path: Path) -> None:
    path = saved(texts.MLP, tmp_path)
    proto = onnx.load(path)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[1].dim_param = name
    onnx.save(proto, path)
    built(path)
    result = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False)
    assert result.graph.input[0].type.tensor_type.shape.dim[1].dim_param == name
    x = np.random.default_rng(0).standard_normal((2, 5, 16)).astype(np.float32)
    files = (path, tmp_path / "out" / "model.onnx")
    one, other = (runner_of(session_of(file))({"x": x})["y"] for file in files)
    np.testing.assert_allclose(other, one, atol=1e-5)


def test_a_build_that_trains_nothing_leaves_a_folder_of_that_name_as_it_is(tmp_path: Path) -> None:
    path = saved(texts.MLP, tmp_path)
    own = tmp_path / "out.training"
    (own / "rank-0").mkdir(parents=True)
    files = {"notes.txt": b"mine", "rank-0/step-3.pt": b"\x00\x01", "session.json": b"{}"}
    for name, content in files.items():
        (own / name).write_bytes(content)
    before = {file: file.stat().st_mtime_ns for file in own.rglob("*")}
    built(path)
    assert {file: file.stat().st_mtime_ns for file in own.rglob("*")} == before
    assert {name: (own / name).read_bytes() for name in files} == files
