"""distill: a student that was made smaller learns its teacher's answers."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from bert import Bert
from conftest import random_samples
from distilled_models import QUICK, classifier, labelled, other_bert, trained, weights
from typer.testing import CliRunner

torch = pytest.importorskip("torch")

from graphcompress.analysis.parameters import BESIDE_WEIGHTS  # noqa: E402
from graphcompress.cli import app  # noqa: E402
from graphcompress.data.samples import Samples  # noqa: E402
from graphcompress.errors import (  # noqa: E402
    ContractError,
    UsageError,
)
from graphcompress.graph.model import Model  # noqa: E402
from graphcompress.graph.runner import Runner  # noqa: E402
from graphcompress.measure.metrics import metric  # noqa: E402
from graphcompress.passes.distill import Distill  # noqa: E402
from graphcompress.pipeline.pipeline import Pipeline  # noqa: E402
from graphcompress.plugin.context import Context, Training  # noqa: E402
from graphcompress.training.evaluation import Evaluation  # noqa: E402

ENOUGH = "distill{steps=60 lr=0.005 batch=16 evaluations=3}"


def sentences(count: int, seed: int = 1) -> Samples:
    """Random token ids, 4 to 19 long."""
    rng = np.random.default_rng(seed)
    return Samples(
        [
            {
                "input_ids": rng.integers(1, 100, length),
                "attention_mask": np.ones(length, np.int64),
                "token_type_ids": np.zeros(length, np.int64),
            }
            for length in rng.integers(4, 20, count)
        ]
    )


def test_a_pruned_student_comes_closer_to_its_teacher_without_labels(tiny_bert: Model) -> None:
    records = trained(tiny_bert, f"prune{{ffn=0.5 heads=0.5}},{ENOUGH}", Training(sentences(400)))
    assert records[-1].total.sqnr_db > records[0].total.sqnr_db + 1
    assert len(records[-1].touched) > 10
    assert not [item for item in records[-1].skipped if "no hidden loss" in item.reason]
    assert "loss on held-out samples" in records[-1].notes[0]


@pytest.mark.parametrize("passes", ["kron{rank=1 max_error=1}", "prune{layers=1}"])
def test_factors_and_fewer_layers_learn_too(tiny_bert: Model, passes: str) -> None:
    terms = "hidden=1 ffn=1 scores=1 embedding=1"
    step = f"distill{{steps=6 lr=0.003 batch=8 evaluations=1 {terms}}}"
    ctx = Context(samples=random_samples(16, seed=3), training=Training(random_samples(32)))
    before, after = Pipeline.parse(f"{passes},{step}").run(
        tiny_bert, ctx, allow=[passes.partition("{")[0], "distill"]
    )
    assert after.total.sqnr_db > before.total.sqnr_db


def test_after_int8_it_is_quantisation_aware(tiny_bert: Model) -> None:
    training = Training(sentences(400))
    step = "distill{steps=40 lr=0.001 batch=16 evaluations=4}"
    quantised, after = trained(tiny_bert, f"int8,{step}", training)
    assert after.total.sqnr_db > quantised.total.sqnr_db
    kinds = {value.dtype.name for value in tiny_bert.initializers()}
    assert "INT8" in kinds


def test_a_trained_graph_is_quantised_afterwards(tiny_bert: Model) -> None:
    names = [record.text for record in trained(tiny_bert, f"{QUICK},int8", Training(random_samples(24)))]
    assert names[1].startswith("int8")


def test_labels_are_learned_where_the_data_have_them() -> None:
    model = classifier()
    samples = labelled([0, 1, 2, 1] * 8)
    training = Training(samples, held_out=samples, metric=metric("accuracy"))
    step = "distill{steps=60 lr=0.1 batch=16 outputs=0 hidden=0 labels=1}"
    ctx = Context(samples=training.samples, training=training)
    (record,) = Pipeline.parse(step).run(model, ctx, allow=("distill",))
    with Runner(model) as runner:
        answers = runner(training.samples.batch(range(32)))["logits"].argmax(-1)
    assert np.mean(answers == training.samples.columns["label"]) > 0.8
    assert "accuracy" in record.notes[0]


def test_only_the_chosen_weights_move() -> None:
    model = classifier()
    before = weights(model)
    Pipeline.parse("distill{steps=2 lr=0.1 hidden=0 only=weight}").run(
        model, Context(training=Training(labelled([0, 1] * 8))), allow=("distill",)
    )
    after = weights(model)
    assert np.array_equal(before["table"], after["table"])
    assert not np.array_equal(before["weight"], after["weight"])


def test_weights_that_stood_still_are_not_counted_as_trained(tiny_bert: Model) -> None:
    step = "distill{steps=60 lr=0.005 batch=16 evaluations=3 only=*dense*}"
    record = trained(tiny_bert, f"prune{{ffn=0.5 heads=0.5}},{step}", Training(sentences(400)))[-1]
    assert record.touched
    assert all("dense" in item.name for item in record.touched)
    assert {item.reason for item in record.skipped} - BESIDE_WEIGHTS == {"not one of those to train"}
    assert record.coverage < 0.6


def test_scales_are_learned_on_request(tiny_bert: Model) -> None:
    step = "distill{steps=20 lr=0.01 batch=16 evaluations=2 learn_scales=true only=*scale}"
    given = Training(sentences(100), teacher=other_bert())
    before = tiny_bert.clone()
    trained(before, "int8", given)
    trained(tiny_bert, f"int8,{step}", given)
    old, new = weights(before), weights(tiny_bert)
    scales = [name for name in new if name.endswith(".scale")]
    moved = [name for name in scales if not np.array_equal(new[name], old[name])]
    assert len(moved) > 10
    assert all(np.all(np.abs(new[name] / old[name] - 1) < 0.3) for name in moved)


def test_training_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="trains nothing; leave the pass out"):
        Distill(epochs=0)


def test_whatever_has_a_score_is_better_than_no_number(tiny_bert: Model) -> None:
    evaluation = object.__new__(Evaluation)
    error = type("Error", (type(metric("spearman")),), {"higher_is_better": False})()
    for chosen in (None, metric("spearman"), error):
        evaluation._metric = chosen
        assert evaluation.is_better(0.3, math.nan)
        assert not evaluation.is_better(math.nan, 0.3)
        assert not evaluation.is_better(math.nan, math.nan)
        assert evaluation.is_better(0.5, 0.3) == (chosen is not None and chosen.higher_is_better)


def test_bfloat16_comes_close(tiny_bert: Model) -> None:
    found = []
    for bf16 in ("false", "true"):
        copy = tiny_bert.clone()
        step = f"prune{{ffn=0.5}},distill{{steps=3 lr=0.001 batch=8 evaluations=1 bf16={bf16}}}"
        found.append(trained(copy, step, Training(sentences(24)))[-1].total.sqnr_db)
    assert found[1] == pytest.approx(found[0], abs=1.0)
    assert found[1] != found[0]


def test_another_teacher_is_matched_by_depth_and_what_has_no_counterpart_is_named(tiny_bert: Model) -> None:
    teacher = Model(ir.from_proto(Bert(layers=4, ffn=96, seed=5).model()))
    step = "distill{steps=4 lr=0.003 batch=8 evaluations=1 ffn=1 scores=1 embedding=1}"
    (record,) = trained(tiny_bert, step, Training(sentences(24), teacher=teacher))
    assert {item.reason for item in record.skipped} <= BESIDE_WEIGHTS
    wide = Model(ir.from_proto(Bert(heads=8, seed=5).model()))
    (record,) = trained(tiny_bert.clone(), step, Training(sentences(24), teacher=wide))
    assert {item.reason for item in record.skipped} - BESIDE_WEIGHTS == {
        "no scores loss: 4 wide at axis 1, the teacher's is 8"
    }


def test_the_command_line_trains_and_its_recipe_knows(tiny_bert_path: Path, tmp_path: Path) -> None:
    data = tmp_path / "train.npz"
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 100, (24, 9))
    np.savez(data, input_ids=ids, attention_mask=np.ones_like(ids), token_type_ids=np.zeros_like(ids))
    command = ["optimize", str(tiny_bert_path), "--passes", "prune{ffn=0.25},distill{steps=3 batch=8}"]
    command += ["--train", str(data), "--data", str(data), "--no-bench", "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*command, "--target", "cpu{measure=false}", "--verbose"])
    assert done.exit_code == 0, done.output
    assert "loss on held-out samples" in done.output
    assert f'train = "{data.as_posix()}"' in (tmp_path / "out" / "recipe.toml").read_text()
    assert [path.name for path in tmp_path.iterdir() if path.name != "train.npz"] == ["out"]
    refused = CliRunner().invoke(app, [*command[:2], "--passes", "kron", "--train", str(data)])
    assert "has none" in str(refused.exception)


def test_a_lossy_pass_is_judged_after_the_training(tiny_bert: Model) -> None:
    """A cut that breaks its contract stops the run, with a distill behind it only if it mends too little."""
    with pytest.raises(ContractError, match="prune"):
        Pipeline.parse("prune{ffn=0.9}").run(tiny_bert.clone(), Context())
    still = "prune{ffn=0.9},distill{steps=1 lr=0 batch=4}"
    with pytest.raises(ContractError, match=r"prune.*after distill"):
        Pipeline.parse(still).run(tiny_bert.clone(), Context(training=Training(random_samples(8))))
    mended = "prune{ffn=0.9},distill{steps=120 lr=0.01 batch=16 warmup=0.05 outputs=4}"
    mended = mended.replace(",", ",simplify,")  # an exact pass between them is judged by itself
    records = Pipeline.parse(mended).run(
        tiny_bert, Context(samples=random_samples(16, seed=3), training=Training(random_samples(48)))
    )
    assert records[1].step.max_relative_error < 1e-4
    assert records[2].step.sqnr_db >= 10
    assert records[2].broken is None


def test_its_text_makes_it_again() -> None:
    text = "distill{steps=100 lr=0.0003 scores=1.0 bf16=true}"
    assert str(Pipeline.parse(text)) == str(Pipeline.parse(str(Pipeline.parse(text))))
    assert Pipeline.parse(text).passes == (Distill(steps=100, lr=3e-4, scores=1.0, bf16=True),)
