"""Which provider runs an artifact: OpenVINO, a target of its own, where it is faster."""

import json
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

import graphcompress
from graphcompress.build.optimize import optimize
from graphcompress.errors import DataError, MissingExtraError, UnsupportedModelError, UsageError
from graphcompress.files.runtime import runner_of, session_of
from graphcompress.measure.cache import MeasurementCache
from graphcompress.measure.timing import Measurement
from graphcompress.plugin.base import Lowering, Target
from graphcompress.plugin.capabilities import Capabilities
from graphcompress.plugin.context import Context
from graphcompress.targets.cpu import cpu as cpu_target
from graphcompress.targets.cpu import provider_choice
from graphcompress.targets.cpu.cpu import Cpu
from graphcompress.targets.cpu.provider_choice import choose_provider

SHAPES = [(1, 4), (2, 8)]


@dataclass(frozen=True)
class Other(Target):
    """Stands in for the target for OpenVINO: writes the model for the CPU provider, or raises ``error``."""

    name: ClassVar[str] = "other"
    missing: Exception | None = None
    error: Exception | None = None

    def __post_init__(self):
        pass

    @property
    def capabilities(self):
        return Capabilities()

    def check(self):
        if self.missing:
            raise self.missing

    def lower(self, model, folder, ctx):
        if self.error:
            raise self.error
        model.clone().save(folder / "model.onnx")
        (folder / "session.json").write_text("{}")
        details = {"opset": model.opset, "provider": {"name": "Other"}}
        return Lowering(("answers the same",), "run by other 1.0", details=details)

    def session(self, folder):
        return runner_of(session_of(folder / "model.onnx"))


@pytest.fixture
def decide(tiny_bert, tmp_path):
    (tmp_path / "out").mkdir()
    artifact = tiny_bert.save(tmp_path / "out" / "model.onnx")

    def decide(other, asked="auto", cpu_ms=10.0, other_ms=5.0, cache=True):
        def timer(runs, rounds):
            return Measurement({name: [cpu_ms if name == "cpu" else other_ms] for name in runs})

        kept = MeasurementCache(tmp_path / "cache") if cache else None
        return choose_provider(asked, artifact, tiny_bert, SHAPES, Context(), kept, other=other, timer=timer)

    return decide


def test_faster_is_taken(decide, tmp_path):
    choice = decide(Other())
    assert choice.notes == ["provider: OpenVINO: measured faster; answers the same"]
    assert choice.details["provider"] == {"name": "Other"}
    assert choice.details["provider_ms"] == {"cpu": [10.0, 10.0], "run by other 1.0": [5.0, 5.0]}
    assert (tmp_path / "out" / "session.json").is_file()


def test_not_faster_is_not_taken(decide, tmp_path):
    choice = decide(Other(), other_ms=9.9)
    assert choice.lowering is None
    assert choice.details["provider"] == {
        "name": "CPUExecutionProvider",
        "openvino": "measured, and not faster than the CPU provider",
    }
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("error", [UnsupportedModelError("other outputs"), DataError("no kernel")])
def test_what_it_cannot_run_is_a_reason_unless_it_was_asked_for(error, decide):
    choice = decide(Other(error=error))
    assert choice.notes == [f"OpenVINO's provider: {error}"]
    with pytest.raises(type(error), match=str(error)):
        decide(Other(error=error), "openvino")


def test_a_mistake_of_our_own_is_no_reason(decide):
    with pytest.raises(KeyError):
        decide(Other(error=KeyError("a bug")))


def test_where_it_is_not_installed_nothing_changes(decide):
    missing = MissingExtraError("the OpenVINO provider needs it", name="onnxruntime-ep-openvino")
    choice = decide(Other(missing=missing))
    assert choice.why == "onnxruntime-ep-openvino is not installed"
    assert choice.notes == []
    with pytest.raises(MissingExtraError):
        decide(Other(missing=missing), "openvino")


def test_a_processor_that_it_does_not_know_is_said(decide):
    choice = decide(Other(missing=UsageError("no device")))
    assert choice.notes == ["OpenVINO's provider: no device"]
    with pytest.raises(UsageError, match="no device"):
        decide(Other(missing=UsageError("no device")), "openvino")


def test_nothing_is_measured_that_was_not_asked_for(decide):
    assert decide(Other(), "cpu").why == "not asked for"
    assert decide(Other(), cache=False).why == "nothing was measured"
    asked = decide(Other(), "openvino", cache=False)
    assert asked.lowering is not None
    assert asked.times_ms is None


def test_an_artifact_for_openvino_is_run_by_that_target(tiny_bert_path, tiny_samples, tmp_path, monkeypatch):
    monkeypatch.setattr(provider_choice, "openvino", Other)
    monkeypatch.setattr(cpu_target, "openvino", Other)
    target = Cpu(provider="openvino", measure=False)
    build = optimize(tiny_bert_path, "simplify", target=target, output=tmp_path / "out")
    assert "provider: OpenVINO" in (tmp_path / "out" / "report.md").read_text()
    assert build.lowered[0].record["forms"] == []
    assert not target.runs_on_cpu_provider(tmp_path / "out")
    feed = tiny_samples.batch([0])
    seen = graphcompress.session(tmp_path / "out")(feed)["last_hidden_state"]
    np.testing.assert_array_equal(seen, Other().session(tmp_path / "out")(feed)["last_hidden_state"])


def test_an_artifact_of_the_cpu_provider_has_no_session_file(tiny_bert_path, tmp_path):
    build = optimize(
        tiny_bert_path, "simplify", target=Cpu(measure=False, provider="cpu"), output=tmp_path / "out"
    )
    assert not (tmp_path / "out" / "session.json").exists()
    manifest = json.loads((build.output / "graphcompress.json").read_text())
    assert manifest["lowering"]["provider"]["name"] == "CPUExecutionProvider"
