"""OpenVINO: its packages are found, and it is refused where its outputs are not those of the CPU provider."""

import json

import numpy as np
import pytest

import graphcompress
from graphcompress.build.optimize import optimize
from graphcompress.data.made_up import synthetic_samples
from graphcompress.errors import DataError, MissingExtraError, UnsupportedModelError, UsageError
from graphcompress.files.runtime import runner_of, session_of
from graphcompress.plugin.context import Context
from graphcompress.plugin.targeting import parse_target
from graphcompress.targets.openvino import agreement, openvino, provider
from graphcompress.targets.openvino.agreement import disagreement, lowest_agreement
from graphcompress.targets.openvino.openvino import OpenVINO


@pytest.fixture
def run(tiny_bert_path):
    return runner_of(session_of(tiny_bert_path))


@pytest.fixture
def installed(monkeypatch):
    """A plugin whose sessions are those of the CPU provider."""
    monkeypatch.setattr(provider, "version", lambda package: "1.0")
    monkeypatch.setattr(openvino, "package", lambda: provider.PLUGIN)
    monkeypatch.setattr(openvino, "open_session", session_of)


def wrong_at(run, length):
    """A model that is wrong at one length, as one runtime was at the size of a head."""

    def wrong(feed):
        found = run(feed)
        if feed["input_ids"].shape[1] != length:
            return found
        return {name: array[::-1, ::-1] * 1.5 for name, array in found.items()}

    return wrong


def noisy(run, level):
    def with_noise(feed):
        found = run(feed)
        noise = np.random.default_rng(0).standard_normal
        return {
            name: array + level * array.std() * noise(array.shape).astype(np.float32)
            for name, array in found.items()
        }

    return with_noise


def not_a_number(feed):
    return {"last_hidden_state": np.full((1, feed["input_ids"].shape[1], 32), np.nan, np.float32)}


def test_the_same_outputs_agree(run, tiny_bert, tiny_bert_path):
    assert disagreement(run, tiny_bert_path, tiny_bert, Context()) == ""


def test_wrong_at_one_length_is_found(run, tiny_bert, tiny_bert_path):
    said = disagreement(wrong_at(run, 32), tiny_bert_path, tiny_bert, Context())
    assert said.startswith("gives other outputs than the CPU provider at length 32 (SQNR")
    assert "without its own fusions the CPU provider is at" in said


def test_roundings_that_are_amplified_are_not_wrong(run, tiny_bert, tiny_bert_path, monkeypatch):
    """Where two ways of the CPU provider are as far apart, another provider may be so."""
    assert disagreement(noisy(run, 0.1), tiny_bert_path, tiny_bert, Context())
    monkeypatch.setattr(agreement, "runner_of", lambda session: session)
    sessions = {True: run, False: noisy(run, 0.1)}
    monkeypatch.setattr(agreement, "session_of", lambda file, optimize=True: sessions[optimize])
    assert disagreement(noisy(run, 0.1), tiny_bert_path, tiny_bert, Context()) == ""


def test_numbers_where_there_are_none_are_wrong_however_noisy_the_model_is(
    run, tiny_bert, tiny_bert_path, monkeypatch
):
    """NaN agrees with nothing, also where the CPU provider without its fusions gives it, too."""
    monkeypatch.setattr(agreement, "runner_of", lambda session: session)
    sessions = {True: run, False: not_a_number}
    monkeypatch.setattr(agreement, "session_of", lambda file, optimize=True: sessions[optimize])
    said = disagreement(not_a_number, tiny_bert_path, tiny_bert, Context())
    assert "gives other outputs than the CPU provider at length 1 (SQNR -inf dB" in said


def test_positions_limit_the_lengths(run, tiny_bert, monkeypatch):
    monkeypatch.setattr(agreement, "longest_sample", lambda model: 3)
    seen = []

    def noted(feed):
        seen.append(feed["input_ids"].shape)
        return run(feed)

    assert lowest_agreement(noted, run, tiny_bert, Context())[0] == 200.0
    assert len(seen) == 3


def test_other_sizes_are_no_agreement(run, tiny_bert):
    def longer(feed):
        return {name: np.concatenate([array] * 2) for name, array in run(feed).items()}

    assert lowest_agreement(longer, run, tiny_bert, Context(), [2, 3]) == (float("-inf"), 2)


