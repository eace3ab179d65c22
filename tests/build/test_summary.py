"""The result box and the lines of the passes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from graphcompress.build.request import Request
from graphcompress.build.result import Artifact, Build
from graphcompress.measure.bench import ShapeResult
from graphcompress.measure.invariance import Invariance
from graphcompress.measure.metrics import Drop, Score
from graphcompress.measure.timing import Ratio, Timing
from graphcompress.measure.verify import Difference
from graphcompress.pipeline.contract_check import ModelSize
from graphcompress.pipeline.pipeline import PassRecord
from graphcompress.plugin.record import Skipped, Touched
from graphcompress.reporting.loading import loading_lines
from graphcompress.reporting.summary import (
    pass_lines,
    result_lines,
    title,
    verdict,
)
from graphcompress.reporting.text import drop_text
from graphcompress.reporting.wrapping import wrapped

DIFFERENCE = Difference(16, 0.25, 0.031, 0.98, 17.64, 0.9)
BEFORE, AFTER = (
    ModelSize(22_570_000, 90_340_000, 1_430_000_000),
    ModelSize(19_760_000, 20_070_000, 1_090_000_000),
)


def record(text: str, size: ModelSize, **values: object) -> PassRecord:
    found = PassRecord(text, (), (), (), size, DIFFERENCE, DIFFERENCE, 0.5, None)
    return dataclasses.replace(found, **values)  # type: ignore[arg-type]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    steady = Invariance(16, 0.0, 1.0, 0, 0.01)
    score, drop = Score("Spearman", 0.9102, 375, "pairs", 0.01), Drop(0.0032, 0.9134, 0.0014)
    return Build(
        output=tmp_path,
        recipe={**Request("minilm.onnx").recipe, "passes": "simplify,int8"},
        before=BEFORE,
        records=(
            record("simplify", BEFORE, notes=("309 nodes became 215",), exact=True),
            record(
                "int8",
                AFTER,
                touched=(Touched("w", 10),),
                skipped=(Skipped("x", "small"),),
                score=score,
                drop=drop,
            ),
        ),
        lowered=(Artifact("cpu", tmp_path, AFTER, DIFFERENCE, steady, score=score, drop=drop),),
        reference_invariance=steady,
        score=Score("Spearman", 0.9134, 375, "pairs", 0.01),
    )


def shape(name: str, before: float, after: float) -> ShapeResult:
    timings = {"before": Timing(before, before, before), "after": Timing(after, after, after)}
    return ShapeResult(name, "before", timings, {"after": Ratio(before / after, 3.0, 5.0)})


def test_the_box_says_size_speed_metric_and_verdict(build: Build) -> None:
    benched = [shape("1×13 (natural)", 3.0, 0.75), shape("8×128", 150.0, 40.0)]
    (artifact,) = build.lowered
    assert title(build, artifact) == "minilm.onnx → simplify,int8 → cpu"
    assert result_lines(build, artifact, benched) == [
        ("size", "90.34 MB → 20.07 MB, 4.50 × smaller"),
        ("speed", "1×13 tokens (natural): 3.00 → 0.75 ms, 4.00 × as fast (3.00 to 5.00)"),
        ("", "8×128 tokens: 150.00 → 40.00 ms, 3.75 × as fast (3.00 to 5.00)"),
        ("metric", "Spearman 0.9134 → 0.9102 on 375 pairs, 0.0032 ± 0.0014 worse"),
        ("outputs", "SQNR 17.6 dB against the original on 16 samples"),
        (
            "verdict",
            "4.50 × smaller; 3.75 to 4.00 × as fast; Spearman 0.0032 worse, 2.3 standard errors",
        ),
        ("written", f"{artifact.folder}/, with all of this in charts in {artifact.folder}/report.html"),
    ]


@pytest.mark.parametrize(
    ("spreads", "conclusion"),
    [
        ([(0.73, 52.28)], "no difference in speed beyond its spread"),
        ([(0.73, 52.28), (3.0, 5.0)], "1.00 to 4.00 × as fast"),
    ],
)
def test_a_speed_whose_spread_reaches_from_slower_to_faster_is_no_gain(
    build: Build, spreads: list[tuple[float, float]], conclusion: str
) -> None:
    benched = [
        dataclasses.replace(shape("1×16", 4.0, 1.0), ratios={"after": Ratio(4.0, *spread)})
        for spread in spreads
    ]
    assert verdict(build, build.lowered[0], benched).split("; ")[1] == conclusion


def test_images_have_no_tokens(build: Build) -> None:
    lines = result_lines(build, build.lowered[0], [shape("8×3×224×224", 8.0, 4.0)])
    assert lines[1] == ("speed", "8×3×224×224: 8.00 → 4.00 ms, 2.00 × as fast (3.00 to 5.00)")


def test_what_could_not_be_timed_is_said(build: Build) -> None:
    skipped = ShapeResult("8×128", "before", skipped="a run of each takes 4.3 s; time it with bench")
    half = dataclasses.replace(shape("1×128", 1.0, 1.0), failed={"after": "after does not run here (…)"})
    (artifact,) = build.lowered
    speeds = [
        text for topic, text in result_lines(build, artifact, [skipped, half]) if topic in ("speed", "")
    ]
    assert speeds == [
        "8×128 tokens: not measured, a run of each takes 4.3 s; time it with bench",
        "1×128 tokens: not measured, after does not run at this shape",
    ]
    elsewhere = dataclasses.replace(artifact, timed=False)
    assert ("speed", "not measured: this machine is not what runs it") in result_lines(build, elsewhere)


@pytest.mark.parametrize(
    ("drop", "text", "conclusion"),
    [
        (Drop(0.0032, 0.9, 0.0014), "0.0032 ± 0.0014 worse", "Spearman 0.0032 worse, 2.3 standard errors"),
        (
            Drop(0.0012, 0.9, 0.0014),
            "0.0012 ± 0.0014 worse, within the standard error",
            "Spearman the same within its standard error",
        ),
        (Drop(-0.01, 0.9, 0.0014), "0.0100 ± 0.0014 better", "Spearman no worse"),
        (Drop(0.01, 0.9), "0.0100 worse", "Spearman 0.0100 worse"),
        (Drop(0.0, 0.9, 0.0), "no change", "Spearman no worse"),
    ],
)
def test_a_drop_is_told_with_its_error(build: Build, drop: Drop, text: str, conclusion: str) -> None:
    assert drop_text(drop) == text
    artifact = dataclasses.replace(build.lowered[0], drop=drop)
    assert verdict(build, artifact) == f"4.50 × smaller; {conclusion}"


def test_without_a_metric_nothing_is_said_of_answers(build: Build) -> None:
    bare = dataclasses.replace(build, score=None)
    artifact = dataclasses.replace(build.lowered[0], score=None, drop=None)
    assert verdict(bare, artifact).endswith(
        "what that costs in answers is not measured: give --metric and its data"
    )


def test_every_pass_has_one_line_with_what_it_cost(build: Build) -> None:
    assert pass_lines(build) == [
        "simplify: 309 nodes became 215; answers the same",
        "int8: 1 weight changed, 1 left alone, 90.34 MB → 20.07 MB, 1.43G → 1.09G MACs; "
        "Spearman 0.9102 (-0.0032)",
    ]
    bare = dataclasses.replace(build.records[1], score=None, drop=None, broken="12 dB are promised")
    (_, line) = pass_lines(dataclasses.replace(build, records=(build.records[0], bare)))
    assert line.endswith("; contract broken, allowed; outputs at 17.6 dB")


def test_what_came_of_a_pass_in_the_end_is_told(build: Build) -> None:
    results = ("loss on held-out samples, filled 0.7 → 0.5", "2.02 times as fast at 8x128 as before")
    notes = ("loss on held-out samples 0.0739 → 0.8110", "9 zeros filled", *results)
    trained = dataclasses.replace(build.records[1], notes=notes, results=results)
    (_, line) = pass_lines(dataclasses.replace(build, records=(build.records[0], trained)))
    assert line.startswith(f"int8: 1 weight changed, 1 left alone, {', '.join(results)}, 90.34 MB")


def test_the_loading_lines_name_the_files_of_the_artifact(build: Build, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"")
    inputs = {"pixel_values": ("float32", (1, 3, 224, 224)), "mask": ("int64", (1, 9))}
    artifact = dataclasses.replace(build.lowered[0], inputs=inputs)
    assert loading_lines(artifact, 100) == [
        "import numpy, onnxruntime",
        f'session = onnxruntime.InferenceSession("{(tmp_path / "model.onnx").as_posix()}")',
        'outputs = session.run(None, {"pixel_values": numpy.zeros((1, 3, 224, 224), "float32"),',
        '    "mask": numpy.ones((1, 9), "int64")})',
    ]


def test_past_keys_and_values_share_a_word_in_the_loading_lines(build: Build) -> None:
    past = {f"past.{number}.{kind}": ("float32", (1, 4, 0, 8)) for number in range(2) for kind in "kv"}
    artifact = dataclasses.replace(build.lowered[0], inputs={"ids": ("int64", (1, 9)), **past})
    assert loading_lines(artifact, 100)[2:] == [
        'outputs = session.run(None, {"ids": numpy.zeros((1, 9), "int64"),',
        '    **{i.name: numpy.zeros((1, 4, 0, 8), "float32") for i in session.get_inputs() if '
        'i.name.startswith("past.")}})',
    ]


def test_no_line_is_longer_than_a_terminal_is_wide() -> None:
    lines = wrapped("word " * 60).splitlines()
    assert max(map(len, lines)) <= 100
    assert all(line.startswith("    ") for line in lines[1:])
