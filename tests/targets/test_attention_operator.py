"""Which targets write attention over a cache as the operator of opset 23, which older runtimes lack."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from operator_forms import model_of

from graphcompress.graph.model import Model
from graphcompress.plugin.context import Context
from graphcompress.plugin.targeting import parse_target

STEP = """
g (float[b,s,8] q, float[b,s,8] k, float[b,s,8] v, float[b,2,p,4] past_k, float[b,2,p,4] past_v)
  => (float[b,s,8] out, float[b,2,t,4] present_k, float[b,2,t,4] present_v) {
  qr = Reshape(q, heads)  qt = Transpose <perm = [0, 2, 1, 3]> (qr)  qs = Mul(qt, scale)
  kr = Reshape(k, heads)  kt = Transpose <perm = [0, 2, 1, 3]> (kr)
  vr = Reshape(v, heads)  vt = Transpose <perm = [0, 2, 1, 3]> (vr)
  present_k = Concat <axis = 2> (past_k, kt)  present_v = Concat <axis = 2> (past_v, vt)
  turned = Transpose <perm = [0, 1, 3, 2]> (present_k)
  p = MatMul(qs, turned)  soft = Softmax <axis = -1> (p)  c = MatMul(soft, present_v)
  t = Transpose <perm = [0, 2, 1, 3]> (c)  out = Reshape(t, whole)
}
"""


def step() -> Model:
    weights = {"heads": np.array([0, 0, 2, 4]), "whole": np.array([0, 0, 8]), "scale": np.float32(0.6)}
    return model_of(STEP, weights)


def operators(file: Path) -> list[tuple[str, str]]:
    return [(node.domain, node.op_type) for node in onnx.load(file).graph.node]


def test_target_cpu_writes_it_and_says_which_runtime_reads_it(tmp_path: Path) -> None:
    lowering = parse_target("cpu{measure=false}").lower(step(), tmp_path, Context())
    assert operators(tmp_path / "model.onnx").count(("", "Attention")) == 1
    assert sum("ONNX Runtime reads since 1.23" in note for note in lowering.notes) == 1


@pytest.mark.parametrize(
    "text",
    [
        "cpu{measure=false newest_opset=21}",
        "mobile",
        "gpu",
        "gpu{provider=tensorrt}",
        "gpu{provider=nv_tensorrt_rtx}",
        "tensorrt{build=never}",
    ],
)
def test_no_other_target_writes_it(text: str, tmp_path: Path) -> None:
    target = parse_target(text)
    record = target.lower(step(), tmp_path, Context()).record
    assert record["opset"] < 23
    files = list(tmp_path.glob("*.onnx"))
    assert all(("", "Attention") not in operators(file) for file in files)
    assert files or target.model_file.endswith(".ort")
