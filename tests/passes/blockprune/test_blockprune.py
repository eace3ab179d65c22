"""blockprune trains, reaches what was asked, cuts, and gives the same bytes again."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from bert import Bert
from conftest import random_samples
from onnx import TensorProto, helper
from several_processes import two_processes, weights

torch = pytest.importorskip("torch")

from graphcompress.analysis.linears import linears  # noqa: E402
from graphcompress.coupling.couplings import couplings  # noqa: E402
from graphcompress.errors import DataError, GraphCompressError, UsageError  # noqa: E402
from graphcompress.graph.model import Model  # noqa: E402
from graphcompress.instruments.score_masks.attached import AttachedMasks  # noqa: E402
from graphcompress.latency import table  # noqa: E402
from graphcompress.measure.cache import MeasurementCache  # noqa: E402
from graphcompress.measure.timing import Measurement  # noqa: E402
from graphcompress.passes.blockprune import blockprune as blockprune_module  # noqa: E402
from graphcompress.passes.blockprune import speed  # noqa: E402
from graphcompress.passes.blockprune.blockprune import PRESETS, BlockPrune  # noqa: E402
from graphcompress.pipeline.pipeline import PassRecord, Pipeline  # noqa: E402
from graphcompress.plugin.context import Context, Training  # noqa: E402
from graphcompress.plugin.instrument import Step  # noqa: E402
from graphcompress.training import checkpoints  # noqa: E402

SHORT = "steps=20 batch=8 evaluations=2 score_lr=0.2"
QUICK = f"blockprune{{attention=8x8 density=0.4 {SHORT}}}"


def bert() -> Model:
    return Model(ir.from_proto(Bert(hidden=64, ffn=128).model()))


def pruned(model: Model, passes: str, **context: object) -> list[PassRecord]:
    given = {"training": Training(random_samples(32)), **context}
    names = [step.name for step in Pipeline.parse(passes).passes]
    return list(Pipeline.parse(passes).run(model, Context(samples=random_samples(8), **given), allow=names))


def masked(model: Model) -> list[np.ndarray]:
    """Dense weights of all linears of the blocks."""
    return [each.dense() for each in linears(model, "encoder*")]


def density(model: Model, *, compact: bool = False) -> float:
    """Share of the parameters of the linears of ``bert()`` that are left."""
    total = sum(weight.size for weight in masked(bert()))
    count = sum(weight.size if compact else np.count_nonzero(weight) for weight in masked(model))
    return count / total


@pytest.mark.parametrize(
    "options",
    [
        "attention=8x8",
        "attention=8x8 ffn=8x8",
        "attention=joint-8x8 selection=threshold",
        "attention=8x8 selection=topk ema=0.9",
        "attention=8x8 selection=magnitude",
        "attention=rows selection=l0",
        "attention=dims ffn=rows selection=topk",
    ],
)
def test_the_density_that_was_asked_for_is_reached(options: str) -> None:
    model = bert()
    measured = "ema" in options or "magnitude" in options
    length = SHORT.replace(" score_lr=0.2", "") if measured else SHORT
    (record,) = pruned(model, f"blockprune{{{options} density=0.3 {length}}}")
    assert density(model) == pytest.approx(0.3, rel=0.02)
    assert record.size.parameters < 0.75 * bert().parameters
    assert "density 30." in record.notes[0] or "density 29." in record.notes[0]


@pytest.mark.parametrize("schedule", ["steps=8 cooldown=0", "steps=2"])
def test_a_run_without_a_step_of_cool_down_reaches_its_density(schedule: str) -> None:
    model = bert()
    pruned(model, f"blockprune{{attention=8x8 density=0.3 {schedule} batch=8 evaluations=2}}")
    assert density(model) == pytest.approx(0.3, rel=0.02)


def test_filled_weights_are_dense_and_as_many_as_asked_for() -> None:
    model = bert()
    (record,) = pruned(model, f"blockprune{{preset=hybrid-filled attention=8x8 density=0.3 {SHORT}}}")
    head = 4 * 64 * 16 / sum(weight.size for weight in masked(bert()))
    assert density(model, compact=True) == pytest.approx(0.3, abs=head / 2)
    assert density(model) == density(model, compact=True)
    assert "zeros filled and trained" in record.notes[-2]
    assert record.results == record.notes[-1:]  # of the second training
    assert record.notes[-1].startswith(list(record.curves)[-1])
    assert [[step for step, _ in points] for points in record.curves.values()] == [[0, 10, 20], [0, 5, 10]]


def test_what_went_as_a_whole_is_not_filled_again() -> None:
    model = bert()
    options = "preset=hybrid-filled attention=8x8 selection=topk ema=0.9 density=0.02"
    pruned(model, f"blockprune{{{options} steps=20 batch=8 evaluations=2}}")
    assert len([group for group in couplings(model) if group.kind in ("ffn", "head")]) < 4
    assert density(model) == density(model, compact=True)


def test_the_size_that_was_asked_for_is_reached() -> None:
    model = bert()
    pruned(model, f"blockprune{{attention=8x8 size=0.5 {SHORT}}}")
    compact = sum(weight.size for weight in masked(model))
    others = bert().parameters - sum(weight.size for weight in masked(bert()))
    head = 4 * 64 * 16  # what goes at once
    # Biases of what was cut go too, which the size does not count on.
    assert compact + others == pytest.approx(0.5 * bert().parameters, abs=head / 2)
    assert model.parameters <= 0.5 * bert().parameters + head / 2


def test_a_size_below_what_is_not_masked_is_refused_before_the_first_step() -> None:
    with pytest.raises(UsageError, match=r"are not masked .* so that no size below 0.17"):
        pruned(bert(), f"blockprune{{size=0.1 {SHORT}}}")


def known_times():
    """Of ten parts heads take three, FFNs five, and what is cut takes half; and what was timed."""
    taken: list[list[str]] = []

    def times(models, feeds, ctx, rounds):
        taken.append(list(models))
        parts = {"whole": 10.0, "before": 10.0, "after": 5.0}
        sizes = [int(name) for name in models if name.isdigit()]
        each = (1.5 if max(sizes, default=0) < 64 else 2.5) / max(sizes, default=1)  # of two layers
        return [Measurement({name: [parts.get(name) or int(name) * each] for name in models}) for _ in feeds]

    return times, taken


def test_a_speed_is_reached_by_what_heads_and_nodes_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    times, taken = known_times()
    monkeypatch.setattr(table, "timed", times)
    for _ in range(2):
        model = bert()
        (record,) = pruned(model, f"blockprune{{preset=struct speedup=2 shape=2x9 {SHORT}}}")
    widths = {
        part: sum(each.out_features for each in linears(model, f"*{part}*"))
        for part in ("query", "intermediate")
    }
    left = 2 + 3 * widths["query"] / 128 + 5 * widths["intermediate"] / 256
    assert left == pytest.approx(10 / 2, abs=3 / 8 / 2)  # half a head
    assert "heads take 30% and FFNs 50% of the time at 2x9: 37.5% of that may stay" in record.notes
    assert record.results[-1].startswith("2.00 (2.00 to 2.00) times as fast at 2x9 as before, of 2 asked for")
    assert [names[0] for names in taken] == ["whole", "1", "1", "before"]  # kept for the second
    with pytest.raises(UsageError, match=r"becomes 4.63 times as fast at most"):
        pruned(bert(), f"blockprune{{preset=struct speedup=5 shape=2x9 {SHORT}}}")


def test_only_what_is_masked_counts(
    tiny_bert: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(table, "timed", known_times()[0])
    given = Context(samples=random_samples(8)), "1x8"
    masked = {each.weight.name or "" for each in linears(tiny_bert, "*layer.0*intermediate*")}
    found = speed.costs(tiny_bert, *given, masked, MeasurementCache())
    assert (found.attention, found.ffn) == pytest.approx((0.0, 0.25))
    assert speed.costs(tiny_bert, *given, set(), MeasurementCache()) == speed.Costs(0.0, 0.0)


@pytest.mark.parametrize(("shape", "said"), [("8x", "cannot read shape"), ("2x500", "positions for 64")])
def test_a_shape_that_does_not_fit_is_refused_before_other_passes_work(shape: str, said: str) -> None:
    given = Context(samples=random_samples(8), training=Training(random_samples(32)))
    with pytest.raises(GraphCompressError, match=said):
        BlockPrune(speedup=2.0, shape=shape).check(bert(), given)


def test_a_penalty_prunes_the_more_the_larger_it_is() -> None:
    left = []
    for penalty in (1, 1000):
        model = bert()
        (record,) = pruned(
            model, f"blockprune{{attention=8x8 penalty={penalty} steps=60 batch=8 score_lr=0.2}}"
        )
        left.append(density(model))
    assert left[1] < 0.5 * left[0]
    assert record.notes[0].startswith("density ")


def test_struct_cuts_heads_and_nodes_and_leaves_no_zeros() -> None:
    model = bert()
    pruned(model, f"blockprune{{preset=struct density=0.3 {SHORT}}}")
    groups = [group.size for group in couplings(model) if group.kind in ("head", "ffn")]
    assert sum(groups) < 0.5 * 2 * (4 + 128)
    assert density(model) == density(model, compact=True)


def test_a_target_that_folds_no_expressions_gets_zeros() -> None:
    from graphcompress.plugin.capabilities import Capabilities

    model = bert()
    pruned(model, QUICK, capabilities=Capabilities(constant_expressions=False))
    assert all(each.weight.is_initializer() for each in linears(model))
    assert density(model) == pytest.approx(0.4, rel=0.02)


def test_distill_and_int8_after_it_leave_blocks_that_are_not_stored_zero() -> None:
    model = bert()
    pruned(model, f"{QUICK},distill{{steps=6 batch=8}},int8")
    blocks = [each for each in linears(model) if "Gather" in _operators(each.weight)]
    assert blocks
    for each in blocks:
        array = each.dense()
        grid = array.reshape(array.shape[0] // 8, 8, array.shape[1] // 8, 8).any(axis=(1, 3))
        assert not grid.all()


def _operators(value: ir.Value) -> list[str]:
    from graphcompress.graph.expressions import expression_nodes

    return [node.op_type for node in expression_nodes(value)]


def test_the_progress_tells_the_density_of_each_kind() -> None:
    seen: list[str] = []
    pruned(bert(), QUICK, progress=lambda text, done, total, detail="": seen.append(detail))
    told = [detail for detail in seen if " attention " in detail]
    assert "attention 100.0% ffn 100.0%" in told[0]
    assert "attention 100.0% ffn 100.0%" not in told[-1]


def score_gradients(model: Model, options: str) -> torch.Tensor:
    """Direction of the gradient of the scores in the first step; its length is clipped with the weights'."""
    found: list[torch.Tensor] = []

    def first(work: AttachedMasks, step: Step) -> None:
        found.append(torch.cat([each.values.grad.flatten() for each in work.scores]))
        raise KeyboardInterrupt

    passes = f"blockprune{{attention=8x8 {SHORT} {options}}}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AttachedMasks, "after_step", first)
        with pytest.raises(KeyboardInterrupt):
            pruned(model.clone(), passes, training=other_teacher())
    return found[0] / found[0].norm()


