"""Target cpu: what it writes, that it writes it again, and what it says that processors can do."""

import json
import logging

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from bert import Bert

from graphcompress.data import made_up
from graphcompress.data.lengths import longest_sample
from graphcompress.errors import UsageError
from graphcompress.files.runtime import session_of
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner
from graphcompress.measure import cache as cache_module
from graphcompress.measure.cache import MeasurementCache, cache_folder
from graphcompress.measure.shapes import parse_shapes
from graphcompress.measure.structure import interface
from graphcompress.measure.timing import FORM_FLOOR, FORM_MARGIN
from graphcompress.pipeline.pipeline import Pipeline
from graphcompress.plugin.context import Context
from graphcompress.targets.common import form_choice
from graphcompress.targets.common.attention import OPERATOR
from graphcompress.targets.common.form_choice import fastest
from graphcompress.targets.cpu.cpu import Cpu, detected_isa

pytestmark = pytest.mark.usefixtures("quick_measurements")

SHAPES = "1x4,2x8"


@pytest.fixture
def simplified(tiny_bert):
    Pipeline.parse("simplify").run(tiny_bert, Context())
    return tiny_bert


@pytest.fixture
def quantised(tiny_bert, tiny_samples):
    context = Context(samples=tiny_samples, capabilities=Cpu().capabilities)
    Pipeline.parse("simplify,int8").run(tiny_bert, context, allow=("int8",))
    return tiny_bert


def lower(model, folder, **options):
    folder.mkdir()
    shapes = {"shapes": SHAPES} if options.get("measure", True) else {}
    return Cpu(**shapes, **options).lower(model, folder, Context()).record


def outputs(path, samples):
    session = session_of(path)
    return [session.run(None, feed)[0] for feed in samples.batches(5)]


def optimised_ops(path, folder):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(path), options)
    return [node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node]


# ---- lowering


@pytest.mark.parametrize("measure", [True, False])
def test_lowered_model_gives_the_same_outputs(simplified, tiny_samples, tmp_path, measure):
    simplified.save(tmp_path / "before.onnx")
    lower(simplified, tmp_path / "out", measure=measure)
    before = outputs(tmp_path / "before.onnx", tiny_samples)
    after = outputs(tmp_path / "out" / "model.onnx", tiny_samples)
    for expected, seen in zip(before, after, strict=True):
        assert np.abs(seen - expected).max() <= 1e-4 * np.abs(expected).max()


def test_inputs_outputs_and_dynamic_sizes_stay(simplified, tmp_path):
    before = interface(simplified)
    lower(simplified, tmp_path / "out", measure=False)
    assert interface(Model.load(tmp_path / "out" / "model.onnx")) == before
    assert "batch" in before["outputs"][0]


def test_the_model_itself_is_not_changed(simplified, tmp_path):
    before = [(node.op_type, [v.name for v in node.outputs]) for node in simplified.graph]
    lower(simplified, tmp_path / "out", measure=False)
    assert [(node.op_type, [v.name for v in node.outputs]) for node in simplified.graph] == before


def test_default_forms_reach_the_runtime(simplified, tmp_path):
    record = lower(simplified, tmp_path / "out", measure=False)
    ops = optimised_ops(tmp_path / "out" / "model.onnx", tmp_path)
    assert "SkipLayerNormalization" not in ops
    assert "Erf" not in ops
    taken = {choice["family"]: (choice["form"], choice["sites"]) for choice in record["forms"]}
    assert taken["residual"] == ("sum", 4)
    assert taken["gelu"] == ("gelu", 2)
    assert all(choice["times_ms"] == {} for choice in record["forms"])


@pytest.mark.parametrize("measure", [True, False])
def test_all_int8_linears_multiply_integers(quantised, tmp_path, measure):
    lower(quantised, tmp_path / "out", measure=measure)
    ops = optimised_ops(tmp_path / "out" / "model.onnx", tmp_path)
    assert ops.count("MatMul") + ops.count("FusedMatMul") <= 4, (
        "only products of two activations stay in float"
    )
    assert "Gemm" not in ops
    integer = [op for op in ops if op in ("MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QLinearMatMul")]
    assert 8 <= len(integer) <= 12


def test_session_runs_what_was_written(simplified, tiny_samples, tmp_path):
    lower(simplified, tmp_path / "out", measure=False)
    feed = tiny_samples.batch([0, 1])
    seen = Cpu().session(tmp_path / "out")(feed)
    with Runner(simplified) as runner:
        expected = runner(feed)
    assert seen.keys() == expected.keys()
    assert np.allclose(seen["last_hidden_state"], expected["last_hidden_state"], atol=1e-4)