def test_the_artifact_says_how_it_is_loaded(installed, tiny_bert, tiny_bert_path, run, tmp_path):
    build = optimize(tiny_bert_path, "simplify", target="openvino", output=tmp_path / "out")
    document = json.loads((tmp_path / "out" / "session.json").read_text())
    assert document["provider"] == "OpenVINOExecutionProvider"
    compile("\n".join(document["load"]), "session.json", "exec")
    record = build.lowered[0].record
    assert record["provider"]["load"] == document["load"]
    assert record["proof"] == "run by onnxruntime-ep-openvino 1.0"
    assert "answers as the CPU provider at every length from 1 to 64" in record["notes"]
    feed = synthetic_samples(tiny_bert, count=1, length=6).batch([0])
    outputs = graphcompress.session(tmp_path / "out")(feed)
    np.testing.assert_allclose(outputs["last_hidden_state"], run(feed)["last_hidden_state"], atol=1e-4)


def test_other_outputs_are_refused(installed, tiny_bert, tmp_path, monkeypatch):
    monkeypatch.setattr(openvino, "disagreement", lambda *given: "gives other outputs at length 3")
    with pytest.raises(UnsupportedModelError, match="OpenVINO gives other outputs at length 3; lower for"):
        OpenVINO().lower(tiny_bert, tmp_path, Context())


def test_a_length_at_which_it_does_not_run_is_said(installed, tiny_bert, tmp_path, monkeypatch):
    class Failing:
        def __init__(self, path):
            self.session = session_of(path)

        def get_outputs(self):
            return self.session.get_outputs()

        def run(self, names, feed):
            if feed["input_ids"].shape == (1, 32):
                raise RuntimeError("no kernel")
            return self.session.run(names, feed)

    monkeypatch.setattr(openvino, "open_session", Failing)
    with pytest.raises(DataError, match=r"does not run the model on \[1, 32\] \(no kernel\)"):
        OpenVINO().lower(tiny_bert, tmp_path, Context())


def test_a_plugin_that_cannot_be_imported_is_a_reason(monkeypatch):
    def broken(name):
        raise ImportError("libtbb.so.12: cannot open shared object file")

    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr("importlib.import_module", broken)
    monkeypatch.setattr(provider, "registered", provider.registered.__wrapped__)
    with pytest.raises(UsageError, match="onnxruntime-ep-openvino does not load: libtbb"):
        provider.package()


def test_without_a_package_the_target_names_it(monkeypatch):
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="pip install onnxruntime-ep-openvino") as raised:
        OpenVINO().check()
    assert raised.value.name == "onnxruntime-ep-openvino"
    assert OpenVINO().loading == provider.PLUGIN.loading


def test_a_processor_that_the_plugin_does_not_know_is_said(monkeypatch):
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr("onnxruntime.get_ep_devices", list)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr(provider, "registered", lambda: "")
    monkeypatch.setattr(provider, "version", lambda package: "1.0")
    with pytest.raises(UsageError, match="offers no device for this processor") as raised:
        parse_target("openvino").check()
    assert "onnxruntime-openvino in place of onnxruntime" in str(raised.value)


def test_a_runtime_with_openvino_inside_needs_no_plugin(monkeypatch, tiny_bert_path):
    asked = []
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: [provider.PROVIDER])
    monkeypatch.setattr(provider, "provider_session", lambda path, given: asked.append((path, given[0][0])))
    assert provider.package() is provider.BUILT_IN
    provider.open_session(tiny_bert_path)
    assert asked == [(tiny_bert_path, provider.PROVIDER)]


def test_openvino_itself_where_it_runs(tiny_bert_path, run, tiny_samples, tmp_path):
    try:
        OpenVINO().check()
    except (MissingExtraError, UsageError) as error:
        pytest.skip(str(error))
    optimize(tiny_bert_path, "simplify", target="openvino", output=tmp_path / "out")
    feed = tiny_samples.batch([0])
    seen = graphcompress.session(tmp_path / "out")(feed)["last_hidden_state"]
    np.testing.assert_allclose(seen, run(feed)["last_hidden_state"], atol=2e-3)
