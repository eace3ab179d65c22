"""Goals choose the hidden width beside heads and FFN nodes, where that loses less."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from matrix.goals import time_is_parameters
from streams import WIDTH, distance, logits, sentences, stream, streamed

from graphcompress.analysis.linears import linears
from graphcompress.coupling.couplings import HIDDEN, couplings
from graphcompress.data.held_out import split
from graphcompress.data.made_up import varied_samples
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner
from graphcompress.latency import table
from graphcompress.measure.cache import MeasurementCache
from graphcompress.measure.calibrate import equal_feeds
from graphcompress.measure.profile import Recorder, write_profile
from graphcompress.numerics.metrics import divergences
from graphcompress.passes.prune.goals import linear_parameters
from graphcompress.passes.prune.prune import Prune
from graphcompress.passes.simplify.simplify import Simplify
from graphcompress.plugin.context import Context


@pytest.fixture(autouse=True)
def _time_is_parameters(tmp_path, monkeypatch):
    """Times are kept for one test alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(table, "timed", time_is_parameters)


def pruned(model: Model, ctx: Context | None = None, **options: object):
    twin = model.clone()
    return twin, Prune(round_to=1, **options).run(twin, ctx or Context(samples=sentences()))


def low_rank(norm: str = "RMSNormalization") -> Model:
    """A LayerNorm needs one more direction than those that are written into: its mean takes one off."""
    return streamed(norm, rank=15 if norm == "LayerNormalization" else 16)


@pytest.mark.parametrize(
    ("norm", "goal"),
    [
        ("RMSNormalization", {"keep": 0.6}),
        ("LayerNormalization", {"speedup": 1.6, "shapes": "1x8"}),
        ("spelt", {"size": "0.65"}),
    ],
)
def test_a_stream_of_half_the_directions_becomes_narrower_and_answers_the_same(norm, goal, tmp_path) -> None:
    model = low_rank(norm)
    if "size" in goal:
        stored = model.save(tmp_path / "model.onnx").stat().st_size
        goal = {"size": f"{0.65 * stored / 1000:.3f}kB"}
    chosen, record = pruned(model, **goal)
    kept, before = pruned(model, hidden=0, **goal)
    assert stream(kept).width == WIDTH > stream(chosen).width
    assert linear_parameters(chosen) <= 0.65 * linear_parameters(model)
    assert distance(model, kept) > 0.02
    assert distance(model, chosen) < 0.01 * distance(model, kept)
    assert "of the width stays: " in record.notes[-1]
    assert "asked for" in next(note for note in record.notes if "asked for" in note)
    assert not any("width" in note for note in before.notes)


def test_a_drop_that_is_allowed_is_used_by_the_width_too() -> None:
    model, samples = low_rank(), sentences()
    with Runner(model) as runner:
        expected = [runner(feed)["logits"] for feed in samples.batches(8)]
    spread = np.sqrt(sum(np.sum(array**2) for array in expected))

    def drop(run) -> float:
        now = [run(feed)["logits"] for feed in samples.batches(8)]
        return float(np.sqrt(sum(np.sum((a - b) ** 2) for a, b in zip(now, expected, strict=True))) / spread)

    goal = {"max_drop": 0.1, "shapes": "1x8"}
    found = {
        hidden: pruned(model, Context(samples=samples, drop=drop), hidden=hidden, **goal)
        for hidden in (None, 0)
    }
    narrow, full = (linear_parameters(found[hidden][0]) for hidden in (None, 0))
    assert narrow < 0.7 * full
    with Runner(found[None][0]) as runner:
        assert drop(runner) <= 0.1 + 1e-4
    left = narrow / linear_parameters(model)
    (told,) = [note for note in found[None][1].notes if "of 0.1 allowed" in note]
    assert float(told.split("; ")[1].split("%")[0]) / 100 == pytest.approx(left, abs=0.06)


@pytest.mark.parametrize("post", [False, True])
def test_the_width_stays_where_it_would_lose_more(post) -> None:
    model = streamed("LayerNormalization", post=post)
    chosen, record = pruned(model, keep=0.9)
    kept, _ = pruned(model, keep=0.9, hidden=0)
    assert stream(chosen).width == WIDTH
    np.testing.assert_array_equal(logits(chosen), logits(kept))
    assert record.notes[-1].startswith("the width stays: 0.875 of it would lose ")