@pytest.mark.parametrize("newest", [21, 23])
def test_attention_is_an_operator_where_it_is_fastest_and_its_opset_may_be_written(
    simplified, tiny_samples, tmp_path, monkeypatch, newest
):
    def operator_wins(times, default):
        return OPERATOR if OPERATOR in times else default

    monkeypatch.setattr(form_choice, "fastest", operator_wins)
    simplified.save(tmp_path / "before.onnx")
    record = lower(simplified, tmp_path / "out", newest_opset=newest)
    written = onnx.load(tmp_path / "out" / "model.onnx")
    assert [node.op_type for node in written.graph.node].count("Attention") == (2 if newest == 23 else 0)
    assert record["opset"] == written.opset_import[0].version == (23 if newest == 23 else simplified.opset)
    assert any("newest_opset=21" in note for note in record["notes"]) == (newest == 23)
    pair = (outputs(path, tiny_samples) for path in (tmp_path / "before.onnx", tmp_path / "out/model.onnx"))
    for expected, seen in zip(*pair, strict=True):
        assert np.abs(seen - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("newest", [21, 23])
def test_an_operator_without_an_older_equal_keeps_the_opset_which_is_said(tmp_path, newest):
    text = "g (float[b,8] x) => (float[b,8] out) { out = RMSNormalization (x, x) }"
    proto = onnx.parser.parse_model(f'<ir_version: 11, opset_import: ["" : 23]> {text}')
    (tmp_path / "out").mkdir()
    target = Cpu(measure=False, newest_opset=newest)
    record = target.lower(Model(ir.from_proto(proto)), tmp_path / "out", Context()).record
    said = [
        note for note in record["notes"] if note.startswith("written in opset 23, not 21: RMSNormalization")
    ]
    assert (record["opset"], len(said)) == (23, newest == 21)


def test_a_model_that_cannot_be_raised_has_no_attention_operator(simplified):
    assert OPERATOR in Cpu().families_for(simplified)[-1].forms
    simplified.graph.append(ir.node("GroupNormalization", [simplified.graph.outputs[0]] * 3))
    assert OPERATOR not in Cpu().families_for(simplified)[-1].forms


# ---- repeating a build


def test_second_lowering_writes_the_same_bytes_and_record(simplified, tmp_path, monkeypatch):
    first = lower(simplified, tmp_path / "first")

    def no_measuring(*_, **__):
        raise AssertionError("measured although it is in the cache")

    monkeypatch.setattr(form_choice, "turns", no_measuring)
    second = lower(simplified, tmp_path / "second")
    assert json.dumps(first, sort_keys=True) == json.dumps(second, sort_keys=True)
    assert (tmp_path / "first/model.onnx").read_bytes() == (tmp_path / "second/model.onnx").read_bytes()


def test_other_shapes_are_measured_anew(simplified, tmp_path):
    lower(simplified, tmp_path / "first")
    kept = set(MeasurementCache().keys)
    (tmp_path / "second").mkdir()
    Cpu(shapes="1x5").lower(simplified, tmp_path / "second", Context())
    assert len(MeasurementCache().keys) == 2 * len(kept)


# ---- the choice


def test_ties_and_small_gains_go_to_the_default():
    assert fastest({}, "sum") == "sum"
    assert fastest({"unchanged": [1.0], "sum": [1.0]}, "sum") == "sum"
    assert fastest({"unchanged": [1.0], "sum": [FORM_MARGIN - 0.005]}, "sum") == "sum"
    assert fastest({"unchanged": [FORM_MARGIN - 0.005], "packed": [1.0]}, "unchanged") == "unchanged"


def test_a_default_that_is_slower_is_not_taken():
    assert fastest({"unchanged": [1.0, 1.0], "sum": [1.2, 1.2]}, "sum") == "unchanged"


def test_a_form_that_is_slower_somewhere_is_not_taken():
    fast = {"unchanged": [1.0, 1.0, 1.0], "packed": [0.5, 0.5, 1.01 / FORM_FLOOR]}
    assert fastest(fast, "unchanged") == "unchanged"
    assert fastest({**fast, "packed": [0.5, 0.5, 0.99 / FORM_FLOOR]}, "unchanged") == "packed"


def test_a_default_that_the_runtime_refuses_is_not_taken():
    assert fastest({"unchanged": [1.0]}, "gelu") == "unchanged"


# ---- the cache


def test_cache_keeps_the_first_measurement_and_what_others_wrote():
    one, two = MeasurementCache(), MeasurementCache()
    one.put("a", {"unchanged": [1.0]})
    two.put("b", {"unchanged": [2.0]})
    two.put("a", {"unchanged": [3.0]})
    fresh = MeasurementCache()
    assert fresh.get("a") == {"unchanged": [1.0]}
    assert fresh.get("b") == {"unchanged": [2.0]}
    assert fresh.get("c") is None


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", '{"a": 3}', '{"a": {"x": [0]}}', '{"a": {"x": [-1.0]}}', '{"a": {"x": 1.0}}']
)
def test_damaged_cache_is_measured_again_with_a_warning(text, caplog):
    cache = MeasurementCache()
    cache.put("a", {"unchanged": [1.0]})
    cache.path.write_text(text)
    with caplog.at_level(logging.WARNING):
        damaged = MeasurementCache()
    assert damaged.get("a") is None
    assert "measuring again" in caplog.text
    damaged.put("a", {"unchanged": [2.0]})
    assert MeasurementCache().get("a") == {"unchanged": [2.0]}
    assert [file.name for file in cache.path.parent.iterdir()] == [cache.path.name]


