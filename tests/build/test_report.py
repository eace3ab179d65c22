from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from graphcompress.build.manifest import bench_json, manifest
from graphcompress.build.report_file import check_report_path, write_report
from graphcompress.build.request import Request
from graphcompress.build.result import Artifact, Build
from graphcompress.errors import UsageError
from graphcompress.measure.bench import ShapeResult, shaped_feed
from graphcompress.measure.invariance import Invariance
from graphcompress.measure.metrics import Drop, Score
from graphcompress.measure.timing import Measurement
from graphcompress.measure.verify import Difference, OutputDifference
from graphcompress.pipeline.contract_check import ModelSize
from graphcompress.pipeline.pipeline import PassRecord
from graphcompress.plugin import reference
from graphcompress.plugin.record import Skipped, Touched
from graphcompress.plugin.registry import KINDS
from graphcompress.reporting import text as report
from graphcompress.reporting.batch_dependence import FROM_THE_BATCH, why_it_varies

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def build(tmp_path):
    difference = Difference(16, 0.25, 0.031, 0.98, 17.64, 0.9)
    record = PassRecord(
        text="kron{rank=2}",
        touched=(Touched("a|b", 1000, "8x4", {"error": 0.1}),),
        skipped=(
            Skipped("x.weight", "factors are not smaller", 10),
            Skipped("y.weight", "error above max_error", 10, {"error": 0.51}),
            Skipped("z.weight", "error above max_error", 10, {"error": 0.62}),
        ),
        notes=("rank=4 would bring more",),
        size=ModelSize(22_713_216, 90_830_000, 1_430_000_000),
        step=difference,
        total=difference,
        coverage=0.5,
        broken="SQNR 17.6 dB, promised at least 20 dB",
    )
    invariance = Invariance(16, 0.05, 0.97, 3, 0.01)
    small = ModelSize(20_000, 9_083, 999)
    score, drop = Score("Spearman", 0.8650, 1500, "pairs"), Drop(0.0023, 0.8673, 0.0010)
    return Build(
        output=tmp_path / "small",
        recipe={**Request("m.onnx").recipe, "passes": "kron{rank=2}", "sha256": {"m.onnx": "00"}},
        before=ModelSize(22_713_216, 90_830_000, 1_430_000_000),
        records=(record,),
        lowered=(Artifact("cpu", tmp_path / "small", small, difference, invariance, score=score, drop=drop),),
        reference_invariance=Invariance(16, 0.0, 1.0, 0, 0.01),
        score=Score("Spearman", 0.8673, 1500, "pairs"),
    )


def test_the_line_of_a_pass_says_what_it_touched_left_and_made(build):
    assert report.pass_line(build.records[0]) == (
        "kron{rank=2}: touched 1 weight (1,000 parameters), left 3 alone → "
        "22.71M parameters, 1.43G MACs, 90.83 MB, "
        "SQNR 17.6 dB against the original"
    )


def test_reasons_are_grouped_with_an_example_the_most_frequent_first(build):
    assert report.detail_lines(build.records[0]) == [
        "contract broken, allowed: SQNR 17.6 dB, promised at least 20 dB",
        "2 × error above max_error (error 0.51 to 0.62; such as y.weight)",
        "1 × factors are not smaller (such as x.weight)",
        "rank=4 would bring more",
    ]


def test_the_summary_carries_figures_with_their_counts(build):
    lines = dict(report.summary_lines(build))
    assert lines["metric"] == "Spearman 0.8673 → 0.8650 on 1,500 pairs, 0.0023 ± 0.0010 worse"
    assert lines["size"] == "90.83 MB → 9.08 kB, 10000.00 × smaller"
    assert lines["batches"].startswith("3 of 16 answers change with batch mates or padding")


def test_the_manifest_is_plain_data_without_times(build):
    text = json.dumps(manifest(build, {"model.onnx": "11"}), allow_nan=False)
    document = json.loads(text)
    assert document["passes"][0]["skipped"][1]["figures"] == {"error": 0.51}
    assert document["verification"]["metric"]["after"]["value"] == 0.865
    assert "latency" not in text


