"""prune to a goal: a speed, a size, a share of the weights, a drop of the metric."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from bert import Bert
from conftest import random_samples
from matrix.goals import time_is_parameters
from pruned_models import FFN_OUT, distance, edit, outputs, pruned, sizes, stored

from graphcompress.analysis.linears import linears
from graphcompress.build import tuning
from graphcompress.coupling.couplings import couplings
from graphcompress.errors import DataError, UsageError
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner
from graphcompress.latency import table
from graphcompress.measure.cache import MeasurementCache
from graphcompress.measure.profile import Recorder, write_profile
from graphcompress.measure.timing import Measurement, Ratio
from graphcompress.numerics.knapsack import cheapest
from graphcompress.numerics.least_squares import LinearMap
from graphcompress.passes.kron.kron import Kron
from graphcompress.passes.prune import prune as prune_module
from graphcompress.passes.prune.blocks import blocks_of
from graphcompress.passes.prune.fisher import fisher_information
from graphcompress.passes.prune.goal_planner import GoalPlanner
from graphcompress.passes.prune.goals import linear_parameters
from graphcompress.passes.prune.prune import Prune
from graphcompress.passes.prune.removal import Removal
from graphcompress.passes.prune.trial_model import TrialModel
from graphcompress.pipeline.pipeline import Pipeline
from graphcompress.plugin.capabilities import Capabilities
from graphcompress.plugin.context import Context, no_progress
from graphcompress.rewrite.rewriter import Rewriter


@pytest.fixture(autouse=True)
def _time_is_parameters(tmp_path, monkeypatch):
    """Times are kept for one test alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(table, "timed", time_is_parameters)


@pytest.mark.parametrize("seed", range(4))
def test_the_knapsack_is_the_best_of_all_choices(seed):
    rng = np.random.default_rng(seed)
    losses = [np.sort(rng.random(4)) for _ in range(4)]
    prices = [np.sort(rng.integers(0, 50, 4))[::-1] / 50 for _ in range(4)]
    for budget in (0.5, 1.0, 2.0):
        every = [
            (sum(losses[b][o] for b, o in enumerate(options)), options)
            for options in np.ndindex(4, 4, 4, 4)
            if sum(prices[b][o] for b, o in enumerate(options)) <= budget + 1e-9
        ]
        found = cheapest(losses, prices, budget)
        if not every:
            assert found is None
            continue
        assert sum(losses[b][o] for b, o in enumerate(found)) == pytest.approx(min(every)[0])


def test_a_budget_below_all_prices_is_no_choice():
    assert cheapest([np.zeros(2)], [np.array([3.0, 2.0])], 1.0) is None
    assert cheapest([np.zeros(2)], [np.array([3.0, 2.0])], -1.0) is None


@pytest.mark.parametrize("speedup", [1.3, 1.7])
def test_a_speed_is_met_and_told(tiny_bert, tiny_samples, speedup):
    before = linear_parameters(tiny_bert)
    record = pruned(tiny_bert, tiny_samples, speedup=speedup, shapes="1x8", round_to=1)
    reached = (before + 1) / (linear_parameters(tiny_bert) + 1)
    assert speedup <= reached < 1.12 * speedup  # a head is a tenth of what is left
    told = f"{reached:.2f} ({reached:.2f} to {reached:.2f}) times as fast at 1x8 as before, of {speedup:g}"
    (result,) = record.results
    assert result.startswith(told)
    assert result in record.notes