def test_what_a_killed_build_has_left_beside_the_cache_is_swept(tmp_path):
    left = tmp_path / f".graphcompress-{'0' * 16}"
    left.mkdir()
    (left / "measurements.json").write_text("{")
    cache = MeasurementCache(tmp_path)
    cache.put("a", {"x": [1.0]})
    assert [path.name for path in tmp_path.iterdir()] == [cache.path.name]
    assert MeasurementCache(tmp_path).get("a") == {"x": [1.0]}


def test_cache_that_cannot_be_written_is_only_a_warning(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    cache = MeasurementCache(tmp_path / "file" / "below")
    cache.put("a", {"unchanged": [1.0]})
    assert "could not be kept" in caplog.text
    assert cache.get("a") == {"unchanged": [1.0]}


def test_entry_of_another_version_is_measured_again(simplified, tmp_path):
    lower(simplified, tmp_path / "first")
    cache = MeasurementCache()
    forms = {key: {"unchanged": [1.0, 1.0], "gone": [0.1, 0.1]} for key in cache.keys}
    cache.path.write_text(json.dumps(forms))
    record = lower(simplified, tmp_path / "second")
    assert "gone" not in {choice["form"] for choice in record["forms"]}


def test_cache_folder_follows_the_environment(tmp_path, monkeypatch):
    assert cache_folder() == tmp_path / "cache" / "graphcompress"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "graphcompress"


# ---- options and capabilities


def weight_bits(target: Cpu) -> set[int]:
    """Bits of weights in the schemes that it runs."""
    return {scheme.weights.bits for scheme in target.capabilities.schemes if scheme.weights}


@pytest.mark.parametrize(
    ("line", "isa", "bits"),
    [
        ("flags\t\t: fpu avx2 fma", "avx2", 7),
        ("flags\t\t: fpu avx2 avx512f avx512_vnni", "vnni", 8),
        ("flags\t\t: fpu avx2 avx_vnni", "vnni", 8),
        ("flags\t\t: fpu sse4_2", "avx2", 7),
        ("nothing known", "avx2", 7),
    ],
)
def test_capabilities_follow_the_processor(line, isa, bits, tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{line}\n")
    monkeypatch.setattr(cache_module, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    cache_module.cpu_flags.cache_clear()
    try:
        assert detected_isa() == isa
        assert weight_bits(Cpu(isa="auto")) == {bits}
    finally:
        cache_module.cpu_flags.cache_clear()


def test_arm_does_not_saturate(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    assert detected_isa() == "arm"
    assert weight_bits(Cpu(isa="auto")) == {8}


def test_default_leaves_room_for_the_oldest_processors():
    assert weight_bits(Cpu()) == {7}


@pytest.mark.parametrize(("isa", "bits"), [("avx2", 7), ("vnni", 8), ("arm", 8)])
def test_named_isa_wins(isa, bits):
    assert weight_bits(Cpu(isa=isa)) == {bits}


def test_shapes_are_read():
    assert parse_shapes("1x16, 8x128") == [(1, 16), (8, 128)]


@pytest.mark.parametrize("text", ["", "128", "0x5", "1x", "1x2;3x4", "axb"])
def test_wrong_shapes_are_refused_at_once(text):
    with pytest.raises(UsageError, match="batch x length"):
        Cpu(shapes=text)


def test_unknown_isa_is_refused():
    with pytest.raises(UsageError, match="avx2"):
        Cpu(isa="avx3")


def test_forms_are_measured_no_longer_than_the_model_has_positions(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = Model(ir.from_proto(Bert(layers=1, hidden=128, positions=64).model()))
    (record,) = Pipeline.parse("int8").run(model, Context())
    assert "embeddings.position_embeddings.weight" in {item.name for item in record.touched}
    assert longest_sample(model) == 64
    Cpu(shapes="1x16,2x128").lower(model, tmp_path, Context())
    keys = MeasurementCache().keys
    assert keys
    assert all(key.endswith("1x16,2x64") for key in keys)


def test_a_model_that_cannot_run_at_a_shape_keeps_the_default_forms(
    tiny_bert, tmp_path, monkeypatch, caplog
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(made_up, "longest_sample", lambda model: None)
    Cpu(shapes="2x128").lower(tiny_bert, tmp_path, Context())
    assert not MeasurementCache().keys
    assert "are not measured: ONNX Runtime cannot run the model" in caplog.text
    assert (tmp_path / "model.onnx").is_file()