def with_outputs(difference: Difference, count: int) -> Difference:
    """``difference`` of logits and ``count`` hidden states, the last of which is the worst."""
    states = [
        OutputDifference(f"hidden_states.{index}", 64, 0.1, 0.01, 1.0, 60.0 - index, None)
        for index in range(count)
    ]
    logits = OutputDifference("logits", 32, 0.25, 0.031, 0.98, 40.0, 0.9)
    return dataclasses.replace(difference, outputs=(logits, *states))


def test_several_outputs_have_a_line_each_on_the_screen_and_all_of_them_in_the_page(build):
    (lowered,) = build.lowered
    lowered = dataclasses.replace(lowered, difference=with_outputs(lowered.difference, 30))
    build = dataclasses.replace(build, lowered=(lowered,))
    assert report.difference_line(lowered.difference) == (
        "SQNR 17.6 dB (worst of 31 outputs: hidden_states.29), lowest cosine 0.9800, "
        "largest error 0.25 (3.1% of the range), same top class in 90.0% (logits), on 16 samples"
    )
    shown = report.output_lines(lowered.difference)
    assert shown[0] == (
        "logits: SQNR 40.0 dB, largest error 0.25 (3.1% of its range), same top class in 90.0%"
    )
    assert len(shown) == 5
    assert shown[-1] == "27 more outputs: SQNR at least 31.0 dB"
    page = report.markdown(build)
    assert all(f"- hidden_states.{index}: SQNR" in page for index in range(30))


def test_made_up_samples_are_called_so_everywhere(build):
    made_up = dataclasses.replace(build.records[0].total, made_up=True)
    record = dataclasses.replace(build.records[0], total=made_up, step=made_up)
    assert report.pass_line(record).endswith("SQNR 17.6 dB against the original on made-up samples")
    assert report.difference_line(made_up).endswith("on 16 made-up samples")
    assert (
        json.dumps(manifest(dataclasses.replace(build, records=(record,)), {})).count('"made_up": true') == 2
    )
    for changed, text in ((0, "(16 made-up samples; "), (3, "3 of 16 answers to made-up samples change")):
        invariance = Invariance(16, 0.05, 0.97, changed, 0.01, made_up=True)
        assert text in report.invariance_line(invariance)


def test_batches_that_could_not_be_compared_are_no_proof():
    line = report.invariance_line(Invariance(0, 0.0, 1.0, 0, 0.01))
    assert line == "not compared: no output has an entry for each sample"


def test_the_page_lists_everything_and_escapes_cells(build):
    page = report.markdown(build)
    assert "| a\\|b | 1,000 | 8x4; error 0.1 |" in page
    assert all(name in page for name in ("x.weight", "y.weight", "z.weight"))


def test_html_is_one_page_and_escapes(build, tmp_path):
    record = dataclasses.replace(build.records[0], notes=("<script>alert(1)</script>",))
    write_report(tmp_path / "r.html", dataclasses.replace(build, records=(record,)))
    page = (tmp_path / "r.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "<table>" in page
    assert "&lt;script&gt;alert(1)" in page
    assert page.count("<script") == 1  # that sorts tables
    assert not re.search(r"\b(src|href)=", page)


def test_a_report_of_another_kind_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"\.md or \.html"):
        check_report_path(tmp_path / "r.pdf")


def test_bench_lines_give_ratios_with_their_spread():
    measured = Measurement({"before": [2.0, 2.0, 4.0], "after": [1.0, 1.0, 1.0]})
    result = ShapeResult("1×128", "before", measured.timings, {"after": measured.ratio("after", "before")})
    ((shape, text),) = report.bench_lines([result])
    assert shape == "1×128"
    assert text.startswith("before 2.00 ms, after 1.00 ms; after 2.00 (2.00 to 3.60) × as fast as before")
    assert bench_json([result])[0]["ratios"]["after"]["median"] == 2.0
    assert report.bench_lines([ShapeResult("1×9", "before", skipped="too long")]) == [
        ("1×9", "not measured: too long")
    ]


