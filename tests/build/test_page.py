"""The page of a report: whole, offline, reproducible, drawn by a browser where there is one."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from commandline import run

from graphcompress import optimize
from graphcompress.artifact.folder import read_manifest
from graphcompress.build.result import Build
from graphcompress.data.samples import Samples
from graphcompress.reporting.charts import Charts
from graphcompress.reporting.document import common_ms, layer_rows, lost, next_steps
from graphcompress.reporting.page import comparison
from graphcompress.reporting.page import page as rendered

VOID = {"meta", "br", "img", "link", "input", "hr"}
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Outline(HTMLParser):
    """Collects tags, headings and whatever a browser would fetch; fails on tags that do not close."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def outline(page: str) -> Outline:
    found = Outline()
    found.feed(page)
    assert found.open == []
    return found


@pytest.fixture(scope="module")
def build(tiny_bert_path: Path, tiny_samples: Samples, tmp_path_factory: pytest.TempPathFactory) -> Build:
    labelled = Samples(
        tiny_samples.feeds, {"text": [f"sentence {n} <b>" for n in range(24)], "label": [0] * 24}
    )
    return optimize(
        tiny_bert_path,
        "prune{ffn=0.25 scope=layer},int8",
        data=labelled,
        metric="agreement",
        target="cpu{measure=false}",
        output=tmp_path_factory.mktemp("page") / "small",
        allow=["prune", "int8"],
    )


MACHINE = {"architecture": "x86_64", "processor": "Some CPU", "cores": 2, "onnxruntime": "1.2.3"}


def times(after_ms: float, *, machine: dict[str, object] | None = None) -> dict[str, Any]:
    """What a build of two passes and simplify might have measured."""

    def shape(label: str, before: float, after: float) -> dict[str, Any]:
        def spread(value: float) -> dict[str, float]:
            return {"median_ms": value, "low_ms": value, "high_ms": value}

        ratio = {"median": before / after, "low": 0.9 * before / after, "high": 1.1 * before / after}
        return {
            "shape": label,
            "skipped": "",
            "failed": {},
            "times_ms": {"before": spread(before), "after": spread(after)},
            "ratios": {"after": ratio},
        }

    return {
        "machine": machine or MACHINE,
        "shapes": [shape("1×9 (natural)", 2.0, 1.0), shape("1×128", 20.0, after_ms)],
        "steps": {"shape": "1×128", "ms": [24.0, 20.0, 12.0, 8.0]},
        "operators_ms": [
            {
                "shape": "1×128",
                "before": {f"Operator{number}": float(number) for number in range(1, 12)},
                "after": {"MatMulIntegerToFloat": 3.0},
            }
        ],
    }


@pytest.fixture(scope="module")
def page(build: Build) -> str:
    return (build.output / "report.html").read_text(encoding="utf-8")


def test_the_page_is_whole_and_fetches_nothing(page: str) -> None:
    found = outline(page)
    assert page.startswith("<!doctype html>")
    assert found.fetched == []
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", page)
    assert len(page.encode()) < 2_000_000
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page


def test_every_view_is_there(page: str) -> None:
    headings = re.findall(r"<h2>(.*?)</h2>", page)
    assert headings == [
        "What each step brought",
        "Through the depth of the model",
        "How sensitive each weight is",
        "Answers that changed most",
        "Batches and padding",
        "Every weight",
        "What could come next",
        "Where it comes from",
    ]
    charts = re.findall(r'<svg role="img" aria-label="([^"]*)"', page)
    assert charts == [
        "size after each step, MB",
        "MACs after each step, millions",
        "agreement with the original lost after each step, points",
        "SQNR against the original, dB",
        "error of each block&#39;s output, %",
        "attention heads left in each block",
        "FFN nodes left in each block",
        "prune: error of each weight&#39;s product, %",
        "int8: error of each weight&#39;s product, %",
    ]
    assert "No data" not in page