def test_hidden_states_do_not_train_scores_where_they_are_kept_apart(tiny_bert: Model) -> None:
    without = score_gradients(tiny_bert, "hidden=0")
    assert torch.allclose(score_gradients(tiny_bert, "apart=true"), without, atol=1e-5)
    assert not torch.allclose(score_gradients(tiny_bert, "apart=false"), without, atol=1e-2)


def test_hidden_states_train_scores_that_nothing_else_would(tiny_bert: Model) -> None:
    apart, together = (score_gradients(tiny_bert, f"outputs=0 labels=0 apart={x}") for x in ("true", "false"))
    assert torch.equal(apart, together)
    assert bool(torch.isfinite(apart).all())


def other_teacher() -> Training:
    return Training(random_samples(32), teacher=Model(ir.from_proto(Bert(seed=1).model())))


def test_an_interrupted_run_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "SECONDS", 0.0)
    passes = f"blockprune{{preset=hybrid-filled attention=8x8 density=0.4 selection=l0 {SHORT}}}"
    training = Training(random_samples(32), folder=tmp_path / "training")
    whole = bert()
    pruned(whole, passes, training=dataclasses.replace(training, folder=None))
    for part, stop in (("with masks, 1 of 2", 13), ("filled, 2 of 2", 5)):

        def interrupt(
            text: str, done: int, total: int, detail: str = "", part: str = part, stop: int = stop
        ) -> None:
            if text == f"blockprune: {part}" and done == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            pruned(bert(), passes, training=training, progress=interrupt)
    halves = bert()
    pruned(halves, passes, training=training)
    one, other = (model.save(tmp_path / f"{name}.onnx") for name, model in (("a", whole), ("b", halves)))
    assert one.read_bytes() == other.read_bytes()


