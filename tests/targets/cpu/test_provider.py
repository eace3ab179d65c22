"""Providers: OpenVINO is taken when it is faster and right at every length, and the artifact says so."""

import json

import numpy as np
import pytest

import graphcompress
from graphcompress.build.optimize import optimize
from graphcompress.data.load import synthetic_samples
from graphcompress.errors import DataError, MissingExtraError, UnsupportedModelError, UsageError
from graphcompress.measure.cache import MeasurementCache
from graphcompress.measure.timing import Measurement
from graphcompress.plugin.base import Context
from graphcompress.targets.common.contenders import on_cpu
from graphcompress.targets.cpu import openvino
from graphcompress.targets.cpu.cpu import Cpu
from graphcompress.targets.cpu.provider import choose_provider, outputs_of

SHAPES = [(1, 4), (2, 8)]
TEXT = "1x4,2x8"


class WrongAt:
    """A session that is wrong at one length, as one runtime was at the size of a head."""

    def __init__(self, path, length):
        self._session, self._length = on_cpu(path), length

    def get_outputs(self):
        return self._session.get_outputs()

    def run(self, names, feed):
        outputs = self._session.run(names, feed)
        wrong = feed["input_ids"].shape[1] == self._length
        return [output[::-1, ::-1] * 1.5 for output in outputs] if wrong else outputs


@pytest.fixture
def installed(monkeypatch):
    """A plugin whose sessions are those of the CPU provider, wrong at one length if asked."""

    def install(wrong_at=None):
        monkeypatch.setattr(openvino, "version", lambda package: "1.0")
        for module in (openvino, __import__("graphcompress.targets.cpu.cpu", fromlist=["cpu"])):
            monkeypatch.setattr(module, "package", lambda: openvino.PLUGIN)
            monkeypatch.setattr(module, "open_session", lambda path: WrongAt(path, wrong_at))

    return install


def clock(cpu_ms, plugin_ms):
    return lambda runs, rounds: Measurement({name: [cpu_ms if name == "cpu" else plugin_ms] for name in runs})


@pytest.fixture
def decide(tiny_bert, tiny_bert_path, tmp_path):
    def decide(asked="auto", cpu_ms=10.0, plugin_ms=5.0, cache=True):
        kept = MeasurementCache(tmp_path / "cache") if cache else None
        timer = clock(cpu_ms, plugin_ms)
        return choose_provider(asked, tiny_bert_path, tiny_bert, SHAPES, Context(), kept, timer=timer)

    return decide


def test_faster_and_right_is_taken(installed, decide):
    installed()
    decision = decide()
    assert decision.openvino
    assert decision.record()["load"] == list(openvino.PLUGIN.loading)
    assert "measured faster; answers as the CPU provider at every length from 1 to 64" in decision.why


def test_not_faster_is_not_taken(installed, decide):
    installed()
    decision = decide(plugin_ms=9.9)
    assert not decision.openvino
    assert decision.record() == {
        "name": "CPUExecutionProvider",
        "openvino": "measured, and not faster than the CPU provider",
    }


def test_wrong_at_one_length_is_not_taken(installed, decide):
    installed(wrong_at=32)
    decision = decide()
    assert not decision.openvino
    assert "gives other outputs than the CPU provider at length 32" in decision.why
    with pytest.raises(UnsupportedModelError, match="length 32"):
        decide("openvino")


def test_roundings_that_are_amplified_are_not_wrong(installed, decide, monkeypatch):
    """Where two ways of the CPU provider are as far apart, OpenVINO may be so; what is wrong is further."""

    def noisy(level):
        def run(self, names, feed):
            outputs = self._session.run(names, feed)
            noise = np.random.default_rng(0).standard_normal(outputs[0].shape).astype(np.float32)
            return [output + level * output.std() * noise for output in outputs]

        return run

    installed()
    monkeypatch.setattr(
        "graphcompress.targets.cpu.provider.session_of", lambda path, optimize: WrongAt(path, 32)
    )
    monkeypatch.setattr(WrongAt, "run", noisy(0.1))
    assert decide().openvino
    monkeypatch.setattr("graphcompress.targets.cpu.provider.session_of", lambda path, optimize: on_cpu(path))
    decision = decide()
    assert not decision.openvino
    assert "without its own fusions the CPU provider is at 200.0 dB" in decision.why


def test_numbers_where_there_are_none_are_wrong_however_noisy_the_model_is(installed, decide, monkeypatch):
    """NaN agrees with nothing, also where the CPU provider without its fusions gives it, too."""

    def with_nan(self, names, feed):
        outputs = self._session.run(names, feed)
        return [np.full_like(output, np.nan) for output in outputs]

    installed()
    monkeypatch.setattr(
        "graphcompress.targets.cpu.provider.session_of", lambda path, optimize: WrongAt(path, 32)
    )
    monkeypatch.setattr(WrongAt, "run", with_nan)
    decision = decide()
    assert not decision.openvino
    assert "gives other outputs than the CPU provider at length 1 (SQNR -inf dB" in decision.why


def test_a_length_at_which_it_does_not_run_is_a_reason(installed, decide, monkeypatch):
    def failing(self, names, feed):
        if feed["input_ids"].shape == (1, 32):
            raise RuntimeError("no kernel")
        return self._session.run(names, feed)

    installed()
    monkeypatch.setattr(WrongAt, "run", failing)
    decision = decide()
    assert not decision.openvino
    assert decision.why == "OpenVINO's provider does not run the model on [1, 32] (no kernel)"
    with pytest.raises(DataError, match="no kernel"):
        decide("openvino")


