"""Metrics that a user wrote."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import numpy as np
import pytest
from conftest import random_samples
from typer.testing import CliRunner

from graphcompress import optimize
from graphcompress.cli import app
from graphcompress.data.samples import Samples
from graphcompress.errors import DataError, MetricError, UsageError
from graphcompress.files.reading.hashes import sha256
from graphcompress.measure.metrics import Scoring, metric, pair_for

FILE = '''
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphcompress.plugin.task import Figure, Metric


def even(answers, rows):
    """Share of even labels."""
    assert len(answers) == len(rows)
    return sum(row["label"] % 2 == 0 for row in rows) / len(rows)


def moved(answers, rows):
    return float(np.abs(answers - rows.original).max())


moved.higher_is_better = False


def largest(run, rows):
    outputs = [run(rows[start : start + 4].feed()) for start in range(0, len(rows), 4)]
    return Figure(max(float(array.max()) for batch in outputs for array in batch.values()), 3, 0.5)


def broken(answers, rows):
    raise ValueError("no such\\n column")


def text(answers, rows):
    return "good"


def other(predictions, rows):
    return 0.0


broken.task = text.task = even.task = moved.task = "feature-extraction"
number = 3


@dataclass(frozen=True)
class Whole(Metric):
    """A metric with all that one can say."""

    name: ClassVar[str] = "whole"
    label: ClassVar[str] = "sum"
    columns: ClassVar[tuple[str, ...]] = ("label",)
    tasks: ClassVar[tuple[str, ...]] = ("feature-extraction",)

    def figure(self, given, rows):
        return Figure(float(rows.numbers(self.columns, self.name).sum()), len(rows))
'''


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file of metrics, as a user types its path."""
    (tmp_path / "mine.py").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    return "mine.py"


def labelled(count: int = 6) -> Samples:
    return Samples(random_samples(count).feeds, {"label": list(range(count))})


def embedded(feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"last_hidden_state": np.sin(feed["input_ids"][..., None] * np.arange(1.0, 4.0))}


def score(text: object, run: object = embedded) -> float:
    scoring = Scoring(metric(text), labelled())
    scoring.original(embedded)
    return scoring(run).value


def test_a_function_of_answers_and_rows(file: str) -> None:
    assert score(f"{file}:even") == 0.5

    def width(answers: np.ndarray, rows: object) -> int:
        return answers.shape[1]

    width.task = "feature-extraction"
    assert score(width) == 3


def test_it_may_compare_with_the_original_and_lower_may_be_better(file: str) -> None:
    assert score(f"{file}:moved") == 0.0
    far = score(f"{file}:moved", lambda feed: {"x": embedded(feed)["last_hidden_state"] + 2})
    assert far == pytest.approx(2.0)
    assert not metric(f"{file}:moved").higher_is_better
    assert metric(f"{file}:even").higher_is_better


def test_a_function_of_run_and_rows_runs_the_model_itself(file: str) -> None:
    found = Scoring(metric(f"{file}:largest"), labelled()).original(lambda feed: {"y": feed["input_ids"]})
    assert found.value == max(feed["input_ids"].max() for feed in labelled().feeds)
    assert (found.count, found.standard_error, found.label) == (3, 0.5, "largest")


def test_a_file_may_hold_a_whole_metric(file: str) -> None:
    assert score(f"{file}:Whole") == 15.0
    with pytest.raises(DataError, match="needs a column label"):
        Scoring(metric(f"{file}:Whole"), random_samples(2))


@pytest.mark.parametrize(
    ("name", "kind", "problem"),
    [
        ("broken", MetricError, r"metric mine\.py:broken fails with ValueError: no such column$"),
        ("text", MetricError, r"metric mine\.py:text returned 'good', not a number"),
        ("other", UsageError, r"mine\.py:other: write it as a function of .*'predictions'"),
        ("nobody", UsageError, r"mine\.py:nobody: the file has no function 'nobody'"),
        ("number", UsageError, r"the file has no function 'number'"),
    ],
)
def test_what_goes_wrong_names_file_and_function(
    file: str, name: str, kind: type[Exception], problem: str
) -> None:
    with pytest.raises(kind, match=problem):
        score(f"{file}:{name}")


