"""Goals of a build: read, held against the artifact, and kept by int8 where it can."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from graphcompress import optimize
from graphcompress.build.goals import MaxDrop, slowest, speed_goal
from graphcompress.build.result import Build
from graphcompress.data.rows import Rows
from graphcompress.data.samples import Samples
from graphcompress.errors import GoalError, UsageError
from graphcompress.measure.bench import ShapeResult
from graphcompress.measure.metrics import Drop
from graphcompress.measure.timing import Ratio
from graphcompress.measure.verify import Run
from graphcompress.plugin.sizes import parse_size

KEPT = "with it in int8 the metric drops by more than it may"


@pytest.mark.parametrize(
    ("text", "drop", "spent"),
    [
        ("0.01", Drop(0.005, 0.9), 0.5),
        ("1%", Drop(0.0045, 0.9), 0.5),
        ("1 %", Drop(0.018, 0.9), 2.0),
        ("0.01", Drop(-0.005, 0.9), -0.5),
        ("0", Drop(0.0, 0.9), 0.0),
        ("0", Drop(0.001, 0.9), math.inf),
        ("0.01", Drop(math.nan, 0.9), math.inf),
    ],
)
def test_a_drop_spends_a_share_of_what_is_allowed(text: str, drop: Drop, spent: float) -> None:
    assert MaxDrop.parse(text).spent(drop) == pytest.approx(spent)


def test_with_a_confidence_the_bound_of_the_interval_counts() -> None:
    drop = Drop(0.005, 0.9, standard_error=0.004)
    assert MaxDrop.parse("0.01", 0.95).worst(drop) == pytest.approx(0.005 + 1.6449 * 0.004, rel=1e-4)
    assert MaxDrop.parse("0.01").goal(drop).met
    goal = MaxDrop.parse("0.01", 0.95).goal(drop)
    assert not goal.met
    assert (goal.text, goal.found) == (
        "max-drop 0.01 confidence 0.95",
        "0.005 ± 0.004; at most 0.01158 with 95% confidence",
    )
    assert MaxDrop.parse("1%").goal(Drop(0.001, 0.9, 0.002)).found.endswith("; within its standard error")
    with pytest.raises(GoalError, match="standard error of the drop"):
        MaxDrop.parse("0.01", 0.95).spent(Drop(0.005, 0.9))


@pytest.mark.parametrize(
    ("text", "size"), [("25MB", 25_000_000), ("24 MiB", 24 * 2**20), ("1.5kB", 1500), ("800", 800)]
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text, "--max-size") == size


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_drop": "little", "metric": "agreement", "data": "d.jsonl"}, "such as 0.01, or a share of it"),
        ({"max_drop": "-1", "metric": "agreement", "data": "d.jsonl"}, "such as 0.01, or a share of it"),
        ({"max_drop": "0.01"}, "--max-drop bounds a metric; name one with --metric"),
        ({"confidence": 0.95}, "give both"),
        (
            {"max_drop": "1%", "confidence": 95.0, "metric": "agreement", "data": "d.jsonl"},
            "from 0.5 to below 1, such as 0.95",
        ),
        ({"max_size": "small"}, "--max-size small: give bytes"),
        ({"min_speedup": -2.0}, "give a number above 0"),
        (
            {"min_speedup": 2.0, "target": "tensorrt{build=never}", "data": "d.jsonl"},
            "cannot be checked for tensorrt: this machine is not what runs it",
        ),
    ],
)
def test_goals_that_do_not_read_are_refused_before_the_work(
    values: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        optimize(tmp_path / "none.onnx", **values)  # type: ignore[arg-type]


def test_the_slowest_shape_decides_about_the_speed() -> None:
    shapes = [
        ShapeResult("1×8", "before", ratios={"after": Ratio(3.0, 2.0, 4.0)}),
        ShapeResult("8×8", "before", ratios={"after": Ratio(1.8, 1.0, 2.0)}),
        ShapeResult("8×99", "before", skipped="it does not run"),
    ]
    assert slowest("after", shapes) == "is 1.80 × as fast at 8×8"
    assert speed_goal(1.5, "after", shapes).met
    assert not speed_goal(2.0, "after", shapes).met
    assert not speed_goal(1.0, "after", shapes[2:]).met


def closeness() -> Callable[[Run, Rows], float]:
    """A metric of outputs: 1 less their relative distance from the first ones that it sees."""
    first: list[np.ndarray] = []

    def near(run: Run, rows: Rows) -> float:
        found = next(iter(run(rows.feed()).values()))
        first.append(found)
        return 1.0 - float(np.linalg.norm(found - first[0]) / np.linalg.norm(first[0]))

    return near


@pytest.fixture
def build(tiny_bert_path: Path, tiny_samples: Samples, tmp_path: Path) -> Callable[..., Build]:
    def made(**goals: object) -> Build:
        return optimize(
            tiny_bert_path,
            "int8",
            data=tiny_samples,
            metric=closeness(),
            target="cpu{measure=false}",
            output=tmp_path / "made",
            overwrite=True,
            **goals,  # type: ignore[arg-type]
        )

    return made


def kept(build: Build) -> set[str]:
    return {skipped.name for skipped in build.records[-1].skipped if skipped.reason == KEPT}


def test_int8_leaves_as_few_weights_in_float_as_the_metric_needs(build: Callable[..., Build]) -> None:
    free = build()
    (artifact,) = free.lowered
    assert artifact.drop is not None
    assert kept(free) == set()
    assert kept(build(max_drop=f"{artifact.drop.value * 1.01}")) == set()
    bound = build(max_drop=f"{artifact.drop.value / 2}")
    assert bound.lowered[0].drop is not None
    assert bound.lowered[0].drop.value <= artifact.drop.value / 2
    assert 0 < len(kept(bound)) < len(free.records[-1].touched)
    tight = build(max_drop="0.0001")
    assert kept(bound) < kept(tight)
    assert any("stay in float for the metric" in note for note in bound.records[-1].notes)


def test_goals_that_are_met_are_recorded(build: Callable[..., Build]) -> None:
    made = build(max_drop="50%", max_size="1MB", min_speedup=0.0001)
    assert [goal.met for goal in made.goals["cpu"]] == [True, True, True]
    assert made.benched
    manifest = json.loads((made.output / "graphcompress.json").read_text())
    assert [goal["text"] for goal in manifest["goals"]] == [
        "max-drop 50%",
        "min-speedup 0.0001",
        "max-size 1MB",
    ]
    assert manifest["goals"][1]["found"] == ""
    recipe = tomllib.loads((made.output / "recipe.toml").read_text())
    assert (recipe["max_drop"], recipe["max_size"], recipe["min_speedup"]) == ("50%", "1MB", 0.0001)
    assert "- **goal**: max-size 1MB: 0.06 MB" in (made.output / "report.md").read_text()


@pytest.mark.parametrize(
    ("goals", "message"),
    [
        ({"max_size": "10kB"}, r"cpu: --max-size 10kB is missed: it has 0\.06 MB; nothing was written"),
        ({"min_speedup": 1000.0}, r"--min-speedup 1000 is missed: the artifact is [0-9.]+ × as fast at "),
    ],
)
def test_a_goal_that_is_missed_ends_the_build_with_its_figure(
    build: Callable[..., Build], tmp_path: Path, goals: dict[str, object], message: str
) -> None:
    with pytest.raises(GoalError, match=message):
        build(**goals)
    assert list(tmp_path.iterdir()) == []


def test_a_drop_that_no_int8_weight_is_to_blame_for_is_missed(
    tiny_bert_path: Path, tiny_samples: Samples, tmp_path: Path
) -> None:
    with pytest.raises(GoalError, match=r"--max-drop 0\.001 is missed: the metric is 0\.\d+ worse"):
        optimize(
            tiny_bert_path,
            "prune{ffn=0.5},int8",
            data=tiny_samples,
            metric=closeness(),
            target="cpu{measure=false}",
            output=tmp_path / "made",
            max_drop="0.001",
            allow=["prune"],
        )


def test_a_goal_that_is_missed_says_where_the_training_lies(
    tiny_bert_path: Path, tiny_samples: Samples, tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    with pytest.raises(GoalError) as missed:
        optimize(
            tiny_bert_path,
            "distill{steps=2 evaluations=1 batch=4}",
            train=tiny_samples,
            target="cpu{measure=false}",
            output=tmp_path / "made",
            max_size="10kB",
            allow=["distill"],
        )
    kept = tmp_path / "made.training"
    assert list(kept.iterdir())
    assert f"nothing was written but the training in {kept}" in str(missed.value)