def test_a_plugin_that_cannot_be_imported_is_a_reason(monkeypatch):
    def broken(name):
        raise ImportError("libtbb.so.12: cannot open shared object file")

    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr("importlib.import_module", broken)
    monkeypatch.setattr(openvino, "_register", openvino._register.__wrapped__)
    with pytest.raises(UsageError, match="onnxruntime-ep-openvino does not load: libtbb"):
        openvino.package()


def test_without_openvino_nothing_changes(decide, monkeypatch):
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    decision = decide()
    assert decision.why == "onnxruntime-ep-openvino is not installed"
    assert not decision.noted
    with pytest.raises(MissingExtraError, match="pip install onnxruntime-ep-openvino"):
        decide("openvino")


def test_a_processor_that_the_plugin_does_not_know_is_said(decide, monkeypatch):
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr("onnxruntime.get_ep_devices", list)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr(openvino, "_register", lambda: "")
    monkeypatch.setattr(openvino, "version", lambda package: "1.0")
    decision = decide()
    assert decision.noted
    assert "offers no device for this processor" in decision.why
    assert "onnxruntime-openvino in place of onnxruntime" in decision.why
    with pytest.raises(UsageError, match="no device"):
        Cpu(provider="openvino").check()


def test_a_runtime_with_openvino_inside_needs_no_plugin(monkeypatch, tiny_bert_path, tmp_path):
    asked = []

    def session(path, providers):
        asked.append((path, providers[0][0]))
        return on_cpu(path)

    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: [openvino.PROVIDER])
    monkeypatch.setattr(openvino, "provider_session", session)
    assert openvino.package() is openvino.BUILT_IN
    openvino.open_session(tiny_bert_path)
    assert asked == [(tiny_bert_path, openvino.PROVIDER)]
    openvino.write_session_file(tmp_path)
    document = json.loads((tmp_path / "session.json").read_text())
    assert document["package"] == "onnxruntime-openvino"
    compile("\n".join(document["load"]), "session.json", "exec")


def test_nothing_is_measured_that_was_not_asked_for(installed, decide):
    installed()
    assert decide("cpu").why == "not asked for"
    assert decide(cache=False).why == "nothing was measured"
    asked = decide("openvino", cache=False)
    assert asked.openvino
    assert asked.times_ms is None


def test_positions_limit_the_lengths(tiny_bert, tiny_bert_path, monkeypatch):
    monkeypatch.setattr(openvino, "longest_sample", lambda model: 3)
    run = outputs_of(on_cpu(tiny_bert_path))
    seen = []

    def noted(feed):
        seen.append(feed["input_ids"].shape)
        return run(feed)

    agreement, _ = openvino.lowest_agreement(noted, run, tiny_bert, Context())
    assert agreement == 200.0
    assert len(seen) == 3


def test_nan_and_other_sizes_are_no_agreement(tiny_bert, tiny_bert_path):
    run = outputs_of(on_cpu(tiny_bert_path))

    def broken(feed):
        return {name: np.full_like(array, np.nan) for name, array in run(feed).items()}

    def longer(feed):
        return {name: np.concatenate([array] * 2) for name, array in run(feed).items()}

    for other in (broken, longer):
        agreement, length = openvino.lowest_agreement(other, run, tiny_bert, Context(), [2, 3])
        assert agreement == float("-inf")
        assert length == 2


def test_the_artifact_says_how_it_is_loaded(installed, tiny_bert, tiny_bert_path, tmp_path):
    installed()
    target = Cpu(provider="openvino", measure=False)
    optimize(tiny_bert_path, "simplify", target=target, output=tmp_path / "out")
    document = json.loads((tmp_path / "out" / "session.json").read_text())
    assert document["provider"] == "OpenVINOExecutionProvider"
    compile("\n".join(document["load"]), "session.json", "exec")
    assert "provider: OpenVINO" in (tmp_path / "out" / "report.md").read_text()
    feed = synthetic_samples(tiny_bert, count=1, length=6).batch([0])
    outputs = graphcompress.session(tmp_path / "out")(feed)
    assert np.allclose(
        outputs["last_hidden_state"], outputs_of(on_cpu(tiny_bert_path))(feed)["last_hidden_state"], atol=1e-4
    )


def test_an_artifact_of_the_cpu_provider_has_no_session_file(tiny_bert_path, tmp_path):
    build = optimize(
        tiny_bert_path, "simplify", target=Cpu(measure=False, provider="cpu"), output=tmp_path / "out"
    )
    assert not (tmp_path / "out" / "session.json").exists()
    manifest = json.loads((build.output / "graphcompress.json").read_text())
    assert manifest["lowering"]["provider"]["name"] == "CPUExecutionProvider"


def test_openvino_itself_where_it_runs(tiny_bert, tiny_bert_path):
    try:
        openvino.package()
    except (MissingExtraError, UsageError) as error:
        pytest.skip(str(error))
    run, reference = outputs_of(openvino.open_session(tiny_bert_path)), outputs_of(on_cpu(tiny_bert_path))
    agreement, length = openvino.lowest_agreement(run, reference, tiny_bert, Context(), range(1, 20))
    assert agreement > openvino.MIN_SQNR_DB, length