@pytest.mark.parametrize("free", [0.8, 1.0, 1.5])
def test_what_simplifying_and_the_target_bring_need_not_be_pruned(tiny_bert, tiny_samples, free):
    """The speed asked for is that of the artifact against the file that came in."""
    before = linear_parameters(tiny_bert)

    def speed(model, shapes):
        ratio = free * before / linear_parameters(model)
        return [Ratio(ratio, ratio, ratio) for _ in shapes]

    prune, ctx = Prune(speedup=1.7, shapes="1x8", round_to=1), Context(samples=tiny_samples, speed=speed)
    (record,) = Pipeline([prune]).run(tiny_bert, ctx, require_coverage=0.0)[-1:]
    reached = free * before / linear_parameters(tiny_bert)
    assert 1.7 <= reached < 1.12 * 1.7
    assert any(note.startswith(f"{reached:.2f}") and "as the input, of 1.7" in note for note in record.notes)


def test_nothing_is_pruned_where_the_artifact_is_fast_enough_already(tiny_bert, tiny_samples):
    before = linear_parameters(tiny_bert)
    ctx = Context(samples=tiny_samples, speed=lambda model, shapes: [Ratio(1.8, 1.7, 1.9) for _ in shapes])
    (record,) = Pipeline([Prune(speedup=1.7, shapes="1x8")]).run(tiny_bert, ctx, require_coverage=0.0)[-1:]
    assert linear_parameters(tiny_bert) == before
    assert "1.80 times as fast without pruning, of 1.7 asked for" in record.notes
    assert "nothing has to go" in {item.reason for item in record.skipped}
    assert not any("can be cut" in item.reason for item in record.skipped if "layer" in item.name)


@pytest.mark.parametrize("goal", [{"keep": 1.0}, {"size": "1GB"}])
def test_nothing_is_pruned_where_it_is_small_enough_already(tiny_bert, tiny_samples, goal):
    before = linear_parameters(tiny_bert)
    record = pruned(tiny_bert, tiny_samples, **goal)
    assert linear_parameters(tiny_bert) == before
    assert not record.touched
    assert "other blocks cost less" not in {item.reason for item in record.skipped}


def test_what_is_too_small_is_refused_with_what_helps(tiny_bert, tiny_samples):
    with pytest.raises(UsageError, match="ask for more, or make its tables smaller with vocab or kron"):
        pruned(tiny_bert, tiny_samples, size="1KB")


def test_a_speed_holds_at_every_shape_that_is_named(tiny_bert, tiny_samples, monkeypatch):
    def times(models, feeds, ctx, rounds):
        # At the longer shape something takes time that does not go.
        extra = [0.0 if next(iter(feed.values())).shape[1] < 16 else 2000.0 for feed in feeds]
        whole = {"whole", "before", "after"}
        return [
            Measurement({n: [linear_parameters(m) + more * (n in whole) + 1.0] for n, m in models.items()})
            for more in extra
        ]

    monkeypatch.setattr(table, "timed", times)
    lefts = {}
    for shapes in ("1x8", "1x8,1x16"):
        model = tiny_bert.clone()
        record = pruned(model, tiny_samples, speedup=1.5, shapes=shapes, round_to=1)
        told = record.results[0].split(" and ")
        assert len(told) == len(shapes.split(","))
        assert all(float(part.split()[0]) >= 1.5 for part in told)
        lefts[shapes] = linear_parameters(model)
    assert lefts["1x8,1x16"] < lefts["1x8"]


def test_a_profile_of_another_machine_decides_instead_of_this_one(
    tiny_bert, tiny_samples, tmp_path, monkeypatch
):
    """There heads take nearly all of the time, so that they go; here they would not."""

    def there(models, feeds, ctx, rounds):
        sizes = [int(name) for name in models if name.isdigit()]
        each = {4: 20.0, 64: 0.02}.get(max(sizes, default=0), 0.0)
        found = {name: [int(name) * each if name.isdigit() else 200.0] for name in models}
        return [Measurement(found) for _ in feeds]

    asked = Recorder(MeasurementCache(tmp_path / "there"))
    here = table.timed
    monkeypatch.setattr(table, "timed", there)
    goal = {"speedup": 1.5, "shapes": "1x8", "round_to": 1}
    Prune(**goal).run(tiny_bert.clone(), Context(samples=tiny_samples, measurements=asked))
    write_profile(tmp_path / "profile.json", [(1, 8)], asked.times)
    monkeypatch.setattr(table, "timed", here)
    twin = tiny_bert.clone()
    record = pruned(tiny_bert, tiny_samples, profile=str(tmp_path / "profile.json"), **goal)
    pruned(twin, tiny_samples, **goal)
    assert sum(sizes(tiny_bert, "head")) < sum(sizes(twin, "head"))
    assert sizes(tiny_bert, "ffn") == [64, 64]
    assert "times as fast by the latencies of the profile, of 1.5 asked for" in record.results[0]
    with pytest.raises(UsageError, match="the profile has no latencies of this model at these shapes"):
        pruned(twin, tiny_samples, profile=str(tmp_path / "profile.json"), **goal)


