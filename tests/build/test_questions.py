"""What Python asks: answers are dataclasses that print themselves, and frames where pandas is there."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import graphcompress
from graphcompress.build.opened_writers import writer_at
from graphcompress.build.result import Build
from graphcompress.data.samples import Samples
from graphcompress.errors import MissingExtraError, UsageError
from graphcompress.graph.model import Model


@pytest.fixture(scope="module")
def build(tiny_bert_path: Path, tiny_samples: Samples, tmp_path_factory: pytest.TempPathFactory) -> Build:
    return graphcompress.optimize(
        tiny_bert_path,
        "prune{ffn=0.25},int8",
        data=tiny_samples,
        target="cpu{measure=false}",
        output=tmp_path_factory.mktemp("questions") / "small",
        allow=["prune", "int8"],
    )


def test_a_build_prints_its_result(build: Build) -> None:
    first, *rest = str(build).splitlines()
    assert first == "model.onnx → simplify,prune{ffn=0.25},int8 → cpu{measure=false}"
    assert rest[0].startswith("  size     106.61 kB → ")
    assert [line.partition(":")[0] for line in rest[-3:]] == ["simplify", "prune{ffn=0.25}", "int8"]
    assert build.summary() == str(build)


def test_a_notebook_shows_result_and_charts(build: Build) -> None:
    shown = build._repr_html_()
    assert shown.startswith("<pre>model.onnx → ")
    assert shown.count("<svg ") == 6
    assert build.plot()._repr_html_() in shown
    assert "var(--c1)" in shown
    assert "--c1: #" in shown


def test_the_report_of_an_artifact_is_text_page_and_frame(build: Build) -> None:
    report = build.report()
    assert str(report).startswith("# model.onnx → ")
    assert report.html.startswith("<!doctype html>")
    assert report._repr_html_().startswith('<iframe srcdoc="&lt;!doctype html&gt;')
    assert report.manifest["target"] == "cpu{measure=false}"
    with pytest.raises(UsageError, match="is not an artifact"):
        graphcompress.report(build.output.parent)


def test_of_artifacts_for_several_targets_one_is_asked_for(tiny_bert_path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "two"
    build = graphcompress.optimize(
        tiny_bert_path, "simplify", target="cpu{measure=false},mobile", output=folder
    )
    with pytest.raises(UsageError, match=r"several targets; name one of .*cpu, .*mobile"):
        build.report()
    assert graphcompress.report(folder / "mobile").manifest["target"] == "mobile"
    with pytest.raises(UsageError, match=r"two/mobile: cannot be timed, this machine is not what runs it"):
        graphcompress.bench([tiny_bert_path, folder / "cpu", folder / "mobile"], shapes=["1x8"], rounds=2)


def test_frames_have_a_row_for_what_was_asked(build: Build, tiny_bert_path: Path) -> None:
    pytest.importorskip("pandas")
    passes = build.report().frame()
    assert list(passes["pass"]) == ["simplify", "prune{ffn=0.25}", "int8"]
    assert passes["bytes_on_disk"].iloc[-1] < passes["bytes_on_disk"].iloc[0]
    times = graphcompress.bench([tiny_bert_path, build.output], shapes=["1x8", "2x8"], rounds=2).frame()
    assert list(times["shape"]) == ["1×8", "1×8", "2×8", "2×8"]
    assert (times["median_ms"] > 0).all()
    assert list(graphcompress.verify(tiny_bert_path, build.output).frame()["name"]) == ["last_hidden_state"]


def test_without_pandas_a_frame_says_what_is_missing(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError, match="pip install pandas"):
        build.report().frame()


def test_verify_compares_two_forms_of_a_model(
    build: Build, tiny_bert_path: Path, tiny_samples: Samples
) -> None:
    same = graphcompress.verify(tiny_bert_path, tiny_bert_path, data=tiny_samples, limit=8)
    assert (same.difference.samples, same.difference.max_error) == (8, 0.0)
    found = graphcompress.verify(tiny_bert_path, build.output, data=tiny_samples)
    assert 5.0 < found.difference.sqnr_db < 60.0
    assert str(found).count("\n") == 2


def test_bench_names_models_and_refuses_none(build: Build, tiny_bert_path: Path) -> None:
    found = graphcompress.bench({"old": tiny_bert_path, "new": build.output}, shapes=["1x8"], rounds=2)
    assert str(found).startswith("1×8: old ")
    assert set(found.shapes[0].ratios) == {"new"}
    with pytest.raises(UsageError, match="no models are given"):
        graphcompress.bench([])


def test_inspect_takes_a_file_an_artifact_or_a_model(
    build: Build, tiny_bert: Model, tiny_bert_path: Path
) -> None:
    found = [graphcompress.inspect(one, "none") for one in (tiny_bert, tiny_bert_path)]
    assert found[0] == found[1]
    assert graphcompress.inspect(build.output, "none").parameters < found[0].parameters
    assert [item.text for item in graphcompress.inspect(tiny_bert, "simplify").opportunities] == ["simplify"]


@pytest.mark.parametrize("inplace", [False, True])
def test_a_model_given_as_an_object_is_changed_only_when_that_is_asked_for(
    tiny_bert: Model, tmp_path: Path, inplace: bool
) -> None:
    before = {value.name: np.array(value.const_value.numpy()) for value in tiny_bert.initializers()}
    nodes = len(tiny_bert.graph)
    build = graphcompress.optimize(
        tiny_bert, "simplify", target="cpu{measure=false}", output=tmp_path / "out", inplace=inplace
    )
    assert (build.model is tiny_bert) == inplace
    assert (len(tiny_bert.graph) < nodes) == inplace
    if not inplace:
        after = {value.name: value.const_value.numpy() for value in tiny_bert.initializers()}
        assert before.keys() == after.keys()
        assert all(np.array_equal(before[name], after[name]) for name in before)


def test_progress_is_handed_to_a_build(
    tiny_bert_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with graphcompress.progress() as progress:
        graphcompress.optimize(
            tiny_bert_path, "simplify", target="cpu{measure=false}", output=tmp_path / "o", progress=progress
        )
    assert capsys.readouterr().out == ""


def test_a_model_shows_itself(tiny_bert: Model) -> None:
    assert str(tiny_bert).splitlines() == [
        "model.onnx: opset 18, 22,470 parameters, 88 nodes",
        "  in  input_ids: INT64 [batch,sequence]",
        "  in  attention_mask: INT64 [batch,sequence]",
        "  in  token_type_ids: INT64 [batch,sequence]",
        "  out last_hidden_state: FLOAT [batch,sequence,32]",
    ]
    assert tiny_bert._repr_html_().startswith("<pre>model.onnx: opset 18, ")


@pytest.mark.parametrize("name", ["marian", "t5, merged", "llama"])
def test_every_layout_of_a_model_that_writes_is_ready_to_write(name, sequence_folders) -> None:
    assert writer_at(sequence_folders[name]) is not None


def test_an_ordinary_model_does_not_write(tiny_bert_path: Path) -> None:
    assert writer_at(tiny_bert_path) is None