def test_texts_of_the_data_cannot_change_the_page(page: str) -> None:
    assert "sentence " in page
    assert "&lt;b&gt;" in page
    assert "<b>" not in page


@pytest.mark.parametrize(("answer", "shown"), [("7", ["before", "after"]), ("", [])])
def test_answers_that_are_embeddings_have_no_empty_columns(
    build: Build, answer: str, shown: list[str]
) -> None:
    manifest = read_manifest(build.output)
    metric = manifest["verification"]["metric"]
    metric["changed"] = [{**one, "before": answer, "after": answer} for one in metric["changed"]]
    table = (
        rendered("title", [], manifest, "").partition("Answers that changed most")[2].partition("</table>")[0]
    )
    titles = re.findall(r"<th[^>]*>([^<]*)</th>", table)
    assert titles == ["row", "text", "label", *shown, "distance of the answers"]
    assert table.count("<td") == len(titles) * len(metric["changed"]) > 0


def test_a_build_that_was_not_timed_has_no_times(build: Build, page: str) -> None:
    assert not re.search(r"\d ms\b", page)
    assert "No speed was measured in this build" in page
    assert not (build.output / "times.json").exists()
    assert str(Path.cwd()) not in page


def test_every_weight_has_a_row_with_what_became_of_it(build: Build) -> None:
    rows = {row.name: row for row in layer_rows(read_manifest(build.output))}
    assert len(rows) == len(build.before_anatomy.weights)
    ffn = rows["encoder.layer.0.intermediate.dense.weight_t"]
    assert (ffn.kind, ffn.shape, ffn.before) == ("linear", "32 × 64", 8192)
    assert ffn.after < 8192 * 0.75 / 3
    assert ffn.told.startswith("prune: 16 of 64 FFN nodes removed · int8: done")
    small = rows["embeddings.token_type_embeddings.weight"]
    assert (small.before, small.after) == (256, 256)
    assert "left alone, smaller than" in small.told


def test_blocks_and_depth_are_told_before_and_after(build: Build) -> None:
    assert [(block.heads, block.ffn_nodes) for block in build.before_anatomy.blocks] == [(4, 64), (4, 64)]
    assert [(block.heads, block.ffn_nodes) for block in build.anatomy.blocks] == [(4, 48), (4, 48)]
    assert [place.name for place in build.depth] == ["encoder.layer.0", "encoder.layer.1"]
    assert all(0.001 < place.error < 0.5 for place in build.depth)


def test_what_could_come_next_has_a_command(build: Build) -> None:
    manifest = read_manifest(build.output)
    bare = {**manifest["recipe"], "model": "my model.onnx", "data": None, "metric": None}
    commands = dict(next_steps({**manifest, "recipe": bare}))
    calibrated = commands["calibrate on real samples: outputs were compared on made-up ones"]
    options = "--passes 'simplify,prune{ffn=0.25 scope=layer},int8' --target 'cpu{measure=false}'"
    assert calibrated == f"graphcompress optimize 'my model.onnx' {options} --data DATA"
    assert [sentence.split(":")[0] for sentence in commands][:2] == [
        "calibrate on real samples",
        "see what it costs in answers",
    ]


@pytest.mark.parametrize(
    ("passes", "stronger"),
    [
        ("prune", "prune{heads=0.25}"),
        ("prune{heads=0.1}", "prune{heads=0.25}"),
        ("prune{ffn=0.5}", "prune{ffn=0.5 heads=0.25}"),
        ('prune{only="a b" heads=0.1 ffn=0.5}', 'prune{only="a b" heads=0.25 ffn=0.5}'),
    ],
)
def test_a_stronger_option_keeps_the_others(build: Build, passes: str, stronger: str) -> None:
    manifest = read_manifest(build.output)
    note = "heads=0.25 would leave block errors of 0.2"
    noted = {**manifest["passes"][1], "text": passes, "notes": [note]}
    recipe = {**manifest["recipe"], "passes": f"{passes},int8"}
    steps = dict(next_steps({**manifest, "passes": [noted], "recipe": recipe}))
    assert f"--passes '{stronger},int8' --target" in steps[f"prune: {note}"]
    assert "--metric agreement" in steps[f"prune: {note}"]