@pytest.mark.parametrize(
    ("shape", "label", "size"), [("1xnatural", "1×16 (natural)", (1, 16)), ("8x128", "8×128", (8, 128))]
)
def test_shaped_feeds_have_no_padding(tiny_samples, shape, label, size):
    feed, made = shaped_feed(tiny_samples, shape)
    assert made == label
    assert {array.shape for array in feed.values()} == {size}
    assert feed["attention_mask"].all()


@pytest.mark.parametrize("shape", ["128", "0x8", "1x0", "axb"])
def test_a_shape_that_does_not_read(tiny_samples, shape):
    with pytest.raises(UsageError, match="expected <batch>x<length>"):
        shaped_feed(tiny_samples, shape)


def test_a_report_replaces_a_file_only_when_that_is_asked_for(build, tmp_path):
    path = tmp_path / "notes.md"
    path.write_text("mine")
    with pytest.raises(UsageError, match=r"notes\.md exists"):
        check_report_path(path)
    (tmp_path / "folder.md").mkdir()
    with pytest.raises(UsageError, match=r"folder\.md exists"):
        check_report_path(tmp_path / "folder.md", overwrite=True)
    check_report_path(path, overwrite=True)
    write_report(path, build)
    assert path.read_text(encoding="utf-8").startswith("# m.onnx")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["folder.md", "notes.md"]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.plural)
def test_the_reference_pages_are_up_to_date(kind):
    page = DOCS / f"{kind.plural}.md"
    assert page.read_text(encoding="utf-8") == reference.markdown(kind), "run `make docs`"


def test_numbers_are_legible():
    assert [report.count(n) for n in (7, 9_999, 48_200, 22_713_216, 1.43e9)] == [
        "7",
        "9,999",
        "48.20k",
        "22.71M",
        "1.43G",
    ]
    assert [report.size(n) for n in (12, 1_500, 90_830_000, 2_100_000_000)] == [
        "12 bytes",
        "1.50 kB",
        "90.83 MB",
        "2.10 GB",
    ]
    assert report.decibels(200.0) == "∞ dB"


class Nodes(list):
    """A graph of nodes that reads nothing."""

    inputs = ()


def kinds(*names):
    return SimpleNamespace(graph=Nodes(SimpleNamespace(op_type=name) for name in names))


def test_the_report_says_why_answers_depend_on_batch_mates(build):
    fixed = kinds("QuantizeLinear", "MatMul")
    (line,) = [text for _, text in report.summary_lines(replace(build, model=fixed)) if "scales" in text]
    assert "all scales are fixed" in line
    dynamic = kinds("DynamicQuantizeLinear")
    assert FROM_THE_BATCH in dict(report.summary_lines(replace(build, model=dynamic))).values()


def test_an_answer_that_moves_less_than_quantisation_moves_it_says_so(build):
    lowered, given = build.lowered[0], build.reference_invariance
    larger = replace(lowered.difference, max_relative_error=0.11)
    model = kinds("QuantizeLinear")
    assert "less than the 11.0%" in why_it_varies(model, lowered.invariance, given, larger)
    smaller = replace(larger, max_relative_error=0.01)
    assert "more than the 1.0%" in why_it_varies(model, lowered.invariance, given, smaller)


def test_nothing_is_explained_where_nothing_varies_or_the_given_model_varies_too(build):
    varies, given, difference = build.lowered[0].invariance, build.reference_invariance, None
    assert why_it_varies(kinds("QuantizeLinear"), given, given, difference) == ""
    assert why_it_varies(kinds("QuantizeLinear"), varies, varies, difference) == ""
    assert why_it_varies(kinds("MatMul"), varies, given, difference) == ""
