"""fp16 storage: half the bytes, float again in the session, and rounding within what 11 bits give."""

import numpy as np
import onnx
import onnxruntime
import pytest

from graphcompress.files.runtime import session_of
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner
from graphcompress.numerics.metrics import sqnr_db
from graphcompress.pipeline.pipeline import Pipeline
from graphcompress.plugin.context import Context
from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.targets.cpu.cpu import Cpu
from graphcompress.targets.cpu.fp16_storage import store_floats_as_fp16


@pytest.fixture
def feed(tiny_samples):
    return tiny_samples.batch([0, 1, 2])


def test_matrices_are_halved_and_vectors_stay(tiny_bert, feed):
    with Runner(tiny_bert) as runner:
        before = runner(feed)["last_hidden_state"]
    matrices = sum(
        v.const_value.nbytes
        for v in tiny_bert.initializers()
        if len(v.shape) >= 2 and v.const_value.size >= 1024 and v.dtype.name == "FLOAT"
    )
    total = tiny_bert.weight_bytes
    note = store_floats_as_fp16(tiny_bert, Context())
    assert tiny_bert.weight_bytes == total - matrices // 2
    assert "stored as fp16" in note
    assert all(v.dtype.name != "FLOAT16" for v in tiny_bert.initializers() if len(v.shape) < 2)
    with Runner(tiny_bert) as runner:
        assert sqnr_db(before, runner(feed)["last_hidden_state"]) > 55


def test_the_session_computes_in_float(tiny_bert, tmp_path):
    record = Cpu(measure=False, float_storage="fp16").lower(tiny_bert, tmp_path, Context()).record
    assert any("stored as fp16" in note for note in record["notes"])
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), options)
    optimised = onnx.load(tmp_path / "optimised.onnx").graph
    assert not [t.name for t in optimised.initializer if t.data_type == onnx.TensorProto.FLOAT16]
    casts = [node for node in optimised.node if node.op_type == "Cast"]
    assert not [node for node in casts if node.input[0].endswith(".fp16")]


def test_numbers_that_fp16_does_not_hold_stay(tiny_bert):
    value = next(v for v in tiny_bert.initializers() if len(v.shape) == 2 and v.const_value.size >= 1024)
    array = value.const_value.numpy().copy()
    array[0, 0] = 1e6
    with Rewriter(tiny_bert, Context()) as rw:
        rw.overwrite(value, array)
    note = store_floats_as_fp16(tiny_bert, Context())
    assert "1 hold numbers beyond its range" in note
    assert value.dtype.name == "FLOAT"


def test_twice_is_once(tiny_bert):
    store_floats_as_fp16(tiny_bert, Context())
    size = tiny_bert.weight_bytes
    assert store_floats_as_fp16(tiny_bert, Context()).startswith("0 float weights")
    assert tiny_bert.weight_bytes == size


def test_kronecker_factors_and_int8_go_together_with_it(tiny_bert, tiny_samples, tmp_path, feed):
    context = Context(samples=tiny_samples, capabilities=Cpu().capabilities)
    Pipeline.parse("simplify,kron,int8").run(tiny_bert, context, allow=("kron", "int8"))
    answers = {}
    for storage in ("fp32", "fp16"):
        (tmp_path / storage).mkdir()
        Cpu(measure=False, float_storage=storage).lower(tiny_bert, tmp_path / storage, Context())
        path = tmp_path / storage / "model.onnx"
        answers[storage] = session_of(path).run(None, dict(feed))[0]
    fp32, fp16 = (Model.load(tmp_path / storage / "model.onnx") for storage in ("fp32", "fp16"))
    assert fp16.parameters == fp32.parameters
    assert fp16.weight_bytes <= fp32.weight_bytes
    assert np.isfinite(answers["fp16"]).all()
    assert sqnr_db(answers["fp32"], answers["fp16"]) > 20