def test_a_chart_is_the_same_every_time_and_has_no_script() -> None:
    first, second = (Charts().bars("a < b", ["x", "y"], {"one": [1.0, None]}) for _ in range(2))
    assert first == second
    assert not re.search(r"<script|<!--|20\d\d-\d\d", first)
    assert 'aria-label="a &lt; b"' in first


def test_artifacts_stand_side_by_side(build: Build, tmp_path: Path) -> None:
    shutil.copytree(build.output, tmp_path / "other")
    done = run("report", build.output, tmp_path / "other", "-o", tmp_path / "compare.html")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "compare.html").read_text(encoding="utf-8")
    outline(text)
    assert re.findall(r'aria-label="([^"]*)"', text) == [
        "agreement with the original by size",
        "SQNR by size",
    ]
    assert text.count(">other</td>") == 1
    again = run("report", build.output, "-o", tmp_path / "compare.html")
    assert (again.returncode, "--overwrite" in again.stderr) == (2, True)
    assert run("report", tmp_path, "-o", tmp_path / "x.html").returncode == 2


def test_times_are_told_by_step_by_shape_and_by_operator(build: Build) -> None:
    page = rendered("title", [], read_manifest(build.output), "", times=times(5.0))
    outline(page)
    assert "Some CPU, 2 cores, ONNX Runtime 1.2.3" in page
    charts = dict(re.findall(r'<svg role="img" aria-label="([^"]*)".*?>(.*?)</svg>', page, re.DOTALL))
    assert list(charts)[1] == "time of a run after each step, ms at 1×128"
    assert {"median time of a run, ms", "time by operator, ms at 1×128"} <= set(charts)
    operators = charts["time by operator, ms at 1×128"]
    assert all(f"Operator{number}<" in operators for number in range(4, 12))
    assert not re.search(r"Operator[1-3]<", operators), "the small ones are one bar"
    assert ">others<" in operators
    rows = re.findall(r"<tr><td>(simplify|prune|int8|artifact)(.*?)</tr>", page, re.DOTALL)
    told = [re.findall(r'<td class="n">([\d.]+)</td>', row) for _, row in rows]
    # The artifact is 4 times as fast as the model that came in, whose time is 24 ms where passes were timed.
    assert ["20.00" in told[0], "12.00" in told[1], "8.00" in told[2], "6.00" in told[3]] == [True] * 4


def test_points_of_the_metric_are_told_by_step(build: Build, page: str) -> None:
    assert build.score is not None
    metric = build.lowered[0].score
    assert metric is not None
    points = f'<td class="n">{100 * (metric.value - build.score.value):+.2f}</td>'
    row = page.partition("<tr><td>artifact for cpu")[2].partition("</tr>")[0]
    assert points in row


@pytest.mark.parametrize(
    ("losses", "series"),
    [
        ([0, 2, 2, 5], {"lost before": [0, 0, 2, 2], "lost here": [0, 2, 0, 3]}),
        ([0, 3, 1], {"lost before": [0, 0, 1], "lost here": [0, 3, 0], "won back": [0, 0, 2]}),
        ([0, 2, -1], {"lost here": [0, 2, 0], "won back": [0, 0, 2], "better than at first": [0, 0, -1]}),
        ([0, -1, 2], {"lost here": [0, 0, 2], "better than at first": [0, -1, 0]}),
        ([0, 0], {"lost here": [0, 0]}),
    ],
)
def test_what_was_lost_and_won_is_stacked_to_the_loss_after_each_step(
    losses: list[float], series: dict[str, list[float]]
) -> None:
    found = {name: [value or 0 for value in values] for name, values in lost(losses).items()}
    assert found == series