def test_files_that_are_none_or_fail(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.py:f: no such file"):
        metric(f"{tmp_path}/nowhere.py:f")
    (tmp_path / "bad.py").write_text("1 / 0")
    with pytest.raises(MetricError, match=r"bad\.py:f: the file fails with ZeroDivisionError: division by"):
        metric(f"{tmp_path}/bad.py:f")


def test_pairs_are_fed_as_its_task_says(file: str, tiny_bert) -> None:
    assert pair_for(metric(f"{file}:even"), tiny_bert) == "separate"
    assert pair_for(metric(f"{file}:largest"), tiny_bert) is None


# ---- a whole build


def own_score(answers, rows):
    """Largest entry of an embedding."""
    return float(answers.max())


own_score.task = "feature-extraction"


def rows_file(folder: Path) -> Path:
    data = folder / "rows.jsonl"
    names = ("input_ids", "attention_mask", "token_type_ids")
    feeds = random_samples(6).feeds
    data.write_text(
        "\n".join(json.dumps({name: feed[name].tolist() for name in names} | {"label": 1}) for feed in feeds)
    )
    return data


def test_the_command_line_takes_a_file_and_the_recipe_knows_it(
    file: str, tiny_bert_path: Path, tmp_path: Path
) -> None:
    command = ["optimize", str(tiny_bert_path), "--passes", "simplify", "--target", "cpu{measure=false}"]
    command += ["--data", str(rows_file(tmp_path)), "--no-bench", "--metric", f"{file}:moved"]
    done = CliRunner().invoke(app, [*command, "-o", "out"])
    assert done.exit_code == 0, done.exception
    assert "moved 0.0000 → " in done.stdout
    recipe = tomllib.loads(Path("out/recipe.toml").read_text())
    assert recipe["metric"] == "mine.py:moved"
    assert recipe["sha256"]["mine.py"] == sha256(Path(file))
    manifest = json.loads(Path("out/graphcompress.json").read_text())
    assert manifest["recipe"]["metric"] == "mine.py:moved"
    assert manifest["verification"]["metric"]["after"]["label"] == "moved"
    assert "- **metric**: moved 0.0000" in Path("out/report.md").read_text()
    again = ["optimize", "--recipe", "out/recipe.toml", "--no-bench", "--overwrite", "-o", "again"]
    assert CliRunner().invoke(app, again).exit_code == 0
    Path(file).write_text(FILE + "\n")
    for other, refused in (([], True), (["--metric", "mine.py:even"], True), (["--metric", "mine"], False)):
        problem = str(CliRunner().invoke(app, [*again, *other]).exception)
        assert ("mine.py is not the file that the recipe was made from" in problem) == refused, problem


def test_a_function_is_recorded_where_it_lies(tiny_bert_path: Path, tmp_path: Path) -> None:
    def inner(run: object, rows: object) -> float:
        return 0.25

    for function in (own_score, inner):
        build = optimize(
            tiny_bert_path,
            "simplify",
            target="cpu{measure=false}",
            data=rows_file(tmp_path),
            metric=function,
            output=tmp_path / function.__name__,
        )
        assert build.score.label == function.__name__
        text = build.recipe["metric"]
        if function is inner:  # no recipe can name it
            assert text is None
            assert build.score.value == 0.25
            continue
        path = text.removesuffix(":own_score")
        assert path.endswith("test_own_metric.py")
        assert build.recipe["sha256"][path] == sha256(Path(__file__))


def test_the_exit_code_of_a_metric_that_fails(file: str, tiny_bert_path: Path, tmp_path: Path) -> None:
    command = ["optimize", str(tiny_bert_path), "--data", str(rows_file(tmp_path)), "-o", "out", "--no-bench"]
    failed = CliRunner().invoke(app, [*command, "--metric", f"{file}:broken"]).exception
    assert isinstance(failed, MetricError)
    assert failed.exit_code == 9
    assert not Path("out").exists()