def test_tune_writes_the_latencies_that_a_goal_asks_for(tiny_bert_path, tiny_samples, monkeypatch):
    monkeypatch.setattr(tuning, "load_samples", lambda *_, **__: tiny_samples)
    target = SimpleNamespace(capabilities=Capabilities(), tune=lambda model, ctx: {})
    goal = "prune{speedup=1.5 shapes=1x8 round_to=1}"
    times = tuning.tune([tiny_bert_path], target, [Pipeline.parse(goal)], data=Path("any"))
    assert {key.split()[1] for key in times} == {"whole", "head", "ffn", "both"}


@pytest.mark.parametrize("keep", [0.8, 0.5])
def test_a_share_of_the_parameters_is_met(tiny_bert, tiny_samples, keep):
    before = linear_parameters(tiny_bert)
    record = pruned(tiny_bert, tiny_samples, keep=keep, round_to=1)
    assert keep - 0.05 < linear_parameters(tiny_bert) / before <= keep
    assert f"parameters of linears are left ({linear_parameters(tiny_bert) / before:.1%})" in record.notes[0]


def test_a_size_is_met(tiny_bert, tiny_samples, tmp_path):
    whole = tiny_bert.save(tmp_path / "before.onnx").stat().st_size
    wanted = int(0.8 * whole)
    pruned(tiny_bert, tiny_samples, size=f"{wanted / 1000:.3f}kB", round_to=1)
    assert 0.75 * whole < tiny_bert.save(tmp_path / "after.onnx").stat().st_size <= wanted


def test_a_drop_of_the_metric_is_used_and_kept(tiny_bert, tiny_samples):
    reference = [each["last_hidden_state"] for each in _runs(tiny_bert, tiny_samples)]

    def drop(run):
        now = [run(feed)["last_hidden_state"] for feed in tiny_samples.batches(8)]
        return float(distance(reference, now))

    lefts = {}
    for allowed in (0.05, 0.5):
        model = tiny_bert.clone()
        record = Prune(max_drop=allowed, shapes="1x8").run(model, Context(samples=tiny_samples, drop=drop))
        assert distance(reference, outputs(model, tiny_samples)) <= allowed + 1e-4
        assert f"of {allowed:g} allowed" in record.notes[0] or "nothing goes" in record.notes[0]
        lefts[allowed] = linear_parameters(model)
    assert lefts[0.5] < lefts[0.05]


def test_an_answer_that_is_seen_once_counts(tiny_bert):
    """Of five samples one is held out, so that an answer of one row for each has no spread."""
    (states,) = tiny_bert.graph.outputs
    with Rewriter(tiny_bert, Context()) as rw:
        first = rw.at(None, "first").op("Gather", states, rw.constant(np.array(0), "zero"), axis=1)
        first.shape, first.type, first.name = ir.Shape(["batch", 32]), states.type, "answer"
        tiny_bert.graph.outputs[:] = [first]
        blocks = blocks_of(rw, couplings(tiny_bert), "*")
    planner = GoalPlanner(tiny_bert, blocks, Context(samples=random_samples(5)), "obs", 1, refit=True)
    assert all(0.0 < curve.losses[1] < curve.losses[-1] for curve in planner.curves)