def test_points_are_a_waterfall_and_a_metric_that_is_no_share_has_none(build: Build, page: str) -> None:
    label = "agreement with the original lost after each step"
    assert f'aria-label="{label}, points"' in page
    manifest = read_manifest(build.output)
    metric = manifest["verification"]["metric"]
    metric["before"]["value"] = 37.3
    bleu = rendered("title", [], manifest, "")
    assert f'aria-label="{label}"' in bleu
    assert ">change</th>" in bleu


def test_latency_is_an_axis_of_the_comparison(build: Build) -> None:
    manifest = read_manifest(build.output)
    page = comparison(["a", "b"], [manifest, manifest], [times(5.0), times(10.0)])
    assert re.findall(r'aria-label="([^"]*)"', page) == [
        "agreement with the original by size",
        "agreement with the original by latency",
        "SQNR by size",
        "SQNR by latency",
        "latency by size",
    ]
    assert "4.00 × (3.60 to 4.40) at 1×128" in page
    assert "Some CPU, 2 cores" in page
    axes = [re.findall(r'<g class="axis (x|y)', chart) for chart in page.split("<svg ")[1:]]
    assert all({"x", "y"} <= set(axis) for axis in axes)
    latencies = page.partition('aria-label="SQNR by latency"')[2].partition("</svg>")[0]
    assert ">6<" in latencies, "values stand at the axis of latencies"
    assert ">10.00</td>" in page


def test_latencies_are_told_by_one_time_of_the_model_that_came_in(build: Build) -> None:
    manifest = read_manifest(build.output)
    slower = times(8.0)
    slower["shapes"][1]["times_ms"]["before"]["median_ms"] = (
        32.0  # another moment: all took 1.6 times as long
    )
    slower["shapes"][1]["ratios"]["after"]["median"] = 4.0
    assert common_ms([manifest, manifest], [times(5.0), slower]) == ("1×128", [5.0, 5.0])
    other = {**slower, "machine": {**MACHINE, "cores": 8}}
    assert common_ms([manifest, manifest], [times(5.0), other]) == ("1×128", [5.0, 8.0])
    assert common_ms([manifest, manifest], [times(5.0), {}]) == ("", [])


def test_without_texts_only_rows_and_distances_are_kept(
    tiny_bert_path: Path, tiny_samples: Samples, tmp_path: Path
) -> None:
    secret = Samples(tiny_samples.feeds, {"text": ["secret"] * 24, "label": [7771] * 24})
    made = optimize(
        tiny_bert_path,
        "prune{ffn=0.5}",
        data=secret,
        metric="agreement",
        target="cpu{measure=false}",
        allow=["prune"],
        no_texts=True,
        output=tmp_path / "made",
    )
    changed = read_manifest(made.output)["verification"]["metric"]["changed"]
    assert changed
    assert {(one["text"], one["label"], one["before"], one["after"]) for one in changed} == {("", "", "", "")}
    assert all(one["distance"] > 0 for one in changed)
    for file in made.output.iterdir():
        assert b"secret" not in file.read_bytes()
        assert b"7771" not in file.read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_draws_the_page_without_an_error(build: Build, tmp_path: Path, width: int) -> None:
    assert CHROMIUM is not None
    probe = (
        "<script>document.title = JSON.stringify({wide: document.documentElement.scrollWidth, "
        "charts: [...document.querySelectorAll('svg')].map(svg => svg.getBBox().width > 100)})</script>"
        "</body>"
    )
    measured = rendered("title", [], read_manifest(build.output), "", times=times(5.0))
    page = measured.replace("</body>", probe)
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        "--dump-dom",
    ]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900"]
    done = subprocess.run(
        [*command, (tmp_path / "page.html").as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    assert "CONSOLE" not in done.stderr
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title is not None
    seen = json.loads(title[1])
    assert seen["wide"] <= max(width, 500)  # a window of Chromium is at least 500 wide
    assert len(seen["charts"]) == 12
    assert all(seen["charts"])
