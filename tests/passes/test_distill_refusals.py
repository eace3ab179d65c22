"""What ends distill early or stops it before any work, each with advice."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from conftest import random_samples
from distilled_models import classifier, labelled, other_bert, trained, weights

torch = pytest.importorskip("torch")

from graphcompress.errors import (  # noqa: E402
    DataError,
    TrainingError,
    UnsupportedModelError,
    UsageError,
)
from graphcompress.graph.model import Model  # noqa: E402
from graphcompress.measure.metrics import metric  # noqa: E402
from graphcompress.passes.distill import Distill  # noqa: E402
from graphcompress.pipeline.pipeline import Pipeline  # noqa: E402
from graphcompress.plugin.context import Context, Training  # noqa: E402
from graphcompress.training import loop  # noqa: E402


def test_a_loss_that_is_no_number_ends_with_advice_and_the_last_good_weights(tiny_bert: Model) -> None:
    ctx = Context(training=Training(random_samples(24)), original=other_bert())
    with pytest.raises(TrainingError, match=r"no longer a number at step \d+ of 40.*Try lr="):
        Distill(steps=40, lr=1e30, batch=8, warmup=0.0).run(tiny_bert, ctx)
    assert all(np.isfinite(array).all() for array in weights(tiny_bert).values())


def test_memory_that_runs_out_ends_with_advice(tiny_bert: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(loop, "terms_of", refuse)
    ctx = Context(training=Training(random_samples(24)), original=tiny_bert.clone())
    with pytest.raises(TrainingError, match=r"memory ran out on 8 samples.*batch=4 accumulate=2, or checkp"):
        Distill(steps=4, batch=8).run(tiny_bert, ctx)


def test_patience_ends_a_run_that_does_not_get_better(tiny_bert: Model) -> None:
    step = "distill{steps=30 lr=0.0 batch=8 evaluations=30 patience=2}"
    (record,) = trained(tiny_bert, step, Training(random_samples(24)))
    assert "the best after step 0 of 2" in record.notes[0]


@pytest.mark.parametrize("wrong", [3, -1, "yes", 0.5, True])
def test_a_label_outside_the_classes_stops_before_any_work(wrong: object) -> None:
    training = Training(labelled([0, 1, wrong]))
    problem = r"column 'label' row 3 is .*, .* the classes 0 to 2"
    with pytest.raises(DataError, match=problem):
        Distill().run(classifier(), Context(training=training, original=classifier()))
    with pytest.raises(DataError, match=problem):
        Pipeline.parse("kron,distill").run(classifier(), Context(training=training))


def test_samples_without_the_column_of_the_metric() -> None:
    samples = labelled([0, 1, 2])
    bare = dataclasses.replace(samples, columns={})
    training = Training(samples, held_out=bare, metric=metric("accuracy"))
    with pytest.raises(DataError, match="needs a column label"):
        Pipeline.parse("kron,distill").run(classifier(), Context(training=training))


def test_a_teacher_for_another_task(tiny_bert: Model) -> None:
    for teacher, problem in (
        (classifier(classes=4), "of the teacher has shape"),
        (tiny_bert, "the teacher has no output 'logits'"),
    ):
        samples = random_samples(4, vocabulary=20)
        ctx = Context(training=Training(samples, teacher=teacher), original=classifier())
        with pytest.raises(UsageError, match=problem):
            Distill().run(classifier(), ctx)


def test_no_loss_is_left() -> None:
    ctx = Context(training=Training(labelled([0, 1, 2])), original=classifier())
    with pytest.raises(UsageError, match="no loss is left"):
        Distill(outputs=0, labels=0).run(classifier(), ctx)


def test_an_operator_without_a_counterpart_is_named() -> None:
    model = classifier()
    node = next(iter(model.graph))
    node.domain, node.op_type = "com.example", "Mystery"
    ctx = Context(training=Training(labelled([0, 1])), original=model.clone())
    with pytest.raises(UnsupportedModelError, match=r"com\.example"):
        Distill().run(model, ctx)


def test_without_samples_to_train_on(tiny_bert: Model) -> None:
    with pytest.raises(UsageError, match="give samples to train on with --train"):
        Pipeline.parse("distill").run(tiny_bert, Context())
    record = Distill().run(tiny_bert, Context())
    assert record.notes == ("nothing to learn from; give samples with --train",)