@pytest.mark.parametrize(("seed", "keep"), [(0, 0.4), (1, 0.7)])
def test_the_choice_loses_no_more_than_the_full_width_on_held_out_samples(seed, keep) -> None:
    model = streamed("RMSNormalization", rank=24, seed=seed)
    assert _lost(pruned(model, keep=keep)[1]) <= _lost(pruned(model, keep=keep, hidden=0)[1])


def _lost(record) -> float:
    (told,) = re.findall("scores of tokens diverge by (.*) nats", "\n".join(record.notes))
    return float(told)


def test_what_a_narrower_model_loses_is_told_against_the_model_that_came_in() -> None:
    """The forecast model, whose removed rows are zero, answers as the one that is cut and written."""
    model = streamed("RMSNormalization", rank=20)
    chosen, record = pruned(model, keep=0.4)
    assert stream(chosen).width < WIDTH
    told = _lost(record)
    feeds = equal_feeds(model, split(sentences())[1])
    with Runner(model) as one, Runner(chosen) as other:
        was, now = ([run(feed)["logits"].reshape(-1, 5) for feed in feeds] for run in (one, other))
    was, now = np.concatenate(was), np.concatenate(now)
    assert told == pytest.approx(divergences(was, now).mean(), rel=0.01)


def test_a_goal_that_the_full_width_cannot_reach_is_reached_by_a_narrower_one() -> None:
    model = low_rank()
    fixed = sum(each.parameters for each in linears(model) if each.name == "head")
    keep = 0.8 * fixed / linear_parameters(model)
    chosen, record = pruned(model, keep=keep)
    assert linear_parameters(chosen) <= keep * linear_parameters(model)
    assert record.notes[-1].endswith("of the width stays: all of it keeps the goal out of reach")


def test_a_plan_that_is_pinned_makes_the_same_narrower_model(tmp_path, monkeypatch) -> None:
    model, prune = low_rank(), Prune(speedup=1.6, shapes="1x8", round_to=1)
    first, again, older = (model.clone() for _ in range(3))
    record = prune.run(first, Context(samples=sentences()))
    assert json.loads(record.plan)["hidden"] > 0.0
    monkeypatch.setattr(table, "timed", None)
    told = prune.run(again, Context(samples=sentences(), pinned={str(prune): record.plan}))
    files = [each.save(tmp_path / f"{i}.onnx").read_bytes() for i, each in enumerate((first, again))]
    assert files[0] == files[1]
    assert (told.notes, told.plan) == (record.notes, record.plan)
    plan = json.loads(record.plan)
    del plan["hidden"]
    prune.run(older, Context(samples=sentences(), pinned={str(prune): json.dumps(plan)}))
    assert stream(older).width == WIDTH


def test_the_width_is_no_choice_where_it_is_fixed_or_names_are_given() -> None:
    record = pruned(streamed("RMSNormalization", out=True), keep=0.8)[1]
    assert record.notes[-1] == "the width of the residual stream is fixed: it is an output of the graph"
    record = pruned(low_rank(), keep=0.8, only="*down*")[1]
    assert "the residual stream runs through more weights than match only" in record.notes[-1]


@pytest.mark.parametrize(
    ("name", "said"), [("gpt2", "the width stays: 0.75 of it would lose"), ("t5", "hands encoder/")]
)
def test_models_that_write_say_why_the_width_stays(name, said, sequence_folders) -> None:
    model = Model.load(sequence_folders[name])
    Simplify().run(model, Context())
    width = {group.size for group in couplings(model) if group.kind == HIDDEN}
    record = Prune(keep=0.9).run(model, Context(samples=varied_samples(model, seed=0)))
    assert said in record.notes[2]
    assert {group.size for group in couplings(model) if group.kind == HIDDEN} == width


@pytest.mark.parametrize("knows", [True, False])
def test_a_profile_decides_about_the_widths_that_it_knows(knows, tmp_path) -> None:
    asked, profile = Recorder(MeasurementCache(tmp_path / "there")), tmp_path / "profile.json"
    goal = {"speedup": 1.6, "shapes": "1x8"}
    there = Context(samples=sentences(), measurements=asked)
    pruned(low_rank(), there, **goal, **({} if knows else {"hidden": 0}))
    write_profile(profile, [(1, 8)], asked.times)
    chosen, record = pruned(low_rank(), profile=str(profile), **goal)
    assert (stream(chosen).width < WIDTH) == knows
    said = "of the width stays: " if knows else "the width stays: the profile has no latencies of this model"
    assert said in record.notes[-1]