def _runs(model, samples):
    return [{"last_hidden_state": array} for array in outputs(model, samples)]


def test_a_block_may_go_as_a_whole_and_leaves_its_mean(tiny_bert, tiny_samples):
    record = pruned(tiny_bert, tiny_samples, keep=0.1, round_to=1)
    gone = [touched for touched in record.touched if "what they gave on average is left" in touched.detail]
    assert gone
    assert len(linears(tiny_bert)) < 12
    assert all(np.isfinite(array).all() for array in outputs(tiny_bert, tiny_samples))


def test_units_go_where_they_are_missed_least(tiny_bert, tiny_samples):
    name = FFN_OUT.format(0) + ".weight_t"
    edit(tiny_bert, name, 1e-4 * stored(tiny_bert, name))
    before = outputs(tiny_bert, tiny_samples)
    pruned(tiny_bert, tiny_samples, keep=0.85, round_to=1)
    assert sizes(tiny_bert, "ffn")[-1] > 55  # the first layer's FFN gives nearly nothing
    assert distance(before, outputs(tiny_bert, tiny_samples)) < 0.05


def test_fisher_information_is_the_squared_gradient_of_each_mask(tiny_bert, tiny_samples):
    """Against differences of the loss with a mask a little off one."""
    torch = pytest.importorskip("torch")
    with Rewriter(tiny_bert, Context()) as rw:
        blocks = blocks_of(rw, couplings(tiny_bert), "*")
    few = tiny_samples.first(3)
    trial = TrialModel(tiny_bert, blocks, few)
    found = fisher_information(trial, few, 0, no_progress)
    for block in blocks[:2]:
        assert found[block].shape == (block.size,)
        unit = int(np.argmax(found[block]))
        assert found[block][unit] == pytest.approx(_by_differences(torch, trial, few, block, unit), rel=0.02)


def _by_differences(torch, trial, samples, block, unit):
    generator = torch.Generator().manual_seed(0)
    total = 0.0
    with Runner(trial.twin) as runner:
        for index in range(len(samples)):
            outputs = []
            for factor in (1.01, 0.99):
                fit = trial.fits[block]
                weight = fit.weight.copy()
                weight[block.rows[unit]] *= factor
                given = trial.given({block: LinearMap(weight, fit.bias)})
                outputs.append(runner({**samples.batch([index]), **given}))
            slope = 0.0
            for name in outputs[0]:
                direction = torch.randn(outputs[0][name].shape, generator=generator).numpy()
                slope += float(np.sum((outputs[0][name] - outputs[1][name]) * direction)) / 0.02
            total += slope**2
    return total


@pytest.mark.parametrize("speedup", [1.3])
def test_masks_by_fisher_information_reach_the_goal_in_another_way(tiny_bert, tiny_samples, speedup):
    pytest.importorskip("torch")
    twin = tiny_bert.clone()
    before = linear_parameters(tiny_bert)
    pruned(tiny_bert, tiny_samples, speedup=speedup, shapes="1x8", round_to=1, importance="fisher")
    pruned(twin, tiny_samples, speedup=speedup, shapes="1x8", round_to=1)
    assert (before + 1) / (linear_parameters(tiny_bert) + 1) >= speedup
    assert {str(v.shape) for v in tiny_bert.initializers()} != {str(v.shape) for v in twin.initializers()}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"speedup": 2.0, "keep": 0.5}, "speedup and keep are two goals"),
        ({"speedup": 2.0, "ffn": 0.5}, "speedup says how much goes, and so does ffn"),
        ({"keep": 0.5, "layers": 1}, "keep says how much goes, and so does layers"),
        ({"keep": 0.5, "importance": "xmax"}, "does not say what the outputs lose"),
        ({"keep": 0.5, "scope": "layer"}, "scope would change nothing"),
        ({"keep": 0.5, "max_error": 0.1}, "max_error would change nothing"),
        ({"keep": 0.5, "shapes": "1x8"}, "shapes would change nothing, because keep is no time"),
        ({"ffn": 0.5, "importance": "fisher"}, "importance fisher chooses for a goal"),
        ({"shapes": "1x8"}, "shapes would change nothing"),
        ({"size": "25 lines"}, "give bytes, kB, MB"),
        ({"speedup": 2.0, "shapes": "1x8,"}, "shapes holds nothing"),
    ],
)
def test_goals_that_contradict_are_refused(options, said):
    with pytest.raises(UsageError, match=said):
        Prune(**options)


