"""Passes may ask how fast the artifact of a model is, against the file that came in."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import random_samples

from graphcompress.build import measuring
from graphcompress.build.measuring import artifact_speed
from graphcompress.errors import SpeedError
from graphcompress.graph.model import Model
from graphcompress.measure.cache import MeasurementCache
from graphcompress.measure.timing import Ratio
from graphcompress.passes.prune.prune import Prune
from graphcompress.pipeline.pipeline import Pipeline
from graphcompress.plugin.context import Context
from graphcompress.targets.cpu import cpu, formed_model
from graphcompress.targets.cpu.cpu import Cpu


def test_a_speed_is_measured_once_and_kept_for_each_model(
    tiny_bert_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = random_samples(16)
    ctx = Context(samples=samples, measurements=MeasurementCache(tmp_path))
    model = Model.load(tiny_bert_path)
    target = Cpu(shapes="1x8", allow_slower=True)
    (first,) = artifact_speed(tiny_bert_path, target, samples, ctx)(model, ["1x8"])
    assert 0.0 < first.low <= first.median <= first.high

    def never(*given: object) -> list[Ratio]:
        raise AssertionError("measured again")

    with monkeypatch.context() as patch:
        patch.setattr(measuring, "_in_turns", never)
        again = Context(samples=samples, measurements=MeasurementCache(tmp_path))
        assert artifact_speed(tiny_bert_path, target, samples, again)(model, ["1x8"]) == [first]
        Pipeline([Prune(ffn=0.5)]).run(model, ctx, require_coverage=0.0)
        with pytest.raises(AssertionError, match="measured again"):
            artifact_speed(tiny_bert_path, target, samples, again)(model, ["1x8"])


def test_a_model_that_is_slower_than_its_input_is_where_a_search_begins(
    tiny_bert_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A target refuses such an artifact; what a pass takes away may make it the faster one."""
    samples = random_samples(16)
    monkeypatch.setattr(cpu, "is_slower", lambda *given: True)
    monkeypatch.setattr(formed_model, "is_slower", lambda *given: True)
    ctx, model = Context(samples=samples, measurements=MeasurementCache(tmp_path)), Model.load(tiny_bert_path)
    target = Cpu(shapes="1x8")
    (tmp_path / "refused").mkdir()
    with pytest.raises(SpeedError, match="slower than the model that came in"):
        target.lower(model, tmp_path / "refused", ctx)
    (ratio,) = artifact_speed(tiny_bert_path, target, samples, ctx)(model, ["1x8"])
    assert ratio.median > 0.0