def test_two_processes_reach_the_weights_of_one(tiny_bert_path: Path, tmp_path: Path) -> None:
    options = "attention=8x8 preset=hybrid-filled density=0.5 steps=6 lr=0.001 batch=6 evaluations=1"
    options += " instruments=plain-operators"
    two_processes(tiny_bert_path, tmp_path, f"prune{{ffn=0.5}},blockprune{{{options}}}")


def test_nothing_is_done_without_samples_to_train_on(tiny_bert: Model) -> None:
    before = weights(tiny_bert)
    record = BlockPrune().run(tiny_bert, Context())
    assert record.notes == ("nothing to learn from; give samples with --train",)
    assert all(np.array_equal(array, before[name]) for name, array in weights(tiny_bert).items())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"density": 0.5, "size": 0.5}, "density and size are two targets"),
        ({"epochs": 0.0}, "trains nothing"),
        ({"shape": "1x16"}, "no speedup is asked for"),
        ({"steps": 5, "epochs": 2.0}, "steps say how long"),
        ({"hidden": 0.0, "apart": False}, "leaves the hidden states out"),
        ({"outputs": 0.0, "temperature": 3.0}, "leaves the outputs out"),
        ({"attention": "none", "ffn": "none"}, "nothing is scored"),
        ({"ffn": "16"}, "32x32 or joint-32x32"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        BlockPrune(**options).check_given(calibrated=True)


def test_the_options_of_a_training_arrive_in_its_settings() -> None:
    given = {
        "steps": 7,
        "lr": 0.5,
        "warmup": 0.3,
        "batch": 5,
        "accumulate": 3,
        "temperature": 4.0,
        "outputs": 0.6,
        "hidden": 0.7,
        "labels": 0.8,
        "evaluations": 2,
        "bf16": True,
        "checkpointing": True,
    }
    settings = BlockPrune(**given).settings(BlockPrune().masks(0.25))
    assert {name: getattr(settings, name) for name in given} == given
    assert BlockPrune(epochs=0.5).settings(BlockPrune().masks(0.25)).epochs == 0.5
    masks = {"flat": 0.1, "cooldown": 0.2, "score_lr": 0.3, "threshold": 0.4, "only": "*x*", "apart": False}
    pruning = BlockPrune(**masks)
    (instrument,) = pruning.settings(pruning.masks(0.25)).instruments
    assert {name: getattr(instrument, name) for name in masks} == masks
    assert instrument.density == 0.25


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_what_the_paper_scores(name: str) -> None:
    masks = BlockPrune(preset=name).masks(0.5)
    assert (masks.attention, masks.ffn) == tuple(PRESETS[name].values())
    assert masks.compact == (name == "hybrid-filled")
    assert Pipeline.parse(f"blockprune{{preset={name}}}").passes == (BlockPrune(preset=name),)


def test_a_recipe_holds_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """On another machine, or once the cache is empty, the same densities are trained for."""
    monkeypatch.setattr(blockprune_module, "costs", lambda *given: speed.Costs(0.3, 0.5))
    monkeypatch.setattr(blockprune_module, "gained", lambda *given: ["2.00"])
    text = f"blockprune{{preset=struct speedup=2 shape=2x9 {SHORT}}}"
    first, again = bert(), bert()
    (record,) = pruned(first, text)
    assert json.loads(record.plan) == {"attention": 0.3, "ffn": 0.5}
    monkeypatch.setattr(blockprune_module, "costs", None)
    (other,) = pruned(again, text, pinned={record.text: record.plan})
    assert other.plan == record.plan
    assert all(np.array_equal(array, weights(again)[name]) for name, array in weights(first).items())
    with pytest.raises(DataError, match=r"remove \[pinned\] from the recipe"):
        pruned(bert(), text, pinned={record.text: '{"heads": 1}'})


def test_masks_of_its_own_are_not_replaced_by_those_of_an_instrument() -> None:
    with pytest.raises(UsageError, match="score-masks of its own"):
        BlockPrune(instruments="score-masks{density=0.9}").check_given(calibrated=True)


def test_a_model_that_answers_in_integers_learns_from_its_hidden_states() -> None:
    proto = Bert(heads=8).model()
    proto.graph.node.append(helper.make_node("ArgMax", ["last_hidden_state"], ["best"], axis=2))
    del proto.graph.output[:]
    proto.graph.output.append(
        helper.make_tensor_value_info("best", TensorProto.INT64, ["batch", "sequence", 1])
    )
    model = Model(ir.from_proto(proto))
    (record,) = pruned(model, f"blockprune{{attention=8x8 density=0.5 {SHORT}}}")
    assert any(note.startswith(("density 50.", "density 49.")) for note in record.notes)