def test_a_goal_without_samples_is_refused_before_the_work():
    with pytest.raises(UsageError, match="speedup needs samples"):
        Prune(speedup=2.0).check_given(calibrated=False)


def test_a_drop_without_a_metric_and_a_shape_that_does_not_run_are_refused(tiny_bert):
    ctx = Context(samples=random_samples(8))
    with pytest.raises(UsageError, match="there is no metric that could drop"):
        Prune(max_drop=0.01, shapes="1x8").check(tiny_bert, ctx)
    with pytest.raises(UsageError, match="cannot read shape"):
        Prune(speedup=2.0, shapes="8").check(tiny_bert, ctx)


def test_what_no_removal_reaches_is_refused(tiny_bert, tiny_samples):
    with pytest.raises(UsageError, match="times as fast at most"):
        pruned(tiny_bert, tiny_samples, speedup=3.0, shapes="1x8", only="*layer.0*")
    with pytest.raises(UsageError, match=r"at least .* stay when all heads and FFN nodes go"):
        pruned(tiny_bert, tiny_samples, size="1kB")


def test_nodes_without_names_are_pruned_alike(tiny_bert, tiny_samples):
    twin = tiny_bert.clone()
    for node in twin.graph:
        node.name = None
    for model in (tiny_bert, twin):
        pruned(model, tiny_samples, keep=0.6, round_to=1)
    assert sizes(tiny_bert, "ffn") == sizes(twin, "ffn")
    assert distance(outputs(tiny_bert, tiny_samples), outputs(twin, tiny_samples)) < 1e-6


def test_tensors_that_are_inputs_with_a_value_of_their_own_need_not_be_given(tiny_samples):
    proto = Bert().model()
    proto.graph.input.extend(
        onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        for tensor in proto.graph.initializer
        if "LayerNorm" in tensor.name
    )
    models = [Model(ir.from_proto(each)) for each in (Bert().model(), proto)]
    notes = [pruned(model, tiny_samples, keep=0.8, round_to=1).notes for model in models]
    assert notes[0][:2] == notes[1][:2]
    assert "asked for" in notes[0][0]


def test_factors_are_pruned_to_a_goal_too(tiny_bert, tiny_samples):
    Kron(ratio=0.9).run(tiny_bert, Context(samples=tiny_samples))
    before, answers = linear_parameters(tiny_bert), outputs(tiny_bert, tiny_samples)
    pruned(tiny_bert, tiny_samples, keep=0.8, round_to=1)
    assert linear_parameters(tiny_bert) <= 0.8 * before
    assert [a.shape for a in outputs(tiny_bert, tiny_samples)] == [a.shape for a in answers]


def test_a_refit_on_what_the_pruned_model_gives_loses_less_than_one_on_what_the_original_gave():
    model = Model(ir.from_proto(Bert(layers=4).model()))
    samples = random_samples(60)
    with Rewriter(model, Context()) as rw:
        blocks = blocks_of(rw, couplings(model), "*")
    planner = GoalPlanner(model, blocks, Context(samples=samples), "obs", 1, refit=True)
    removals = [Removal(c.block, c.order[: c.block.size // 2]) for c in planner.curves]
    one_after_the_other = planner.fitted(removals)
    alone = GoalPlanner(model, blocks, Context(samples=samples), "obs", 1, refit=False)
    assert one_after_the_other < 0.8 * alone.fitted(removals)


def test_the_same_goal_gives_the_same_bytes(tiny_bert, tiny_samples, tmp_path):
    files = []
    for name in ("one", "two"):
        twin = tiny_bert.clone()
        pruned(twin, tiny_samples, speedup=1.4, shapes="1x8")
        files.append(twin.save(tmp_path / f"{name}.onnx").read_bytes())
    assert files[0] == files[1]


def test_a_plan_that_is_pinned_is_made_again_where_other_times_are_measured(
    tiny_bert, tiny_samples, tmp_path, monkeypatch
):
    prune = Prune(speedup=1.5, shapes="1x8", round_to=1)
    models = first, again, free = [tiny_bert.clone() for _ in range(3)]
    record = prune.run(first, Context(samples=tiny_samples))

    def elsewhere(models, feeds, ctx, rounds):
        """There FFNs are dear."""
        return [Measurement({name: [_dear(model)] for name, model in models.items()}) for _ in feeds]

    monkeypatch.setattr(table, "timed", elsewhere)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    told = prune.run(again, Context(samples=tiny_samples, pinned={str(prune): record.plan}))
    prune.run(free, Context(samples=tiny_samples))
    files = [model.save(tmp_path / f"{i}.onnx").read_bytes() for i, model in enumerate(models)]
    assert files[0] == files[1] != files[2]
    assert (told.notes, told.plan) == (record.notes, record.plan)


def _dear(model):
    return (
        sum(each.parameters * (9.0 if "intermediate" in each.name else 1.0) for each in linears(model)) + 1.0
    )


@pytest.mark.parametrize("text", ["{}", "[]", "no", '{"notes": [], "stays": {"x": "ff"}}'])
def test_a_plan_of_another_model_is_refused(tiny_bert, tiny_samples, text):
    prune = Prune(speedup=1.5, shapes="1x8")
    with pytest.raises(DataError, match=r"remove \[pinned\] from the recipe"):
        prune.run(tiny_bert, Context(samples=tiny_samples, pinned={str(prune): text}))


@pytest.mark.parametrize("importance", ["auto", "fisher"])
def test_a_goal_on_few_samples_tells_the_count_that_would_do(tiny_bert, importance):
    if importance == "fisher":
        pytest.importorskip("torch")
    record = pruned(tiny_bert, random_samples(3), keep=0.8, importance=importance)
    (told,) = [note for note in record.notes if note.startswith("too little data")]
    enough = {"auto": r"the refit of 64 features saw \d+ tokens; 128 would do", "fisher": "200 would do"}
    assert re.search(enough[importance], told)


@pytest.mark.parametrize("fails", [False, True])
def test_the_first_process_decides_for_all(tiny_bert, tiny_samples, tmp_path, monkeypatch, fails):
    """Others measure other times, or have none; a refusal of the first is one of all."""
    prune = Prune(speedup=3.0 if fails else 1.5, shapes="1x8", round_to=1, only="*layer.0*" if fails else "*")
    sent = []

    class Group:
        def __init__(self):
            self.rank = len(sent)

        def from_first(self, value):
            sent.append(value)
            return sent[0]

    monkeypatch.setattr(prune_module, "processes", lambda: 2)
    monkeypatch.setattr("graphcompress.training.group.ProcessGroup", Group)
    files = []
    for number in range(2):
        model = tiny_bert.clone()
        if fails:
            with pytest.raises(UsageError, match="times as fast at most"):
                prune.run(model, Context(samples=tiny_samples))
        else:
            prune.run(model, Context(samples=tiny_samples))
        files.append(model.save(tmp_path / f"{number}.onnx").read_bytes())

        def never(*given):
            raise AssertionError("measured by another process than the first")

        monkeypatch.setattr(table, "timed", never)
    assert files[0] == files[1]
    assert sent[1] == ("", None)
